"""The layout of SparseDFF's recordings: four Azure Kinects, one folder of NumPy arrays per camera.

    CAPTURE/<serial>/colors.npy       uint8, height x width x 3, blue first (as the Kinect delivers it)
    CAPTURE/<serial>/depth.npy        uint16 millimeters, in the color camera's geometry
    CAPTURE/<serial>/intrinsic.npy    3 x 3
    CAPTURE/<serial>/distortion.npy   k1 k2 p1 p2 k3 k4 k5 k6, as OpenCV counts them

`calibration.json` (written by multical) relates the cameras, `transform.yaml` the table to camera 0; the world is the
table's frame.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from afield.artifacts import read_json
from afield.capture.distortion import pinhole_view
from afield.capture.folder import matrix
from afield.capture.images import MILLIMETERS_PER_METER, checked_depth, read_array
from afield.errors import AfieldError
from afield.geometry import inverse_pose, pose_from, quat_wxyz_to_matrix
from afield.observation import Observation, View

SERIALS = ("000299113912", "000272313912", "000285613912", "000262413912")
"""Serial numbers of cam0 to cam3 in SparseDFF's published recordings, which name them nowhere in the data."""
SEARCH_DEPTH = 4
"""How many folders upwards the calibration is looked for."""


def read_kinect_capture(
    folder: Path,
    *,
    calibration: Path | None = None,
    table: Path | None = None,
    serials: tuple[str, ...] | None = None,
) -> Observation:
    """Read one recording of SparseDFF, or one made with its capture script.

    Args:
        folder: the recording, with one folder per camera, named after its serial number.
        calibration: multical's `calibration.json`; looked for in `folder` and above, and in `camera/workspace` there.
        table: `transform.yaml` with the pose of the table in camera 0; looked for likewise, and in `camera` there.
        serials: serial numbers in the order cam0, cam1, ... of the calibration. By default from `cameras.json`
            ({"cam0": "serial", ...}) beside the calibration, or those of the published recordings.

    Raises:
        AfieldError: a file is missing or damaged, or shapes disagree.
    """
    folder = Path(folder)
    calibration = calibration or _find(folder, ("calibration.json", "camera/workspace/calibration.json"))
    table = table or _find(folder, ("transform.yaml", "camera/transform.yaml"))
    order = serials or _serials(folder, calibration)
    poses = read_json(calibration).get("camera_poses")
    if not isinstance(poses, dict):
        raise AfieldError(f"{calibration} needs 'camera_poses', as multical writes it.")
    T_camera0_world = read_table_pose(table)
    views = []
    for index, serial in enumerate(order):
        T_camera_camera0 = torch.eye(4) if index == 0 else _pose(poses, f"cam{index}_to_cam0", calibration)
        views.append(_read_camera(folder / serial, f"cam{index}", inverse_pose(T_camera_camera0 @ T_camera0_world)))
    return Observation(tuple(views), name=folder.name, folder=folder)


