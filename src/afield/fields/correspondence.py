"""Keypoints that correspond across scenes, found in the raw features without any annotation (Fig. 2, left)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from afield.errors import AfieldError
from afield.scene import Scene, farthest_points


@dataclass(frozen=True)
class KeypointConfig:
    """Cyclic mutual nearest neighbours."""

    neighbours: tuple[int, ...] = (1, 2, 5, 10, 20)
    """Sizes k of the neighbourhoods that are tried, smallest first."""
    enough: int = 128
    """The first k with this many keypoints is taken."""
    fewest: int = 32
    """Fewer keypoints than this are an error."""
    most: int = 512
    """More keypoints than this are thinned to well-spread ones."""


def cyclic_keypoints(
    scenes: Sequence[Scene], config: KeypointConfig, generator: torch.Generator
) -> tuple[list[Int[Tensor, "k"]], int]:
    """Points that correspond to each other around a cycle of scenes.

    Neighbouring scenes of a random cycle are linked where two points are among each other's k nearest neighbours in
    feature space; a chain of links that closes after all scenes is a keypoint. The smallest k with enough keypoints
    is taken.

    Returns:
        For every scene the indices of its keypoints, in corresponding order and each point once; and k.

    Raises:
        AfieldError: too few keypoints; it names the two neighbouring scenes with the fewest links.
    """
    order = torch.randperm(len(scenes), generator=generator).tolist()
    ring = [scenes[i] for i in order]
    similar = [a.features @ b.features.T for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]
    chains = torch.empty(0, len(ring), dtype=torch.long)
    links: list[Bool[Tensor, "n m"]] = []
    neighbours = 0
    for neighbours in config.neighbours:
        links = [mutual_neighbours(s, min(neighbours, *s.shape)) for s in similar]
        chains = _close_chains(links, similar)
        if len(chains) >= config.enough:
            break
    if len(chains) < config.fewest:
        raise AfieldError(_explain(ring, links, len(chains), config.fewest))
    if len(chains) > config.most:
        chains = chains[farthest_points(ring[0].points[chains[:, 0]], config.most)]
    keypoints: list[Tensor] = [torch.empty(0)] * len(ring)
    for place, index in enumerate(order):
        keypoints[index] = chains[:, place]
    return keypoints, neighbours


def mutual_neighbours(similar: Float[Tensor, "n m"], k: int) -> Bool[Tensor, "n m"]:
    """Which pairs are among each other's k most similar."""
    forward = torch.zeros_like(similar, dtype=torch.bool).scatter_(1, similar.topk(k, dim=1).indices, True)
    backward = torch.zeros_like(similar, dtype=torch.bool).scatter_(0, similar.topk(k, dim=0).indices, True)
    return forward & backward


def _close_chains(links: list[Bool[Tensor, "n m"]], similar: list[Float[Tensor, "n m"]]) -> Int[Tensor, "k i"]:
    """The most similar closed chain of every point of the first scene that has one.

    Where two chains meet in a point, the one of larger total similarity stays: a keypoint that appears twice would be
    its own counter-example in the loss.
    """
    scores = [torch.where(link, value, -torch.inf) for link, value in zip(links, similar, strict=True)]
    found = [chain for start in range(len(links[0])) if (chain := _best_chain(scores, start)) is not None]
    taken: list[set[int]] = [set() for _ in links]
    kept = []
    for _, chain in sorted(found, key=lambda pair: -pair[0]):
        if not any(point in used for point, used in zip(chain, taken, strict=True)):
            for point, used in zip(chain, taken, strict=True):
                used.add(point)
            kept.append(chain)
    return torch.tensor(kept, dtype=torch.long).reshape(-1, len(links))


def _best_chain(scores: list[Float[Tensor, "n m"]], start: int) -> tuple[float, list[int]] | None:
    """The most similar closed chain through point `start` of the first scene, with its sum, if there is one."""
    reached, total = torch.tensor([start]), torch.zeros(1)
    steps = []
    for score in scores[:-1]:
        best = (total[:, None] + score[reached]).max(dim=0)
        steps.append((reached, best.indices))
        reached = torch.isfinite(best.values).nonzero()[:, 0]
        total = best.values[reached]
        if len(reached) == 0:
            return None
    closing = total + scores[-1][reached, start]
    last = int(closing.argmax())
    if not torch.isfinite(closing[last]):
        return None
    chain = [int(reached[last])]
    for origin, came_from in reversed(steps):
        chain.append(int(origin[came_from[chain[-1]]]))
    return float(closing[last]), chain[::-1]


def _explain(ring: list[Scene], links: list[Bool[Tensor, "n m"]], found: int, needed: int) -> str:
    counts = [int(link.any(dim=1).sum()) for link in links]
    worst = min(range(len(counts)), key=counts.__getitem__)
    pair = f"'{ring[worst].name}' and '{ring[(worst + 1) % len(ring)].name}'"
    return (
        f"Only {found} keypoints correspond across the {len(ring)} scenes (at least {needed} are needed); {pair} agree "
        f"least, on {counts[worst]} points. Replace one of them by a more similar scene, or leave it out."
    )
