from __future__ import annotations

import pytest
import torch

from afield.fields.prepare import center_features, gate, instances, relevance
from afield.geometry import uniform_sphere
from afield.scene import FeatureSource, Scene

SOURCE = FeatureSource("color", 1, 224, 0.3)


def _blobs(spread: float, count: int = 120) -> Scene:
    """Three round objects 30 cm apart along x; each has features of its own direction, with some noise."""
    generator = torch.Generator().manual_seed(0)
    number = torch.arange(3).repeat_interleave(count)
    direction = uniform_sphere(count).repeat(3, 1)
    points = spread * direction + number[:, None] * torch.tensor([0.3, 0.0, 0.0])
    features = torch.eye(8)[number] + 0.2 * torch.randn(len(number), 8, generator=generator)
    features = torch.nn.functional.normalize(features, dim=-1)
    return Scene(points, features, torch.rand(len(number), 3, generator=generator), direction, SOURCE)


@pytest.mark.parametrize("spread", [0.02, 0.06])
def test_objects_apart_are_instances_however_dense_their_points(spread: float) -> None:
    label = instances(_blobs(spread))
    parts = [set(label[i * 120 : (i + 1) * 120].tolist()) for i in range(3)]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert len(set.union(*parts)) == 3


def _touching(third: bool) -> Scene:
    """Two balls that touch, unlike in features, and perhaps a third one apart."""
    generator = torch.Generator().manual_seed(0)
    direction = uniform_sphere(800).expand(3, 800, 3)
    center = torch.tensor([[0.0, 0.0, 0.0], [0.086, 0.0, 0.0], [0.4, 0.0, 0.0]])[:, None]
    count = 3 if third else 2
    points = (center + 0.04 * direction)[:count].reshape(-1, 3)
    kind = torch.eye(8)[:count].repeat_interleave(800, dim=0)
    features = torch.nn.functional.normalize(kind + 0.4 + 0.1 * torch.randn(len(kind), 8, generator=generator), dim=-1)
    return Scene(points, features, torch.rand(len(kind), 3), direction[:count].reshape(-1, 3), SOURCE)


def test_objects_that_touch_are_told_apart_by_their_features() -> None:
    label = instances(_touching(third=True))
    assert len(label.unique()) == 3
    for number in range(3):
        own = label[number * 800 : (number + 1) * 800]
        assert float((own == own.mode().values).float().mean()) > 0.97


def test_a_single_cluster_is_never_divided() -> None:
    assert len(instances(_touching(third=False)).unique()) == 1


def test_one_object_among_others_is_not_divided() -> None:
    """The same two balls with features that change smoothly across both are one thing."""
    scene = _touching(third=True)
    along = scene.points[:, :1] / 0.08
    smooth = torch.cat((0.5 + 0.2 * along, 0.5 - 0.2 * along, torch.zeros(2400, 6)), dim=-1)
    far = (scene.points[:, 0] > 0.3)[:, None]
    features = torch.where(far, torch.eye(8)[5], torch.nn.functional.normalize(smooth, dim=-1))
    assert len(instances(scene.with_features(features)).unique()) == 2


def test_instances_do_not_depend_on_the_order_of_points() -> None:
    scene = _blobs(0.03)
    order = torch.randperm(360, generator=torch.Generator().manual_seed(1))
    same = instances(scene)[:, None] == instances(scene)[None]
    turned = instances(scene.select(order))
    assert torch.equal(turned[:, None] == turned[None], same[order][:, order])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_gate_keeps_the_whole_object_that_resembles_the_region(number: int) -> None:
    scene = _blobs(0.03)
    wanted = torch.eye(8)[number : number + 1]
    kept = gate(scene, relevance(scene, wanted))
    assert len(kept.points) == 120
    torch.testing.assert_close(kept.points, scene.points[number * 120 : (number + 1) * 120])


def test_stray_points_are_never_the_object() -> None:
    scene = _blobs(0.03)
    stray = scene.select(torch.arange(3))
    moved = torch.tensor([0.0, 1.0, 0.0])
    scores = torch.cat((torch.linspace(0, 1, 360), torch.full((3,), 5.0)))
    both = Scene(
        torch.cat((scene.points, stray.points + moved)),
        torch.cat((scene.features, stray.features)),
        torch.cat((scene.colors, stray.colors)),
        torch.cat((scene.normals, stray.normals)),
        SOURCE,
    )
    assert float(gate(both, scores).points[:, 1].max()) < 0.5


def test_centering_removes_what_all_points_share() -> None:
    scene = _blobs(0.03)
    shared = scene.with_features(torch.nn.functional.normalize(scene.features + 5.0, dim=-1))
    centered = center_features(shared).features
    torch.testing.assert_close(centered.norm(dim=-1), torch.ones(360))
    before = (shared.features[:120] @ shared.features[120:240].T).mean()
    after = (centered[:120] @ centered[120:240].T).mean()
    assert float(before) > 0.9
    assert float(after) < 0.0
