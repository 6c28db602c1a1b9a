"""Lens distortion: pictures of real lenses become pictures of a pinhole camera, so that nothing later has to know."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from afield.errors import AfieldError
from afield.observation import Camera, View


def pinhole_view(
    name: str,
    color: UInt8[np.ndarray, "height width 3"],
    depth: Float[np.ndarray, "depth_height depth_width"],
    intrinsics: Float[np.ndarray, "3 3"],
    T_world_camera: Float[Tensor, "4 4"],
    *,
    distortion: Sequence[float] = (),
    fisheye: bool = False,
    mask: Bool[np.ndarray, "mask_height mask_width"] | None = None,
) -> View:
    """A view with its lens distortion removed, keeping size and intrinsics.

    Color is interpolated; depth and mask take the nearest pixel, because a mean of two depths lies on no surface.

    Args:
        name: name of the view.
        color: RGB.
        depth: meters along the optical axis, 0 where missing.
        intrinsics: K, with pixel centers at integer coordinates.
        T_world_camera: pose of the OpenCV camera.
        distortion: OpenCV coefficients (k1, k2, p1, p2[, k3[, k4, k5, k6]]), or (k1, k2, k3, k4) of a fisheye lens.
        fisheye: the coefficients are those of OpenCV's fisheye model.
        mask: the object of interest.

    Raises:
        AfieldError: an image has not the size of the others, or the coefficients are not finite.
    """
    height, width = color.shape[:2]
    if depth.shape != (height, width):
        raise AfieldError(
            f"View '{name}': the depth image has {depth.shape[1]}x{depth.shape[0]} pixels, "
            f"the color image {width}x{height}."
        )
    if not np.isfinite(intrinsics).all() or not all(np.isfinite(value) for value in distortion):
        raise AfieldError(f"View '{name}': intrinsics or distortion coefficients are not finite numbers.")
    if any(abs(value) > 1e-12 for value in distortion):
        coefficients = np.asarray(distortion, dtype=np.float64)
        size, identity = (width, height), np.eye(3)
        undistort = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
        map_x, map_y = undistort(intrinsics, coefficients, identity, intrinsics, size, cv2.CV_32FC1)
        color = cv2.remap(color, map_x, map_y, cv2.INTER_LINEAR)
        depth = cv2.remap(depth, map_x, map_y, cv2.INTER_NEAREST)
        if mask is not None:
            mask = cv2.remap(mask.astype(np.uint8), map_x, map_y, cv2.INTER_NEAREST) > 0
    camera = Camera(
        width=width,
        height=height,
        fx=float(intrinsics[0, 0]),
        fy=float(intrinsics[1, 1]),
        cx=float(intrinsics[0, 2]),
        cy=float(intrinsics[1, 2]),
        T_world_camera=T_world_camera,
    )
    return View(name, camera, color, depth, mask)


def intrinsic_matrix(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    """K of four numbers in pixels."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def pose_of_opengl_camera(T_world_opengl: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """Pose of the OpenCV camera (y down, z forward) that sees what an OpenGL camera (y up, z backward) sees."""
    return T_world_opengl @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))


def resize_depth(
    depth: Float[np.ndarray, "h w"], width: int, height: int, place: str
) -> Float[np.ndarray, "height width"]:
    """Depth of a smaller sensor at the size of the color image, by nearest pixel.

    Raises:
        AfieldError: the two images have different proportions, so they cannot show the same view.
    """
    if depth.shape == (height, width):
        return depth
    if abs(depth.shape[1] * height - depth.shape[0] * width) > 0.02 * depth.shape[0] * width:
        raise AfieldError(
            f"The depth image {place} has {depth.shape[1]}x{depth.shape[0]} pixels, which does not have the "
            f"proportions of its color image of {width}x{height}."
        )
    return cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST)


def evenly(count: int, wanted: int | None) -> list[int]:
    """Indices of at most `wanted` of `count` frames, evenly spaced from the first to the last; None keeps all."""
    if wanted is None or count <= wanted:
        return list(range(count))
    if wanted < 1:
        raise AfieldError(f"The number of views must be at least 1, but is {wanted}.")
    return sorted({round(index) for index in np.linspace(0, count - 1, wanted)})
