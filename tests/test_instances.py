"""Telling objects apart without masks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scene_samples import SOURCE, three_blobs
from scipy.sparse import coo_array

from afield.fields.instances import _edges, _graph, instances, normalized_cut
from afield.geometry import uniform_sphere
from afield.scene import Scene


@pytest.mark.parametrize("spread", [0.02, 0.06])
def test_objects_apart_are_instances_however_dense_their_points(spread: float) -> None:
    label = instances(three_blobs(spread))
    parts = [set(label[i * 120 : (i + 1) * 120].tolist()) for i in range(3)]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert len(set.union(*parts)) == 3


def _touching(third: bool) -> Scene:
    """Two balls that touch, unlike in features, and perhaps a third one apart."""
    generator = torch.Generator().manual_seed(0)
    direction = uniform_sphere(800).expand(3, 800, 3)
    center = torch.tensor([[0.0, 0.0, 0.0], [0.086, 0.0, 0.0], [0.4, 0.0, 0.0]])[:, None]
    count = 3 if third else 2
    points = (center + 0.04 * direction)[:count].reshape(-1, 3)
    kind = torch.eye(8)[:count].repeat_interleave(800, dim=0)
    features = torch.nn.functional.normalize(kind + 0.4 + 0.1 * torch.randn(len(kind), 8, generator=generator), dim=-1)
    return Scene(points, features, torch.rand(len(kind), 3), direction[:count].reshape(-1, 3), SOURCE)


def test_objects_that_touch_are_told_apart_by_their_features() -> None:
    label = instances(_touching(third=True))
    assert len(label.unique()) == 3
    for number in range(3):
        own = label[number * 800 : (number + 1) * 800]
        assert float((own == own.mode().values).float().mean()) > 0.97


def test_a_single_cluster_is_never_divided() -> None:
    assert len(instances(_touching(third=False)).unique()) == 1


def test_one_object_among_others_is_not_divided() -> None:
    """The same two balls with features that change smoothly across both are one thing."""
    scene = _touching(third=True)
    along = scene.points[:, :1] / 0.08
    smooth = torch.cat((0.5 + 0.2 * along, 0.5 - 0.2 * along, torch.zeros(2400, 6)), dim=-1)
    far = (scene.points[:, 0] > 0.3)[:, None]
    features = torch.where(far, torch.eye(8)[5], torch.nn.functional.normalize(smooth, dim=-1))
    assert len(instances(scene.with_features(features)).unique()) == 2


def _rod(points: torch.Tensor, jump: float) -> Scene:
    """A thin rod along x and a ball apart; the rod's features change along it, and by `jump` in its middle."""
    along = points[:, 0] / 0.3 + jump * (points[:, 0] > 0)
    rod = torch.stack((along.cos(), along.sin(), torch.zeros(len(along))), dim=-1)
    ball = uniform_sphere(400)
    features = torch.cat((rod, torch.tensor([0.0, 0.0, 1.0]).expand(400, 3)))
    normals = torch.cat((torch.nn.functional.normalize(points * torch.tensor([0.0, 1.0, 1.0]), dim=-1), ball))
    both = torch.cat((points, 0.03 * ball + torch.tensor([0.0, 0.4, 0.0])))
    return Scene(both, features, torch.rand(len(both), 3), normals, SOURCE)


@pytest.mark.parametrize(("jump", "count"), [(0.0, 2), (1.0, 3)])
def test_features_must_jump_where_there_is_no_crease(jump: float, count: int) -> None:
    """Its ends look different, and little holds them together; but only a jump is a border between two things."""
    turn = 2 * math.pi * torch.arange(12) / 12
    ring = 0.01 * torch.stack((torch.zeros(12), turn.cos(), turn.sin()), dim=-1)
    points = (torch.linspace(-0.3, 0.3, 121)[:, None, None] * torch.tensor([1.0, 0.0, 0.0]) + ring).reshape(-1, 3)
    assert len(instances(_rod(points, jump)).unique()) == count


