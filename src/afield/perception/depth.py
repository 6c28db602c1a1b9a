"""Depth of a frame: from the neighbouring frames of a moving camera (plane sweep), or from a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from afield.errors import AfieldError
from afield.observation import Camera
from afield.perception.video import pictures_in

PLANES = 96
WINDOW = 7
"""Pixels a side of the patches that are compared."""
STEP_COST, JUMP_COST = 0.06, 0.45
"""What a step to the next plane, and a jump to any other, cost between neighbouring pixels (semi-global matching)."""
WORST = 0.62
"""A pixel whose patch differs more than this from the other frames' (1 - correlation) has no depth."""


@runtime_checkable
class DepthNetwork(Protocol):
    """Depth of single pictures."""

    metric: bool
    """Its numbers are metres; otherwise they are known up to scale and shift."""

    def estimate(self, color: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """Depth along the optical axis, or something that grows with it in the same way."""
        ...


def plane_sweep(
    color: UInt8[np.ndarray, "h w 3"],
    camera: Camera,
    others: Sequence[tuple[UInt8[np.ndarray, "h w 3"], Camera]],
    near: float,
    far: float,
    *,
    planes: int = PLANES,
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Depth of a frame from others of the same size that see the same, unmoved things from other places.

    The patches of the other frames are compared on planes of constant depth; neighbouring pixels are kept alike by
    semi-global matching. Hidden places are spared by counting only the better half of the frames at each pixel.

    Args:
        color: the frame.
        camera: its camera.
        others: other frames and their cameras.
        near: smallest depth looked for.
        far: largest depth looked for.
        planes: how many depths are tried, evenly in 1/depth.

    Returns:
        Depth, 0 where the frames disagree; and the cost (0 agrees, 1 is unrelated) of each pixel.
    """
    inverse = np.linspace(1 / far, 1 / near, planes)
    image = _gray(color)
    mean, spread = _statistics(image)
    sources = [(_gray(picture), relative_pose(camera, other), other) for picture, other in others]
    height, width = image.shape
    intrinsics = camera.intrinsics.double().numpy()
    volume = np.empty((planes, height, width), np.float32)
    for index, value in enumerate(inverse):
        costs = []
        for picture, (rotation, shift), other in sources:
            # The plane n.X = d with n the optical axis: X' = (R + t n^T / d) X.
            induced = rotation + np.outer(shift, [0, 0, 1]) * value
            homography = other.intrinsics.double().numpy() @ induced @ np.linalg.inv(intrinsics)
            warped = cv2.warpPerspective(
                picture, homography, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=-1
            )
            costs.append(_difference(image, mean, spread, warped))
        best = np.sort(np.stack(costs), axis=0)[: max(1, (len(costs) + 1) // 2)]
        volume[index] = best.mean(axis=0)
    smooth = semi_global(volume)
    plane = smooth.argmin(axis=0)
    cost = np.take_along_axis(volume, plane[None], axis=0)[0]
    value = between_planes(smooth, plane, inverse)
    depth = np.where(cost < WORST, 1 / value, 0.0).astype(np.float32)
    return depth, cost


def semi_global(
    volume: Float[np.ndarray, "d h w"], step_cost: float = STEP_COST, jump_cost: float = JUMP_COST
) -> Float[np.ndarray, "d h w"]:
    """Sum of the costs of the best paths that reach each pixel from four sides (Hirschmueller 2008)."""
    total = np.zeros_like(volume)
    for axis in (1, 2):
        for turned in (False, True):
            lines = np.moveaxis(volume, axis, 0)
            lines = lines[::-1] if turned else lines
            out = np.moveaxis(total, axis, 0)
            out = out[::-1] if turned else out
            path = lines[0].copy()
            out[0] += path
            for index in range(1, len(lines)):
                floor = path.min(axis=0)
                step = np.full_like(path, np.inf)
                step[1:] = path[:-1] + step_cost
                step[:-1] = np.minimum(step[:-1], path[1:] + step_cost)
                path = lines[index] + np.minimum(np.minimum(path, step), floor + jump_cost) - floor
                out[index] += path
    return total


def agree(
    depths: Sequence[Float[np.ndarray, "h w"]], cameras: Sequence[Camera], *, tolerance: float = 0.02, votes: int = 1
) -> list[Float[np.ndarray, "h w"]]:
    """The same depth maps with 0 wherever fewer than `votes` of the others agree within a share `tolerance`."""
    checked = []
    for index, (depth, camera) in enumerate(zip(depths, cameras, strict=True)):
        rows, columns = np.nonzero(depth > 0)
        pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
        points = camera.backproject(pixels, torch.from_numpy(depth[rows, columns]))
        count = np.zeros(len(rows), int)
        for number, (other, seen_by) in enumerate(zip(depths, cameras, strict=True)):
            if number == index:
                continue
            place, away = seen_by.project(points)
            column, row = place.round().long().T.numpy()
            inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height) & (away.numpy() > 0)
            there = np.zeros(len(rows), np.float32)
            there[inside] = other[row[inside], column[inside]]
            count += (there > 0) & (np.abs(there - away.numpy()) < tolerance * away.numpy())
        kept = np.zeros_like(depth)
        good = count >= votes
        kept[rows[good], columns[good]] = depth[rows[good], columns[good]]
        checked.append(kept)
    return checked


def fill_holes(depth: Float[np.ndarray, "h w"], color: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Small holes take the depth of their surroundings, nearest first, smoothed along the picture's edges."""
    missing = depth <= 0
    if not missing.any() or missing.all():
        return depth
    pixel = cv2.DIST_LABEL_PIXEL
    found = cv2.distanceTransformWithLabels(missing.astype(np.uint8), cv2.DIST_L2, 5, labelType=pixel)
    labels = np.asarray(found[1], dtype=np.int64)
    values = np.zeros(labels.max() + 1, np.float32)
    values[labels[~missing]] = depth[~missing]
    filled = values[labels]
    smooth = cv2.bilateralFilter(filled, 7, 0.02 * float(np.median(filled)), 3)
    return np.where(missing, smooth, depth)


def _gray(color: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    return cv2.cvtColor(color, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _box(image: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    return cv2.boxFilter(image, -1, (WINDOW, WINDOW))


def _statistics(image: Float[np.ndarray, "h w"]) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Mean and variance of every patch; a little noise is added to the variance, so that flat patches match nothing well."""
    mean = _box(image)
    return mean, np.maximum(_box(image * image) - mean * mean, 0) + 4.0


def _difference(
    image: Float[np.ndarray, "h w"],
    mean: Float[np.ndarray, "h w"],
    variance: Float[np.ndarray, "h w"],
    warped: Float[np.ndarray, "h w"],
) -> Float[np.ndarray, "h w"]:
    """1 - normalized cross-correlation, from 0 to 1; 1 outside of the other frame."""
    other_mean, other_variance = _statistics(warped)
    correlation = (_box(image * warped) - mean * other_mean) / np.sqrt(variance * other_variance)
    return np.where(warped < 0, 1.0, np.clip(1 - correlation, 0, 1)).astype(np.float32)


def relative_pose(camera: Camera, other: Camera) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """R and t of x_other = R x_camera + t; t in the units of the cameras' places."""
    first, second = camera.T_world_camera.double().numpy(), other.T_world_camera.double().numpy()
    between = np.linalg.inv(second) @ first
    return between[:3, :3], between[:3, 3]


def between_planes(
    volume: Float[np.ndarray, "d h w"], plane: np.ndarray, inverse: Float[np.ndarray, "d"]
) -> Float[np.ndarray, "h w"]:
    """1/depth at the bottom of the parabola through the best plane and its neighbours."""
    middle = np.clip(plane, 1, len(inverse) - 2)
    a, b, c = (np.take_along_axis(volume, (middle + step)[None], axis=0)[0] for step in (-1, 0, 1))
    curve = a - 2 * b + c
    offset = np.where(curve > 1e-6, np.clip(0.5 * (a - c) / np.maximum(curve, 1e-6), -1, 1), 0.0)
    offset = np.where(plane == middle, offset, 0.0)
    return inverse[plane] + offset * (inverse[1] - inverse[0])


METRIC = ("depth_pro", "zoedepth")
"""Kinds of models that always answer in metres; `transformers` prepares and finishes their pictures with torchvision."""


class TransformersDepth:
    """A depth model of `transformers` by name or folder: Depth Anything V2 (relative or metric), ZoeDepth, DepthPro."""

    def __init__(self, model: str) -> None:
        """Load it.

        Raises:
            AfieldError: a package or the weights are not there; the sentence says how to get them.
        """
        try:
            from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation
        except ImportError as error:
            raise AfieldError("Depth networks need transformers: pip install 'afield[transformers]'.") from error
        config = _on_disk(AutoConfig, model)
        if config.model_type in METRIC and find_spec("torchvision") is None:
            raise AfieldError(f"The depth model '{model}' also needs torchvision: pip install torchvision.")
        self._processor = _on_disk(AutoImageProcessor, model)
        self._model = _on_disk(AutoModelForDepthEstimation, model).eval()
        kind = getattr(config, "depth_estimation_type", None)
        self.metric = kind == "metric" or config.model_type in METRIC

    @torch.no_grad()
    def estimate(self, color: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """Depth; relative models answer with 1/depth up to scale and shift, which is turned into depth with a far end of 20."""
        inputs = self._processor(images=np.ascontiguousarray(color), return_tensors="pt")
        # Padding to cut off, a focal length that scales, an inverse to take: each model's processor knows its own.
        finish = self._processor.post_process_depth_estimation
        padded = {"source_sizes": [color.shape[:2]]} if "source_sizes" in signature(finish).parameters else {}
        answer = finish(self._model(**inputs), target_sizes=[color.shape[:2]], **padded)
        raw = answer[0]["predicted_depth"].float().reshape(color.shape[:2]).numpy()
        if self.metric:
            return np.maximum(raw, 0).astype(np.float32)
        low, high = np.percentile(raw, [1, 99])
        share = np.clip((raw - low) / max(high - low, 1e-6), 0, 1)
        return (1 / (0.05 + 0.95 * share)).astype(np.float32)


def _on_disk(kind: Any, model: str) -> Any:
    """Configuration, processor or network of a model, without asking a hub."""
    try:
        return kind.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AfieldError(
            f"The weights of the depth model '{model}' are not here: hf download {model}; or give the folder that holds "
            "them."
        ) from error


def fit_to_points(
    depth: Float[np.ndarray, "h w"], camera: Camera, points: Float[torch.Tensor, "m 3"]
) -> Float[np.ndarray, "h w"]:
    """A network's depth, scaled (and shifted in 1/depth) until it meets the points of the structure from motion, robustly.

    Raises:
        AfieldError: fewer than 20 points are in the picture.
    """
    pixels, away = camera.project(points)
    column, row = pixels.round().long().T.numpy()
    inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height) & (away.numpy() > 0)
    found = depth[row[inside], column[inside]]
    true = away.numpy()[inside][found > 0]
    found = found[found > 0]
    if len(found) < 20:
        raise AfieldError(f"Stage depth: only {len(found)} known points are in the picture; at least 20 are needed.")
    design, wanted = np.stack((1 / found, np.ones_like(found)), axis=1), 1 / true
    weight = np.ones_like(wanted)
    answer = np.zeros(2)
    for _ in range(10):
        answer = np.linalg.lstsq(design * weight[:, None], wanted * weight, rcond=None)[0]
        off = np.abs(design @ answer - wanted)
        weight = np.minimum(1.0, 0.02 / np.maximum(off * true, 1e-6)) ** 0.5
    fitted = answer[0] / np.maximum(depth, 1e-6) + answer[1]
    return np.where((depth > 0) & (fitted > 1e-3), 1 / np.maximum(fitted, 1e-3), 0.0).astype(np.float32)


@dataclass(frozen=True)
class DepthFiles:
    """Depth images in millimetres beside the frames (16-bit PNG), in the order of their names: an RGB-D video."""

    folder: Path

    def read(self, frame: int, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """Metres of one frame, resized to (width, height).

        Raises:
            AfieldError: there is no such file, or it is not a 16-bit picture.
        """
        files = pictures_in(self.folder, (".png",))
        if frame >= len(files):
            raise AfieldError(
                f"Stage depth: {self.folder} has {len(files)} depth images, but the video needs number {frame}."
            )
        raw = cv2.imread(str(files[frame]), cv2.IMREAD_UNCHANGED)
        if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
            raise AfieldError(f"Stage depth: {files[frame]} is not a 16-bit image of millimetres.")
        return cv2.resize(raw, size, interpolation=cv2.INTER_NEAREST).astype(np.float32) / 1000.0
