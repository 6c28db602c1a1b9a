import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skill_samples import BoxWithKnob, box_skill, seen_box

from afield.alignment import Alignment, Similarity
from afield.decoding import DecodeConfig
from afield.errors import AfieldError
from afield.fields.volume import Volume
from afield.geometry import rotation_about_axis
from afield.observation import Camera, Observation, View
from afield.perception.grasps import Grasps
from afield.skill_pipeline import (
    act_from_files,
    contact_probability,
    first_that_can_be_held,
    refuse_if_unlike,
    scene_points,
    skill_from_capture,
)
from afield.target import Target
from afield.transfer_skill import carry_over


def _observation() -> Observation:
    camera = Camera(40, 30, 30.0, 30.0, 19.5, 14.5, torch.eye(4))
    depth = np.full((30, 40), 0.5, dtype=np.float32)
    depth[:, :5] = 0.0
    return Observation((View("a", camera, np.zeros((30, 40, 3), np.uint8), depth),), name="wall")


@pytest.mark.parametrize(
    ("on_surface", "likeness", "words"),
    [(0.9, 0.5, None), (0.4, 0.9, "only 40%"), (0.85, 0.2, "too different"), (0.9, 0.25, None)],
)
def test_what_does_not_look_like_it_is_refused(on_surface: float, likeness: float, words: str | None) -> None:
    quality = {"on_surface": on_surface, "likeness": likeness}
    if words is None:
        refuse_if_unlike("box", "wall", quality, force=False)
        return
    with pytest.raises(AfieldError, match=words):
        refuse_if_unlike("box", "wall", quality, force=False)
    refuse_if_unlike("box", "wall", quality, force=True)


def test_points_of_the_scene_are_those_measured_near_a_place() -> None:
    points, normals = scene_points(_observation(), torch.tensor([0.0, 0.0, 0.5]))
    assert len(points) > 500
    assert float((points[:, 2] - 0.5).abs().max()) < 1e-5
    assert bool((normals[:, 2] < -0.99).all()), "towards the camera"


def test_contact_is_likely_where_points_are_taken_for_it() -> None:
    touched = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.05]])
    points = torch.tensor([[0.005, 0.0, 0.0], [0.013, 0.0, 0.05], [0.1, 0.0, 0.0]])
    found = contact_probability(points, touched)
    assert float(found[0]) > 0.5 > float(found[1]) > 0.0
    assert float(found[2]) == 0.0


def test_wrong_requests_are_refused(tmp_path) -> None:
    with pytest.raises(AfieldError, match="no solver 'magic'"):
        act_from_files(box_skill(), tmp_path, solver="magic")
    with pytest.raises(AfieldError, match="no capture"):
        skill_from_capture(tmp_path / "nothing")


class Picky:
    """Finds a grasp only near one place."""

    def __init__(self, place: torch.Tensor) -> None:
        self.place, self.reach = place, 0.06

    def detect(self, points: torch.Tensor, normals: torch.Tensor, contact: torch.Tensor) -> Grasps:
        touched = points[contact.argmax()]
        if float((touched - self.place).norm()) > self.reach:
            raise AfieldError("Nothing to hold there.")
        return Grasps(torch.eye(4)[None], torch.tensor([0.02]), torch.ones(1))


def _two_ways(cost: float, hidden: float, shift: float) -> tuple[Volume, Target, Alignment]:
    """A box with a knob, the alignment that has it the wrong way round, and the right one."""
    volume = Volume.bake(BoxWithKnob(), size=32, count=800)
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.0, 0.0, 0.5])
    target = seen_box(BoxWithKnob(), pose, torch.tensor([0.2, 0.2, 0.2]))
    turn = rotation_about_axis(torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3), torch.tensor([math.pi, 0.0]))
    logs = torch.full((2, 3), -math.log(0.2))
    moved = torch.tensor([[0.0, 0.0, 0.0], [shift, 0.0, 0.0]])
    state = Similarity(turn, moved, logs, torch.ones(2, 3), pose[:3, 3])
    return volume, target, Alignment(state, torch.tensor([1.0, cost]), {"hidden": torch.tensor([0.0, hidden])})


