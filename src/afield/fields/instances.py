"""Which points of a scene belong together: objects without masks, also where they touch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array, csr_array, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, eigsh
from scipy.spatial import KDTree
from torch import Tensor

from afield.scene import Scene

SMALLEST = 40
"""Touching objects are told apart down to this many points each."""
CUT = 0.04
"""Normalized cuts below this value divide a cluster ..."""
DIFFERENT = 0.5
"""... if the mean features of the halves have a smaller cosine."""
COHERENT = 0.2
"""The features of each half must agree at least so well (length of their mean)."""
CONCAVE = 0.1
"""How strongly neighbours hold together across a crease, against 1 on a flat or convex surface."""
CREASE = 0.2
"""Neighbours whose normals fold towards each other by more than this, in radians about, lie across a crease."""
SOFTNESS = 0.3
"""Neighbours whose features differ by this (one minus cosine) hold together by 1/e."""
ALONG = 0.1
"""At least this share of the neighbours that a cut parts must lie across a crease ..."""
JUMP = 1.3
"""... or their features must differ by so many times what they differ by on either side of it."""


def instances(scene: Scene, gap: float = 0.012) -> Int[Tensor, "n"]:
    """A label for every point: what a chain of short steps connects is one instance, unless it looks like several.

    A step is short up to `gap` metres, or up to two and a half times the points' median spacing (at most 5 cm) where
    they are sparse. Clusters are divided by `two_objects` again and again; a scene of one single cluster is not, for
    then there is nothing to compare its features with.

    Args:
        scene: with raw features.
        gap: length of a short step.
    """
    points = scene.points.cpu().numpy()
    gap = max(gap, min(2.5 * _spacing(points), 0.05))
    count, found = connected_components(_graph(len(points), _pairs(points, gap)), directed=False)
    label = torch.from_numpy(found.astype(np.int64))
    if count == 1:
        return label.to(scene.points.device)
    features = torch.nn.functional.normalize(scene.features - scene.features.mean(dim=0), dim=-1).cpu()
    todo, done = [(label == number).nonzero()[:, 0] for number in range(count)], []
    while todo:
        members = todo.pop()
        halves = two_objects(scene.points.cpu()[members], scene.normals.cpu()[members], features[members], gap)
        if halves is None:
            done.append(members)
        else:
            todo += [members[halves], members[~halves]]
    done.sort(key=lambda members: int(members[0]))
    for number, members in enumerate(done):
        label[members] = number
    return label.to(scene.points.device)


def two_objects(
    points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], features: Float[Tensor, "n c"], gap: float = 0.012
) -> Bool[Tensor, "n"] | None:
    """Which points belong to the first of two objects that touch; None if it is one object.

    The normalized cut (Shi and Malik, 2000) through the graph of neighbours, who hold together the better the more alike
    their features are, and badly across creases, for things that touch meet in creases. Two objects hang together at few
    such places, what is left of their features, less what the whole scene shares, points in different directions, and
    where they meet there is a crease or a jump of the features: those of one object may differ from end to end, but
    smoothly.

    Args:
        points: of one cluster, in metres.
        normals: pointing outwards.
        features: unit, centered over the whole scene.
        gap: length of a short step in metres, by which the cluster hangs together.
    """
    if len(points) < 2 * SMALLEST:
        return None
    edges = _edges(points, normals, features, gap)
    half, value = normalized_cut(_graph(len(points), edges.pairs, edges.hold))
    if value >= CUT or min(int(half.sum()), int((~half).sum())) < SMALLEST:
        return None
    half_points = torch.from_numpy(half)
    first, second = features[half_points].mean(dim=0), features[~half_points].mean(dim=0)
    if min(float(first.norm()), float(second.norm())) < COHERENT:
        return None  # features that are all noise, or all the same, say nothing
    alike = float(torch.nn.functional.cosine_similarity(first, second, dim=0))
    return half_points if alike < DIFFERENT and edges.visible(half) else None


@dataclass(frozen=True)
class _Edges:
    """Neighbours in a cluster."""

    points: Float[np.ndarray, "n 3"]
    features: Float[np.ndarray, "n c"]
    pairs: Int[np.ndarray, "k 2"]
    unlike: Float[np.ndarray, "k"]
    """How much their features differ: one minus cosine."""
    crease: Bool[np.ndarray, "k"]
    """Whether they lie across a crease."""

    @property
    def hold(self) -> Float[np.ndarray, "k"]:
        """How strongly they hold together."""
        return np.exp(-self.unlike / SOFTNESS) * np.where(self.crease, CONCAVE, 1.0)

    def visible(self, half: Bool[np.ndarray, "n"]) -> bool:
        """Whether a cut follows a crease or a jump of the features; one that parts no neighbours does so by itself.

        A jump is more than what the features change by when one goes on as far in the same direction on either side.
        """
        first, second = self.pairs.T
        parted = half[first] != half[second]
        if not parted.any() or self.crease[parted].mean() > ALONG:
            return True
        ends = np.concatenate((self.pairs[parted], self.pairs[parted][:, ::-1]))
        beyond = KDTree(self.points).query(2 * self.points[ends[:, 0]] - self.points[ends[:, 1]])[1]
        usual = 1.0 - (self.features[ends[:, 0]] * self.features[beyond]).sum(axis=1)
        return bool(self.unlike[parted].mean() > JUMP * usual.mean())


def normalized_cut(affinity: csr_array, thresholds: int = 40) -> tuple[Bool[np.ndarray, "n"], float]:
    """The best of some thresholds of the second eigenvector, and the value of that cut: 0 where nothing connects the halves."""
    parts, label = connected_components(affinity, directed=False)
    if parts > 1:
        largest = int(np.bincount(label).argmax())
        return np.equal(label, largest), 0.0
    count = len(label)
    degree = np.asarray(affinity.sum(axis=1)).ravel()
    root = diags(1.0 / np.sqrt(degree))
    try:
        _, vectors = eigsh(root @ affinity @ root, k=2, which="LA", v0=np.ones(count), maxiter=3000)
    except ArpackError:
        return np.ones(count, dtype=bool), np.inf
    order = vectors[:, 0] / np.sqrt(degree)
    edges = affinity.tocoo()
    best, value = np.ones(count, dtype=bool), np.inf
    for threshold in np.quantile(order, np.linspace(0.04, 0.96, thresholds)):
        half = order > threshold
        if not half.any() or half.all():
            continue
        cut = edges.data[half[edges.row] != half[edges.col]].sum() / 2
        found = float(cut / degree[half].sum() + cut / degree[~half].sum())
        if found < value:
            best, value = half, found
    return best, value


def _edges(
    points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], features: Float[Tensor, "n c"], gap: float
) -> _Edges:
    """Neighbours up to two and a half times the median spacing apart.

    Unevenly spread points fall into islands then, which would cost a cut nothing. They are linked by the short steps
    that made them one cluster.
    """
    place, normal = points.numpy(), normals.numpy()
    pairs = _pairs(place, 2.5 * _spacing(place))
    count, island = connected_components(_graph(len(place), pairs), directed=False)
    if count > 1:
        wide = _pairs(place, gap)
        pairs = np.concatenate((pairs, wide[island[wide[:, 0]] != island[wide[:, 1]]]))
    first, second = pairs.T
    look = features.numpy()
    unlike = 1.0 - (look[first] * look[second]).sum(axis=1)
    step = place[first] - place[second]
    fold = ((normal[first] - normal[second]) * step).sum(axis=1) / np.maximum(np.linalg.norm(step, axis=1), 1e-6)
    return _Edges(place, look, pairs, unlike, fold < -CREASE)


def _graph(count: int, pairs: Int[np.ndarray, "k 2"], weight: Float[np.ndarray, "k"] | None = None) -> csr_array:
    """A symmetric graph; all weights are one if none are given."""
    weight = np.ones(len(pairs)) if weight is None else weight
    first, second = pairs.T
    ends = (np.concatenate((first, second)), np.concatenate((second, first)))
    return coo_array((np.concatenate((weight, weight)), ends), shape=(count, count)).tocsr()


def _pairs(points: Float[np.ndarray, "n 3"], reach: float) -> Int[np.ndarray, "k 2"]:
    return KDTree(points).query_pairs(reach, output_type="ndarray").astype(np.int64).reshape(-1, 2)


def _spacing(points: Float[np.ndarray, "n 3"]) -> float:
    """Median distance to the nearest other point, in metres."""
    return float(np.median(KDTree(points).query(points, k=2)[0][:, 1])) if len(points) > 1 else 0.0
