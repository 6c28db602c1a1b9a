"""Eighth stage: the posed pictures and labels that an affordance function is fitted to."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from afield.artifacts import load_artifact, write_artifact_files, write_folder
from afield.capture.folder import read_folder_capture, write_capture
from afield.distill.hull import HullFront
from afield.distill.labels import Flow, Labels
from afield.distill.stages.contact import Contact
from afield.distill.stages.depth import DepthMaps, small_camera
from afield.distill.stages.tracks import ObjectTracks
from afield.errors import AfieldError
from afield.observation import Observation, View
from afield.perception.cameras import CameraPath
from afield.perception.video import Video
from afield.skills import DescriptorBasis

BEHIND, BEHIND_HULL = 0.03, 0.2
"""What lies behind the surface there by this share of its distance is hidden; or behind that of the hull, which may lie before
the object's, by this share of half the hull's size."""


def posed_views(
    video: Video,
    path: CameraPath,
    depth: DepthMaps,
    masks: Bool[np.ndarray, "t h w"],
    narration: str,
    surface: Float[np.ndarray, "h w"] | None = None,
    contact: Contact | None = None,
) -> Observation:
    """The hands-free frames that have depth, as views with masks, in the size of the depth maps.

    A finer surface of the object in the last of them, the reference, takes the place of its depth where that is known, and
    on the contact region also where it is not: without depth that could not be carried over to the other views.
    """
    height, width = depth.depth.shape[1:]
    needed = np.zeros((height, width), bool) if contact is None else _resized(contact.region, width, height)
    views = []
    for frame, known in zip(depth.frames, depth.depth, strict=True):
        mask = cv2.resize(masks[frame].astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0.5
        if surface is not None and frame == depth.frames[-1]:
            finer = cv2.resize(surface, (width, height), interpolation=cv2.INTER_NEAREST)
            known = np.where(mask & ((known > 0) | needed), finer, known)
        color = cv2.resize(video.frames[frame], (width, height), interpolation=cv2.INTER_AREA)
        views.append(View(f"frame{frame:05d}", small_camera(path.camera(frame), width, height), color, known, mask))
    extra = {"narration": narration, "metric": depth.metric, "reference": views[-1].name}
    return Observation(tuple(views), name=video.name, extra=extra)


def contact_in_views(
    observation: Observation, region: Bool[np.ndarray, "h w"]
) -> tuple[Bool[np.ndarray, "_h _w"], ...]:
    """A region of the last view, which is the reference, in all views: its points are carried over where they are visible.

    Raises:
        AfieldError: no depth in the region.
    """
    reference = observation.views[-1]
    rows, columns = np.nonzero(region & (reference.depth > 0))
    if len(rows) < 3:
        raise AfieldError("Stage views: the contact region has no depth; give --depth, or film with more light.")
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    points = reference.camera.backproject(pixels, torch.from_numpy(reference.depth[rows, columns]).float())
    found, hull = [], None
    for view in observation.views[:-1]:
        height, width = view.depth.shape
        seen, away = view.camera.project(points)
        column, row = seen.round().long().T.numpy()
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height) & (away.numpy() > 0)
        column, row, away = column[inside], row[inside], away.numpy()[inside]
        measured = bool((view.depth > 0).any())
        if not measured and hull is None:
            hull = HullFront.of(observation)
        there = (hull.depth(view.camera) if hull and not measured else view.depth)[row, column]
        clear = (there <= 0) | (away < there + (BEHIND_HULL * hull.size if hull and not measured else BEHIND * there))
        marked = np.zeros((height, width), np.uint8)
        marked[row[clear], column[clear]] = 1
        marked = cv2.morphologyEx(marked, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
        found.append(marked & (view.mask if view.mask is not None else True))
    return (*found, region)


def small_region(contact: Contact, view: View) -> Bool[np.ndarray, "h w"]:
    """The contact region in the size of the posed views."""
    return _resized(contact.region, view.camera.width, view.camera.height)


def _resized(region: Bool[np.ndarray, "_h _w"], width: int, height: int) -> Bool[np.ndarray, "{height} {width}"]:
    return cv2.resize(region.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0.3


def object_flow(
    tracks: ObjectTracks, contact: Contact, horizon: int, times: Float[np.ndarray, "t"], *, backwards: bool = False
) -> Flow:
    """Flow of the points from first contact to release in `horizon` steps of equal time, in the frame of the cameras.

    Args:
        tracks: of the object.
        contact: when the hand takes hold and lets go.
        horizon: H.
        times: of the frames in seconds; the frame rate may vary.
        backwards: the frames are in reverse order, so that what looks like the release was the first contact.

    Raises:
        AfieldError: there are not enough frames between contact and release.
    """
    first, last = contact.contact_frame, contact.release_frame
    if last - first < 3:
        raise AfieldError(
            f"Stage tracks: only {last - first} frames lie between contact ({first}) and release ({last}); film the motion "
            "slower."
        )
    if backwards:
        first, last = last, first
    start = tracks.at(first)
    moments = np.linspace(times[first], times[last], horizon + 1)[1:]
    steps = np.interp(moments, times, np.arange(len(times)))
    displacement, visible = [], []
    for time in steps:
        low, share = int(time), float(time - int(time))
        high = min(low + 1, len(times) - 1)
        place = (1 - share) * tracks.at(low) + share * tracks.at(high)
        displacement.append(place - start)
        # Where the part's motion is known its points are known as well, though their corners may have been lost.
        visible.append(tracks.seen[round(time)] | (tracks.moving & (tracks.fit[round(time)] >= 0)))
    return Flow(
        torch.from_numpy(start).float(),
        torch.from_numpy(np.stack(displacement, axis=1)).float(),
        torch.from_numpy(np.stack(visible, axis=1)).float(),
    )


def table_height(observation: Observation, points: Float[np.ndarray, "q 3"]) -> float | None:
    """0 if the object stands on the plane that the cameras' frame was built on, else None.

    The lowest of the object must be near it: a floor far below is no support.
    """
    height = np.ptp(points[:, 2])
    low = float(np.quantile(points[:, 2], 0.02))
    return 0.0 if abs(low) < 0.25 * max(height, 1e-6) else None


def save_labels(result: tuple[Observation, Labels, DescriptorBasis], folder: Path) -> None:
    """Write an observation (as a capture, in `capture`), its labels, and how it is described."""
    observation, labels, basis = result
    assert labels.flow is not None, "a video shows a motion"
    tensors = {
        "start": labels.flow.start,
        "displacement": labels.flow.displacement,
        "visible": labels.flow.visible,
        "basis.mean": basis.mean,
        "basis.basis": basis.basis,
    }
    for index, mask in enumerate(labels.contact):
        assert mask is not None, "every view has one"
        tensors[f"contact.{index}"] = torch.from_numpy(mask)
    header = {"floor": labels.floor, "flow": "from contact to release", "extractor": basis.extractor}
    if labels.descriptors is not None:
        tensors["descriptors"] = labels.descriptors

    def fill(temporary: Path) -> None:
        """Write the labels, and the pictures beside them."""
        write_artifact_files(temporary, "video-labels", tensors, header)
        write_capture(observation, temporary / "capture", jpeg_quality=None)

    write_folder(folder, fill)


def load_labels(folder: Path) -> tuple[Observation, Labels, DescriptorBasis]:
    """Read what `save_labels` has written."""
    names = ("contact.0", "start", "displacement", "visible", "basis.mean", "basis.basis")
    tensors, header = load_artifact(folder, "video-labels", names, ("floor", "extractor"))
    flow = Flow(tensors["start"], tensors["displacement"], tensors["visible"])
    contact = tuple(
        tensors[f"contact.{i}"].numpy() for i in range(sum(name.startswith("contact.") for name in tensors))
    )
    basis = DescriptorBasis(header["extractor"], tensors["basis.mean"], tensors["basis.basis"])
    labels = Labels(contact, tensors.get("descriptors"), header["floor"], flow)
    return read_folder_capture(folder / "capture"), labels, basis
