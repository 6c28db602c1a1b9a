import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from afield.benchmark.align_bench import SHIPPED, AlignBenchConfig, Truth, _errors, compare, run, summarize, true_flow
from afield.benchmark.align_rows import ROWS
from afield.capture.articulated import ArticulatedObject, photograph_object, place, read_objects, ring
from afield.capture.furniture import Furniture, handle_box, joint_motion
from afield.capture.opengl import draw_elsewhere
from afield.errors import AfieldError


def _manifest(folder: Path, **changes: object) -> Path:
    entry = {
        "kind": "microwave",
        "furniture": {"kind": "microwave"},
        "joint": "furniture_joint",
        "travel": 1.2,
        "handle": ["furniture_handle"],
    }
    file = folder / "objects.json"
    file.write_text(json.dumps({"objects": {"one": {**entry, **changes}}, "pairs": [["one", "one"]]}))
    return file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 3}, "unknown key 'colour'"),
        ({"joint": "lid"}, "no joint 'lid'"),
        ({"handle": ["knob"]}, "No visible geom"),
        ({"furniture": None, "files": ["a.xml"], "root": "$AFIELD_NOWHERE"}, "set that variable"),
        ({"furniture": None, "files": ["a.xml"], "root": "no_such_package:x"}, "pip install no-such-package"),
        ({"furniture": None, "files": ["a.xml"]}, "lacks its file"),
        ({"furniture": None}, "neither files nor furniture"),
    ],
)
def test_a_wrong_manifest_is_refused_in_a_sentence(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(AfieldError, match=words.replace("[", r"\[")):
        place(read_objects(_manifest(tmp_path, **changes))["one"])


def test_an_incomplete_or_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"objects": {"one": {"kind": "microwave"}}}))
    with pytest.raises(AfieldError, match="'one' is incomplete"):
        read_objects(tmp_path / "m.json")
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(AfieldError, match="names no objects"):
        read_objects(tmp_path / "m.json")


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_own_furniture_is_placed_as_its_description_says(scale: float) -> None:
    item = Furniture(kind="microwave")
    wrapped = ArticulatedObject("m", "microwave", "furniture_joint", item.travel, furniture=asdict(item),
                                handle=("furniture_handle",))  # fmt: skip
    placed = place(wrapped, scale=scale)
    kind, point, axis = placed.axis
    middle, half = handle_box(item)
    assert kind == "hinge"
    np.testing.assert_allclose(axis, item.axis[1], atol=1e-6)
    shift = point - scale * item.axis[0]  # centred on what is visible, so only moved along x and y
    assert abs(shift[2]) < 0.01
    off = np.abs(placed.handle_points() - shift - scale * middle) - scale * half
    assert float(off.max()) < 1e-3
    motion = placed.motion(0.7)
    np.testing.assert_allclose(motion[:3, :3], joint_motion(item, 0.7)[:3, :3], atol=1e-6)
    np.testing.assert_allclose(motion[:3, :3] @ point + motion[:3, 3], point, atol=1e-6)  # the axis stays


def test_the_kitchen_of_a_wheel_stands_on_the_table_and_looks_at_minus_y() -> None:
    placed = place(read_objects(SHIPPED)["kitchen_microwave"])
    _, point, axis = placed.axis
    assert np.allclose(np.abs(axis), [0, 0, 1], atol=1e-3)
    handle = placed.handle_points()
    assert handle[:, 1].mean() < -0.05, "the handle is in front"
    assert handle[:, 2].min() > 0.0, "and above the table"
    opened = placed.motion(placed.item.travel)
    moved = handle @ opened[:3, :3].T + opened[:3, 3]
    assert moved[:, 1].mean() < handle[:, 1].mean() - 0.05, "opening moves it towards the one who stands there"
    assert float(np.linalg.norm((handle - point)[:, :2], axis=1).mean()) > 0.1


def _pictures() -> tuple:
    placed = place(read_objects(SHIPPED)["own_drawer"])
    cameras = ring(placed, 3, 96)
    placed = place(placed.item, cameras=cameras)
    pictures = photograph_object(placed, cameras)
    return pictures, true_flow(placed, pictures, 60, horizon=4), placed.motion(placed.item.travel)


