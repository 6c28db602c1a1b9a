"""Afield's own capture folder: `capture.json` beside color, metric depth and optional masks (`docs/captures.md`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afield.artifacts import read_json, write_folder
from afield.capture.images import read_color, read_depth, read_mask, write_color, write_depth, write_mask
from afield.errors import AfieldError
from afield.observation import Camera, Observation, View

CAPTURE_NAME = "capture.json"
CAPTURE_FORMAT = "afield-capture"
CAPTURE_VERSION = 1


def read_folder_capture(folder: Path) -> Observation:
    """Read a folder written by `write_capture`, or by hand after `docs/captures.md`.

    Args:
        folder: holds `capture.json` and the images that it names.

    Returns:
        The observation; `extra` holds the keys of `capture.json` that Afield does not interpret.

    Raises:
        AfieldError: a file is missing or damaged, a number is wrong, or sizes disagree.
    """
    path = Path(folder) / CAPTURE_NAME
    content = read_json(path)
    if content.get("format") != CAPTURE_FORMAT:
        raise AfieldError(f'{path} must say "format": "{CAPTURE_FORMAT}", but says {content.get("format")!r}.')
    if content.get("format_version") != CAPTURE_VERSION:
        raise AfieldError(
            f"{path} has format version {content.get('format_version')!r}, but this release reads {CAPTURE_VERSION}."
        )
    entries = content.get("views")
    if not isinstance(entries, list) or not entries:
        raise AfieldError(f"{path} needs 'views', a list with at least one view.")
    scale = number(content, "depth_scale", path, default=0.001)
    if scale <= 0:
        raise AfieldError(f"'depth_scale' in {path} is {scale:g}; it must be the positive number of meters per unit.")
    views = tuple(_read_view(entry, index, path, scale) for index, entry in enumerate(entries))
    known = {"format", "format_version", "name", "views", "depth_scale"}
    extra = {key: value for key, value in content.items() if key not in known}
    return Observation(views, name=str(content.get("name") or Path(folder).name), folder=Path(folder), extra=extra)


def write_capture(observation: Observation, folder: Path, *, jpeg_quality: int | None = 92) -> None:
    """Write an observation as a capture folder, in one step: an interrupted write leaves nothing behind.

    Args:
        observation: what to write. Depth is rounded to millimeters.
        folder: replaced as a whole if it exists.
        jpeg_quality: 1 to 100; None writes color without loss, as PNG.

    Raises:
        AfieldError: the place cannot be written, or depth exceeds 65 m.
    """
    suffix = ".png" if jpeg_quality is None else ".jpg"

    def fill(temporary: Path) -> None:
        """Write pictures, depth and masks, then the description."""
        entries = []
        for view in observation.views:
            entry = {"name": view.name, "color": f"{view.name}_color{suffix}", "depth": f"{view.name}_depth.png"}
            write_color(temporary / entry["color"], view.color, jpeg_quality or 92)
            write_depth(temporary / entry["depth"], view.depth)
            if view.mask is not None:
                entry["mask"] = f"{view.name}_mask.png"
                write_mask(temporary / entry["mask"], view.mask)
            entries.append(entry | _camera_entry(view.camera))
        content = {
            "format": CAPTURE_FORMAT,
            "format_version": CAPTURE_VERSION,
            "name": observation.name,
            "depth_scale": 0.001,
            **observation.extra,
            "views": entries,
        }
        (temporary / CAPTURE_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    write_folder(Path(folder), fill)


def number(entry: Mapping[str, Any], key: str, place: Path | str, default: float | None = None) -> float:
    """The finite number under `key`; `place` says where it was looked for."""
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AfieldError(f"'{key}' in {place} must be a finite number, but is {value!r}.")
    return float(value)


def pixels(entry: Mapping[str, Any], key: str, place: Path | str) -> int:
    """The positive whole number of pixels under `key`."""
    value = number(entry, key, place)
    if value != int(value) or value <= 0:
        raise AfieldError(f"'{key}' in {place} must be a positive whole number of pixels, but is {value:g}.")
    return int(value)


def matrix(value: Any, shape: tuple[int, int], what: str, place: Path | str) -> torch.Tensor:
    """A nested list of finite numbers as a float32 tensor of the given shape."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise AfieldError(
            f"'{what}' in {place} must be {shape[0]}x{shape[1]} numbers, but is {value!r:.80}."
        ) from error
    if array.shape != shape or not np.isfinite(array).all():
        raise AfieldError(
            f"'{what}' in {place} must be {shape[0]}x{shape[1]} finite numbers, but has shape {array.shape}."
        )
    return torch.from_numpy(array).float()


def _read_view(entry: Any, index: int, path: Path, scale: float) -> View:
    place = f"view {index} of {path}"
    if not isinstance(entry, dict):
        raise AfieldError(f"The {place} must be an object, but is {entry!r:.60}.")
    camera = Camera(
        width=pixels(entry, "width", place),
        height=pixels(entry, "height", place),
        fx=number(entry, "fx", place),
        fy=number(entry, "fy", place),
        cx=number(entry, "cx", place),
        cy=number(entry, "cy", place),
        T_world_camera=matrix(entry.get("T_world_camera"), (4, 4), "T_world_camera", place),
    )
    folder = path.parent
    color = read_color(folder / _file(entry, "color", place))
    depth = read_depth(folder / _file(entry, "depth", place), scale)
    mask = read_mask(folder / _file(entry, "mask", place)) if entry.get("mask") else None
    return View(str(entry.get("name") or f"camera{index}"), camera, color, depth, mask)


def _file(entry: Mapping[str, Any], key: str, place: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise AfieldError(f"The {place} needs '{key}', the name of an image file, but has {value!r}.")
    return value


def _camera_entry(camera: Camera) -> dict[str, int | float | Sequence[Sequence[float]]]:
    return {
        "width": camera.width,
        "height": camera.height,
        "fx": camera.fx,
        "fy": camera.fy,
        "cx": camera.cx,
        "cy": camera.cy,
        "T_world_camera": [[round(float(value), 9) for value in row] for row in camera.T_world_camera],
    }
