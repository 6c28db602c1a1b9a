"""Readers of captures: whatever the cameras wrote becomes an `Observation`.

`read_capture` recognizes the layout; the reader of a layout takes the options that the layout needs.
"""

from __future__ import annotations

from pathlib import Path

from afield.capture.check import CaptureCheck, check_capture
from afield.capture.check_page import write_check_page
from afield.capture.colmap import find_model, read_colmap_capture
from afield.capture.folder import CAPTURE_NAME, read_folder_capture, write_capture
from afield.capture.kinect import read_kinect_capture
from afield.capture.record3d import read_record3d_capture
from afield.capture.transforms import read_transforms_capture
from afield.errors import AfieldError
from afield.observation import Observation

__all__ = [
    "CaptureCheck",
    "check_capture",
    "read_capture",
    "read_colmap_capture",
    "read_folder_capture",
    "read_kinect_capture",
    "read_record3d_capture",
    "read_transforms_capture",
    "write_capture",
    "write_check_page",
]


def read_capture(path: Path | str) -> Observation:
    """Read a capture of any supported layout, with the defaults of its reader.

    Args:
        path: a folder with `capture.json`, a folder or file `transforms.json`, a COLMAP project or model, a
            recording in SparseDFF's layout, or a `.r3d` file.

    Raises:
        AfieldError: nothing there, no known layout, or a damaged file.
    """
    path = Path(path)
    if not path.exists():
        raise AfieldError(f"There is no capture at {path}.")
    if path.is_file():
        if path.suffix.lower() == ".r3d":
            return read_record3d_capture(path)
        if path.name == CAPTURE_NAME:
            return read_folder_capture(path.parent)
        if path.suffix.lower() == ".json":
            return read_transforms_capture(path)
    elif (path / CAPTURE_NAME).is_file():
        return read_folder_capture(path)
    elif (path / "transforms.json").is_file():
        return read_transforms_capture(path)
    elif find_model(path) is not None:
        return read_colmap_capture(path)
    elif any(path.glob("*/depth.npy")):
        return read_kinect_capture(path)
    raise AfieldError(
        f"{path} is no capture of a known layout: a folder with {CAPTURE_NAME}, transforms.json, a COLMAP model "
        "(cameras.bin or cameras.txt), SparseDFF's <serial>/depth.npy, or a .r3d file."
    )
