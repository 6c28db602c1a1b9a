"""Keypoints, the contrastive loss, training, and field models on disk."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from afield.errors import AfieldError
from afield.fields.correspondence import KeypointConfig, _best_chain, cyclic_keypoints, mutual_neighbours
from afield.fields.refine import RefineConfig
from afield.pretrain import KINDS, FieldModel, PretrainConfig, info_nce, retrieval_accuracy, train_field
from afield.scene import FeatureSource, Scene, Views

CHANNELS = 24
SMALL = PretrainConfig(steps=8, refine=RefineConfig(steps=5, hidden=16), keypoints=KeypointConfig(enough=40))


def family(count: int = 3, points: int = 150, noise: float = 0.1, seed: int = 0) -> tuple[list[Scene], Tensor]:
    """Scenes of the same shape and features in different order; `place[i, k]` is where point k is in scene i."""
    generator = torch.Generator().manual_seed(seed)
    shape = 0.1 * torch.nn.functional.normalize(torch.randn(points, 3, generator=generator), dim=-1)
    features = torch.sin(shape @ torch.randn(3, CHANNELS, generator=generator) * 30)
    scenes, places = [], []
    for index in range(count):
        order = torch.randperm(points, generator=generator)
        own = features + noise * torch.randn(features.shape, generator=generator)
        own = torch.nn.functional.normalize(own, dim=-1)[order]
        views = torch.nn.functional.normalize(own + 0.1 * torch.randn(2, points, CHANNELS, generator=generator), dim=-1)
        flat = torch.full((points, 3), 0.5)
        source = FeatureSource("test", 1, 14, 0.3)
        scenes.append(
            Scene(
                shape[order], own, flat, flat, source,
                name=f"scene{index}", views=Views(views.half(), torch.full((2, points), 0.5)),
            )
        )  # fmt: skip
        places.append(order.argsort())
    return scenes, torch.stack(places)


def stranger(points: int = 150) -> Scene:
    """A scene whose features have nothing to do with the others'."""
    features = torch.zeros(points, CHANNELS)
    features[:, 0] = 1 + 1e-3 * torch.arange(points)
    scene = family(1, points, seed=9)[0][0]
    return replace(scene, features=torch.nn.functional.normalize(features, dim=-1), name="stranger")


def test_info_nce_is_equation_6() -> None:
    features = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = (features / features.norm(dim=-1, keepdim=True)).tolist()

    def similarity(i: int, k: int, j: int, m: int) -> float:
        return math.exp(sum(a * b for a, b in zip(unit[i][k], unit[j][m], strict=True)) / 0.07)

    total = 0.0
    for i, j in itertools.product(range(3), repeat=2):
        for k in range(5):
            others = sum(similarity(i, k, j, m) for m in range(5) if m != k)
            total -= math.log(similarity(i, k, j, k) / others)
    assert float(info_nce(features, 0.07)) == pytest.approx(total / (9 * 5), rel=1e-9)


def test_retrieval_accuracy_counts_counterparts_in_other_scenes() -> None:
    eye = torch.eye(6)
    assert retrieval_accuracy(torch.stack((eye, eye))) == 1.0
    half = eye[[0, 1, 2, 4, 5, 3]]
    assert retrieval_accuracy(torch.stack((eye, half))) == pytest.approx(0.5)


def test_mutual_neighbours_by_brute_force() -> None:
    similar = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    for k in (1, 3):
        links = mutual_neighbours(similar, k)
        for i, j in itertools.product(range(7), range(9)):
            rank_j = int((similar[i] > similar[i, j]).sum())
            rank_i = int((similar[:, j] > similar[i, j]).sum())
            assert bool(links[i, j]) == (rank_j < k and rank_i < k)


def test_best_chain_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(6, 6, generator=generator) for _ in range(3)]
    for score in scores:
        score[torch.rand(6, 6, generator=generator) < 0.6] = -torch.inf
    for start in range(6):
        sums = {
            (start, b, c): float(scores[0][start, b] + scores[1][b, c] + scores[2][c, start])
            for b, c in itertools.product(range(6), repeat=2)
        }
        best = max(sums, key=sums.__getitem__)
        found = _best_chain(scores, start)
        if sums[best] == -math.inf:
            assert found is None
        else:
            assert found is not None
            assert tuple(found[1]) == best
            assert found[0] == pytest.approx(sums[best], abs=1e-5)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_keypoints_are_the_points_that_correspond(count: int) -> None:
    scenes, place = family(count, noise=0.02)
    keypoints, _ = cyclic_keypoints(scenes, KeypointConfig(enough=100), torch.Generator().manual_seed(0))
    assert len({len(k) for k in keypoints}) == 1
    shape = [place[i].argsort()[index] for i, index in enumerate(keypoints)]
    assert all(float((s == shape[0]).float().mean()) > 0.95 for s in shape)


def test_no_point_is_in_two_keypoints() -> None:
    """With noisy features the best chains of different points run into the same partners."""
    scenes, _ = family(3, noise=0.6)
    config = KeypointConfig(enough=1000, fewest=1)
    keypoints, neighbours = cyclic_keypoints(scenes, config, torch.Generator().manual_seed(0))
    assert neighbours == 20
    assert all(len(k.unique()) == len(k) for k in keypoints)


