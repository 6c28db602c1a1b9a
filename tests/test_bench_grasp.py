"""The grasp benchmark's arithmetic, manifest and scenes; the trials themselves are a slow test."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from afield.artifacts import write_json
from afield.benchmark.grasp import ablation
from afield.benchmark.grasp.manifest import Manifest, read_manifest
from afield.benchmark.grasp.methods import COLUMNS, METHODS
from afield.benchmark.grasp.prepare import (
    ABSENT,
    Bench,
    absent_scene,
    demo_scene,
    demonstration_content,
    demonstration_file,
    fingerprint,
    finished,
    is_done,
    make_likeness,
    place_demonstration,
    pretraining,
    trial_mark,
    trial_scene,
    upright_world,
)
from afield.benchmark.grasp.run import SHIPPED, GraspBenchConfig, run
from afield.benchmark.grasp.scenes import SceneSpec, arrange, target_points
from afield.benchmark.grasp.tables import evaluate, markdown, summarize, wilson
from afield.benchmark.grasp.trial import holds_part
from afield.errors import AfieldError
from afield.hand import hand_by_name
from afield.simulate import GraspTestConfig, simulate_grasp
from afield.steady import SteadyConfig
from afield.synthesis import SynthesisConfig, find_part, in_box, synthesis_energy, synthesize_grasp
from afield.transfer import TransferConfig


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return read_manifest(SHIPPED, tmp_path_factory.mktemp("work"))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"), [(9, 10, 0.5958, 0.9821), (0, 10, 0.0, 0.2775), (15, 30, 0.3315, 0.6685)]
)
def test_wilson_against_known_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-4)


def test_wilson_interval_holds_the_rate_and_shrinks() -> None:
    wide, narrow = wilson(3, 10), wilson(300, 1000)
    assert wide[0] < narrow[0] < 0.3 < narrow[1] < wide[1]
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_shipped_manifest_follows_the_paper_on_disjoint_objects(manifest: Manifest) -> None:
    assert [row.table for row in manifest.rows["dev"]] == [row.table for row in manifest.rows["test"]]
    assert [sum(row.table == table for row in manifest.rows["test"]) for table in (1, 2, 3)] == [3, 5, 3]
    used = {
        split: {name for row in rows for name in (*row.pretrain, row.demo[0], row.test[0])}
        for split, rows in manifest.rows.items()
    }
    assert not used["dev"] & used["test"]
    for row in (row for rows in manifest.rows.values() for row in rows):
        assert 2 <= len(row.pretrain) <= 4


def _holds(manifest: Manifest, demos: Iterable[tuple[str, str]], work: Path) -> None:
    hand = hand_by_name("shadow")
    for name, part in demos:
        file = demonstration_file(Bench(SHIPPED, work), name, part)
        assert file.parent != work / "demonstrations", f"{name} {part} is not shipped"
        world = upright_world(manifest.objects[name])
        surface = find_part(world, None, 3000).points
        beta = place_demonstration(json.loads(file.read_text()), world, hand)
        test = simulate_grasp(world, hand, beta, surface, GraspTestConfig(stop_early=True), progress=False)
        assert test.success, (name, part, test.failure)
        assert holds_part(test.contacts, manifest.objects[name].parts[part]), (name, part)


FEW = {("horse", "back"), ("hammer", "handle")}
"""Demonstrations that are looked at every time; the others are a slow test."""


def test_demonstrations_hold_their_part_in_physics(manifest: Manifest, tmp_path: Path) -> None:
    _holds(manifest, sorted(FEW), tmp_path)


@pytest.mark.slow
def test_all_other_demonstrations_are_shipped_and_hold_too(manifest: Manifest, tmp_path: Path) -> None:
    demos = {row.demo for rows in manifest.rows.values() for row in rows}
    assert demos > FEW
    _holds(manifest, sorted(demos - FEW), tmp_path)


def test_distractors_are_of_other_families_and_apart(manifest: Manifest) -> None:
    spec = SceneSpec("teddy", "back", 5, context=True)
    for seed in range(5):
        placed = arrange(spec, manifest.objects, np.random.default_rng(seed))
        families = [json.loads((thing.folder / "object.json").read_text())["family"] for thing in placed]
        assert families.count("bear") == 1
        assert 4 <= len(placed) <= 7
        places = np.array([thing.position for thing in placed])
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(len(places))
        assert gaps.min() > 0.1
        assert all(math.isclose(sum(q * q for q in thing.quat_wxyz or ()), 1.0) for thing in placed)
    other = arrange(replace(spec, target="horse", without="bear"), manifest.objects, np.random.default_rng(0))
    assert not {"teddy", "doll"} & {thing.folder.name for thing in other}
    single = arrange(SceneSpec("hammer", None, 5), manifest.objects, np.random.default_rng(0))
    assert len(single) == 1
    assert single[0].stand > 0.05


def test_scenes_of_a_row_are_new_to_its_field(manifest: Manifest, tmp_path: Path) -> None:
    bench = Bench(SHIPPED, tmp_path)
    for row in manifest.rows["test"]:
        trained = {spec.name for spec in pretraining(row)}
        assert len(trained) == len(row.pretrain)
        tests = {trial_scene(bench, row, trial).name for trial in range(10)}
        assert len(tests) == 10
        assert not trained & tests


def test_a_strangers_mesh(tmp_path: Path) -> None:
    box = trimesh.creation.box((40, 30, 100))
    box.apply_translation((0, 0, 50))
    box.export(tmp_path / "box.obj")
    box.export(tmp_path / "piece.stl")
    entry = {
        "name": "box", "family": "box", "mesh": "box.obj", "collision": ["piece.stl"], "scale": 0.001, "mass": 0.2,
        "parts": {"top": {"center": [0, 0, 0.08], "size": [0.05, 0.04, 0.05]}},
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps({"objects": [entry, {**entry, "name": "other"}]}))
    found = read_manifest(tmp_path / "mine.json", tmp_path / "work")
    assert [(row.table, row.demo[0], row.test[0]) for row in found.rows["all"]] == [
        (1, "box", "box"), (1, "other", "other"), (2, "box", "other"),
    ]  # fmt: skip
    world = upright_world(found.objects["box"])
    part = find_part(world, "top")
    assert float(part.points[part.inside][:, 2].min()) > 0.05
    assert 0.2 < float(part.inside.float().mean()) < 0.7
    assert bool(target_points(world, part.points).all())
    assert not bool(target_points(world, part.points + 0.02).all())


def test_the_origin_of_a_strangers_mesh_may_be_its_middle(tmp_path: Path) -> None:
    trimesh.creation.box((0.06, 0.05, 0.16)).export(tmp_path / "box.stl")
    parts = {"top": {"center": [0, 0, 0.04], "size": [0.07, 0.06, 0.08]}}
    entry = {"name": "box", "family": "box", "mesh": "box.stl", "collision": ["box.stl"], "mass": 0.2, "parts": parts}
    (tmp_path / "mine.json").write_text(json.dumps({"objects": [entry]}))
    world = upright_world(read_manifest(tmp_path / "mine.json", tmp_path / "work").objects["box"])
    assert float(world.objects[0].T_world_object[2, 3]) == pytest.approx(0.08, abs=0.003)


def test_a_manifest_of_one_family_has_no_scenes_without_a_target(tmp_path: Path) -> None:
    trimesh.creation.box((0.04, 0.03, 0.1)).export(tmp_path / "box.obj")
    entry = {
        "name": "a",
        "family": "box",
        "mesh": "box.obj",
        "collision": ["box.obj"],
        "mass": 0.2,
        "parts": {"top": TOP},
    }
    (tmp_path / "mine.json").write_text(json.dumps({"objects": [entry, {**entry, "name": "b"}]}))
    bench = Bench(tmp_path / "mine.json", tmp_path / "work")
    row = bench.manifest().rows["all"][0]
    assert absent_scene(bench, row, 0) is None
    make_likeness(bench, row, 0, ABSENT)
    assert finished(bench, row, 0, ABSENT) is None
    assert not (tmp_path / "work" / "scenes").exists()


TOP = {"center": [0, 0, 0.08], "size": [0.05, 0.04, 0.05]}


def test_figure_6_repeats_a_grasp_on_the_same_object(manifest: Manifest, tmp_path: Path) -> None:
    rows = ablation.ablation_rows(manifest.rows["test"])
    assert rows
    assert all(row.table == 1 and row.demo == row.test for row in rows)
    bench = Bench(SHIPPED, tmp_path)
    assert len({ablation.field_folder(bench, rows[0], *setup) for setup in ablation.setups()}) == 8
    for count, included in ablation.setups():
        for row in rows:
            for trial, value in enumerate((0.02, 0.04)):
                file = ablation.trial_file(bench, row, count, included, trial)
                file.parent.mkdir(parents=True, exist_ok=True)
                setup = {"scenes": count, "demonstration_included": included}
                mark = ablation.trial_mark(bench, row, count, included, trial)
                file.write_text(json.dumps({**setup, "distance_to_part": value + 0.01 * count, "fingerprint": mark}))
    found = ablation.summarize_ablation(ablation.ablation_records(bench, rows, 2))
    assert [(entry["scenes"], entry["demonstration_included"]) for entry in found] == ablation.setups()
    assert [entry["distance_to_part"] for entry in found[::2]] == pytest.approx([0.04, 0.05, 0.06, 0.07])
    low, high = found[0]["interval"]
    assert low < 0.04 < high
    again = run(GraspBenchConfig(figure6=True, report=True, trials=5, out=tmp_path), progress=False)
    assert again["figure6"] == found and len(again["trials"]) == 8 * 2 * len(rows), "those that are there"
    file = ablation.trial_file(bench, rows[0], 1, False, 0)
    file.write_text(file.read_text().replace('"fingerprint": "', '"fingerprint": "stale'))
    assert len(ablation.ablation_records(bench, rows, 2)) == 8 * 2 * len(rows) - 1
    assert "| 4 | yes | 7.0 [" in ablation.ablation_markdown(found)


def test_a_hand_holds_where_the_middle_of_its_contacts_is() -> None:
    box = {"center": [0.0, 0.0, 0.1], "size": [0.04, 0.02, 0.02]}
    around = np.array([[0.0, 0.03, 0.1], [0.0, -0.03, 0.1], [0.0, 0.0, 0.11]])
    assert holds_part(around, box)
    assert holds_part(around + [0.029, 0, 0], box)
    assert not holds_part(around + [0.031, 0, 0], box)
    assert not holds_part(np.zeros((0, 3)), box)


def test_bad_manifests_are_explained(tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    trimesh.creation.box((40, 30, 100)).export(tmp_path / "box.obj")
    for content, words in (
        ({}, "list 'objects'"),
        ({"objects": [{"name": "a", "family": "b", "mass": 1}]}, "lacks 'mesh'"),
        ({"objects": [{"name": "a", "family": "b", "mass": 1, "mesh": "no.obj"}]}, "Cannot read the mesh"),
        (
            {"objects": [{"name": "a", "family": "b", "mass": 1, "mesh": "box.obj"}]},
            "100 m long .* 0.001 for millimetres",
        ),
        ({"objects": [{"name": "a", "family": "b", "mass": 1, "mesh": "box.obj", "scale": 1e-5}]}, "0.001 m long"),
        ({"objects": [{"folder": "nowhere"}]}, "object.json"),
        (
            {
                "objects": [{"folder": str(SHIPPED.parent / "objects" / "horse")}],
                "rows": {
                    "dev": [{"table": 2, "pretrain": ["cow"], "demo": ["horse", "back"], "test": ["horse", "back"]}]
                },
            },
            "'cow'",
        ),
        (
            {
                "objects": [{"folder": str(SHIPPED.parent / "objects" / "horse")}],
                "rows": {"dev": [{"table": 2, "pretrain": [], "demo": ["horse", "wing"], "test": ["horse", "back"]}]},
            },
            "'wing'",
        ),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(AfieldError, match=words):
            read_manifest(file, tmp_path / "work")


def _record(table: int, row: str, method: str, success: bool) -> dict[str, object]:
    return {
        "table": table, "row": row, "method": method, "success": success, "held": success, "on_part": True,
        "distance_to_part": 0.03, "penetration": 0.001, "seconds": 2.0, "cause": "success" if success else "slipped",
    }  # fmt: skip


def test_tables_count_what_happened(manifest: Manifest) -> None:
    row = manifest.rows["test"][0]
    records = [_record(1, row.name, "attention", index < 3) for index in range(4)]
    records += [_record(1, row.name, "dff", False) for _ in range(4)]
    found = evaluate(records, ("attention", "dff"))
    assert found["mean_success"] == {"attention": 0.75, "dff": 0.0}
    assert found["tables"]["1"]["attention"]["causes"] == {"slipped": 1, "success": 3}
    text = markdown([row], records, ("attention", "dff"))
    assert "3/4 | 0/4" in text
    assert "**0.75** [0.30, 0.95]" in text
    assert "| failures |  |  | 1 slipped | 4 slipped |" in text
    assert summarize([])["trials"] == 0


def test_what_is_there_of_an_interrupted_run_is_printed(tmp_path: Path) -> None:
    """One trial is there, one is stale; the others are missing."""
    config = GraspBenchConfig(
        split="dev", table=3, trials=2, methods=("attention", "geometry"), out=tmp_path, report=True
    )
    with pytest.raises(AfieldError, match="holds no record"):
        run(config, progress=False)
    bench = Bench(SHIPPED, tmp_path)
    row = next(row for row in bench.manifest().rows["dev"] if row.table == 3)
    for trial, mark in ((0, trial_mark(bench, row, 0, "geometry")), (1, "another")):
        record = {**_record(3, row.name, "geometry", True), "fingerprint": mark}
        write_json(bench.trial_file(row, trial, "geometry"), record)
    result = run(config, progress=False)
    assert len(result["trials"]) == 1
    assert "| - | 1/1 |" in result["markdown"]
    assert result["confidence"] is None


def test_methods_differ_only_where_they_should() -> None:
    plain = {name for name, method in METHODS.items() if not method.config.resolved().gate}
    assert plain == {"attention, true mask", "faithful", "sparsedff", "dff", "geometry", "geometry + alignment"}
    aligned = {name for name, method in METHODS.items() if method.config.resolved().align}
    assert aligned == {"attention", "attention, true mask", "geometry + alignment"}
    assert set(METHODS) - set(COLUMNS) == {"attention, not aligned", "geometry + alignment"}
    assert METHODS["attention"].config == TransferConfig(), "what `afield grasp` does by default"
    shape = METHODS["geometry + alignment"].config
    assert shape.alignment.features == 0.0, "geometry sees no features"
    starts = {method.config.start for name, method in METHODS.items() if not name.startswith(("faithful", "geometry"))}
    assert len(starts) == 1


def test_a_record_is_stale_when_anything_it_was_made_of_has_changed(tmp_path: Path) -> None:
    """Mass and part of an object, the demonstration, the scene, the field, and the method."""
    entry = {"folder": "horse"}
    row = {"table": 2, "pretrain": ["horse"], "demo": ["horse", "back"], "test": ["horse", "back"]}
    shutil.copytree(SHIPPED.parent / "objects" / "horse", tmp_path / "horse")
    (tmp_path / "mine.json").write_text(json.dumps({"objects": [entry], "rows": {"dev": [row]}}))
    bench = Bench(tmp_path / "mine.json", tmp_path / "work")
    found = bench.manifest().rows["dev"][0]
    spec, field = trial_scene(bench, found, 0), bench.field_folder(found, "attention-default")
    shown, described = tmp_path / "grasp_demonstrations" / "horse_back.json", tmp_path / "horse" / "object.json"
    shutil.copytree(SHIPPED.parent / "grasp_demonstrations", shown.parent)
    scene = bench.scene_folder(spec) / "scene" / "tensors.safetensors"
    for file in (scene, field / "tensors.safetensors"):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"1")

    def mark(method: str = "attention") -> str:
        return fingerprint(bench, found, spec, field, asdict(METHODS[method]))

    marks = [mark()]
    assert mark() == marks[0]
    for file, old, new in (
        (described, '"mass": 0', '"mass": 1'), (shown, '"robustness": 0', '"robustness": 1'),
        (scene, "1", "2"), (field / "tensors.safetensors", "1", "2"),
    ):  # fmt: skip
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        marks.append(mark())
    marks.append(mark("geometry"))
    assert len(set(marks)) == 6
    (tmp_path / "record.json").write_text(json.dumps({"fingerprint": marks[0]}))
    assert is_done(tmp_path / "record.json", marks[0])
    assert not is_done(tmp_path / "record.json", marks[1])
    assert not is_done(tmp_path / "none.json", marks[0])


def test_extractors_and_hands_share_captures_and_nothing_else(manifest: Manifest, tmp_path: Path) -> None:
    row = manifest.rows["dev"][0]
    spec = demo_scene(row)

    def places(bench: Bench) -> list[Path]:
        setup = ablation.setups()[0]
        return [
            bench.described(spec), bench.field_folder(row, "attention-default"), bench.trial_file(row, 0, "attention"),
            ablation.field_folder(bench, row, *setup), ablation.trial_file(bench, row, *setup, 0),
        ]  # fmt: skip

    usual = Bench(SHIPPED, tmp_path)
    others = [Bench(SHIPPED, tmp_path, extractor=name) for name in ("color", "transformers:a/b", "transformers:a_b")]
    found = [places(bench) for bench in (usual, *others)]
    for kind in zip(*found, strict=True):
        assert len(set(kind)) == 4
    assert found[0][0] == tmp_path / "scenes" / spec.name / "scene"
    assert all(bench.scene_folder(spec) == usual.scene_folder(spec) for bench in others)
    assert all(bench.described(spec).parent == usual.scene_folder(spec) for bench in others)
    leap = Bench(SHIPPED, tmp_path, hand="leap")
    assert leap.described(spec) == usual.described(spec)
    assert leap.trial_file(row, 0, "attention") != usual.trial_file(row, 0, "attention")
    assert demonstration_file(leap, "horse", "back") != tmp_path / "demonstrations" / "horse_back.json"


def test_in_box() -> None:
    box = {"center": [0.0, 0.0, 0.1], "size": [0.02, 0.02, 0.02]}
    points = np.array([[0, 0, 0.1], [0.015, 0, 0.1], [0.03, 0, 0.1]])
    assert in_box(points, box).tolist() == [True, False, False]
    assert in_box(points, box, grow=0.01).tolist() == [True, True, False]


def test_the_synthesis_energy_prefers_the_shipped_grasp_and_has_right_gradients(manifest: Manifest) -> None:
    """A grasp that was found beats the same hand moved away; the gradient agrees with finite differences."""
    hand = hand_by_name("shadow")
    world = upright_world(manifest.objects["horse"])
    part = find_part(world, "back")
    energy = synthesis_energy(world, part, hand, SynthesisConfig())
    content = json.loads((SHIPPED.parent / "grasp_demonstrations" / "horse_back.json").read_text())
    beta = place_demonstration(content, world, hand)
    away = beta.clone()
    away[2] += 0.05
    both = energy(torch.stack((beta, away)))[0]
    assert float(both[0]) < float(both[1])
    probe = away.clone().requires_grad_(True)
    terms = energy(probe[None])[1]
    # The part is a cloud: when the palm moves, the nearest point jumps, and closure (whose gradient flows through the
    # distances only) with it. So closure is compared where nothing jumps, at the fingers' joints.
    for name, indices in {**dict.fromkeys(terms, (2, 12, 20)), "closure": (12, 20)}.items():
        (gradient,) = torch.autograd.grad(terms[name].sum(), probe, retain_graph=True)
        for index in indices:
            step = torch.zeros_like(away)
            step[index] = 1e-4
            with torch.no_grad():
                ahead, behind = (energy((away + sign * step)[None])[1][name].sum() for sign in (1, -1))
            assert float(gradient[index]) == pytest.approx(float(ahead - behind) / 2e-4, rel=0.02, abs=2e-3), name


@pytest.mark.slow
def test_a_grasp_is_synthesized_from_nothing(manifest: Manifest) -> None:
    world, hand = upright_world(manifest.objects["horse"]), hand_by_name("shadow")
    config = SynthesisConfig(
        starts=48, tried=12, robust=1, trials=1, steady=SteadyConfig(rounds=1, children=2, trials=3)
    )
    found = synthesize_grasp(world, find_part(world, "back"), hand, config, progress=False)
    assert found.test.success
    assert demonstration_content(found.beta, found.robustness, world, hand, "horse", "back")["part"] == "back"


@pytest.mark.slow
def test_a_small_benchmark_runs_and_takes_up_where_it_was(tmp_path: Path) -> None:
    """One row, one scene, one method; the second call finds everything done and changes nothing."""
    folders = [
        {"folder": str(SHIPPED.parent / "objects" / name)} for name in ("horse", "deer", "mug", "milk", "chicken")
    ]
    row = {"table": 2, "pretrain": ["horse", "deer"], "demo": ["horse", "back"], "test": ["deer", "back"]}
    (tmp_path / "small.json").write_text(json.dumps({"objects": folders, "rows": {"dev": [row]}}))
    config = GraspBenchConfig(
        tmp_path / "small.json",
        "dev",
        trials=1,
        methods=("attention", "geometry"),
        out=tmp_path / "work",
        calibrate=True,
    )
    first = run(config, progress=False)
    assert set(first["mean_success"]) == {"attention", "geometry"}
    assert len(first["trials"]) == 2
    assert first["confidence"]["scenes_without_target"] == 1
    assert "| horse back |" in first["markdown"]
    record = next((tmp_path / "work" / "trials").rglob("*geometry.json"))
    written = record.stat().st_mtime_ns
    assert run(config, progress=False)["trials"] == first["trials"]
    assert record.stat().st_mtime_ns == written


def test_unknown_choices_are_named(tmp_path: Path) -> None:
    with pytest.raises(AfieldError, match="no method 'magic'"):
        run(GraspBenchConfig(methods=("magic",), out=tmp_path))
    with pytest.raises(AfieldError, match="At least one scene per row"):
        run(GraspBenchConfig(trials=0, out=tmp_path))
