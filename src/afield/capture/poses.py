"""Cameras without their pictures: what other tools have found out about the frames of a video."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float
from torch import Tensor

from afield.errors import AfieldError

BENT = 1.5
"""Pixels of a picture 640 wide by which a lens may bend the picture's corner and still count as a pinhole."""
OFF_CENTER = 0.02
"""Share of the picture by which its principal point may lie off its middle, and by which fx and fy may differ."""


@dataclass(frozen=True)
class PosedFrames:
    """One camera in many places."""

    names: tuple[str, ...]
    """Of the pictures."""
    T_world_camera: Float[Tensor, "n 4 4"]
    width: int
    height: int
    intrinsics: Float[np.ndarray, "3 3"]
    distortion: tuple[float, ...]
    """OpenCV's coefficients."""
    fisheye: bool
    points: Float[Tensor, "m 3"]
    """What the tool saw, in the world; none if it does not say."""
    spread: Float[Tensor, "m"]
    """Reprojection error of each point in pixels."""
    upright: bool
    """+Z of the world is up."""
    metric: bool
    """Lengths are metres."""

    def focal(self, place: str) -> float:
        """The focal length in pixels, if this is a camera that one number describes.

        Raises:
            AfieldError: the lens bends straight lines, or the picture's middle is not where the camera looks.
        """
        fx, fy = float(self.intrinsics[0, 0]), float(self.intrinsics[1, 1])
        off = abs(self.intrinsics[0, 2] - (self.width - 1) / 2) / self.width
        off = max(off, abs(self.intrinsics[1, 2] - (self.height - 1) / 2) / self.height, abs(fx / fy - 1))
        if off > OFF_CENTER:
            raise AfieldError(
                f"{place}: fx = {fx:.1f}, fy = {fy:.1f} and the principal point ({self.intrinsics[0, 2]:.1f}, "
                f"{self.intrinsics[1, 2]:.1f}) of {self.width}x{self.height} pixels describe a cropped or stretched picture; "
                "undistort the frames first (COLMAP's image_undistorter) and give those as the video."
            )
        corners = np.array([[[0.0, 0.0]], [[self.width - 1.0, self.height - 1.0]]])
        undo = cv2.fisheye.undistortPoints if self.fisheye else cv2.undistortPoints
        coefficients = np.array(self.distortion or (0.0,) * 4)
        straight = undo(corners, self.intrinsics, coefficients, P=self.intrinsics)
        bent = float(np.linalg.norm(straight - corners, axis=-1).max()) * 640 / self.width
        if bent > BENT:
            raise AfieldError(
                f"{place}: the lens bends the corners by {bent:.0f} pixels of 640; undistort the frames first (COLMAP's "
                "image_undistorter) and give those as the video."
            )
        return (fx + fy) / 2
