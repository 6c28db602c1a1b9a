"""Second stage: where the camera was in every frame."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from afield.artifacts import load_artifact, read_json, save_artifact
from afield.capture.colmap import find_model, read_colmap_poses
from afield.capture.poses import PosedFrames
from afield.capture.transforms import read_transforms_poses
from afield.errors import AfieldError
from afield.perception.cameras import CameraPath, nominal_scale, upright, with_points
from afield.perception.video import Video, numbered

TENSORS = ("T_world_camera", "points", "spread")
NUMBERS = ("width", "height", "focal", "static", "metric")
"""Of a camera path in a file."""


def save_cameras(path: CameraPath, folder: Path) -> None:
    """Write a camera path."""
    save_artifact(folder, "video-cameras", path.tensors(), path.described())


def load_cameras(folder: Path) -> CameraPath:
    """Read a camera path."""
    tensors, header = load_artifact(folder, "video-cameras", TENSORS, NUMBERS)
    return CameraPath.restored(tensors, header)


def given_cameras(source: Path, video: Video, hands: Bool[np.ndarray, "t h w"], *, progress: bool = True) -> CameraPath:
    """Poses from elsewhere, with points that are triangulated from the video if they bring none.

    Args:
        source: a JSON file (see `read_camera_file`), a nerfstudio `transforms.json` or its folder, or a folder with a COLMAP
            model. Of the last two the pictures, in the order of the numbers in their names, are the frames of the video.
        video: the frames.
        hands: where hands are.
        progress: show progress bars.

    Raises:
        AfieldError: the file is damaged, or the poses do not fit the video.
    """
    if not source.exists():
        raise AfieldError(f"Stage cameras: there is no file or folder {source}.")
    posed = None
    if find_model(source) is not None:
        posed = read_colmap_poses(source)
    elif source.is_dir() or "frames" in read_json(source):
        posed = read_transforms_poses(source)
    if posed is None:
        path = read_camera_file(source, len(video.frames), video.size, video.read)
    else:
        path = path_of_frames(posed, video, str(source))
    if path.static:
        return path
    if len(path.points) == 0:
        path = with_points(path, video.frames, hands, progress=progress)
    if posed is not None and not posed.upright:
        poses, points = upright(path.T_world_camera, path.points)
        return replace(path, T_world_camera=poses, points=points)
    return path if path.metric else path.scaled(nominal_scale(path.T_world_camera, path.points), metric=False)


def path_of_frames(found: PosedFrames, video: Video, place: str) -> CameraPath:
    """The poses of a video's frames among those of pictures.

    Raises:
        AfieldError: there are fewer pictures than frames, or the lens is no pinhole.
    """
    order = sorted(range(len(found.names)), key=lambda index: numbered(found.names[index]))
    if len(order) <= max(video.read):
        raise AfieldError(
            f"Stage cameras: {place} has poses of {len(order)} pictures, but the video has at least {max(video.read) + 1} "
            "frames and each needs one; give the folder of the pictures that were posed as the video."
        )
    focal = found.focal(f"Stage cameras: {place}") * video.size[0] / found.width
    if abs(found.width * video.size[1] - found.height * video.size[0]) > 0.02 * found.width * video.size[1]:
        raise AfieldError(
            f"Stage cameras: {place} is of pictures of {found.width}x{found.height} pixels, but the video has "
            f"{video.full_size[0]}x{video.full_size[1]}."
        )
    poses = found.T_world_camera[[order[frame] for frame in video.read]]
    seen = found.points, found.spread
    return CameraPath(*video.size, focal, poses, *seen, static=_extent(poses) < 1e-4, metric=found.metric)


def _extent(poses: Float[torch.Tensor, "n 4 4"]) -> float:
    """How far the camera goes away from where it began."""
    return float((poses[:, :3, 3] - poses[0, :3, 3]).norm(dim=-1).max())


def read_camera_file(file: Path, count: int, size: tuple[int, int], read: tuple[int, ...]) -> CameraPath:
    """Poses from elsewhere: JSON with `focal` in pixels, `width`, `T_world_camera` for every frame of the video, and `metric`.

    Args:
        file: the JSON file; world +Z up, OpenCV cameras.
        count: frames that the stages use.
        size: their width and height.
        read: which frames of the video they are.

    Raises:
        AfieldError: an entry is missing or the poses do not fit the video.
    """
    content = read_json(file)
    for key in ("focal", "width", "T_world_camera"):
        if key not in content:
            raise AfieldError(
                f"Stage cameras: {file} lacks '{key}'; it needs focal (pixels), width (pixels) and T_world_camera."
            )
    try:
        poses = torch.tensor(content["T_world_camera"], dtype=torch.float32)
        scale = size[0] / float(content["width"])
        focal = float(content["focal"]) * scale
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise AfieldError(f"Stage cameras: {file} holds something else than numbers ({error}).") from error
    if (
        poses.ndim != 3
        or poses.shape[1:] != (4, 4)
        or not bool(torch.isfinite(poses).all())
        or not math.isfinite(focal)
    ):
        raise AfieldError(f"Stage cameras: T_world_camera in {file} must be a list of finite 4x4 matrices.")
    if len(poses) <= max(read):
        raise AfieldError(
            f"Stage cameras: {file} has {len(poses)} poses, but the video has at least {max(read) + 1} frames."
        )
    path = poses[list(read)]
    assert len(path) == count, "one pose a frame"
    moved = _extent(path)
    nothing = torch.zeros(0, 3), torch.zeros(0)
    metric = bool(content.get("metric", False))
    return CameraPath(size[0], size[1], focal, path, *nothing, static=moved < 1e-4, metric=metric)
