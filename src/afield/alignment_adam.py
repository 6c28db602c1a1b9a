"""The paper's way to align (III-D, III-E): rank views by best buddies, render, and descend with Adam.

Kept as printed, with the published weights, to compare with: `align` in `alignment.py` reaches the same place in a tenth of the
time. Losses are means over rays and points; rotation is about the middle of what is seen, for about the camera it stalls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from afield.alignment import AlignConfig, Alignment, Similarity, first_guesses, like_contact
from afield.fields.affordance import AffordanceField
from afield.fields.rendering import Rays, Rendered, RenderingConfig, box_interval, render
from afield.fields.volume import Volume
from afield.target import Target


@dataclass(frozen=True)
class AdamAlignConfig:
    """The published numbers."""

    views: int = 24
    """N_r."""
    keep: int = 3
    """k."""
    coarse: int = 100
    """Iterations with L_fea + beta_1 L_surf + beta_2 L_depth."""
    fine: int = 50
    """Iterations with L_fea + beta_3 L_cnt + beta_4 L_surf."""
    learning_rate: float = 1e-2
    """Of Adam, for radians, canonical units and log-scale alike."""
    beta: tuple[float, float, float, float] = (1000.0, 100.0, 100.0, 1000.0)
    """beta_1 to beta_4."""
    rays: int = 256
    """Seen points whose rays are rendered."""
    least_pairs: int = 10
    """A view with fewer best buddies is left out."""
    bound: float = 0.4
    """Of the log-scale, around where it begins."""
    rendering: RenderingConfig = field(default_factory=lambda: RenderingConfig(proposal=48, samples=24))
    """Samples along a ray."""


def align_adam(
    function: AffordanceField,
    volume: Volume,
    target: Target,
    scale: float,
    contact: Float[Tensor, "k 3"],
    config: AdamAlignConfig | None = None,
    *,
    metric: bool = True,
) -> Alignment:
    """Align as printed.

    Args:
        function: what is shown; it is rendered.
        volume: its surface, for the first guesses.
        target: what is seen.
        scale: metres per canonical unit of the demonstrated object.
        contact: Q_c, canonical points.
        config: see `AdamAlignConfig`.
        metric: whether the demonstrated size is known; if not, any size is tried.
    """
    config = config or AdamAlignConfig()
    seen = target.thinned(config.rays)
    start = first_guesses(volume, target, scale, AlignConfig(views=config.views, mirror=False), metric=metric)
    rank = rank_views(function, seen, start, config)
    state = start[rank.argsort(stable=True)[: config.keep]]
    state, _ = _descend(function, seen, state, config, config.coarse, None)
    similar = (contact, like_contact(volume, target))
    state, cost = _descend(function, seen, state, config, config.fine, similar)
    order = cost.argsort(stable=True)
    return Alignment(state[order], cost[order], {})


def rank_views(
    function: AffordanceField, target: Target, start: Similarity, config: AdamAlignConfig
) -> Float[Tensor, "s"]:
    """L_corr of every hypothesis; infinite where the contact region is hidden or best buddies are few."""
    place = _image(target)
    found = []
    for index in range(len(start)):
        with torch.no_grad():
            seen = _render(function, target, start[torch.tensor([index])], config)
        if float(seen.contact.max()) < 0.3:
            found.append(math.inf)
            continue
        likeness = functional.normalize(seen.descriptor, dim=-1) @ functional.normalize(target.descriptors, dim=-1).T
        there, back = likeness.argmax(dim=1), likeness.argmax(dim=0)
        mutual = (back[there] == torch.arange(len(there))) & (seen.opacity > 0.5)
        if int(mutual.sum()) < config.least_pairs:
            found.append(math.inf)
            continue
        found.append(float((place[mutual] - place[there[mutual]]).square().sum(dim=-1).mean()))
    return torch.tensor(found)


def _image(target: Target) -> Float[Tensor, "n 2"]:
    """Where the seen points lie in the picture of the first camera, in sides of their box."""
    forward = functional.normalize(target.points.mean(dim=0) - target.eyes[0], dim=0)
    right = functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    down = torch.linalg.cross(forward, right)
    ray = target.points - target.eyes[0]
    place = torch.stack((ray @ right, ray @ down), dim=-1) / (ray @ forward)[:, None]
    low, high = place.amin(dim=0), place.amax(dim=0)
    return (place - low) / (high - low).clamp_min(1e-6)


def _render(function: AffordanceField, target: Target, state: Similarity, config: AdamAlignConfig) -> Rendered:
    """What the field would show along the rays of the seen points; depth in canonical units along the ray."""
    origin = state.apply(target.eyes)[0][target.seen_by]
    ray = state.apply(target.points)[0] - origin
    direction = functional.normalize(ray, dim=-1)
    with torch.no_grad():
        near, far = box_interval(origin, direction)
    return render(function, Rays(origin, direction, near, far, torch.ones(len(ray))), config.rendering, normals=False)


def _descend(
    function: AffordanceField,
    target: Target,
    start: Similarity,
    config: AdamAlignConfig,
    steps: int,
    similar: tuple[Float[Tensor, "k 3"], Float[Tensor, "l 3"]] | None,
) -> tuple[Similarity, Float[Tensor, "s"]]:
    """Adam on rotation vector, translation and log-scale of each hypothesis, one after the other, as one would print it."""
    ends, costs = [], []
    for index in range(len(start)):
        begin = start[torch.tensor([index])]
        step = torch.zeros(1, 7, requires_grad=True)
        optimizer = torch.optim.Adam([step], lr=config.learning_rate)
        best, least = begin, math.inf
        for _ in range(steps):
            bounded = step[:, 6:].clamp(-config.bound, config.bound)
            state = begin.retract(torch.cat((step[:, :6], bounded.expand(1, 3)), dim=-1))
            loss = _loss(function, target, state, config, similar)
            if float(loss.detach()) < least:
                least, best = float(loss.detach()), _detached(state)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        ends.append(best)
        costs.append(least)
    parts = {name: torch.cat([getattr(end, name) for end in ends]) for name in ("rotation", "translation", "log_scale")}
    return replace(start, **parts), torch.tensor(costs)


def _detached(state: Similarity) -> Similarity:
    return replace(
        state,
        rotation=state.rotation.detach(),
        translation=state.translation.detach(),
        log_scale=state.log_scale.detach(),
    )


def _loss(
    function: AffordanceField,
    target: Target,
    state: Similarity,
    config: AdamAlignConfig,
    similar: tuple[Float[Tensor, "k 3"], Float[Tensor, "l 3"]] | None,
) -> Float[Tensor, ""]:
    """Eq. 8 to 11 with the published weights."""
    beta1, beta2, beta3, beta4 = config.beta
    place = state.apply(target.points)[0]
    distance = function.sdf(place)
    surface = functional.huber_loss(distance, torch.zeros_like(distance))
    seen = _render(function, target, state, config)
    feature = (1.0 - torch.cosine_similarity(target.descriptors, seen.descriptor, dim=-1)).mean()
    if similar is None:
        wanted = (place - state.apply(target.eyes)[0][target.seen_by]).norm(dim=-1)
        depth = functional.huber_loss(seen.depth, wanted * seen.opacity)
        return feature + beta1 * surface + beta2 * depth
    contact, alike = similar
    near = torch.cdist(state.apply(alike)[0], contact).amin(dim=-1).mean()
    return feature + beta3 * near + beta4 * surface
