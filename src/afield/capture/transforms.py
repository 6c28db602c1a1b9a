"""nerfstudio's `transforms.json` (also of instant-ngp and Polycam exports) with a depth image per frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from afield.artifacts import read_json
from afield.capture.distortion import evenly, intrinsic_matrix, pinhole_view, pose_of_opengl_camera, resize_depth
from afield.capture.folder import matrix, number, pixels
from afield.capture.images import read_color, read_depth, read_mask
from afield.capture.poses import PosedFrames
from afield.errors import AfieldError
from afield.geometry import inverse_pose, pose_from
from afield.observation import Observation, View

PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")
MODELS = (*PINHOLE_MODELS, "OPENCV_FISHEYE")


def read_transforms_capture(
    path: Path, *, depth_unit: float | None = None, undo_applied_transform: bool = False, max_views: int | None = None
) -> Observation:
    """Read a `transforms.json`; cameras there are OpenGL cameras, and pixel centers lie at half-integers.

    Args:
        path: the file, or its folder.
        depth_unit: meters per unit of the depth images. By default `depth_unit_scale_factor` or `integer_depth_scale`
            of the file, else 0.001, nerfstudio's default.
        undo_applied_transform: go back to the world before nerfstudio turned it. By default the poses are taken as
            written, because nerfstudio turns the world such that +z is up. An `applied_scale` is always undone,
            because depth is metric.
        max_views: read at most so many frames, evenly spaced.

    Raises:
        AfieldError: a file is missing or damaged, a frame has no depth, or the camera model is not supported.
    """
    path = Path(path) / "transforms.json" if Path(path).is_dir() else Path(path)
    content = read_json(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise AfieldError(f"{path} needs 'frames', a list with at least one frame.")
    if depth_unit is None:
        depth_unit = number(
            content, "depth_unit_scale_factor", path, number(content, "integer_depth_scale", path, 0.001)
        )
    if not depth_unit > 0:
        raise AfieldError(f"The depth unit of {path} is {depth_unit:g}; it must be a positive number of meters.")
    undo = torch.eye(4)
    if undo_applied_transform and "applied_transform" in content:
        applied = matrix(content["applied_transform"], (3, 4), "applied_transform", path)
        undo = inverse_pose(pose_from(applied[:, :3], applied[:, 3]))
    views = []
    for index in evenly(len(frames), max_views):
        if not isinstance(frames[index], dict):
            raise AfieldError(f"Frame {index} of {path} must be an object, but is {frames[index]!r:.60}.")
        # A frame may carry its own intrinsics; what it lacks comes from the top of the file.
        shared = {key: value for key, value in content.items() if key != "frames"}
        views.append(_read_frame(shared | frames[index], index, path, depth_unit, undo))
    names = [view.name for view in views]
    if len(set(names)) < len(names):
        views = [View(f"{i:04d}_{v.name}", v.camera, v.color, v.depth, v.mask) for i, v in enumerate(views)]
    return Observation(tuple(views), name=path.resolve().parent.name, folder=path.parent)


def read_transforms_poses(path: Path) -> PosedFrames:
    """The cameras of a `transforms.json` alone; its pictures are not opened, and need no depth.

    Raises:
        AfieldError: an entry is missing, or frames have different intrinsics.
    """
    path = Path(path) / "transforms.json" if Path(path).is_dir() else Path(path)
    content = read_json(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise AfieldError(f"{path} needs 'frames', a list with at least one frame.")
    shared = {key: value for key, value in content.items() if key != "frames"}
    found = []
    for index, own in enumerate(frames):
        frame, place = shared | own, f"frame {index} of {path}"
        width, height = pixels(frame, "w", place), pixels(frame, "h", place)
        found.append((_name(frame, "file_path", place), _frame_pose(frame, place), width, height, frame, place))
    intrinsics = [_intrinsics(frame, width, height, place) for _, _, width, height, frame, place in found]
    if any(np.abs(matrix - intrinsics[0]).max() > 0.02 * intrinsics[0][0, 0] for matrix in intrinsics):
        raise AfieldError(f"The frames of {path} have different intrinsics, but a video has one camera.")
    _, _, width, height, frame, place = found[0]
    coefficients, fisheye = _distortion(frame, place)
    nothing = torch.zeros(0, 3), torch.zeros(0)
    return PosedFrames(
        tuple(name for name, *_ in found),
        torch.stack([pose_of_opengl_camera(pose) for _, pose, *_ in found]),
        width,
        height,
        intrinsics[0],
        tuple(coefficients),
        fisheye,
        *nothing,
        upright=True,
        metric=bool(content.get("metric", False)),
    )


def _frame_pose(frame: Mapping[str, Any], place: str) -> Float[torch.Tensor, "4 4"]:
    """The OpenGL camera's pose, with `applied_scale` undone."""
    pose = matrix(frame.get("transform_matrix"), (4, 4), "transform_matrix", place)
    scale = number(frame, "applied_scale", place, 1.0)
    if scale <= 0:
        raise AfieldError(f"'applied_scale' in {place} is {scale:g}; it must be positive.")
    return torch.cat((pose[:, :3], torch.cat((pose[:3, 3] / scale, torch.ones(1)))[:, None]), dim=1)


