"""Third stage: depth of a few frames without hands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from afield.artifacts import load_artifact, save_artifact
from afield.distill.stages.cameras import TENSORS
from afield.errors import AfieldError
from afield.observation import Camera
from afield.perception.cameras import CameraPath, upright
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
        "Stage depth: a hand is in the first frame, and in the last one; film the object alone for a second before the hand "
        "comes or after it has gone, or cut the video so."
    )


def depth_from_frames(video: Video, path: CameraPath, free: list[int], *, progress: bool = True) -> DepthMaps:
    """Plane sweep over the hands-free frames.

    Raises:
        AfieldError: the camera moves too little before the hand comes.
    """
    reference = free[-1]
    if path.static:
        raise AfieldError(
            "Stage depth: the camera stands still, so that the video does not tell depth; move it sideways while filming, or "
            "give --depth FOLDER (16-bit images in millimetres) or --depth MODEL (one that answers in metres)."
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


def depth_from_network(
    video: Video, path: CameraPath, network: DepthNetwork, free: list[int]
) -> tuple[DepthMaps, CameraPath]:
    """A network's depth; one that answers in metres tells how long the camera path is, any other is fitted to the path.

    Raises:
        AfieldError: the camera stands still and the network does not answer in metres, or there are no points to compare with.
    """
    if path.static and not network.metric:
        raise AfieldError(
            "Stage depth: the camera stands still, and this network's depth is known up to scale and shift only; name one that "
            "answers in metres (DepthPro, ZoeDepth, Depth Anything V2 Metric), or give --depth FOLDER."
        )
    chosen = _spread(free, 1 if path.static else VIEWS)
    width, height = small_size(video)
    maps = [
        cv2.resize(network.estimate(video.frames[frame]), (width, height), interpolation=cv2.INTER_AREA)
        for frame in chosen
    ]
    if path.static:
        return DepthMaps(tuple(chosen), np.stack(maps).astype(np.float32), metric=True), turned_upright(path, maps[-1])
    cameras = [small_camera(path.camera(frame), width, height) for frame in chosen]
    if network.metric and not path.metric:
        factor = _metres_a_unit(path, cameras, maps)
        path = path.scaled(factor, metric=True)
        cameras = [small_camera(path.camera(frame), width, height) for frame in chosen]
    fitted = [fit_to_points(raw, camera, path.points) for raw, camera in zip(maps, cameras, strict=True)]
    return DepthMaps(tuple(chosen), np.stack(fitted).astype(np.float32), path.metric), path


def depth_from_files(
    video: Video, path: CameraPath, files: DepthFiles, free: list[int]
) -> tuple[DepthMaps, CameraPath]:
    """Sensor depth; it also tells how long the camera path is, which is returned in metres."""
    chosen = _spread(free, 1 if path.static else VIEWS)
    maps = np.stack([files.read(video.read[frame], small_size(video)) for frame in chosen])
    return _measured(path, chosen, maps)


def depth_from_sensor(
    video: Video, path: CameraPath, depth: Float[np.ndarray, "t h w"], free: list[int]
) -> tuple[DepthMaps, CameraPath]:
    """Depth that an RGB-D recording brings along, in metres."""
    chosen = _spread(free, 1 if path.static else VIEWS)
    size = small_size(video)
    return _measured(
        path, chosen, np.stack([cv2.resize(depth[i], size, interpolation=cv2.INTER_NEAREST) for i in chosen])
    )


def _measured(path: CameraPath, chosen: list[int], maps: Float[np.ndarray, "k h w"]) -> tuple[DepthMaps, CameraPath]:
    """Depth maps in metres, and the path in metres."""
    height, width = maps.shape[1:]
    if path.static:
        path = turned_upright(path, maps[-1])
    elif not path.metric:
        cameras = [small_camera(path.camera(frame), width, height) for frame in chosen]
        path = path.scaled(_metres_a_unit(path, cameras, list(maps)), metric=True)
    return DepthMaps(tuple(chosen), maps, metric=True), path


def turned_upright(path: CameraPath, depth: Float[np.ndarray, "h w"]) -> CameraPath:
    """A camera that stands still, turned until what lies in its picture is level; its depth is in metres.

    Where nothing lies, it stays as if it had been held level.
    """
    height, width = depth.shape
    rows, columns = np.nonzero(depth > 0)
    if len(rows) < 100:
        raise AfieldError(
            "Stage depth: the depth of the hands-free frame is empty; check that it belongs to the video."
        )
    some = np.random.default_rng(0).permutation(len(rows))[:4000]
    pixels = torch.from_numpy(np.stack((columns[some], rows[some]), axis=-1)).float()
    camera = small_camera(path.camera(0), width, height)
    points = camera.backproject(pixels, torch.from_numpy(depth[rows[some], columns[some]]).float())
    poses, points = upright(path.T_world_camera, points, metric=True)
    return replace(path, T_world_camera=poses, points=points, spread=torch.zeros(len(points)), metric=True)


def _metres_a_unit(path: CameraPath, cameras: list[Camera], maps: list[Float[np.ndarray, "h w"]]) -> float:
    """How many metres a unit of the camera path is, by the depth in metres of its points.

    Raises:
        AfieldError: hardly any point has depth.
    """
    ratios = [np.zeros(0)]
    for camera, depth in zip(cameras, maps, strict=True):
        pixels, away = camera.project(path.points)
        column, row = pixels.round().long().T.numpy()
        inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height) & (away.numpy() > 0)
        measured = depth[row[inside], column[inside]]
        ratios.append((measured / away.numpy()[inside])[measured > 0])
    found = np.concatenate(ratios)
    if len(found) < 20:
        raise AfieldError(
            f"Stage depth: only {len(found)} known points have depth; check that the depth images belong to the frames."
        )
    return float(np.median(found))


def save_depth(result: tuple[DepthMaps, CameraPath], folder: Path) -> None:
    """Write depth maps, and the camera path to whose scale they have brought it."""
    save_artifact(
        folder,
        "video-depth-cameras",
        {"depth": torch.from_numpy(result[0].depth), **result[1].tensors()},
        {"frames": list(result[0].frames), "metric": result[0].metric, "camera": result[1].described()},
    )


def load_depth(folder: Path) -> tuple[DepthMaps, CameraPath]:
    """Read what `save_depth` has written."""
    tensors, header = load_artifact(folder, "video-depth-cameras", ("depth", *TENSORS), ("frames", "metric", "camera"))
    maps = DepthMaps(tuple(int(x) for x in header["frames"]), tensors["depth"].numpy(), bool(header["metric"]))
    return maps, CameraPath.restored(tensors, header["camera"])


def depth_range(path: CameraPath, frame: int) -> tuple[float, float, float]:
    """Smallest, largest and middle depth of the known points in a frame, with room on both sides."""
    _, away = path.camera(frame).project(path.points)
    away = away[away > 0]
    if len(away) < 20:
        raise AfieldError(
            f"Stage depth: only {len(away)} known points lie in front of the camera, too few for plane sweep; give --depth "
            "FOLDER (16-bit images in millimetres)."
        )
    low, middle, high = (float(torch.quantile(away, q)) for q in (0.01, 0.5, 0.99))
    return 0.75 * low, 1.3 * high, middle


def _spread(frames: list[int], count: int) -> list[int]:
    """At most `count` of the frames, evenly, with the last one, which is the reference."""
    if count == 1:
        return frames[-1:]
    index = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
    return [frames[i] for i in index]
