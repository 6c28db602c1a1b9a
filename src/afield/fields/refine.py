"""SparseDFF's refinement (arXiv 2310.16838): a network that makes the views agree, and pruning of doubtful points.

Features of the same point differ from camera to camera. A network is trained so that what two cameras say about one
point is more alike than what they say about different points; no demonstration is needed, and one scene suffices.
Then every view of every point votes for the most similar point nearby among the other views, and points that few vote
for are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from afield.errors import AfieldError
from afield.scene import Scene, Views


@dataclass(frozen=True)
class RefineConfig:
    """The refinement of features over views."""

    channels: int = 64
    """Length of the refined features."""
    hidden: int = 768
    """Width of the network's hidden layer."""
    steps: int = 200
    """Adam steps."""
    learning_rate: float = 1e-3
    """Of Adam."""
    temperature: float = 0.07
    """Of the contrastive loss."""
    batch: int = 256
    """Points of one scene that are told apart in a step."""
    seen: float = 0.05
    """A view sees a point if its weight in the fusion is at least this."""
    radius: float = 0.1
    """Points vote for points within this distance, in metres."""
    keep: float = 0.8
    """Share of the points that survive the vote."""


class Refiner(nn.Module):
    """The trained refinement network with its configuration."""

    def __init__(self, channels: int, config: RefineConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.channels, self.config = channels, config
        self.first, self.second = nn.Linear(channels, config.hidden), nn.Linear(config.hidden, config.channels)
        for layer in (self.first, self.second):
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data = noise * (2 / layer.in_features) ** 0.5
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch d"]:
        """Refined unit features."""
        return nn.functional.normalize(self.second(torch.relu(self.first(features))), dim=-1)

    @torch.no_grad()
    def apply_to(self, scene: Scene) -> Scene:
        """The scene with refined features, fused over the views, without the points that lost the vote.

        A scene that does not know its views has its fused features refined, and keeps all its points.

        Raises:
            AfieldError: the scene has features of another length.
        """
        if scene.features.shape[-1] != self.channels:
            raise AfieldError(
                f"The field was made for features of {self.channels} channels, but '{scene.name}' has "
                f"{scene.features.shape[-1]}."
            )
        if scene.views is None:
            return scene.with_features(self(scene.features))
        refined = self(scene.views.features.to(scene.features))
        fused = (refined * scene.views.weight[..., None]).sum(dim=0)
        result = replace(scene, features=nn.functional.normalize(fused, dim=-1), views=None)
        return result.select(self.survivors(scene.points, refined, scene.views))

    def survivors(
        self, points: Float[Tensor, "n 3"], refined: Float[Tensor, "v n d"], views: Views
    ) -> Int[Tensor, "k"]:
        """Points with the most votes, in their order; agreement between a point's own views decides ties."""
        seen = views.weight >= self.config.seen
        near = torch.cdist(points, points) < self.config.radius
        votes = torch.zeros(len(points), device=points.device)
        for view, features in enumerate(refined):
            others = [other for other in range(len(refined)) if other != view and bool(seen[other].any())]
            if not others:
                continue
            best = torch.stack([_most_similar(features, refined[o], near & seen[o]) for o in others])
            winner = best[:, 0].argmax(dim=0)
            choice = best[:, 1].long()[winner, torch.arange(len(points), device=points.device)]
            voter = seen[view] & torch.isfinite(best[:, 0].amax(dim=0))
            votes.index_add_(0, choice[voter], torch.ones_like(votes)[voter])
        weight = (views.weight * seen)[..., None]
        agreement = ((refined * weight).sum(dim=0) / weight.sum(dim=0).clamp_min(1e-6)).norm(dim=-1)
        count = max(1, round(self.config.keep * len(points)))
        return (votes + 0.5 * agreement).topk(count).indices.sort().values

    def header(self) -> dict[str, Any]:
        """What an artifact's header must hold to build the network again."""
        return asdict(self.config)


def _most_similar(
    features: Float[Tensor, "n d"], others: Float[Tensor, "n d"], allowed: Bool[Tensor, "n n"]
) -> Float[Tensor, "2 n"]:
    """Similarity and index of the best allowed match of each feature."""
    best = (features @ others.T).masked_fill(~allowed, -torch.inf).max(dim=1)
    return torch.stack((best.values, best.indices.to(best.values)))


def train_refiner(
    scenes: Sequence[Scene], config: RefineConfig, generator: torch.Generator, *, progress: bool = True
) -> tuple[Refiner, list[float]] | None:
    """Train the refinement on points that at least two views of a scene see.

    Args:
        scenes: with views; those without are left out.
        config: see `RefineConfig`.
        generator: of everything random.
        progress: show a progress bar.

    Returns:
        The network and the loss of every step; None if no scene has points that two views see.
    """
    usable = [(scene.views, seen) for scene in scenes if (seen := _twice_seen(scene, config.seen)) is not None]
    if not usable:
        return None
    refiner = Refiner(scenes[0].features.shape[-1], config, generator)
    optimizer = torch.optim.Adam(refiner.parameters(), lr=config.learning_rate)
    losses = []
    for step in tqdm(range(config.steps), desc="refine", unit="step", disable=not progress):
        views, pool = usable[step % len(usable)]
        assert views is not None
        index = pool[torch.randperm(len(pool), generator=generator)[: config.batch]]
        # Every point takes two of the views that see it, at random.
        chance = torch.rand(len(views.weight), len(index), generator=generator)
        pair = (chance + (views.weight[:, index] >= config.seen)).topk(2, dim=0).indices
        first, second = (refiner(views.features[pair[i], index].float()) for i in (0, 1))
        logits = first @ second.T / config.temperature
        target = torch.arange(len(index))
        loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return refiner.requires_grad_(False), losses


def _twice_seen(scene: Scene, limit: float) -> Int[Tensor, "k"] | None:
    if scene.views is None:
        return None
    index = ((scene.views.weight >= limit).sum(dim=0) >= 2).nonzero()[:, 0]
    return index if len(index) >= 32 else None
