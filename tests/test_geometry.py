from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from afield import geometry
from afield.errors import AfieldError
from afield.observation import Camera, Observation, View


def _rotations(count: int, generator: torch.Generator) -> torch.Tensor:
    quat = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    return geometry.quat_wxyz_to_matrix(quat)


def test_quaternions_agree_with_scipy_and_come_back(generator: torch.Generator) -> None:
    quat_wxyz = torch.nn.functional.normalize(torch.randn(20, 4, generator=generator), dim=-1)
    matrix = geometry.quat_wxyz_to_matrix(quat_wxyz)
    expected = Rotation.from_quat(quat_wxyz.numpy(), scalar_first=True).as_matrix()
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-6)
    back = geometry.matrix_to_quat_wxyz(matrix)
    torch.testing.assert_close((back * quat_wxyz).sum(-1).abs(), torch.ones(20))


def test_six_numbers_are_the_first_two_columns(generator: torch.Generator) -> None:
    rotation = _rotations(20, generator)
    sixd = geometry.rotation_to_6d(rotation)
    torch.testing.assert_close(sixd[:, :3], rotation[:, :, 0])
    torch.testing.assert_close(geometry.rotation_from_6d(sixd), rotation)
    # Scale and the part of the second column along the first do not matter.
    skewed = torch.cat((sixd[:, :3] * 3, sixd[:, 3:] * 0.5 + 0.2 * sixd[:, :3]), dim=-1)
    torch.testing.assert_close(geometry.rotation_from_6d(skewed), rotation, atol=1e-5, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, math.pi / 2, math.pi - 1e-6])
def test_axis_angle_near_zero_and_pi(angle: float) -> None:
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    rotation = geometry.rotation_about_axis(axis, torch.tensor(angle, dtype=torch.float64))
    expected = Rotation.from_rotvec(angle * axis.numpy()).as_matrix()
    np.testing.assert_allclose(rotation.numpy(), expected, atol=1e-9)
    identity = torch.eye(3, dtype=torch.float64)
    assert abs(float(geometry.rotation_angle(rotation, identity)) - angle) < 1e-6


def test_poses_compose_and_invert(generator: torch.Generator) -> None:
    pose = geometry.pose_from(_rotations(5, generator), torch.randn(5, 3, generator=generator))
    points = torch.randn(5, 7, 3, generator=generator)
    back = geometry.transform_points(geometry.inverse_pose(pose), geometry.transform_points(pose, points))
    torch.testing.assert_close(back, points, atol=1e-5, rtol=1e-5)


def test_sphere_points_are_unit_and_balanced() -> None:
    points = geometry.uniform_sphere(500)
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(500))
    assert float(points.mean(dim=0).norm()) < 0.01


def _camera(**changes: object) -> Camera:
    pose = geometry.look_at(torch.tensor([1.0, 0.5, 1.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    values: dict = {"width": 64, "height": 48, "fx": 60.0, "fy": 62.0, "cx": 31.5, "cy": 23.5, "T_world_camera": pose}
    return Camera(**{**values, **changes})


def test_looking_at_a_point_puts_it_on_the_principal_point() -> None:
    pixels, depth = _camera().project(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.1]]))
    torch.testing.assert_close(pixels[0], torch.tensor([31.5, 23.5]), atol=1e-4, rtol=0)
    torch.testing.assert_close(depth[0], torch.tensor(1.5))
    assert pixels[1, 1] < pixels[0, 1], "higher in the world is higher in the picture (smaller y)"


def test_projection_and_back_projection_are_inverse(generator: torch.Generator) -> None:
    points = 0.3 * torch.randn(50, 3, generator=generator)
    camera = _camera()
    torch.testing.assert_close(camera.backproject(*camera.project(points)), points, atol=1e-5, rtol=1e-4)
    homogeneous = camera.intrinsics @ torch.tensor([0.1, -0.2, 2.0])
    pixel, _ = camera.project(geometry.transform_points(camera.T_world_camera, torch.tensor([[0.1, -0.2, 2.0]])))
    torch.testing.assert_close(pixel[0], homogeneous[:2] / homogeneous[2], atol=1e-4, rtol=1e-4)


def _view(**changes: object) -> View:
    values: dict = {
        "name": "a",
        "camera": _camera(),
        "color": np.zeros((48, 64, 3), np.uint8),
        "depth": np.ones((48, 64), np.float32),
    }
    return View(**{**values, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _camera(fx=float("nan")), "must be finite"),
        (lambda: _camera(width=0), "both must be positive"),
        (lambda: _camera(T_world_camera=torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0]))), "not a rotation"),
        (lambda: _view(depth=np.ones((24, 32), np.float32)), r"depth image has 32x24 pixels.*calibrated for 64x48"),
        (lambda: _view(depth=np.full((48, 64), np.nan, np.float32)), "3072 depth pixels are NaN"),
        (lambda: _view(depth=np.full((48, 64), -1, np.float32)), "negative"),
        (lambda: _view(color=np.zeros((48, 64, 3), np.float32)), "8-bit RGB"),
        (lambda: Observation(()), "has no views"),
        (lambda: Observation((_view(), _view())), "two views of the same name"),
    ],
)
def test_impossible_observations_are_explained(make, message: str) -> None:
    with pytest.raises(AfieldError, match=message):
        make()
