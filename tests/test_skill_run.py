"""What a skill leaves on disk: labels that are read, runs that come back as they were."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skill_samples import BoxWithKnob, box_skill, seen_box

from afield.alignment import Alignment, Similarity
from afield.artifacts import save_artifact
from afield.capture.furniture import Furniture, PlacedFurniture
from afield.decoding import Joint
from afield.demo import SAMPLES, SHOWN
from afield.distill import Flow, Labels
from afield.distill.label_files import Shown, read_shown, write_shown
from afield.errors import AfieldError
from afield.fields.affordance_grid import GridAffordance, GridConfig
from afield.fields.volume import Volume
from afield.geometry import rotation_about_axis
from afield.observation import Camera, Observation, View
from afield.simulate.execution import way_to_go
from afield.skill_pipeline import skill_from_capture
from afield.skill_run import SkillRun
from afield.skills import mode_of, task_of
from afield.trajectory import Trajectory
from afield.transfer_skill import judge


def _views() -> Observation:
    camera = Camera(8, 6, 5.0, 5.0, 3.5, 2.5, torch.eye(4))
    picture, depth = np.zeros((6, 8, 3), np.uint8), np.ones((6, 8), np.float32)
    return Observation(tuple(View(name, camera, picture, depth, depth > 0) for name in "ab"), name="wall")


def _flow(horizon: int = 8) -> Flow:
    return Flow(torch.rand(5, 3), torch.rand(5, horizon, 3), torch.ones(5, horizon))


def test_labels_come_back_from_disk(tmp_path: Path) -> None:
    touched = np.zeros((6, 8), bool)
    touched[2:4, 3:6] = True
    shown = Shown(Labels((touched, None), None, 0.1, _flow()), "shut the door", "push")
    write_shown(tmp_path, _views(), shown)
    again = read_shown(tmp_path, _views())
    assert (again.narration, again.mode, again.labels.floor) == ("shut the door", "push", 0.1)
    assert again.labels.contact[0] is not None and np.array_equal(again.labels.contact[0], touched)
    assert again.labels.contact[1] is None
    assert again.labels.flow is not None and shown.labels.flow is not None
    assert torch.allclose(again.labels.flow.displacement, shown.labels.flow.displacement, atol=1e-3)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((5, 3), (5, 4, 3), (5, 4)), "has 4 steps; at least 8"),
        (((5, 3), (5, 8, 3), (5, 9)), r"visible is \[5, 9\]"),
        (((4, 3), (5, 8, 3), (5, 8)), r"start is \[4, 3\]"),
        (((5, 3), (5, 8), (5, 8)), r"start is \[5, 3\]|displacement is \[5, 8\]"),
    ],
)
def test_flow_that_does_not_fit_together_is_refused(tmp_path: Path, shapes: tuple, words: str) -> None:
    write_shown(tmp_path, _views(), Shown(Labels((None, None), None, None, _flow()), "open it"))
    names = ("start", "displacement", "visible")
    tensors = {name: torch.rand(shape) for name, shape in zip(names, shapes, strict=True)}
    save_artifact(tmp_path / "labels" / "flow", "flow", tensors, {})
    with pytest.raises(AfieldError, match=words):
        read_shown(tmp_path, _views())


def test_a_skill_needs_to_be_told_how_things_move(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "captures" / SHOWN, tmp_path / "shown")
    shutil.rmtree(tmp_path / "shown" / "labels" / "flow")
    with pytest.raises(AfieldError, match="have no flow, so nothing says how the object moves"):
        skill_from_capture(tmp_path / "shown", progress=False)


def test_a_run_comes_back_as_it_was_and_is_plain_json(tmp_path: Path) -> None:
    skill = replace(box_skill(), field=GridAffordance(GridConfig(resolution=16, detail=8, channels=8, horizon=8)))
    one = torch.tensor([0])
    joint = Joint("revolute", torch.tensor([0.0, 0.0, 1.0]), torch.rand(3), torch.linspace(0.1, 0.8, 8), 0.02)
    state = Similarity(torch.eye(3)[None], torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(3))
    path = Trajectory(torch.eye(4).repeat(2, 1, 1), torch.zeros(2), ("approach", "move"), {})
    target = seen_box(BoxWithKnob(), torch.eye(4), torch.tensor([0.2, 0.2, 0.2]))
    quality = {"on_surface": 0.9, "likeness": 0.5, "rival": None}
    run = SkillRun(
        skill, path, state[one], torch.zeros(1), target.points, torch.zeros(3), joint, quality, provenance={"seed": 3}
    )
    run.save(tmp_path / "run")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=refuse)
    again = SkillRun.load(tmp_path / "run")
    assert again.provenance == {"seed": 3} and dict(again.quality) == quality
    assert again.joint.pitch == 0.02
    assert torch.allclose(again.joint.motions(), joint.motions(), atol=1e-5)
    endless = replace(run, quality={"rival": math.inf})
    with pytest.raises(ValueError, match="not JSON compliant"):
        endless.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_alignment_without_rival_says_none() -> None:
    target = seen_box(BoxWithKnob(), torch.eye(4), torch.tensor([0.2, 0.2, 0.2]))
    volume = Volume.bake(BoxWithKnob(), size=32, count=500)
    turn = rotation_about_axis(torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3), torch.tensor([0.0, 0.2, 2.0]))
    zero, one = torch.zeros(3, 3), torch.ones(3, 3)
    state = Similarity(turn, zero, zero - np.log(0.2), one, torch.zeros(3))
    cost = torch.tensor([2.0, 2.5, 3.0])
    best = state[torch.tensor([0])]
    alone = Alignment(state[torch.tensor([0, 1])], cost[:2], {})
    assert judge(best, alone, volume, target)["rival"] is None, "0.2 rad away is no other place"
    assert judge(best, Alignment(state, cost, {}), volume, target)["rival"] == 1.5


@pytest.mark.parametrize(
    ("narration", "task", "mode"),
    [
        ("Open the microwave", "open", "grasp"),
        ("shut the top drawer", "close", "push"),
        ("Close it", "close", "push"),
        ("push the drawer in", "close", "push"),
        ("press the button", "open", "push"),
        ("pick up the cup", "open", "grasp"),
    ],
)
def test_the_first_word_says_what_is_done(narration: str, task: str, mode: str) -> None:
    assert (task_of(narration), mode_of(narration)) == (task, mode)


def test_no_joint_has_to_go_farther_than_it_can() -> None:
    item = Furniture("drawer")
    assert way_to_go(PlacedFurniture(item, 0.0, 0.0, 0.0, 0.0), "open") == pytest.approx(0.10)
    nearly = PlacedFurniture(item, 0.0, 0.0, 0.0, item.travel - 0.05)
    assert way_to_go(nearly, "open") == pytest.approx(0.045)
    door = Furniture("microwave")
    assert way_to_go(PlacedFurniture(door, opened=0.8 * door.travel), "close") == pytest.approx(np.radians(40.0))
    with pytest.raises(AfieldError, match="drawer of this capture is closed already"):
        way_to_go(PlacedFurniture(item, 0.0, 0.0, 0.0, 0.0), "close")
