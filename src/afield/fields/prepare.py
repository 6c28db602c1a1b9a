"""What happens to a scene before a field is put around it: projection, relevance gate, centring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afield.errors import AfieldError
from afield.fields.instances import instances
from afield.scene import Scene, check_one_source

SMOOTHING = 0.02
"""Relevance is averaged over this radius, in metres."""


@dataclass(frozen=True)
class Projection:
    """A principal-component basis that a set of scenes shares."""

    mean: Float[Tensor, "c"]
    basis: Float[Tensor, "c k"]

    @classmethod
    def fit(cls, scenes: Sequence[Scene], channels: int) -> Projection:
        """The `channels` directions of largest variance over all points of the scenes; all of them if there are fewer."""
        check_one_source(scenes)
        features = torch.cat([scene.features for scene in scenes])
        mean = features.mean(dim=0)
        _, _, axes = torch.linalg.svd(features - mean, full_matrices=False)
        axes = axes[:channels]
        # The sign of a principal axis is arbitrary; fixing it keeps pictures and artifacts the same across machines.
        axes = axes * torch.where(axes.sum(dim=-1, keepdim=True) < 0, -1.0, 1.0)
        return cls(mean, axes.T.contiguous())

    def apply(self, scene: Scene) -> Scene:
        """The scene with projected unit features."""
        if scene.features.shape[-1] != len(self.mean):
            raise AfieldError(
                f"The field was made for features of {len(self.mean)} channels, but '{scene.name}' has "
                f"{scene.features.shape[-1]}."
            )
        projected = (scene.features - self.mean) @ self.basis
        return scene.with_features(torch.nn.functional.normalize(projected, dim=-1))


def center_features(scene: Scene) -> Scene:
    """Subtract the scene's mean feature and make the rest unit again: what all its points share says nothing about where."""
    centered = scene.features - scene.features.mean(dim=0)
    return scene.with_features(torch.nn.functional.normalize(centered, dim=-1))


def relevance(scene: Scene, wanted: Float[Tensor, "r c"], best: int = 5) -> Float[Tensor, "n"]:
    """How much each scene point resembles the demonstrated region.

    Args:
        scene: with raw features.
        wanted: raw unit features of the demonstrated region.
        best: the mean cosine to this many best matches counts.

    Returns:
        -1 to 1, averaged over 2 cm in space.
    """
    similar = (scene.features @ wanted.T).topk(min(best, len(wanted)), dim=-1).values.mean(dim=-1)
    near = (torch.cdist(scene.points, scene.points) < SMOOTHING).to(similar)
    return near @ similar / near.sum(dim=-1)


def gate(scene: Scene, scores: Float[Tensor, "n"], fewest: int = 30) -> Scene:
    """The instance that resembles the demonstrated region most.

    Whole instances, not single points: a share of the best points, wherever they are, keeps pieces of other objects and
    loses pieces of the right one, and the geometry channel then measures distances to a surface with holes.

    Args:
        scene: points of one or more objects.
        scores: `relevance` of every point.
        fewest: instances with fewer points are noise.
    """
    return scene.select(best_instance(scene, scores, fewest)[0])


def best_instance(scene: Scene, scores: Float[Tensor, "n"], fewest: int = 30) -> tuple[Bool[Tensor, "n"], float]:
    """Which points belong to the most similar instance, and how similar it is: the mean relevance of its better half."""
    label = instances(scene)
    best, kept = -torch.inf, torch.ones_like(label, dtype=torch.bool)
    for number in range(int(label.max()) + 1):
        member = label == number
        if int(member.sum()) < fewest:
            continue
        own = scores[member]
        value = float(own.topk(max(1, len(own) // 2)).values.mean())
        if value > best:
            best, kept = value, member
    return kept, best if best > -torch.inf else float(scores.mean())
