"""Small observations and scenes with a known truth: balls on a table, ray-cast with NumPy; round things in a row."""

from __future__ import annotations

import numpy as np
import torch

from afield.geometry import look_at, uniform_sphere
from afield.observation import Camera, Observation, View
from afield.scene import FeatureSource, Scene

BALL_CENTER = np.array([0.02, -0.01, 0.05])
BALL_RADIUS = 0.05
SOURCE = FeatureSource("color", 1, 224, 0.3)


def ball_on_table(
    *, ball: bool = True, second: bool = False, width: int = 160, height: int = 120, noise: float = 0.0
) -> tuple[Observation, list[np.ndarray]]:
    """Three cameras around a two-colored ball on a gray table; with `second` another ball, 25 cm away.

    Returns:
        The observation, without masks, and the true mask of the first ball in every view.
    """
    views, truth = [], []
    generator = np.random.default_rng(0)
    for index in range(3):
        angle = 2 * np.pi * index / 3
        position = torch.tensor([0.6 * np.cos(angle), 0.6 * np.sin(angle), 0.6], dtype=torch.float32)
        pose = look_at(position, torch.tensor([0.0, 0.0, 0.03]), torch.tensor([0.0, 0.0, 1.0]))
        camera = Camera(width, height, 1.1 * width, 1.1 * width, (width - 1) / 2, (height - 1) / 2, pose)
        centers = ([BALL_CENTER] if ball else []) + ([BALL_CENTER + np.array([-0.25, 0.0, 0.0])] if second else [])
        depth, label, points = _cast(camera, centers)
        shade = 0.8 + 0.2 * np.sin(40 * points[..., 0]) * np.sin(40 * points[..., 1])
        color = np.where((label == 0)[..., None], [110, 110, 115], 0) * shade[..., None]
        low = points[..., 2] < BALL_CENTER[2]
        color = np.where((label > 0)[..., None], np.where(low[..., None], [40, 60, 200], [200, 60, 30]), color)
        depth = np.where(depth > 0, depth + noise * generator.standard_normal(depth.shape), 0)
        views.append(View(f"camera{index}", camera, color.astype(np.uint8), depth.astype(np.float32)))
        truth.append(label == 1)
    return Observation(tuple(views), name="ball"), truth


def three_blobs(spread: float, count: int = 120) -> Scene:
    """Three round objects 30 cm apart along x; each has features of its own direction, with some noise."""
    generator = torch.Generator().manual_seed(0)
    number = torch.arange(3).repeat_interleave(count)
    direction = uniform_sphere(count).repeat(3, 1)
    points = spread * direction + number[:, None] * torch.tensor([0.3, 0.0, 0.0])
    features = torch.eye(8)[number] + 0.2 * torch.randn(len(number), 8, generator=generator)
    features = torch.nn.functional.normalize(features, dim=-1)
    return Scene(points, features, torch.rand(len(number), 3, generator=generator), direction, SOURCE)


def _cast(camera: Camera, centers: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth, label (-1 nothing, 0 table, i the i-th ball) and world point of every pixel."""
    rows, columns = np.mgrid[0 : camera.height, 0 : camera.width]
    local = np.stack(
        ((columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(rows.shape)), axis=-1
    )  # the z component is one, so the ray parameter is the depth
    pose = camera.T_world_camera.numpy().astype(np.float64)
    ray, origin = local @ pose[:3, :3].T, pose[:3, 3]
    depth = -origin[2] / ray[..., 2]
    label = np.zeros(rows.shape, int)
    for index, center in enumerate(centers, start=1):
        b, c = ray @ (origin - center), (origin - center) @ (origin - center) - BALL_RADIUS**2
        a = (ray**2).sum(axis=-1)
        root = b**2 - a * c
        hit = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        label = np.where(hit < depth, index, label)
        depth = np.minimum(depth, hit)
    points = origin + depth[..., None] * ray
    beyond = (label == 0) & (np.abs(points[..., :2]).max(axis=-1) > 0.45)
    return np.where(beyond, 0, depth), np.where(beyond, -1, label), points
