"""The ways to align that `afield bench align` compares: the default, parts of it, the paper's, and two without any search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import roma
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from afield.alignment import AlignConfig, Alignment, Similarity, Weights, align, first_guesses
from afield.alignment_adam import align_adam
from afield.fields.volume import Volume
from afield.skills import Skill
from afield.target import Target

Row = Callable[[Skill, Volume, Target], Alignment]
IGNORED = 1e6
"""A residual as wide as this does not count."""


def _lm(config: AlignConfig) -> Row:
    def row(skill: Skill, volume: Volume, target: Target) -> Alignment:
        """Levenberg-Marquardt with this configuration."""
        return align(volume, target, skill.scale, skill.floor, skill.contact_points(), config, metric=skill.metric)

    return row


def by_features(skill: Skill, volume: Volume, target: Target) -> Alignment:
    """Mutual nearest neighbours of descriptors, and the similarity of three pairs with most followers (RANSAC)."""
    likeness = functional.normalize(target.descriptors, dim=-1) @ functional.normalize(volume.descriptors, dim=-1).T
    there, back = likeness.argmax(dim=1), likeness.argmax(dim=0)
    mutual = (back[there] == torch.arange(len(there))).nonzero()[:, 0]
    pivot = target.points.mean(dim=0)
    seen, known = target.points[mutual] - pivot, volume.surface[there[mutual]]
    generator = torch.Generator().manual_seed(0)
    triple = torch.randint(max(1, len(mutual)), (2000, 3), generator=generator)
    rotation, shift, scale = _register(seen[triple], known[triple])
    size = (scale * skill.scale).log().abs()
    error = (scale[:, None, None] * (seen @ rotation.mT) + shift[:, None] - known).norm(dim=-1)
    followers = (error < 0.1).sum(dim=-1) * (size < 0.5)
    best = int(followers.argmax())
    inside = error[best] < 0.1
    if int(inside.sum()) >= 3:
        rotation, shift, scale = _register(seen[inside][None], known[inside][None])
        best = 0
    logs = scale[best].clamp_min(1e-6).log().expand(1, 3)
    state = Similarity(rotation[best][None], shift[best][None], logs, torch.ones(1, 3), pivot)
    return Alignment(state, torch.zeros(1), {})


def _register(
    source: Float[Tensor, "b n 3"], goal: Float[Tensor, "b n 3"]
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3"], Float[Tensor, "b"]]:
    found = roma.rigid_points_registration(source, goal, compute_scaling=True)
    return cast("tuple[Tensor, Tensor, Tensor]", found)


def by_prior(skill: Skill, volume: Volume, target: Target) -> Alignment:
    """No search: upright, as large as what is seen, its touched side towards the camera."""
    touched = volume.contact >= volume.contact.topk(40).values[-1]
    front = volume.normals[touched].mean(dim=0)
    away = target.eyes[0] - target.points.mean(dim=0)
    guesses = first_guesses(volume, target, skill.scale, AlignConfig(views=72, mirror=False))
    facing = functional.normalize(guesses.rotation @ away, dim=-1) @ functional.normalize(
        front * torch.tensor([1.0, 1.0, 0.0]), dim=0
    )
    return Alignment(guesses[facing.argmax()[None]], torch.zeros(1), {})


def as_printed(skill: Skill, volume: Volume, target: Target) -> Alignment:
    """The paper's rendering and Adam."""
    return align_adam(skill.field, volume, target, skill.scale, skill.contact_points(), metric=skill.metric)


PLAIN = AlignConfig()
RIGID = replace(PLAIN, weights=Weights(stretch=0.0), mirror=False)
ROWS: dict[str, Row] = {
    "default": _lm(PLAIN),
    "surface only": _lm(replace(RIGID, weights=replace(RIGID.weights, feature=IGNORED), fine=0)),
    "features only": by_features,
    "both": _lm(replace(RIGID, fine=0)),
    "both + contact": _lm(RIGID),
    "with mirrors": _lm(replace(RIGID, mirror=True)),
    "with stretch": _lm(replace(PLAIN, mirror=False)),
    "without free space": _lm(replace(PLAIN, weights=Weights(free=IGNORED))),
    "with collision": _lm(replace(PLAIN, weights=Weights(collision=Weights().free))),
    "adam as printed": as_printed,
    "prior": by_prior,
}
"""The first one is what `afield act` does; the following ones take things away from it."""

SAME_WITHIN = (math.radians(3.0), 0.03)
"""An alignment with the same instance is right within this angle and this share of its scale."""
