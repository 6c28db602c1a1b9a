"""Third stage: depth of a few frames without hands."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from afield.errors import AfieldError
from afield.observation import Camera
from afield.perception.cameras import CameraPath
from afield.perception.depth import DepthFiles, DepthNetwork, agree, fill_holes, fit_to_points, plane_sweep
from afield.perception.video import Video

WORK_SIZE = 320
"""Depth is computed on frames with so many pixels on the longer side."""
VIEWS = 4
"""Frames that get depth, if the camera moves; they become the views of the fit."""
SOURCES = 6
"""Other frames that each is compared with."""
LEAST_ANGLE = 1.5
"""Degrees between the outermost hands-free frames, seen from the scene, below which depth would be noise."""


@dataclass(frozen=True)
class DepthMaps:
    """Depth of some frames, reduced in size."""

    frames: tuple[int, ...]
    """Which ones; the last is the reference: the last frame before the hand comes."""
    depth: Float[np.ndarray, "k h w"]
    """Along the optical axis; 0 where it is not known."""
    metric: bool
    """In metres; otherwise in the units of the camera path."""

    def reference(self, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """Depth of the reference frame at full size (width, height); holes are filled from their surroundings."""
        small = self.depth[-1]
        blank = np.zeros((*small.shape, 3), np.uint8)
        known = cv2.resize(fill_holes(small, blank), size, interpolation=cv2.INTER_LINEAR)
        nearest = cv2.resize(fill_holes(small, blank), size, interpolation=cv2.INTER_NEAREST)
        edge = np.abs(known - nearest) > 0.02 * nearest
        return np.where(edge, nearest, known).astype(np.float32)


def small_camera(camera: Camera, width: int, height: int) -> Camera:
    """The same camera with another number of pixels."""
    sx, sy = width / camera.width, height / camera.height
    return replace(
        camera,
        width=width,
        height=height,
        fx=camera.fx * sx,
        fy=camera.fy * sy,
        cx=(camera.cx + 0.5) * sx - 0.5,
        cy=(camera.cy + 0.5) * sy - 0.5,
    )


def small_size(video: Video) -> tuple[int, int]:
    """Width and height of depth maps."""
    scale = min(1.0, WORK_SIZE / max(video.size))
    return round(video.size[0] * scale), round(video.size[1] * scale)


def free_run(free: Bool[np.ndarray, "t"]) -> list[int]:
    """The hands-free frames before the hand comes.

    Raises:
        AfieldError: a hand is in the first frame.
    """
    before = int(np.argmax(~free)) if not free.all() else len(free)
    if before >= 1:
        return list(range(before))
    raise AfieldError(
        "Stage depth: a hand is in the first frame; film the object alone for a second before the hand "
        "comes, or cut the video so."
    )


def depth_from_frames(video: Video, path: CameraPath, free: list[int], *, progress: bool = True) -> DepthMaps:
    """Plane sweep over the hands-free frames.

    Raises:
        AfieldError: the camera moves too little before the hand comes.
    """
    reference = free[-1]
    if path.static:
        raise AfieldError(
            "Stage depth: the camera stands still, so that neither depth nor a second view for the fit can come from the video; "
            "move it sideways while filming."
        )
    near, far, middle = depth_range(path, reference)
    base = path.T_world_camera[free][:, :3, 3] - path.T_world_camera[reference][:3, 3]
    angle = float(np.degrees(base.norm(dim=-1).max() / middle))
    if angle < LEAST_ANGLE:
        raise AfieldError(
            f"Stage depth: before the hand comes the camera moves by {angle:.1f} degrees around the scene, {LEAST_ANGLE} are "
            "needed; begin the video with a slow sideways motion, or give --depth MODEL or --depth FOLDER."
        )
    width, height = small_size(video)
    pictures = {i: cv2.resize(video.frames[i], (width, height), interpolation=cv2.INTER_AREA) for i in free}
    cameras = {i: small_camera(path.camera(i), width, height) for i in free}
    chosen = _spread(free, VIEWS)
    maps = []
    for frame in tqdm(chosen, desc="depth", unit="map", disable=not progress, leave=False):
        others = [i for i in _spread(free, SOURCES + 2) if i != frame][: SOURCES + 1]
        sources = [(pictures[i], cameras[i]) for i in others]
        maps.append(plane_sweep(pictures[frame], cameras[frame], sources, near, far)[0])
    checked = agree(maps, [cameras[i] for i in chosen])
    return DepthMaps(tuple(chosen), np.stack(checked).astype(np.float32), path.metric)


def depth_from_network(video: Video, path: CameraPath, network: DepthNetwork, free: list[int]) -> DepthMaps:
    """A network's depth, brought to the scale of the camera path.

    Raises:
        AfieldError: the path has no points to compare with and is not in metres.
    """
    if not path.static and len(path.points) == 0:
        raise AfieldError(
            "Stage depth: the camera file has no known points that a network's depth could be fitted to; give --depth FOLDER "
            "with measured depth, or leave the camera file out."
        )
    chosen = _spread(free, 1 if path.static else VIEWS)
    width, height = small_size(video)
    maps = []
    for frame in chosen:
        raw = cv2.resize(network.estimate(video.frames[frame]), (width, height), interpolation=cv2.INTER_AREA)
        maps.append(
            raw if path.static else fit_to_points(raw, small_camera(path.camera(frame), width, height), path.points)
        )
    return DepthMaps(tuple(chosen), np.stack(maps).astype(np.float32), network.metric if path.static else path.metric)


def depth_from_files(
    video: Video, path: CameraPath, files: DepthFiles, free: list[int]
) -> tuple[DepthMaps, CameraPath]:
    """Sensor depth; it also tells how long the camera path is, which is returned in metres."""
    chosen = _spread(free, 1 if path.static else VIEWS)
    maps = np.stack([files.read(video.read[frame], small_size(video)) for frame in chosen])
    if path.static or path.metric:
        return DepthMaps(tuple(chosen), maps, metric=True), path
    width, height = small_size(video)
    if len(path.points) == 0:
        raise AfieldError(
            "Stage depth: the camera file has no known points to compare sensor depth with; give its poses in metres and say "
            '"metric": true in it.'
        )
    ratios = []
    for frame, depth in zip(chosen, maps, strict=True):
        pixels, away = small_camera(path.camera(frame), width, height).project(path.points)
        column, row = pixels.round().long().T.numpy()
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height) & (away.numpy() > 0)
        measured = depth[row[inside], column[inside]]
        ratios.append((measured / away.numpy()[inside])[measured > 0])
    found = np.concatenate(ratios)
    if len(found) < 20:
        raise AfieldError(
            f"Stage depth: only {len(found)} known points have sensor depth; check that the depth images belong to the frames."
        )
    factor = float(np.median(found))
    poses = path.T_world_camera.clone()
    poses[:, :3, 3] *= factor
    return DepthMaps(tuple(chosen), maps, metric=True), replace(
        path, T_world_camera=poses, points=path.points * factor, metric=True
    )


def depth_range(path: CameraPath, frame: int) -> tuple[float, float, float]:
    """Smallest, largest and middle depth of the known points in a frame, with room on both sides."""
    _, away = path.camera(frame).project(path.points)
    away = away[away > 0]
    if len(away) < 20:
        raise AfieldError(
            f"Stage depth: only {len(away)} known points lie in front of the camera, too few for plane sweep; with a camera file "
            "give --depth FOLDER (16-bit images in millimetres)."
        )
    low, middle, high = (float(torch.quantile(away, q)) for q in (0.01, 0.5, 0.99))
    return 0.75 * low, 1.3 * high, middle


def _spread(frames: list[int], count: int) -> list[int]:
    """At most `count` of the frames, evenly, with the last one, which is the reference."""
    if count == 1:
        return frames[-1:]
    index = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
    return [frames[i] for i in index]
