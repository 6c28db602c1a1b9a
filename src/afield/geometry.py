"""Poses, projections and the few rotations that Afield needs; a thin layer over `roma`.

This is the only module that reorders quaternions: roma and SciPy use xyzw, MuJoCo and viewers wxyz. A pose `T_a_b` is a 4x4
matrix that maps coordinates of frame b to frame a. Cameras are OpenCV cameras: x right, y down, z forward.
"""

from __future__ import annotations

import math
from typing import cast

import roma
import torch
from jaxtyping import Float
from torch import Tensor


def quat_wxyz_to_matrix(quat_wxyz: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of unit quaternions, scalar first."""
    return roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(quat_wxyz))


def matrix_to_quat_wxyz(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternions, scalar first, of rotation matrices."""
    return roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(rotation))


def rotation_from_6d(sixd: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation of the 6-D parametrisation of appendix B: the first two columns, made orthonormal by Gram-Schmidt."""
    return roma.special_gramschmidt(torch.stack((sixd[..., :3], sixd[..., 3:]), dim=-1))


def rotation_to_6d(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """The first two columns of a rotation matrix, one after the other."""
    return torch.cat((rotation[..., :, 0], rotation[..., :, 1]), dim=-1)


def rotation_about_axis(axis: Float[Tensor, "*batch 3"], angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation by `angle` radians about the unit vector `axis`."""
    return roma.rotvec_to_rotmat(axis * angle[..., None])


def rotation_angle(a: Float[Tensor, "*#batch 3 3"], b: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Angle in radians between two rotations."""
    return roma.rotmat_geodesic_distance(a, b)


def pose_from(
    rotation: Float[Tensor, "*batch 3 3"], translation: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """The 4x4 pose with the given rotation and translation."""
    top = torch.cat((rotation, translation[..., None]), dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 0, 3] = 1.0
    return torch.cat((top, bottom), dim=-2)


def inverse_pose(pose: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The inverse of a rigid pose."""
    rotation = pose[..., :3, :3].transpose(-1, -2)
    return pose_from(rotation, -(rotation @ pose[..., :3, 3:])[..., 0])


def transform_points(
    pose: Float[Tensor, "*batch 4 4"], points: Float[Tensor, "*batch n 3"]
) -> Float[Tensor, "*batch n 3"]:
    """Points of frame b in frame a, for a pose `T_a_b`; batch dimensions broadcast."""
    return points @ pose[..., :3, :3].transpose(-1, -2) + pose[..., None, :3, 3]


def look_at(position: Float[Tensor, "3"], target: Float[Tensor, "3"], up: Float[Tensor, "3"]) -> Float[Tensor, "4 4"]:
    """`T_world_camera` of an OpenCV camera at `position` that looks at `target` with `up` towards the image top."""
    forward = torch.nn.functional.normalize(target - position, dim=0)
    right = torch.linalg.cross(forward, up)
    if float(right.norm()) < 1e-6:
        raise ValueError("look_at: the viewing direction is parallel to `up`; choose another up vector.")
    right = torch.nn.functional.normalize(right, dim=0)
    down = torch.linalg.cross(forward, right)
    return pose_from(torch.stack((right, down, forward), dim=1), position)


def uniform_sphere(count: int) -> Float[Tensor, "count 3"]:
    """`count` well-spread unit vectors (a Fibonacci lattice)."""
    index = torch.arange(count, dtype=torch.float32) + 0.5
    polar = torch.acos(1 - 2 * index / count)
    azimuth = math.pi * (1 + 5**0.5) * index
    return torch.stack((azimuth.cos() * polar.sin(), azimuth.sin() * polar.sin(), polar.cos()), dim=-1)


def rigid_registration(
    source: Float[Tensor, "*batch n 3"],
    target: Float[Tensor, "*batch n 3"],
    weight: Float[Tensor, "*batch n"] | None = None,
) -> tuple[Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3"]]:
    """Rotation and translation that carry `source` onto `target` with the least (weighted) squared distance (Kabsch)."""
    return cast("tuple[Tensor, Tensor]", roma.rigid_points_registration(source, target, weights=weight))


def nearest_to_lines(origin: Float[Tensor, "k 3"], direction: Float[Tensor, "k 3"]) -> Float[Tensor, "3"]:
    """The point with the least summed squared distance to some lines, given by a point and a unit direction each."""
    across = torch.eye(3).to(origin) - direction[:, :, None] * direction[:, None, :]
    wanted = (across @ origin[:, :, None]).sum(dim=0)[:, 0]
    return torch.linalg.lstsq(across.sum(dim=0), wanted[:, None]).solution[:, 0]