def test_islands_of_unevenly_spread_points_are_still_one_thing() -> None:
    """A gap between points that is shorter than a short step costs a cut as much as any other place."""
    generator = torch.Generator().manual_seed(0)
    turn = 2 * math.pi * torch.rand(3000, generator=generator)
    along = 0.2 * torch.rand(3000, generator=generator)
    along = along + torch.where(along > 0.1, 0.009, 0.0) - 0.1
    points = torch.stack((along, 0.01 * turn.cos(), 0.01 * turn.sin()), dim=-1)
    assert len(instances(_rod(points, 0.0)).unique()) == 2


def test_instances_do_not_depend_on_the_order_of_points() -> None:
    scene = three_blobs(0.03)
    order = torch.randperm(360, generator=torch.Generator().manual_seed(1))
    same = instances(scene)[:, None] == instances(scene)[None]
    turned = instances(scene.select(order))
    assert torch.equal(turned[:, None] == turned[None], same[order][:, order])


def test_a_row_of_touching_objects_falls_into_all_of_them() -> None:
    generator = torch.Generator().manual_seed(3)
    direction = uniform_sphere(500).expand(5, 500, 3)
    center = torch.tensor([[0.086 * i, 0.0, 0.0] for i in range(4)] + [[0.6, 0.0, 0.0]])[:, None]
    points = (center + 0.04 * direction).reshape(-1, 3)
    kind = torch.eye(8)[:5].repeat_interleave(500, dim=0)
    features = torch.nn.functional.normalize(kind + 0.3 + 0.1 * torch.randn(2500, 8, generator=generator), dim=-1)
    scene = Scene(points, features, torch.rand(2500, 3), direction.reshape(-1, 3), SOURCE)
    label = instances(scene)
    assert len(label.unique()) == 5
    for number in range(5):
        own = label[number * 500 : (number + 1) * 500]
        assert float((own == own.mode().values).float().mean()) > 0.95


def test_a_crease_makes_the_cut_cheaper() -> None:
    """Two overlapping balls of one kind; with the same normal everywhere there is no crease between them."""
    ball = uniform_sphere(900)
    both = torch.cat((0.04 * ball, 0.04 * ball + torch.tensor([0.072, 0.0, 0.0])))
    outside = torch.cat((both[:900, 0] < 0.036, both[900:, 0] > 0.036))
    points, normals = both[outside], torch.cat((ball, ball))[outside]
    alike = torch.tensor([1.0, 0.0]).expand(len(points), 2)
    upwards = torch.tensor([0.0, 0.0, 1.0]).expand_as(normals)
    (half, creased), (_, flat) = (
        normalized_cut(_graph(len(points), edges.pairs, edges.hold))
        for edges in (_edges(points, normals, alike, 0.012), _edges(points, upwards, alike, 0.012))
    )
    assert creased < 0.7 * flat
    right = (points[:, 0] > 0.036).numpy()
    assert max((half == right).mean(), (half != right).mean()) > 0.98


def test_the_normalized_cut_is_the_best_of_all_cuts_of_a_small_graph() -> None:
    generator = np.random.default_rng(2)
    count = 10
    weight = generator.uniform(0.5, 1.0, (count, count))
    weight[:5, 5:] *= 0.05
    weight = np.triu(weight, 1) + np.triu(weight, 1).T
    half, value = normalized_cut(coo_array(weight).tocsr())
    degree = weight.sum(axis=1)
    best = min(
        weight[np.ix_(inside, ~inside)].sum() * (1 / degree[inside].sum() + 1 / degree[~inside].sum())
        for bits in itertools.product((False, True), repeat=count - 1)
        if (inside := np.array((True, *bits))).any() and not inside.all()
    )
    assert value == pytest.approx(best)
    assert set(map(tuple, (np.flatnonzero(half).tolist(), np.flatnonzero(~half).tolist()))) == {
        (0, 1, 2, 3, 4), (5, 6, 7, 8, 9),
    }  # fmt: skip


def test_parts_that_nothing_connects_are_cut_for_nothing() -> None:
    weight = np.kron(np.eye(2), np.ones((4, 4)) - np.eye(4))
    half, value = normalized_cut(coo_array(weight).tocsr())
    assert value == 0.0
    assert abs(int(half[:4].sum()) - int(half[4:].sum())) == 4
