"""What the cameras saw: `Camera`, `View`, `Observation`, and the capture folder that holds them on disk.

A capture is a folder with `capture.json`, colour images, metric depth and optional masks; `docs/captures.md` documents it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afield.errors import AfieldError


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion, in OpenCV convention (x right, y down, z forward).

    Pixel centres lie at integer coordinates, so the top-left pixel's centre is (0, 0).
    """

    width: int
    """Image width in pixels."""
    height: int
    """Image height in pixels."""
    fx: float
    """Focal length along x, in pixels."""
    fy: float
    """Focal length along y, in pixels."""
    cx: float
    """Principal point, x, in pixels."""
    cy: float
    """Principal point, y, in pixels."""
    T_world_camera: Float[Tensor, "4 4"]
    """Maps camera coordinates to world coordinates, in metres."""

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy)
        if self.width <= 0 or self.height <= 0:
            raise AfieldError(f"A camera of {self.width}x{self.height} pixels has no image; both must be positive.")
        if not all(math.isfinite(value) for value in numbers) or self.fx <= 0 or self.fy <= 0:
            raise AfieldError(
                f"Camera intrinsics (fx, fy, cx, cy) = {numbers} must be finite, with positive focal lengths."
            )
        pose = self.T_world_camera
        if pose.shape != (4, 4) or not torch.isfinite(pose).all():
            raise AfieldError(f"T_world_camera must be a finite 4x4 matrix, but has shape {tuple(pose.shape)}.")
        rotation = pose[:3, :3]
        if not torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-3) or float(torch.det(rotation)) < 0:
            raise AfieldError("The 3x3 part of T_world_camera is not a rotation (orthonormal, determinant +1).")

    @property
    def intrinsics(self) -> Float[Tensor, "3 3"]:
        """The 3x3 matrix K that maps camera coordinates to homogeneous pixels."""
        return torch.tensor([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def position(self) -> Float[Tensor, "3"]:
        """The camera centre in the world, in metres."""
        return self.T_world_camera[:3, 3]

    def backproject(self, pixels: Float[Tensor, "n 2"], depth: Float[Tensor, "n"]) -> Float[Tensor, "n 3"]:
        """World points of pixels (x, y) with depth along the optical axis, in metres."""
        x = (pixels[:, 0] - self.cx) / self.fx
        y = (pixels[:, 1] - self.cy) / self.fy
        points_camera = torch.stack((x, y, torch.ones_like(x)), dim=-1) * depth[:, None]
        return points_camera @ self.T_world_camera[:3, :3].T + self.T_world_camera[:3, 3]

    def project(self, points_world: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n"]]:
        """Pixels (x, y) and depths in metres of world points; points behind the camera have depth <= 0."""
        points_camera = (points_world - self.T_world_camera[:3, 3]) @ self.T_world_camera[:3, :3]
        depth = points_camera[:, 2]
        safe = torch.where(depth.abs() < 1e-9, torch.full_like(depth, 1e-9), depth)
        x = points_camera[:, 0] / safe * self.fx + self.cx
        y = points_camera[:, 1] / safe * self.fy + self.cy
        return torch.stack((x, y), dim=-1), depth


@dataclass(frozen=True)
class View:
    """One picture with depth from a known camera."""

    name: str
    """Short name, unique in its observation, e.g. "camera0"."""
    camera: Camera
    color: np.ndarray
    """RGB, 8 bit, of shape [height, width, 3]."""
    depth: np.ndarray
    """Metres along the optical axis, float32 of shape [height, width]; 0 where there is no measurement."""
    mask: np.ndarray | None = None
    """True on the object of interest, bool of shape [height, width]; None where nobody said."""

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        for what, image in (("colour image", self.color), ("depth image", self.depth), ("mask", self.mask)):
            if image is not None and image.shape[:2] != size:
                raise AfieldError(
                    f"View '{self.name}': the {what} has {image.shape[1]}x{image.shape[0]} pixels, but its camera is "
                    f"calibrated for {size[1]}x{size[0]}; resize the image or scale the intrinsics."
                )
        if self.color.ndim != 3 or self.color.shape[2] != 3 or self.color.dtype != np.uint8:
            raise AfieldError(
                f"View '{self.name}': colour must be 8-bit RGB, but is {self.color.dtype} {self.color.shape}."
            )
        if not np.isfinite(self.depth).all():
            count = int((~np.isfinite(self.depth)).sum())
            raise AfieldError(
                f"View '{self.name}': {count} depth pixels are NaN or infinite; mark missing depth with 0 instead."
            )
        if (self.depth < 0).any():
            raise AfieldError(
                f"View '{self.name}': depth has negative values; it must be metres along the optical axis."
            )

    def with_mask(self, mask: Bool[np.ndarray, "height width"]) -> View:
        """The same view with another mask."""
        return replace(self, mask=mask)


@dataclass(frozen=True)
class Observation:
    """Everything seen of one scene at one moment: one or more views with a common world frame, +Z up."""

    views: tuple[View, ...]
    name: str = "observation"
    folder: Path | None = None
    """The capture folder it was read from, where there is one; simulations find their objects through it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else `capture.json` held, unchanged (attribution, the simulated world, ...)."""

    def __post_init__(self) -> None:
        if not self.views:
            raise AfieldError(f"The observation '{self.name}' has no views; at least one is needed.")
        names = [view.name for view in self.views]
        if len(set(names)) != len(names):
            raise AfieldError(f"The observation '{self.name}' has two views of the same name: {names}.")