def test_too_many_keypoints_are_thinned_and_too_few_name_the_pair_at_fault() -> None:
    scenes, _ = family(3, noise=0.02)
    generator = torch.Generator().manual_seed(0)
    thinned, _ = cyclic_keypoints(scenes, KeypointConfig(most=20), generator)
    assert all(len(k) == 20 for k in thinned)
    config = KeypointConfig(neighbours=(1, 2))
    with pytest.raises(AfieldError, match=r"Only \d+ keypoints .* 'stranger' .*agree least, on \d+ points"):
        cyclic_keypoints([scenes[0], scenes[1], stranger()], config, generator)


@pytest.mark.parametrize("preset", ["default", "faithful", "block"])
def test_training_lowers_the_loss(preset: str) -> None:
    scenes, _ = family(2)
    config = replace(SMALL, steps=40, learning_rate=1e-2)
    model = train_field(scenes, preset=preset, channels=16, config=config, progress=False)
    assert len(model.losses) == 40
    assert sum(model.losses[-5:]) < sum(model.losses[:5])
    assert model.provenance["keypoints"] >= 32
    assert all(0 <= model.provenance["accuracy"][when] <= 1 for when in ("untrained", "trained"))


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bytes_and_a_round_trip_through_the_disk(kind: str, tmp_path: Path) -> None:
    scenes, _ = family(2)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train_field(scenes, kind=kind, channels=16, config=SMALL, seed=seed, progress=False).save(tmp_path / name)
    contents = {name: (tmp_path / name / "tensors.safetensors").read_bytes() for name in "abc"}
    assert contents["a"] == contents["b"]
    assert (contents["a"] == contents["c"]) == (kind in ("dff", "geometry"))
    loaded = FieldModel.load(tmp_path / "a")
    fresh = train_field(scenes, kind=kind, channels=16, config=SMALL, seed=3, progress=False)
    points = scenes[0].points[:9] + 0.01
    for geometry in (False, True):
        fields = [
            model.build(model.project(scenes[0]), geometry=geometry) for model in (loaded, fresh, fresh.to("cpu"))
        ]
        assert torch.equal(fields[0](points), fields[1](points))
        assert torch.equal(fields[0](points), fields[2](points))
    assert loaded.describe() == fresh.describe()
    assert loaded.kind in loaded.describe()


def test_sparsedff_without_views_is_dff_and_says_so() -> None:
    scenes = [replace(scene, views=None) for scene in family(2)[0]]
    refined, plain = (train_field(scenes, kind=kind, channels=16, progress=False) for kind in ("sparsedff", "dff"))
    points = scenes[0].points[:9] + 0.01
    fields = [model.build(model.project(scenes[0])) for model in (refined, plain)]
    assert torch.equal(fields[0](points), fields[1](points))
    assert "without refinement" in refined.describe()


def test_bad_requests_are_explained() -> None:
    scenes, _ = family(2)
    other = replace(scenes[1], source=FeatureSource("other", 1, 14, 0.3))
    requests: list[tuple[list[Scene], str, str, str]] = [
        (scenes, "nerf", "default", "no field of kind 'nerf'; choose one of dff, sparsedff"),
        (scenes, "attention", "best", "no preset 'best'.*default, faithful, block"),
        ([], "dff", "default", "at least one scene"),
        (scenes[:1], "attention", "default", "at least two captures"),
        ([scenes[0], other], "dff", "default", "test, layer 1.*other, layer 1"),
    ]
    for given, kind, preset, message in requests:
        with pytest.raises(AfieldError, match=message):
            train_field(given, kind=kind, preset=preset, progress=False)
    model = train_field(scenes, kind="dff", progress=False)
    with pytest.raises(AfieldError, match=r"features of test.*has features of other"):
        model.check_source(other)
    with pytest.raises(AfieldError, match=rf"{CHANNELS} channels, but 'scene0' has 5"):
        model.project(scenes[0].with_features(scenes[0].features[:, :5]))


@pytest.mark.parametrize("kind", ["attention", "sparsedff"])
def test_a_field_of_the_wrong_dimension_is_refused(kind: str, tmp_path: Path) -> None:
    scenes, _ = family(2)
    train_field(scenes, kind=kind, channels=16, config=SMALL, progress=False).save(tmp_path / "field")
    file = tmp_path / "field" / "tensors.safetensors"
    tensors = load_file(file)
    wrong = "decoder.key.weight" if kind == "attention" else "refiner.first.weight"
    save_file(tensors | {wrong: tensors[wrong][:, :-2].contiguous()}, file)
    with pytest.raises(AfieldError, match=rf"'{wrong.partition('.')[2]}' has shape \(.*\), but it has \(.*\)"):
        FieldModel.load(tmp_path / "field")
    save_file(tensors | {"basis": tensors["basis"][:-1].contiguous()}, file)
    with pytest.raises(AfieldError, match=r"mean \(24,\) and basis \(23, 16\) do not fit"):
        FieldModel.load(tmp_path / "field")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(AfieldError, match="truncated"):
        FieldModel.load(tmp_path / "field")


def test_an_unknown_kind_or_network_on_disk_is_refused(tmp_path: Path) -> None:
    scenes, _ = family(2)
    train_field(scenes, channels=16, config=SMALL, progress=False).save(tmp_path / "field")
    header_file = tmp_path / "field" / "afield.json"
    header = json.loads(header_file.read_text())
    for change, message in (
        ({"kind": "nerf"}, "unknown kind of field 'nerf'"),
        ({"decoder": {"layers": 12}}, "does not know.*layers"),
    ):
        header_file.write_text(json.dumps(header | change))
        with pytest.raises(AfieldError, match=message):
            FieldModel.load(tmp_path / "field")
