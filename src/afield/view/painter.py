"""A small software renderer: balls and triangles, painted from far to near; needs no graphics card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from afield.view.stage import Stage

FIELD_OF_VIEW = math.radians(34)
LIGHT = (-0.35, 0.55, 0.76)
"""Direction towards the light in camera axes: right, up, towards the viewer."""
TABLE = (0.93, 0.92, 0.90)
SUBPIXEL = 4
"""OpenCV draws at fixed-point coordinates with this many binary digits."""
RIM, HIGHLIGHT = 0.82, 1.06
"""Brightness at the rim of a ball and in its lit part."""


@dataclass(frozen=True)
class Balls:
    """Points drawn as little balls."""

    points: Float[Tensor, "n 3"]
    """World positions in metres."""
    colors: Float[Tensor, "n 3"]
    """RGB, 0 to 1."""
    radius: float
    """Of each ball, in metres."""
    flat: bool = False
    """Without shading."""


@dataclass(frozen=True)
class Surface:
    """A triangle mesh of one color."""

    vertices: Float[Tensor, "v 3"]
    """World positions in metres."""
    faces: Int[Tensor, "f 3"]
    """Triangles."""
    color: tuple[float, float, float]
    """RGB, 0 to 1."""


def render(
    things: Sequence[Balls | Surface], stage: Stage, width: int, height: int, *, supersample: int = 2
) -> Float[np.ndarray, "height width 4"]:
    """Draw things in perspective, with the stage's table behind them.

    Whole balls and whole triangles are sorted by the depth of their centers, which is exact
    enough for things that are small against their distances.

    Returns:
        RGB and coverage, 0 to 1; the background is transparent.
    """
    size = (width * supersample, height * supersample)
    view = _View(stage, size)
    canvas = np.zeros((size[1], size[0], 4), dtype=np.uint8)
    if stage.table is not None:  # seen from above the table is behind everything else
        outline, _ = view.project(stage.table)
        cv2.fillConvexPoly(canvas, outline, _paint(np.array([TABLE]))[0], cv2.LINE_8, SUBPIXEL)
    drawn = [_balls(thing, view) if isinstance(thing, Balls) else _triangles(thing, view) for thing in things]
    order = np.argsort(-np.concatenate([depth for depth, _ in drawn]), kind="stable")
    jobs = [job for _, jobs in drawn for job in jobs]
    for index in order:
        jobs[index].draw(canvas)
    picture = canvas.reshape(height, supersample, width, supersample, 4).astype(np.float64) / 255
    coverage = picture[..., 3:].mean(axis=(1, 3))
    rgb = (picture[..., :3] * picture[..., 3:]).mean(axis=(1, 3)) / np.maximum(coverage, 1e-6)
    return np.concatenate((rgb, coverage), axis=-1)


class _View:
    """A perspective camera that fits a stage."""

    def __init__(self, stage: Stage, size: tuple[int, int]) -> None:
        self.size = size
        self.center, self.distance = stage.fit(FIELD_OF_VIEW, size[0] / size[1])
        self.axes = stage.axes
        self.focal = size[1] / 2 / math.tan(FIELD_OF_VIEW / 2)

    def project(self, points: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Fixed-point pixels and depths in metres."""
        seen = ((points.detach().cpu() - self.center) @ self.axes.T).double().numpy()
        depth = self.distance - seen[:, 2]
        scale = self.focal / np.maximum(depth, 0.01)
        place = np.stack((self.size[0] / 2 + scale * seen[:, 0], self.size[1] / 2 - scale * seen[:, 1]), axis=1) - 0.5
        return np.round(place * 2**SUBPIXEL).astype(np.int32), depth


class _Ball:
    """One ball: a disc with a darker rim."""

    __slots__ = ("center", "inner", "radius", "rim")

    def __init__(self, center: list[int], radius: int, rim: tuple, inner: tuple | None) -> None:
        self.center, self.radius, self.rim, self.inner = center, radius, rim, inner

    def draw(self, canvas: np.ndarray) -> None:
        cv2.circle(canvas, self.center, self.radius, self.rim, -1, cv2.LINE_8, SUBPIXEL)
        if self.inner is not None:
            shift = self.radius // 7
            lit = (self.center[0] - shift, self.center[1] - shift)
            cv2.circle(canvas, lit, self.radius * 7 // 10, self.inner, -1, cv2.LINE_8, SUBPIXEL)


class _Triangle:
    """One triangle of one color."""

    __slots__ = ("color", "corners")

    def __init__(self, corners: np.ndarray, color: tuple) -> None:
        self.corners, self.color = corners, color

    def draw(self, canvas: np.ndarray) -> None:
        cv2.fillConvexPoly(canvas, self.corners, self.color, cv2.LINE_8, SUBPIXEL)


def _balls(balls: Balls, view: _View) -> tuple[np.ndarray, list[_Ball]]:
    place, depth = view.project(balls.points)
    colors = balls.colors.detach().cpu().double().numpy()
    radius = np.round(view.focal * balls.radius / np.maximum(depth, 0.01) * 2**SUBPIXEL).astype(int).tolist()
    rims = _paint(colors * (1.0 if balls.flat else RIM))
    inner = [None] * len(rims) if balls.flat else _paint(colors * HIGHLIGHT)
    jobs = [_Ball(*parts) for parts in zip(place.tolist(), radius, rims, inner, strict=True)]
    return depth, jobs


def _triangles(surface: Surface, view: _View) -> tuple[np.ndarray, list[_Triangle]]:
    """Triangles shaded by the mean of their corners' normals, which looks smoother than their own normals."""
    place, depth = view.project(surface.vertices)
    faces = surface.faces.cpu().numpy()
    corners = (surface.vertices.detach().cpu() @ view.axes.T).double().numpy()[faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    at_vertices = np.zeros((len(depth), 3))
    for corner in range(3):
        np.add.at(at_vertices, faces[:, corner], flat)
    normal = at_vertices[faces].sum(axis=1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    normal *= np.where(normal[:, 2:] < 0, -1, 1)  # both sides of a surface are lit
    bright = 0.5 + 0.55 * np.clip(normal @ np.asarray(LIGHT), 0, 1)
    colors = _paint(bright[:, None] * np.asarray(surface.color))
    jobs = [_Triangle(place[face], color) for face, color in zip(faces, colors, strict=True)]
    return depth[faces].mean(axis=1), jobs


def _paint(colors: np.ndarray) -> list[tuple]:
    """Colors as OpenCV takes them, opaque."""
    return [(*color, 255) for color in np.round(np.clip(colors, 0, 1) * 255).astype(int).tolist()]
