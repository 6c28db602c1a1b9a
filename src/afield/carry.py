"""The demonstrated hand on another object: carried along by the alignment of the two, and opened to the other's width.

A rigid motion takes the hand to the right place, but its fingers keep the width of the object that was shown. So every
point of the hand keeps its offset from the surface it was nearest to, that surface is sought on the other object, and the
hand is bent until its points are there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from afield.demonstration import Demonstration
from afield.energy import (
    CarriedTerm,
    Energy,
    EnergyTerm,
    InsideTerm,
    JointLimitTerm,
    PenetrationTerm,
    SelfPenetrationTerm,
    TableTerm,
)
from afield.fields.registration import Registration
from afield.geometry import pose_from
from afield.hand import Hand
from afield.optimize import AdamConfig, minimize_adam
from afield.scene import Scene, farthest_points

SMOOTH = 0.01
"""Metres over which the corrections of neighbouring surface points are averaged."""
FAR = 0.04
"""Corrections of this many metres count 1/e: what is farther has no counterpart."""
WEIGHTS = {
    "carried": 1.0,
    "inside": 5.0,
    "penetration": 0.05,
    "self_penetration": 0.01,
    "joint_limits": 1.0,
    "table": 10.0,
}
"""Of the terms of the hand's fit; all are in metres but the joint limits, which are in radians."""
CLOSE = 0.01
"""Tolerance of the fit in metres."""
POINTS = 512
"""Points of the object that the fit sees."""
FIT = AdamConfig(150, 2e-2, 2e-3)
"""Steps of the fit."""


@dataclass(frozen=True)
class Carried:
    """The demonstration on another object."""

    points: Float[Tensor, "q 3"]
    """Where its query points belong, in metres, world."""
    beta: Float[Tensor, "d"]
    """The hand that comes nearest to them, outside the object."""


def carry(demonstration: Demonstration, hand: Hand, found: Registration, shown: Scene, here: Scene) -> Carried:
    """Carry the demonstrated hand along.

    Args:
        demonstration: what was shown.
        hand: the demonstrated hand.
        found: carries the shown object onto the other one.
        shown: points of the shown object.
        here: points of the other one, with normals and the table it stands on.
    """
    wanted = carried_points(demonstration.query_points(hand), shown, here, found)
    return Carried(wanted, fit_hand(demonstration, hand, wanted, found.rotation, here))


def moved(demonstration: Demonstration, hand: Hand, found: Registration) -> Float[Tensor, "d"]:
    """The demonstrated hand itself, where a rigid motion takes it: the same grasp of the very same object."""
    pose, joints = hand.split(demonstration.beta)
    place = found.rotation @ pose[:3, 3] + found.translation
    return hand.join(pose_from(found.rotation @ pose[:3, :3], place), joints)


def carried_points(
    points: Float[Tensor, "q 3"], shown: Scene, here: Scene, found: Registration
) -> Float[Tensor, "q 3"]:
    """Where points beside the shown object belong beside the other one; metres, world.

    The nearest point of the shown surface is carried by the similarity, and on to where the other surface is nearest
    (averaged over neighbours); the offset from the surface is turned, but keeps its length, for hands do not grow with what
    they hold.
    """
    surface, carried = shown.points, found.carry(shown.points)
    correction = here.points[torch.cdist(carried, here.points).argmin(dim=-1)] - carried
    trust = (-(correction.norm(dim=-1) / FAR).square()).exp()
    nearest = torch.cdist(points, surface).argmin(dim=-1)
    weight = (-(torch.cdist(surface[nearest], surface) / SMOOTH).square()).exp() * trust + 1e-9
    average = (weight / weight.sum(dim=-1, keepdim=True)) @ correction
    return carried[nearest] + average + (points - surface[nearest]) @ found.rotation.T


def fit_hand(
    demonstration: Demonstration,
    hand: Hand,
    wanted: Float[Tensor, "q 3"],
    rotation: Float[Tensor, "3 3"],
    here: Scene,
) -> Float[Tensor, "d"]:
    """The configuration whose query points come nearest to the wanted ones, outside the object and above the table.

    Args:
        demonstration: its joints are where the fit begins.
        hand: the hand.
        wanted: where the query points belong, metres, world.
        rotation: turns the demonstrated hand for the beginning.
        here: points of the object.
    """
    pose, joints = hand.split(demonstration.beta)
    around = (demonstration.query_points(hand) - pose[:3, 3]) @ rotation.T
    first = hand.join(pose_from(rotation @ pose[:3, :3], (wanted - around).mean(dim=0)), joints)
    chosen = farthest_points(here.points, min(POINTS, len(here.points)), seed=0)
    points, normals = here.points[chosen], here.normals[chosen]
    terms: dict[str, EnergyTerm] = {
        "carried": CarriedTerm(wanted, CLOSE),
        "inside": InsideTerm(points, normals),
        "penetration": PenetrationTerm(points, len(here.points) / len(points)),
        "self_penetration": SelfPenetrationTerm(),
        "joint_limits": JointLimitTerm(),
    }
    if here.table is not None:
        terms["table"] = TableTerm(here.table)
    trace = minimize_adam(Energy(hand, demonstration.points, terms, WEIGHTS), first[None], FIT)
    return hand.clamp(trace.final[0])
