"""What is expected of joints beside the pictures: an axis at the edge of what turns, and parts that are whole."""

from __future__ import annotations

import itertools
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
    generator = np.random.default_rng(3)
    points, normals = generator.uniform(size=(11, 3)), generator.normal(size=(11, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    surface, size = surface_of(points, normals), float(np.ptp(points, axis=0).max())
    points, normals = surface.points.astype(float), surface.normals.astype(float)

    def cost(member: np.ndarray, evidence: np.ndarray) -> float:
        """By its definition, point by point."""
        total = -evidence[member & (evidence < 0)].sum() + evidence[~member & (evidence > 0)].sum()
        for i in range(11):
            order = np.argsort(np.linalg.norm(points - points[i], axis=1), kind="stable")[1 : NEIGHBOURS + 1]
            for j in order:
                if member[i] != member[j]:
                    step = (points[j] - points[i]) @ normals[i] / size
                    total += TIED / 2 * np.exp(-(1 - normals[i] @ normals[j]) / BEND - (step / STEP) ** 2)
        return float(total)

    alike = replace(surface, points=(0.001 * points).astype(np.float32), normals=np.tile(normals[:1], (11, 1)))
    for trial in range(4):
        evidence = generator.uniform(-1, 1, 11)
        best = min(
            (np.array(one) for one in itertools.product((False, True), repeat=11)), key=lambda m: cost(m, evidence)
        )
        found = least_cut(surface, evidence)
        assert cost(found, evidence) == pytest.approx(cost(best, evidence), abs=0.05), trial
    # Where all look the same way and lie on one plane, eleven points go together.
    flat = replace(
        alike, points=alike.points * np.array([1.0, 0, 1], np.float32), normals=np.tile([0.0, 1, 0], (11, 1))
    )
    evidence = np.full(11, 0.2)
    evidence[4] = -1.0
    assert least_cut(flat, evidence).all()


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
    turn = np.array([0.1, -0.2, 0.97])
    turn /= np.linalg.norm(turn)
    twist = np.concatenate((turn, -np.cross(turn, [0.3, 0.1, 0.0])))
    joint = Joint("hinge", twist, np.array([0.0, 0, 1]), np.zeros(1), place=np.array([0.25, 0.12, 0.4]), aside=ASIDE)
    rows, value = _lean(joint)
    for axis in range(6):
        change = np.zeros(6)
        change[axis] = 1e-6
        after = _lean(replace(joint, twist=twist + change))[1]
        assert np.allclose((after - value) / 1e-6, rows[:, axis], atol=1e-3)
    through = np.cross(turn, twist[3:])
    assert np.allclose(_lean(replace(joint, place=through + 0.7 * turn))[1][3:], 0.0, atol=1e-9)


def test_a_large_difference_counts_hardly_more_than_a_clear_one() -> None:
    difference = np.array([[0.0, 0, 0], [SAME, 0, 0], [0, 3 * SAME, 0], [0, 0, 9 * SAME]])
    assert unlikeness(difference) == pytest.approx([0.0, 0.5, 0.9, 81 / 82])
