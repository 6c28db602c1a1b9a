"""The same object seen again, and another one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scene_samples import SOURCE

from afield.fields.registration import Registration
from afield.geometry import pose_from, rotation_about_axis, transform_points
from afield.recognition import recognize
from afield.scene import Plane, Scene, farthest_points


def _toy(seed: int, head: float = 0.11, count: int = 2000) -> Scene:
    """A body with a neck at one end and a tail at the other."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    part = torch.arange(count) % 4
    size = torch.tensor([[0.06, 0.03, 0.025], [0.06, 0.03, 0.025], [0.012, 0.012, 0.04], [0.025, 0.008, 0.008]])[part]
    place = torch.tensor([[0.0, 0, 0.06], [0, 0, 0.06], [0.05, 0, head], [-0.08, 0.0, 0.07]])[part]
    return Scene(size * unit + place, torch.ones(count, 1), torch.rand(count, 3), unit, SOURCE)


TURN = rotation_about_axis(torch.tensor([0.6, 0.0, 0.8]), torch.tensor(1.9))
MOTION = pose_from(TURN, torch.tensor([0.3, -0.2, 0.1]))


def _seen(scene: Scene, keep: torch.Tensor) -> Scene:
    moved = replace(scene, points=transform_points(MOTION, scene.points), normals=scene.normals @ TURN.T)
    return moved.select(keep)


def _guess(angle: float, shift: float, scale: float) -> Registration:
    """The true motion, turned, shifted and scaled by a little."""
    rotation = rotation_about_axis(torch.tensor([0.0, 1.0, 0.0]), torch.tensor(angle)) @ TURN
    middle = torch.tensor([0.0, 0.0, 0.07])
    place = TURN @ middle + MOTION[:3, 3] + shift * torch.tensor([0.6, 0.8, 0.0])
    return Registration(rotation, scale, place - scale * rotation @ middle, 0.5)


@pytest.mark.parametrize(("angle", "shift", "scale"), [(0.0, 0.0, 1.0), (0.2, 0.01, 0.93), (-0.25, 0.015, 1.1)])
def test_the_same_object_is_found_to_the_millimetre_though_half_of_it_is_hidden(
    angle: float, shift: float, scale: float
) -> None:
    shown, other = _toy(0), _toy(1)
    here = _seen(other, other.points[:, 1] > 0.0)
    same = recognize(_guess(angle, shift, scale), shown, here, here)
    assert same is not None
    assert same.alignment.scale == 1.0
    wanted = transform_points(MOTION, shown.points)
    assert float((same.alignment.carry(shown.points) - wanted).norm(dim=-1).mean()) < 0.002
    assert len(same.points) > 500
    local = (same.points - MOTION[:3, 3]) @ TURN
    assert float((local[:, 1] < 0).float().mean()) > 0.97, "what is hidden is the half that was left out"
    nearest = torch.cdist(same.points, wanted).argmin(dim=1)
    assert float((same.normals * (shown.normals @ TURN.T)[nearest]).sum(dim=-1).min()) > 0.9
    whole = same.completed(here)
    assert len(whole.points) == len(here.points) + len(same.points)
    assert whole.features.shape == (len(whole.points), 1)


def test_what_is_hidden_is_not_below_the_table_nor_where_something_is_seen() -> None:
    shown, other = _toy(0), _toy(1)
    here = _seen(other, other.points[:, 1] > 0.0)
    level = float(here.points[:, 2].median())
    table = Plane(torch.tensor([0.0, 0.0, 1.0]), level)
    same = recognize(_guess(0.1, 0.005, 1.0), shown, here, replace(here, table=table))
    assert same is not None
    assert float(same.points[:, 2].min()) > level
    assert float(torch.cdist(same.points, here.points).min()) > 0.008
    full = _seen(other, torch.ones(len(other.points), dtype=torch.bool))
    nothing = recognize(_guess(0.1, 0.005, 1.0), shown, here, full)
    assert nothing is not None and len(nothing.points) < 20


def test_another_object_is_not_recognized() -> None:
    shown, other = _toy(0), _toy(1)
    everything = torch.ones(len(other.points), dtype=torch.bool)
    assert recognize(_guess(0.1, 0.005, 1.0), shown, _seen(other, everything), other) is not None
    for grown in (torch.tensor(1.4), torch.tensor([1.6, 0.4, 0.4]), torch.tensor([1.0, 1.0, 1.5])):
        here = _seen(replace(other, points=other.points * grown), everything)
        assert recognize(_guess(0.0, 0.0, 1.1), shown, here, here) is None, grown


def test_features_that_mislead_do_no_harm() -> None:
    shown, other = _toy(0), _toy(1)
    here = _seen(other, other.points[:, 1] > -0.01)
    same = recognize(_guess(2.0, 0.0, 1.0), shown, here, here)
    assert same is not None
    assert (
        float((same.alignment.carry(shown.points) - transform_points(MOTION, shown.points)).norm(dim=-1).mean()) < 0.002
    )


def test_sparse_points_hide_nothing_and_a_handful_is_no_object() -> None:
    dense = _toy(0, count=6000)
    shown = dense.select(farthest_points(dense.points, 2000, seed=0))
    few = _seen(_toy(1), farthest_points(_toy(1).points, 120, seed=0))  # 12 mm apart
    same = recognize(_guess(0.1, 0.005, 1.0), shown, few, few)
    assert same is not None and len(same.points) == 0, "what lies between points is seen"
    handful = few.select(torch.arange(120) < 12)
    assert recognize(_guess(0.0, 0.0, 1.0), shown, handful, few) is None
    assert recognize(_guess(0.0, 0.0, 1.0), shown.select(torch.arange(2000) < 12), few, few) is None
    away = replace(few, points=few.points * 30)
    assert recognize(_guess(0.0, 3.0, 1.0), shown, away, away) is None
