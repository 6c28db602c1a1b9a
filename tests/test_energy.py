from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afield.energy import (
    CarriedTerm,
    Energy,
    FeatureTerm,
    HandState,
    InsideTerm,
    JointLimitTerm,
    PenetrationTerm,
    SelfPenetrationTerm,
    TableTerm,
    subset_points,
)
from afield.geometry import quat_wxyz_to_matrix
from afield.hand import Hand, hand_by_name
from afield.scene import Plane


@pytest.fixture(scope="module")
def hand() -> Hand:
    return hand_by_name("shadow")


@pytest.fixture(scope="module")
def betas(hand: Hand) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    quat = torch.nn.functional.normalize(torch.randn(4, 4, generator=generator), dim=-1)
    pose = torch.eye(4).repeat(4, 1, 1)
    pose[:, :3, :3] = quat_wxyz_to_matrix(quat)
    pose[:, :3, 3] = 0.1 * torch.randn(4, 3, generator=generator)
    low, high = hand.limits[:, 0], hand.limits[:, 1]
    return hand.join(pose, low + (high - low) * torch.rand(4, len(low), generator=generator))


class _Linear:
    """A field whose features are the coordinates themselves."""

    channels = 3

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        return points


def _state(hand: Hand, beta: torch.Tensor, count: int = 40) -> HandState:
    return HandState.of(hand, hand.sample_surface(count, seed=0), beta)


def test_the_feature_term_is_the_mean_absolute_difference(hand: Hand, betas: torch.Tensor) -> None:
    state = _state(hand, betas)
    goal = state.points_world[0] + 0.25
    energy = FeatureTerm(_Linear(), goal)(state)
    expected = torch.stack([(points - goal).abs().sum() / goal.numel() for points in state.points_world])
    torch.testing.assert_close(energy, expected)
    torch.testing.assert_close(energy[0], torch.tensor(0.25))


def test_penetration_sums_the_depth_of_inner_points_only(hand: Hand, betas: torch.Tensor) -> None:
    points = betas[0, :3] + 0.2 * torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
    distance = hand.signed_distance(betas, points)
    expected = torch.stack([-row[row < 0].sum() for row in distance])
    assert float(expected[0]) > 0, "some points must lie inside for the test to say anything"
    torch.testing.assert_close(PenetrationTerm(points)(_state(hand, betas)), expected)
    torch.testing.assert_close(PenetrationTerm(points, 4.0)(_state(hand, betas)), 4 * expected)


def test_being_inside_counts_also_where_no_scene_point_is_in_the_hand(hand: Hand, betas: torch.Tensor) -> None:
    """A ball of 1 m radius: below its surface by known depths, farther in than `reach`, and outside."""
    points = torch.nn.functional.normalize(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    state = _state(hand, betas[:1])
    for radius, depth in ((0.98, 0.02), (0.90, 0.0), (1.02, 0.0)):
        placed = replace(state, points_world=radius * points[None, :200])
        torch.testing.assert_close(InsideTerm(points, points)(placed), torch.tensor([depth]), atol=1e-4, rtol=0)
    moved = (0.98 * points[None, :200]).requires_grad_()
    InsideTerm(points, points)(replace(state, points_world=moved)).sum().backward()
    assert moved.grad is not None
    assert bool(((moved.grad[0] * points[:200]).sum(dim=-1) < 0).all()), "moving outwards must lower the energy"


def test_self_penetration_counts_close_pairs_once(hand: Hand, betas: torch.Tensor) -> None:
    state, delta = _state(hand, betas), 0.05
    expected = []
    for keypoints in state.keypoints_world:
        pairs = [(keypoints[a] - keypoints[b]).norm() for a, b in hand.keypoint_pairs.tolist()]
        expected.append(sum(max(delta - float(d), 0.0) for d in pairs))
    torch.testing.assert_close(SelfPenetrationTerm(delta)(state), torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert max(expected) > 0


def test_joint_limits_hurt_only_outside(hand: Hand, betas: torch.Tensor) -> None:
    term = JointLimitTerm()
    torch.testing.assert_close(term(_state(hand, betas)), torch.zeros(4))
    beyond = betas.clone()
    beyond[0, 9] = hand.limits[0, 1] + 0.3
    beyond[1, 10] = hand.limits[1, 0] - 0.2
    torch.testing.assert_close(term(_state(hand, beyond)), torch.tensor([0.3, 0.2, 0.0, 0.0]))


def test_the_table_pushes_only_from_below(hand: Hand, betas: torch.Tensor) -> None:
    lifted = betas.clone()
    lifted[:, 2] += 2.0
    table = TableTerm(Plane(torch.tensor([0.0, 0.0, 1.0]), 0.0))
    torch.testing.assert_close(table(_state(hand, lifted)), torch.zeros(4))
    sunk = lifted.clone().requires_grad_()
    deep = TableTerm(Plane(torch.tensor([0.0, 0.0, 1.0]), 3.0))(_state(hand, sunk))
    assert bool((deep > 0).all())
    deep.sum().backward()
    assert sunk.grad is not None
    assert bool((sunk.grad[:, 2] < 0).all()), "moving up must lower the energy"


def test_being_carried_away_counts_by_distance_less_a_tolerance(hand: Hand, betas: torch.Tensor) -> None:
    state = _state(hand, betas)
    shift = torch.tensor([0.0, 0.3, 0.4])
    value = CarriedTerm(state.points_world[0] + shift, tolerance=0.01)(state)
    torch.testing.assert_close(value[0], torch.tensor((0.5**2 + 0.01**2) ** 0.5 - 0.01))
    near = CarriedTerm(state.points_world[0] + 0.004 * shift, tolerance=0.01)(state)[0]
    assert 0.0 < float(near) < 0.0003, "2 mm hardly count"


def test_the_energy_adds_its_weighted_terms(hand: Hand, betas: torch.Tensor) -> None:
    points = hand.sample_surface(40, seed=0)
    goal = hand.place(points, betas[0])
    terms = {"feature": FeatureTerm(_Linear(), goal), "self_penetration": SelfPenetrationTerm(0.05)}
    total, parts = Energy(hand, points, terms, {"feature": 2.0, "self_penetration": 3.0})(betas)
    state = HandState.of(hand, points, betas)
    torch.testing.assert_close(parts["feature"], 2.0 * terms["feature"](state))
    torch.testing.assert_close(total, parts["feature"] + parts["self_penetration"])


def test_gradients_match_finite_differences(hand: Hand, betas: torch.Tensor) -> None:
    exact = hand.to(dtype=torch.float64)
    points = exact.sample_surface(20, seed=0)
    scene = betas[0, :3].double() + 0.1 * torch.randn(
        50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    goal = exact.place(points, betas[0].double()) + 0.3
    table = Plane(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), 0.5)
    terms = {
        "feature": FeatureTerm(_Linear(), goal),
        "penetration": PenetrationTerm(scene),
        "self_penetration": SelfPenetrationTerm(0.05),
        "table": TableTerm(table),
        "alignment": CarriedTerm(exact.place(points, betas[1].double())),
    }
    energy = Energy(exact, points, terms, dict.fromkeys(terms, 1.0))
    beta = betas[:1].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: energy(b)[0], (beta,), eps=1e-7, atol=1e-4, rtol=1e-3)


def test_a_subset_of_points_stays_on_its_links(hand: Hand, betas: torch.Tensor) -> None:
    points = hand.sample_surface(40, seed=0)
    index = torch.tensor([3, 17, 29])
    torch.testing.assert_close(hand.place(subset_points(points, index), betas), hand.place(points, betas)[:, index])
