"""One object laid upon another as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scene_samples import SOURCE

from afield.fields.registration import RegistrationConfig, even_rotations, register
from afield.geometry import pose_from, rotation_about_axis, rotation_angle, transform_points
from afield.scene import Scene


def _toy(seed: int = 0, count: int = 700) -> Scene:
    """A body with a neck at one end and a tail at the other; features say little more than where the top is."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    part = torch.arange(count) % 4
    size = torch.tensor([[0.06, 0.03, 0.025], [0.06, 0.03, 0.025], [0.012, 0.012, 0.04], [0.025, 0.008, 0.008]])[part]
    place = torch.tensor([[0.0, 0, 0.06], [0, 0, 0.06], [0.05, 0, 0.11], [-0.08, 0.0, 0.07]])[part]
    features = torch.nn.functional.normalize(torch.cat((unit[:, 2:], torch.ones(count, 2)), dim=-1), dim=-1)
    return Scene(size * unit + place, features, torch.rand(count, 3), unit, SOURCE)


def _off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm(dim=-1).mean())


@pytest.mark.parametrize(("axis", "angle", "scale"), [(2, 2.0, 1.0), (2, -0.7, 1.5), (0, 1.6, 1.0), (1, 2.6, 0.8)])
@pytest.mark.parametrize("features", [0.0, 0.3])
def test_a_turned_and_scaled_object_is_found_again(axis: int, angle: float, scale: float, features: float) -> None:
    """Other points of the same shape; also lying on its side and on its back."""
    turn = rotation_about_axis(torch.eye(3)[axis], torch.tensor(angle))
    motion = pose_from(turn, torch.tensor([0.3, -0.2, 0.1]))
    shown, other = _toy(), _toy(1)
    here = replace(other, points=transform_points(motion, scale * other.points))
    found = register(shown, here, RegistrationConfig(features=features))
    assert _off(found.carry(shown.points), transform_points(motion, scale * shown.points)) < 0.008 * scale
    assert float(rotation_angle(found.rotation, turn)) < 0.12
    assert found.scale == pytest.approx(scale, rel=0.06)


def _rod(seed: int, same: tuple[float, float, float], turn: torch.Tensor) -> Scene:
    """A rod along x with one red end that is its own picture under a half turn (the signs `same`), then turned."""
    unit = torch.nn.functional.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)
    half = unit * torch.tensor([0.1, 0.012, 0.012])
    points = torch.cat((half, half * torch.tensor(same)))
    red = (points[:, 0] > 0.02).float()
    return Scene(points @ turn.T, torch.stack((red, 1 - red), dim=-1), torch.rand(600, 3), points, SOURCE)


@pytest.mark.parametrize("angle", [2.8, -0.34, 1.2, -1.94])
def test_features_tell_the_ends_of_a_symmetric_thing_apart(angle: float) -> None:
    turn = rotation_about_axis(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(angle))
    found = register(_rod(0, (-1.0, -1.0, 1.0), torch.eye(3)), _rod(1, (-1.0, -1.0, 1.0), turn))
    assert float(found.rotation[:2, 0] @ turn[:2, 0]) > 0.98


@pytest.mark.parametrize("angle", [-2.0, 0.5, 1.3])
def test_what_stands_stays_standing_where_shape_does_not_say(angle: float) -> None:
    """A rod may be rolled about itself; that it is not is cheaper."""
    turn = rotation_about_axis(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(angle))
    found = register(_rod(0, (1.0, -1.0, -1.0), torch.eye(3)), _rod(1, (1.0, -1.0, -1.0), turn))
    assert float(found.rotation[2, 2]) > 0.95
    assert float(found.rotation[:2, 0] @ turn[:2, 0]) > 0.98


def test_even_rotations_are_rotations_and_leave_no_gap() -> None:
    grid = even_rotations(600)
    torch.testing.assert_close(grid @ grid.transpose(-1, -2), torch.eye(3).expand(600, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(grid), torch.ones(600))
    probes = torch.linalg.qr(torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
    probes = probes * torch.linalg.det(probes)[:, None, None]
    nearest = rotation_angle(probes[:, None], grid[None]).amin(dim=-1)
    assert float(nearest.max()) < 0.6
