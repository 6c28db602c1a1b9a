"""What happens to a scene before a field is put around it: projection, relevance gate, centring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from afield.errors import AfieldError
from afield.scene import Scene, check_one_source

SMOOTHING = 0.02
"""Relevance is averaged over this radius, in metres."""
SMALLEST = 40
"""Touching objects are told apart down to this many points each."""
DIFFERENT = 0.1
"""Halves whose mean features have a smaller cosine are two objects ..."""
COHERENT = 0.4
"""... if the features of each half agree at least so well (length of their mean) ..."""
FEW_BRIDGES = 6.0
"""... and fewer pairs of neighbours than this, times the root of the smaller half's points, connect them."""


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


def instances(scene: Scene, gap: float = 0.012) -> Int[Tensor, "n"]:
    """A label for every point: what a chain of short steps connects is one instance, unless it looks like two.

    A step is short up to `gap` metres, or up to two and a half times the points' median spacing (at most 5 cm) where
    they are sparse. Objects that touch are told apart by `_two_objects`; a scene of one single cluster is not divided,
    for then there is nothing to compare its features with.

    Args:
        scene: with raw features.
        gap: length of a short step.
    """
    points = scene.points.cpu().numpy()
    tree = KDTree(points)
    if len(points) > 1:
        gap = max(gap, min(2.5 * float(np.median(tree.query(points, k=2)[0][:, 1])), 0.05))
    pairs = tree.query_pairs(gap, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(points), len(points)))
    count, found = connected_components(graph, directed=False)
    label = torch.from_numpy(found.astype(np.int64))
    if count == 1:
        return label.to(scene.points.device)
    features = torch.nn.functional.normalize(scene.features - scene.features.mean(dim=0), dim=-1).cpu()
    todo, done = [(label == number).nonzero()[:, 0] for number in range(count)], []
    while todo:
        members = todo.pop()
        halves = _two_objects(scene.points.cpu()[members], features[members])
        if halves is None:
            done.append(members)
        else:
            todo += [members[halves], members[~halves]]
    done.sort(key=lambda members: int(members[0]))
    for number, members in enumerate(done):
        label[members] = number
    return label.to(scene.points.device)


def _two_objects(points: Float[Tensor, "n 3"], features: Float[Tensor, "n c"]) -> Bool[Tensor, "n"] | None:
    """Which points belong to the first of two objects that touch; None if it is one object.

    Two means over place (5 cm) and features divide the points. They are two objects if the halves hang together at few
    points, and if their features, less what the whole scene shares, point in different directions. On ten scenes with
    touching toys the cosine of two objects was at most -.02, that of two halves of one at least .20.
    """
    if len(points) < 2 * SMALLEST:
        return None
    place = torch.cat((points / 0.05, 2.5 * features), dim=-1)
    first = int((place - place.mean(dim=0)).norm(dim=-1).argmax())
    centers = torch.stack((place[first], place[int((place - place[first]).norm(dim=-1).argmax())]))
    half = torch.zeros(len(points), dtype=torch.bool)
    for _ in range(30):
        near = torch.cdist(place, centers)
        half = near[:, 0] < near[:, 1]
        if bool(half.all()) or not bool(half.any()):
            return None
        centers = torch.stack((place[half].mean(dim=0), place[~half].mean(dim=0)))
    smaller = min(int(half.sum()), int((~half).sum()))
    if smaller < SMALLEST:
        return None
    means = torch.stack((features[half].mean(dim=0), features[~half].mean(dim=0)))
    alike = torch.nn.functional.cosine_similarity(means[0], means[1], dim=0)
    if float(means.norm(dim=-1).min()) < COHERENT:
        return None
    tree = KDTree(points.numpy())
    reach = 2.0 * float(np.median(tree.query(points.numpy(), k=2)[0][:, 1]))
    pairs = tree.query_pairs(reach, output_type="ndarray")
    bridges = int((half.numpy()[pairs[:, 0]] != half.numpy()[pairs[:, 1]]).sum())
    return half if float(alike) < DIFFERENT and bridges < FEW_BRIDGES * smaller**0.5 else None


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
