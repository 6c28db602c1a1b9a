"""What is expected of joints beside the pictures: an axis at the edge of what turns, and parts that are whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from afield.perception.cameras import CameraPath
from afield.perception.direct import SAME, Surface, unlikeness
from afield.perception.joint_search import (
    ASIDE,
    BEND,
    NEIGHBOURS,
    STEP,
    TIED,
    Joint,
    _lean,
    attachment,
    least_cut,
)


def surface_of(points: np.ndarray, normals: np.ndarray) -> Surface:
    """Points and normals without pictures."""
    path = CameraPath(8, 8, 8.0, torch.eye(4)[None], torch.zeros(0, 3), torch.zeros(0), static=False, metric=True)
    count, empty = len(points), np.zeros((1, 8, 8, 3), np.uint8)
    return Surface(
        *(empty, path, empty[..., 0] > 0, np.zeros((count, 2), np.float32)),
        *(points.astype(np.float32), normals.astype(np.float32), np.zeros((count, 3), np.float32)),
        *(np.zeros(count, int), 1.0, 1.0),
    )


def plate(columns: int, rows: int) -> np.ndarray:
    """Points of an upright plate of 40 by 30 cm whose left edge is the z axis."""
    grid = np.meshgrid(np.linspace(0, 0.4, columns), [0.0], np.linspace(0, 0.3, rows), indexing="ij")
    return np.stack(grid, -1).reshape(-1, 3)


def upright(x: float, y: float) -> np.ndarray:
    """The unit twist about the vertical line through (x, y)."""
    return np.concatenate(([0.0, 0, 1], -np.cross([0.0, 0, 1], [x, y, 0.0])))


def test_a_hinge_is_attached_at_the_edge_of_what_turns_and_not_away_from_it() -> None:
    points = plate(21, 16)
    surface, member = surface_of(points, np.tile([0.0, -1, 0], (len(points), 1))), points[:, 0] < 0.25
    assert attachment(surface, upright(0.0, 0.0), member) == 1.0
    assert attachment(surface, upright(0.25, 0.0), member) == 1.0
    one, two, far = (attachment(surface, upright(-gap, 0.0), member) for gap in (0.03, 0.06, 0.2))
    assert 1.0 > one > two > far and far < 0.02
    # Bigger things may be farther away in proportion.
    large = surface_of(3 * points, surface.normals)
    assert attachment(large, upright(-0.18, 0.0), member) == pytest.approx(two, abs=1e-5)
    # A few stray points at the axis do not attach the rest of the part.
    strays = np.flatnonzero(points[:, 0] < 0.01)[:2]
    away = points[:, 0] > 0.25
    away[strays] = True
    assert attachment(surface, upright(0.0, 0.0), away) < 0.2
    assert attachment(surface, np.array([0.0, 0, 0, 0, 1, 0]), away) == 1.0  # a slide has no axis


def test_the_least_cut_is_the_best_of_all_divisions() -> None:
    generator, count = np.random.default_rng(3), 16
    points = np.column_stack((generator.uniform(size=(count, 2)), 0.005 * generator.normal(size=count)))
    normals = [0.0, 0, 1] + 0.15 * generator.normal(size=(count, 3))
    surface = surface_of(points, normals / np.linalg.norm(normals, axis=1, keepdims=True))
    points, normals = surface.points.astype(float), surface.normals.astype(float)
    size, tie = float(np.ptp(points, axis=0).max()), np.zeros((count, count))
    for i in range(count):  # by its definition, point by point
        for j in np.argsort(np.linalg.norm(points - points[i], axis=1), kind="stable")[1 : NEIGHBOURS + 1]:
            step = (points[j] - points[i]) @ normals[i] / size
            tie[i, j] = TIED / 2 * np.exp(-(1 - normals[i] @ normals[j]) / BEND - (step / STEP) ** 2)
    assert (tie != tie.T).any() and (tie > 0).sum() == count * NEIGHBOURS
    every = (np.arange(2**count)[:, None] >> np.arange(count)) % 2 > 0
    parted = (np.where(every, 1.0, 0.0) @ (tie + tie.T) * ~every).sum(axis=1)
    divided = 0
    for _ in range(6):
        evidence = generator.normal(scale=1.5, size=count) + np.where(points[:, 0] > 0.5, 2.0, -2.0)
        costs = parted + np.where(every, np.maximum(-evidence, 0), np.maximum(evidence, 0)).sum(axis=1)
        found = least_cut(surface, evidence)
        own = costs[int((found * 2 ** np.arange(count)).sum())]
        assert own == pytest.approx(costs.min(), abs=0.01)
        divided += 0 < found.sum() < count and (found != (evidence > 0)).any()
    assert divided > 0, "the cut says something else than the evidence alone, and divides"
    assert least_cut(surface_of(points[:1], normals[:1]), np.array([0.3])).tolist() == [True]
    assert least_cut(surface_of(points[:0], normals[:0]), np.zeros(0)).tolist() == []


def test_an_unclear_patch_goes_with_its_side_and_not_around_the_corner() -> None:
    side = plate(21, 16)
    front, beside = side, side[:, [1, 0, 2]] - [0.02, 0, 0]
    points = np.concatenate((front, beside))
    normals = np.concatenate((np.tile([0.0, -1, 0], (len(front), 1)), np.tile([-1.0, 0, 0], (len(front), 1))))
    moves = np.arange(len(points)) < len(front)
    evidence = np.where(moves, 0.8, -0.8)
    patch = moves & (np.linalg.norm(points - [0.2, 0, 0.15], axis=1) < 0.04)
    evidence[patch] = -0.5  # a reflection that stays where it is
    found = least_cut(surface_of(points, normals), evidence)
    assert patch.sum() > 10 and (found == moves).all()


def test_what_keeps_an_axis_in_its_place_has_the_right_derivative() -> None:
    turn, middle = np.array([0.1, -0.2, 0.97]), np.array([0.4, -0.3, 0.2])
    turn /= np.linalg.norm(turn)
    twist = np.concatenate((turn, -np.cross(turn, [0.3, 0.1, 0.0])))
    joint = Joint("hinge", twist, np.array([0.0, 0, 1]), np.zeros(1), place=np.array([0.25, 0.12, 0.4]), aside=ASIDE)
    rows, value = _lean(joint, middle)
    for axis in range(6):
        change = np.zeros(6)
        change[axis] = 1e-6
        change[3:] -= np.cross(change[:3], middle)  # a rotation about the middle
        after = _lean(replace(joint, twist=twist + change), middle)[1]
        assert np.allclose((after - value) / 1e-6, rows[:, axis], atol=1e-3)
    through = np.cross(turn, twist[3:])
    assert np.allclose(_lean(replace(joint, place=through + 0.7 * turn), middle)[1][3:], 0.0, atol=1e-9)


def test_a_large_difference_counts_hardly_more_than_a_clear_one() -> None:
    difference = np.array([[0.0, 0, 0], [SAME, 0, 0], [0, 3 * SAME, 0], [0, 0, 9 * SAME]])
    assert unlikeness(difference) == pytest.approx([0.0, 0.5, 0.9, 81 / 82])
