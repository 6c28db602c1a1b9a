"""Part of the eighth stage, where views of the object come from elsewhere: what the video says is carried over to them.

The views are a capture (`docs/captures.md`) with masks, whose first view shows the object as the reference frame of the video
does, from the same place; its picture may be cropped or zoomed. That view ties the world of the capture to that of the video.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from afield.capture import read_capture
from afield.distill.hull import HullFront, canonical_frame
from afield.distill.labels import Flow
from afield.errors import AfieldError
from afield.observation import Camera, Observation, View

ALIKE = 0.5
"""Overlap of the object's masks in the reference frame and in the first given view, below which these are not the same view."""


@runtime_checkable
class ViewSource(Protocol):
    """Where views of the object come from, if not from the video: files, or something that makes an object of a picture."""

    def views(self, reference: View) -> Observation:
        """Views with object masks, of which the first one is taken from where the reference frame was.

        Args:
            reference: the reference frame with the object's mask, as large as it was read; without depth.
        """
        ...


@dataclass(frozen=True)
class CaptureViews:
    """Views that lie on the disk as a capture."""

    path: Path

    def views(self, reference: View) -> Observation:
        """The capture; the reference frame is not asked."""
        return read_capture(self.path)


@dataclass(frozen=True)
class GivenViews:
    """Views from elsewhere and the way from the video's world to theirs: x -> scale * rotation @ x + shift."""

    observation: Observation
    """The first of the given views is the last one here, for the reference comes last."""
    rotation: Float[Tensor, "3 3"]
    shift: Float[Tensor, "3"]
    scale: float

    def flow(self, flow: Flow) -> Flow:
        """Point flow of the video in the world of the views."""
        return Flow(
            self.scale * flow.start @ self.rotation.T + self.shift,
            self.scale * flow.displacement @ self.rotation.T,
            flow.visible,
        )

    def floor(self, height: float | None) -> float | None:
        """Height of the video's floor under the object in the world of the views; None if their +Z is not the video's."""
        up = self.rotation[:, 2]
        if height is None or float(up[2]) < np.cos(np.radians(5)):
            return None
        on_it = self.shift + self.scale * height * up
        middle = canonical_frame(self.observation)[0]
        return float(on_it[2] - (up[:2] @ (middle - on_it)[:2]) / up[2])


def tie_views(capture: Observation, reference: View, frame: int) -> GivenViews:
    """Find out how the world of given views lies to that of the video.

    Args:
        capture: views with masks; the first one is taken from where the reference frame was. If it has depth there, that
            tells how long a unit is; otherwise the hull of the masks does.
        reference: the reference frame, with mask and depth.
        frame: its number in the video, for the sentences.

    Raises:
        AfieldError: a view has no mask, or the first one does not show the object as the reference frame does.
    """
    missing = [view.name for view in capture.views if view.mask is None or not view.mask.any()]
    if missing:
        raise AfieldError(f"Stage views: the views {', '.join(missing)} of '{capture.name}' have no object mask.")
    first = capture.views[0]
    assert first.mask is not None
    assert reference.mask is not None
    mask = carried(reference.mask, reference.camera, first.camera)
    both, either = (mask & first.mask).sum(), (mask | first.mask).sum()
    if both < ALIKE * either:
        raise AfieldError(
            f"Stage views: the first view '{first.name}' of '{capture.name}' must show the object from where frame {frame} of "
            f"the video does, but the object's masks overlap by {100 * both / either:.0f}%; begin the capture with that frame."
        )
    depth = carried(reference.depth, reference.camera, first.camera)
    known = mask & first.mask & (depth > 0)
    own = (
        first.depth
        if (known & (first.depth > 0)).sum() >= 20
        else HullFront.of(capture, 64).depth(first.camera, filled=False)
    )
    known &= own > 0
    if known.sum() < 20:
        raise AfieldError(
            f"Stage views: frame {frame} and the view '{first.name}' of '{capture.name}' have no depth of the object in common."
        )
    scale = float(np.median(own[known] / depth[known]))
    rotation = first.camera.T_world_camera[:3, :3] @ reference.camera.T_world_camera[:3, :3].T
    shift = first.camera.position - scale * rotation @ reference.camera.position
    if own is not first.depth:  # contact is carried to the other views by depth
        first = replace(first, depth=(scale * np.where(known, depth, 0)).astype(np.float32))
    extra = {**capture.extra, "reference": first.name}
    tied = replace(capture, views=(*capture.views[1:], first), extra=extra)
    return GivenViews(tied, rotation, shift, scale)


def carried(image: Shaped[np.ndarray, "h w"], camera: Camera, other: Camera) -> Shaped[np.ndarray, "_h _w"]:
    """A picture as another camera in the same place, which looks the same way, shows it; by nearest pixel."""
    homography = (other.intrinsics @ torch.linalg.inv(camera.intrinsics)).double().numpy()
    plain = image.astype(np.uint8) if image.dtype == np.bool_ else image
    found = cv2.warpPerspective(plain, homography, (other.width, other.height), flags=cv2.INTER_NEAREST)
    return found > 0 if image.dtype == np.bool_ else found


def region_in(region: Bool[np.ndarray, "h w"], camera: Camera, view: View) -> Bool[np.ndarray, "_h _w"]:
    """A region of the reference frame at full size in the view that was taken from there."""
    mask = view.mask if view.mask is not None else np.ones(view.depth.shape, bool)
    return carried(region, camera, view.camera) & mask
