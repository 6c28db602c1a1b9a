"""The terms of Eq. 9, each a small class with one job: a batch of hand configurations in, one number per configuration out.

A term sees a `HandState`, computed once per step and shared by all terms. Lengths are metres, so every term but the feature
term (which has no unit) is in metres before its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afield.fields.base import Field
from afield.hand import Hand, HandPoints
from afield.scene import Plane


@dataclass(frozen=True)
class HandState:
    """A batch of s hand configurations and the points that the terms need."""

    hand: Hand
    beta: Float[Tensor, "s d"]
    points_world: Float[Tensor, "s q 3"]
    """Query points on the hand's surface (Q of Eq. 1)."""
    keypoints_world: Float[Tensor, "s k 3"]
    """The hand's few keypoints per link."""
    joints: Float[Tensor, "s j"]

    @classmethod
    def of(cls, hand: Hand, points: HandPoints, beta: Float[Tensor, "s d"]) -> HandState:
        """Pose the hand's query points and keypoints."""
        _, joints = hand.split(beta)
        links = hand.link_poses(beta)
        return cls(hand, beta, points.on(links), hand.keypoints.on(links), joints)


@runtime_checkable
class EnergyTerm(Protocol):
    """Something that a good hand configuration makes small."""

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """The term's value for each configuration; differentiable in `state.beta`."""
        ...


@dataclass(frozen=True)
class FeatureTerm:
    """Eq. 7: L1 difference between the features the hand met in the demonstration and those it meets here.

    The mean over query points and channels, not the sum: only so do the published weights of the other terms keep their
    meaning for any number of points and channels.
    """

    field: Field
    goal: Float[Tensor, "q c"]
    """Features of the query points in the demonstration."""

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """Mean absolute feature difference of each configuration; no unit."""
        return (self.field(state.points_world) - self.goal).abs().mean(dim=(-1, -2))


@dataclass(frozen=True)
class PenetrationTerm:
    """E_pen of Eq. 8: how deep scene points lie inside the hand, summed over the points."""

    points_world: Float[Tensor, "n 3"]
    points_per_sample: float = 1.0
    """How many scene points each given point stands for, where they were thinned; keeps the sum comparable."""

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """Summed penetration depth in metres."""
        return state.hand.total_depth(state.beta, self.points_world) * self.points_per_sample


@dataclass(frozen=True)
class InsideTerm:
    """How deep the hand's query points lie below the surface of what was seen, by its normals.

    Complements E_pen, which counts scene points inside the hand: a finger that has sunk in as a whole has none.
    """

    points_world: Float[Tensor, "n 3"]
    normals_world: Float[Tensor, "n 3"]
    """Pointing outwards."""
    reach: float = 0.05
    """Points farther than this many metres from the surface are outside."""

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """Mean depth of the query points in metres."""
        with torch.no_grad():
            points = self.points_world.expand(len(state.beta), -1, -1)
            distance, nearest = torch.cdist(state.points_world, points).min(dim=-1)
        depth = ((self.points_world[nearest] - state.points_world) * self.normals_world[nearest]).sum(dim=-1)
        return torch.where(distance < self.reach, depth.clamp_min(0.0), 0.0).mean(dim=-1)


@dataclass(frozen=True)
class SelfPenetrationTerm:
    """E_spen of Eq. 8: keypoints of different, non-adjacent links closer than delta."""

    delta: float = 0.02
    """Distance in metres below which two keypoints repel."""

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """Summed lack of distance in metres."""
        pairs = state.hand.keypoint_pairs
        gap = state.keypoints_world[:, pairs[:, 0]] - state.keypoints_world[:, pairs[:, 1]]
        # The clamp keeps the gradient finite where two keypoints coincide.
        distance = gap.square().sum(dim=-1).clamp_min(1e-12).sqrt()
        return (self.delta - distance).clamp_min(0.0).sum(dim=-1)


@dataclass(frozen=True)
class JointLimitTerm:
    """E_pose of Eq. 9: how far joint angles lie outside their limits, summed over joints."""

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """Summed violation in radians."""
        low, high = state.hand.limits[:, 0], state.hand.limits[:, 1]
        return ((low - state.joints).clamp_min(0.0) + (state.joints - high).clamp_min(0.0)).sum(dim=-1)


@dataclass(frozen=True)
class TableTerm:
    """Keeps the hand above the table: mean depth of its surface points and keypoints below a margin over the plane."""

    table: Plane
    margin: float = 0.005
    """Clearance in metres that is asked for."""

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """Summed depth below the margin in metres, over keypoints and query points, per query point."""
        points = torch.cat((state.points_world, state.keypoints_world), dim=1)
        height = points @ self.table.normal - self.table.offset
        return (self.margin - height).clamp_min(0.0).sum(dim=-1) / points.shape[1]


@dataclass(frozen=True)
class CarriedTerm:
    """Keeps the hand where the alignment of the two objects carries the demonstrated one.

    The alignment knows which end of the object is meant, but not where fingers hold best; so small distances hardly count.
    """

    goal_world: Float[Tensor, "q 3"]
    """The demonstration's query points, carried along (`afield.carry`)."""
    tolerance: float = 0.02
    """Distances well below this many metres count little."""

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """Mean distance of the query points from where they are carried, less what is tolerated, in metres."""
        squared = (state.points_world - self.goal_world).square().sum(dim=-1)
        return ((squared + self.tolerance**2).sqrt() - self.tolerance).mean(dim=-1)


@dataclass(frozen=True)
class Energy:
    """A weighted sum of terms over the hand configurations: Eq. 9."""

    hand: Hand
    points: HandPoints
    terms: Mapping[str, EnergyTerm]
    weights: Mapping[str, float]

    def __call__(self, beta: Float[Tensor, "s d"]) -> tuple[Float[Tensor, "s"], dict[str, Float[Tensor, "s"]]]:
        """The total of each configuration, and its weighted terms by name."""
        state = HandState.of(self.hand, self.points, beta)
        values = {name: self.weights[name] * term(state) for name, term in self.terms.items()}
        return torch.stack(tuple(values.values())).sum(dim=0), values


def subset_points(points: HandPoints, index: Int[Tensor, "k"]) -> HandPoints:
    """Some of the hand's points."""
    return HandPoints(points.link[index], points.points_link[index], points.normals_link[index])