def read_table_pose(path: Path) -> Float[Tensor, "4 4"]:
    """The pose of the table in camera 0, in meters, from the `pose:` block of `transform.yaml`.

    Only the seven numbers `position: x y z` and `orientation: x y z w` are read, so no YAML library is needed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AfieldError(f"Cannot read {path}: {error}.") from error
    values: dict[tuple[str, str], float] = {}
    section = ""
    for line in lines:
        found = re.match(r"\s*(position|orientation|[xyzw])\s*:\s*(\S*)", line)
        if found is None:
            continue
        key, text = found.groups()
        if key in ("position", "orientation"):
            section = key
            continue
        try:
            values[section, key] = float(text)
        except ValueError as error:
            raise AfieldError(f"'{section}.{key}' in {path} must be a number, but is {text!r}.") from error
    wanted = [("position", key) for key in "xyz"] + [("orientation", key) for key in "wxyz"]
    missing = [".".join(key) for key in wanted if key not in values]
    if missing:
        raise AfieldError(f"{path} lacks {', '.join(missing)} of the pose of the table in camera 0.")
    numbers = torch.tensor([values[key] for key in wanted], dtype=torch.float64)
    if not torch.isfinite(numbers).all() or abs(float(numbers[3:].norm()) - 1) > 0.01:
        raise AfieldError(f"The pose in {path} is not finite, or its quaternion has not length 1.")
    rotation = quat_wxyz_to_matrix(torch.nn.functional.normalize(numbers[3:], dim=0))
    return pose_from(rotation, numbers[:3]).float()


def _find(folder: Path, names: tuple[str, ...]) -> Path:
    for parent in list(folder.resolve().parents)[:SEARCH_DEPTH]:
        folder_names = [candidate for name in names if (candidate := parent / name).is_file()]
        inside = [candidate for name in names if (candidate := folder / name).is_file()]
        if inside or folder_names:
            return (inside or folder_names)[0]
    raise AfieldError(f"Found no {names[0]} in {folder} or the {SEARCH_DEPTH} folders above it; name it explicitly.")


def _serials(folder: Path, calibration: Path) -> tuple[str, ...]:
    listed = calibration.with_name("cameras.json")
    if listed.is_file():
        content = read_json(listed)
        names = [f"cam{index}" for index in range(len(content))]
        if sorted(content) != sorted(names) or not content:
            raise AfieldError(
                f"{listed} must map cam0, cam1, ... to serial numbers, but has the keys {sorted(content)}."
            )
        return tuple(str(content[name]) for name in names)
    if all((folder / serial).is_dir() for serial in SERIALS):
        return SERIALS
    raise AfieldError(
        f"{folder} is not one of SparseDFF's published recordings, so the order of its cameras is unknown; write "
        f'{listed} with {{"cam0": "serial number", "cam1": ...}}.'
    )


def _pose(poses: dict[str, Any], key: str, path: Path) -> Float[Tensor, "4 4"]:
    entry = poses.get(key)
    if not isinstance(entry, dict):
        raise AfieldError(f"{path} lacks 'camera_poses.{key}'.")
    rotation = matrix(np.reshape(entry.get("R", []), (-1, 3)).tolist(), (3, 3), f"{key}.R", path)
    translation = matrix([np.ravel(entry.get("T", [])).tolist()], (1, 3), f"{key}.T", path)[0]
    return pose_from(rotation, translation)


def _read_camera(folder: Path, name: str, T_world_camera: Float[Tensor, "4 4"]) -> View:
    color, depth = read_array(folder / "colors.npy"), read_array(folder / "depth.npy")
    intrinsics, distortion = read_array(folder / "intrinsic.npy"), read_array(folder / "distortion.npy")
    if color.ndim != 3 or color.shape[2] not in (3, 4) or color.dtype != np.uint8:
        raise AfieldError(
            f"{folder / 'colors.npy'} must be uint8 height x width x 3, but is {color.dtype} {color.shape}."
        )
    if depth.ndim != 2 or depth.dtype.kind not in "uif":
        raise AfieldError(f"{folder / 'depth.npy'} must be height x width numbers, but is {depth.dtype} {depth.shape}.")
    if intrinsics.shape != (3, 3) or intrinsics.dtype.kind != "f":
        raise AfieldError(
            f"{folder / 'intrinsic.npy'} must be 3x3 floats, but is {intrinsics.dtype} {intrinsics.shape}."
        )
    if distortion.size not in (4, 5, 8) or distortion.dtype.kind != "f":
        raise AfieldError(f"{folder / 'distortion.npy'} must hold 4, 5 or 8 floats, but has {distortion.size} numbers.")
    meters = checked_depth(depth.astype(np.float32) / np.float32(MILLIMETERS_PER_METER), folder / "depth.npy")
    rgb = np.ascontiguousarray(color[..., 2::-1])
    return pinhole_view(
        name, rgb, meters, intrinsics.astype(np.float64), T_world_camera, distortion=distortion.ravel().tolist()
    )