@pytest.mark.parametrize(
    ("cost", "hidden", "shift", "taken"),
    [
        (1.5, 0.0, 0.0, True),
        (2.5, 0.0, 0.0, False),  # far from the best
        (1.5, 1.0, 0.0, False),  # its contact is out of sight
        (1.5, 0.0, 3.0, False),  # it does not lie on what is seen
    ],
)
def test_the_next_alignment_is_taken_where_nothing_can_be_held(
    cost: float, hidden: float, shift: float, taken: bool
) -> None:
    skill, (volume, target, both) = box_skill(), _two_ways(cost, hidden, shift)
    wrong = carry_over(skill, target, volume, both, DecodeConfig())
    right = carry_over(skill, target, volume, both.since(1), DecodeConfig())
    assert float((wrong.contact - right.contact).norm()) > 0.1
    everything = replace(_observation(), views=(_all_of(target, right.contact),))
    arguments = (skill, everything, target, volume, wrong, DecodeConfig(), Picky(right.contact))
    if taken:
        result, trajectory = first_that_can_be_held(*arguments)
        assert torch.equal(result.contact, right.contact) and len(trajectory) > 8
        return
    with pytest.raises(AfieldError, match="Nothing to hold there"):
        first_that_can_be_held(*arguments)


def test_an_alternative_is_clearly_different_and_can_be_held() -> None:
    skill, (volume, target, both) = box_skill(), _two_ways(1.5, 0.0, 0.0)
    again = torch.tensor([0, 1, 1])
    three = Alignment(both.similarity[again], torch.tensor([1.0, 1.2, 1.5]), {"hidden": torch.zeros(3)})
    assert three.same_place(1, 2) and not three.same_place(0, 2)
    first = carry_over(skill, target, volume, three, DecodeConfig())
    other = carry_over(skill, target, volume, three.since(2), DecodeConfig())
    everything = replace(_observation(), views=(_all_of(target, other.contact),))
    for skip, wanted in ((0, first), (1, other)):
        detector = Picky(wanted.contact)
        detector.reach = 10.0  # anything can be held
        arguments = (skill, everything, target, volume, first, DecodeConfig(), detector)
        assert torch.equal(first_that_can_be_held(*arguments, skip)[0].contact, wanted.contact)
    assert first_that_can_be_held(*arguments, 1)[0].quality["rival"] == round(1.0 / 1.2, 3)
    plain = replace(first, alignment=replace(three, terms={}))  # as the other solver gives it
    found, _ = first_that_can_be_held(*arguments[:4], plain, *arguments[5:], 1)
    assert torch.equal(found.contact, other.contact)
    with pytest.raises(AfieldError, match="only 2 clearly different ways"):
        first_that_can_be_held(*arguments, 2)
    with pytest.raises(AfieldError, match="--alternative counts from 0"):
        act_from_files(skill, Path("nowhere"), alternative=-1)


def test_force_holds_for_alternatives_too() -> None:
    skill, (volume, target, both) = box_skill(), _two_ways(1.5, 0.0, 3.0)  # the second lies beside what is seen
    wrong = carry_over(skill, target, volume, both, DecodeConfig())
    other = carry_over(skill, target, volume, both.since(1), DecodeConfig())
    everything = replace(_observation(), views=(_all_of(target, other.contact),))
    arguments = (skill, everything, target, volume, wrong, DecodeConfig(), Picky(other.contact))
    with pytest.raises(AfieldError, match="Nothing to hold"):
        first_that_can_be_held(*arguments)
    assert torch.equal(first_that_can_be_held(*arguments, force=True)[0].contact, other.contact)


def _all_of(target: Target, near: torch.Tensor) -> View:
    """A view from above whose depth is that of the target's points."""
    pose = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    pose[2, 3] = 2.0
    camera = Camera(160, 160, 300.0, 300.0, 79.5, 79.5, pose)
    pixels, away = camera.project(torch.cat((target.points, near[None])))
    column, row = pixels.round().long().clamp(0, 159).T.numpy()
    depth = np.zeros((160, 160), dtype=np.float32)
    depth[row, column] = away.numpy()
    return View("above", camera, np.zeros((160, 160, 3), np.uint8), depth)