def test_pictures_tell_what_moves_and_the_flow_is_that_of_the_joint() -> None:
    pictures, flow, motion = draw_elsewhere(_pictures)
    for view, handle, moving in zip(pictures.observation.views, pictures.handle, pictures.moving, strict=True):
        assert view.mask is not None
        assert (handle <= moving).all()
        assert (moving <= view.mask).all()
    assert pictures.handle[0].any()
    moved = flow.displacement[:, -1].norm(dim=-1) > 1e-6
    assert int(moved.sum()) == 30
    wanted = torch.from_numpy(motion[:3, 3]).float()
    torch.testing.assert_close(flow.displacement[moved][:, -1], wanted.expand(30, 3), atol=1e-5, rtol=1e-4)


def test_errors_are_measured_against_the_nearest_twin() -> None:
    from skill_samples import BoxWithKnob, box_skill, seen_box

    from afield.fields.volume import Volume
    from afield.transfer_skill import transfer_skill

    function = BoxWithKnob()
    target = seen_box(function, torch.eye(4), torch.tensor([0.2, 0.2, 0.2]))
    result = transfer_skill(box_skill(), target, Volume.bake(function, size=48))
    knob, hinge = np.array([[0.14, -0.144, 0.02]]), np.array([-0.18, -0.12, 0.0])
    truth = Truth(knob, "hinge", hinge, np.array([0.0, 0.0, -1.0]), 0.0, 1.0, 0.5)
    right = _errors(result, truth)
    assert right["ok"]
    assert right["axis_cm"] < 1.0
    assert right["yaw_deg"] < 2.0
    other = replace(truth, handle=-knob, axis=np.array([0.0, 0.0, 1.0]))
    assert not _errors(result, other)["ok"]
    assert not _errors(result, replace(truth, kind="slide"))["ok"]
    assert compare(result, [other, truth]) == right


def test_shares_are_of_other_instances_only() -> None:
    one = {"skill": "a", "row": "default", "yaw_deg": 1.0, "contact_cm": 1.0, "contact_percent": 1.0, "axis_deg": 2.0,
           "axis_cm": None, "cpu_seconds": 1.0, "quality": {"on_surface": 0.9, "likeness": 0.5}}  # fmt: skip
    trials = [
        {**one, "target": "a", "ok": True, "quality": {"on_surface": 0.3, "likeness": 0.9}},
        {**one, "target": "b", "ok": False, "quality": {"on_surface": 0.7, "likeness": 0.2}},
        {**one, "target": "b", "ok": True},
    ]
    result = summarize(trials)
    assert result["share_ok_default"] == 0.5 and result["refused_default"] == 1
    assert result["rows"]["default"]["a -> b"]["ok"] == 0.5
    assert result["rows"]["default"]["a -> b"]["axis_cm"] is None


def test_wrong_requests_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(AfieldError, match="no row 'magic'"):
        run(AlignBenchConfig(_manifest(tmp_path), rows=("magic",), out=tmp_path / "out"), progress=False)
    file = _manifest(tmp_path)
    file.write_text(file.read_text().replace('[["one", "one"]]', '[["one", "two"]]'))
    with pytest.raises(AfieldError, match="pairs of its own objects"):
        run(AlignBenchConfig(file, out=tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


def test_pairs_whose_files_are_missing_are_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFIELD_OBJECTS", raising=False)
    content = json.loads(SHIPPED.read_text())
    content["pairs"] = [["microwave_red", "microwave_steel"]]
    (tmp_path / "m.json").write_text(json.dumps(content))
    result = run(AlignBenchConfig(tmp_path / "m.json", trials=2, out=tmp_path / "out"), progress=False)
    assert result["trials"] == []
    assert len(result["skipped"]) == 1
    assert "AFIELD_OBJECTS" in result["skipped"][0]["why"]


@pytest.mark.slow
def test_a_small_run_finds_other_instances_and_goes_on_from_its_folder(tmp_path: Path) -> None:
    content = json.loads(SHIPPED.read_text())
    content["pairs"] = [["own_microwave", "red_microwave"]]
    (tmp_path / "m.json").write_text(json.dumps(content))
    config = AlignBenchConfig(tmp_path / "m.json", trials=2, rows=("default", "prior"), out=tmp_path / "out")
    result = run(config, progress=False)
    assert result["share_ok_default"] == 1.0
    again = run(replace(config, rows=("default", "features only")), progress=False)
    same = [t for t in result["trials"] if t["row"] == "default"]
    assert [t for t in again["trials"] if t["row"] == "default"] == same
    assert {t["row"] for t in again["trials"]} == {"default", "features only"}
    assert set(ROWS) >= {"default", "adam as printed"}