def _read_frame(
    frame: Mapping[str, Any], index: int, path: Path, depth_unit: float, undo: Float[torch.Tensor, "4 4"]
) -> View:
    place = f"frame {index} of {path}"
    color_path = path.parent / _name(frame, "file_path", place)
    if not color_path.suffix:  # the original NeRF files leave the extension out
        color_path = color_path.with_suffix(".png")
    color = read_color(color_path)
    height, width = color.shape[:2]
    for key, size in (("w", width), ("h", height)):
        if key in frame and int(number(frame, key, place)) != size:
            raise AfieldError(f"'{key}' in {place} is {frame[key]}, but {color_path.name} has {width}x{height} pixels.")
    depth_path = path.parent / _name(frame, "depth_file_path", place)
    depth = resize_depth(read_depth(depth_path, depth_unit), width, height, str(depth_path))
    mask = read_mask(path.parent / str(frame["mask_path"])) if frame.get("mask_path") else None
    pose = _frame_pose(frame, place)
    coefficients, fisheye = _distortion(frame, place)
    return pinhole_view(
        color_path.stem,
        color,
        depth,
        _intrinsics(frame, width, height, place),
        pose_of_opengl_camera(undo @ pose),
        distortion=coefficients,
        fisheye=fisheye,
        mask=mask,
    )


def _name(frame: Mapping[str, Any], key: str, place: str) -> str:
    value = frame.get(key)
    if not isinstance(value, str) or not value:
        raise AfieldError(f"The {place} lacks '{key}'; color and metric depth are both needed.")
    return value


def _intrinsics(frame: Mapping[str, Any], width: int, height: int, place: str) -> Float[np.ndarray, "3 3"]:
    if "fl_x" in frame:
        fx = number(frame, "fl_x", place)
    elif "camera_angle_x" in frame:
        fx = width / 2 / math.tan(_angle(frame, "camera_angle_x", place) / 2)
    else:
        raise AfieldError(f"The {place} has neither 'fl_x' nor 'camera_angle_x', so its focal length is unknown.")
    fy = number(frame, "fl_y", place, fx)
    if "fl_y" not in frame and "camera_angle_y" in frame:
        fy = height / 2 / math.tan(_angle(frame, "camera_angle_y", place) / 2)
    # nerfstudio counts from the corner of the first pixel, Afield from its center.
    cx, cy = number(frame, "cx", place, width / 2) - 0.5, number(frame, "cy", place, height / 2) - 0.5
    return intrinsic_matrix(fx, fy, cx, cy)


def _angle(frame: Mapping[str, Any], key: str, place: str) -> float:
    angle = number(frame, key, place)
    if not 0 < angle < math.pi:
        raise AfieldError(f"'{key}' in {place} is {angle:g}; an opening angle lies between 0 and pi radians.")
    return angle


def _distortion(frame: Mapping[str, Any], place: str) -> tuple[list[float], bool]:
    fisheye = bool(frame.get("is_fisheye"))
    model = frame.get("camera_model", "OPENCV_FISHEYE" if fisheye else "OPENCV")
    if model not in MODELS:
        raise AfieldError(
            f"The camera model {model!r} of {place} is not supported; undistort the images, or use {MODELS}."
        )
    k1, k2, k3, k4, p1, p2 = (number(frame, key, place, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    if model == "OPENCV_FISHEYE":
        return [k1, k2, k3, k4], True
    if k4:
        raise AfieldError(f"'k4' in {place} is {k4:g}, which only the model OPENCV_FISHEYE has; the camera is {model}.")
    return [k1, k2, p1, p2, k3], False
