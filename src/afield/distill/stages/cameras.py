"""Second stage: where the camera was in every frame."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from afield.artifacts import load_artifact, read_json, save_artifact
from afield.errors import AfieldError
from afield.perception.cameras import CameraPath


def save_cameras(path: CameraPath, folder: Path) -> None:
    """Write a camera path."""
    tensors = {"T_world_camera": path.T_world_camera, "points": path.points, "spread": path.spread}
    names = ("width", "height", "focal", "static", "metric")
    save_artifact(folder, "video-cameras", tensors, {name: getattr(path, name) for name in names})


def load_cameras(folder: Path) -> CameraPath:
    """Read a camera path."""
    tensors, header = load_artifact(
        folder,
        "video-cameras",
        ("T_world_camera", "points", "spread"),
        ("width", "height", "focal", "static", "metric"),
    )
    return CameraPath(
        int(header["width"]),
        int(header["height"]),
        float(header["focal"]),
        tensors["T_world_camera"],
        tensors["points"],
        tensors["spread"],
        static=bool(header["static"]),
        metric=bool(header["metric"]),
    )


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
    moved = float((path[:, :3, 3] - path[0, :3, 3]).norm(dim=-1).max())
    nothing = torch.zeros(0, 3), torch.zeros(0)
    metric = bool(content.get("metric", False))
    return CameraPath(size[0], size[1], focal, path, *nothing, static=moved < 1e-4, metric=metric)
