"""Record3D recordings (`.r3d`): a zip of color, LZFSE-compressed depth and ARKit's poses."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import roma
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from afield.capture.distortion import evenly, intrinsic_matrix, pinhole_view, pose_of_opengl_camera, resize_depth
from afield.capture.folder import pixels
from afield.errors import AfieldError
from afield.geometry import pose_from
from afield.observation import Observation, View

Z_UP_FROM_Y_UP = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""ARKit's world has gravity along -y."""


def read_record3d_capture(path: Path, *, max_views: int = 8, min_confidence: int = 1) -> Observation:
    """Read some frames of a Record3D recording.

    Depth has fewer pixels than color and is enlarged by nearest pixel. Pixels that ARKit does not trust, and those
    without a number (Record3D writes NaN there), count as missing.

    Args:
        path: the `.r3d` file.
        max_views: how many frames to read, evenly spaced over the recording.
        min_confidence: least confidence of a depth pixel: 0 low, 1 medium, 2 high.

    Raises:
        AfieldError: `pyliblzfse` is not installed, the file is damaged, or sizes disagree.
    """
    path = Path(path)
    if min_confidence not in (0, 1, 2):
        raise AfieldError(f"min_confidence must be 0, 1 or 2, but is {min_confidence}.")
    try:
        import liblzfse
    except ImportError as error:
        raise AfieldError("Reading .r3d files needs pyliblzfse: pip install 'afield[record3d]'.") from error
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = _metadata(archive, path)
            count = _frame_count(archive, path)
            poses = metadata.get("poses")
            if not isinstance(poses, list) or len(poses) < count:
                raise AfieldError(
                    f"{path} has {count} frames, but not as many poses; was it recorded with ARKit tracking?"
                )
            views = [
                _read_frame(archive, index, metadata, path, min_confidence, liblzfse)
                for index in evenly(count, max_views)
            ]
    except OSError as error:
        raise AfieldError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise AfieldError(f"{path} is not a complete .r3d file ({error}).") from error
    return Observation(tuple(views), name=path.stem, folder=path.parent)


def _metadata(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(archive.read("metadata"))
    except KeyError as error:
        raise AfieldError(f"{path} has no 'metadata', so it is not a Record3D recording.") from error
    except ValueError as error:
        raise AfieldError(f"The metadata of {path} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise AfieldError(f"The metadata of {path} must be a JSON object.")
    return content


def _frame_count(archive: zipfile.ZipFile, path: Path) -> int:
    names = set(archive.namelist())
    count = 0
    while f"rgbd/{count}.jpg" in names and f"rgbd/{count}.depth" in names:
        count += 1
    if count == 0:
        raise AfieldError(f"{path} has no frames (rgbd/0.jpg and rgbd/0.depth).")
    return count


def _read_frame(
    archive: zipfile.ZipFile, index: int, metadata: dict[str, Any], path: Path, min_confidence: int, liblzfse: Any
) -> View:
    place = f"{path}: frame {index}"
    encoded = archive.read(f"rgbd/{index}.jpg")
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded.endswith(b"\xff\xd9") else None
    if image is None:
        raise AfieldError(f"{place}: the color image is damaged.")
    color = np.ascontiguousarray(image[..., ::-1])
    height, width = color.shape[:2]
    shape = (pixels(metadata, "dh", path), pixels(metadata, "dw", path))
    depth = _unpack(archive, f"rgbd/{index}.depth", shape, np.float32, liblzfse, place)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    if min_confidence and f"rgbd/{index}.conf" in archive.namelist():
        confidence = _unpack(archive, f"rgbd/{index}.conf", shape, np.uint8, liblzfse, place)
        depth[confidence < min_confidence] = 0
    return pinhole_view(
        f"frame{index:04d}",
        color,
        resize_depth(depth, width, height, place),
        _intrinsics(metadata, index, width, height, place),
        _pose(metadata["poses"][index], place),
    )


def _unpack(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, int], dtype: type, liblzfse: Any, place: str
) -> Float[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]:
    try:
        content = liblzfse.decompress(archive.read(name))
    except liblzfse.error as error:
        raise AfieldError(f"{place}: {name} is not LZFSE data; it may be truncated.") from error
    expected = shape[0] * shape[1] * np.dtype(dtype).itemsize
    if len(content) != expected:
        raise AfieldError(
            f"{place}: {name} has {len(content)} bytes, but {shape[1]}x{shape[0]} pixels need {expected}."
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _intrinsics(metadata: dict[str, Any], index: int, width: int, height: int, place: str) -> Float[np.ndarray, "3 3"]:
    """K at the size of the color image; autofocus changes it from frame to frame, so the frame's own is preferred."""
    per_frame = metadata.get("perFrameIntrinsicCoeffs") or []
    flat = metadata.get("K") or []
    try:
        if index < len(per_frame):
            fx, fy, cx, cy = (float(value) for value in per_frame[index])
        else:  # column by column
            fx, fy, cx, cy = (float(flat[position]) for position in (0, 4, 6, 7))
    except (TypeError, ValueError, IndexError) as error:
        raise AfieldError(
            f"{place}: the metadata has no usable intrinsics ('perFrameIntrinsicCoeffs' or 'K')."
        ) from error
    try:
        scale_x, scale_y = width / float(metadata.get("w", width)), height / float(metadata.get("h", height))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise AfieldError(f"{place}: 'w' and 'h' of the metadata must be the width and height in pixels.") from error
    return intrinsic_matrix(fx * scale_x, fy * scale_y, (cx + 0.5) * scale_x - 0.5, (cy + 0.5) * scale_y - 0.5)


def _pose(values: Any, place: str) -> Float[Tensor, "4 4"]:
    """ARKit's pose qx qy qz qw tx ty tz (y up, z backward) as an OpenCV camera in a world with z up."""
    try:
        numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise AfieldError(f"{place}: the pose {values!r:.60} is not a list of numbers.") from error
    if numbers.shape != (7,) or not torch.isfinite(numbers).all() or abs(float(numbers[:4].norm()) - 1) > 0.01:
        raise AfieldError(f"{place}: the pose must be a unit quaternion x y z w and a position, but is {values!r:.80}.")
    quat_xyzw = torch.nn.functional.normalize(numbers[:4], dim=0)
    pose = pose_from(roma.unitquat_to_rotmat(quat_xyzw), numbers[4:]).float()
    return Z_UP_FROM_Y_UP @ pose_of_opengl_camera(pose)
