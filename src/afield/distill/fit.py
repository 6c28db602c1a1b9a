"""Fitting an affordance function (Actron3D, III-C): first what the object is (static phase), then how it moves (dynamic)."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from afield.distill.checkpoint import Checkpoint, Standing, fingerprint, restore
from afield.distill.hull import canonical_frame, hull_distance
from afield.distill.judge import judge_views
from afield.distill.labels import Flow, Labels, check_labels
from afield.distill.losses import FitWeights, static_losses
from afield.distill.pixels import Pixels
from afield.errors import AfieldError
from afield.fields.affordance_grid import GridAffordance, GridConfig
from afield.fields.affordance_neus import NeusAffordance, NeusConfig
from afield.fields.rendering import RenderingConfig
from afield.observation import Observation

VERSION = 2
"""Changes when a fit that was interrupted before cannot be gone on with."""


@dataclass(frozen=True)
class FitConfig:
    """How long and how finely to fit; the defaults are those of the grid, `FitConfig.published()` is the paper's."""

    backend: Literal["grid", "neus"] = "grid"
    """grid is fast; neus is the paper's network and takes hours without a GPU."""
    grid: GridConfig = field(default_factory=GridConfig)
    """Sizes of the grids."""
    neus: NeusConfig = field(default_factory=NeusConfig)
    """Sizes of the networks."""
    weights: FitWeights = field(default_factory=FitWeights)
    """Of the losses."""
    depth: bool = True
    """Use depth where the views have it; without it the surface comes from outlines and colours alone, as in the paper."""
    inset: float = 0.08
    """Without depth a grid begins this far inside the visual hull, in canonical units: a surface that grows until it fills the
    outlines bulges less between them than one that begins as their hull."""
    steps: int = 250
    """Adam steps of the static phase."""
    rays: int = 384
    """Per step."""
    coarse: int = 48
    """Vertices along a side of the signed-distance grid in the first half of the steps."""
    learning_rate: float = 0.005
    """Of the signed distances in canonical units, or of the networks."""
    look_rate: float = 0.1
    """Of a grid's colour, contact and descriptors, in logits."""
    sharpness: tuple[float, float] = (25.0, 160.0)
    """First and last inverse width of a grid's surface; the networks learn theirs."""
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    """Samples along a ray."""
    flow_steps: int = 250
    """Adam steps of the dynamic phase."""
    flow_rate: float = 4e-3
    """Of Adam in the dynamic phase."""
    anneal: bool = True
    """Let the rates fall along a cosine to a twentieth; the paper names one rate for each phase."""
    one_view: bool = False
    """Accept a single view with depth, as of a still camera; the surface ends where the seen part does."""
    withhold: int = 0
    """Keep every so many-th view away from the fit and judge the result on it; 0 fits all views."""
    checkpoint_every: int = 25
    """Steps between two checkpoints, if there is a folder for them."""
    seed: int = 0
    """Of everything random."""

    @classmethod
    def published(cls, **changes: Any) -> FitConfig:
        """The paper's networks and protocol (III-E): 3000 static steps at 5e-4, 600 dynamic ones at 1e-3, no depth."""
        paper: dict[str, Any] = {
            "backend": "neus",
            "depth": False,
            "steps": 3000,
            "rays": 512,
            "learning_rate": 5e-4,
            "rendering": RenderingConfig(64, 124),
            "flow_steps": 600,
            "flow_rate": 1e-3,
            "anneal": False,
        }
        return cls(**{**paper, **changes})


@dataclass(frozen=True)
class Fitted:
    """An affordance function and the frame in which it lives."""

    field: GridAffordance | NeusAffordance
    center: Float[Tensor, "3"]
    """Origin of the canonical frame in the frame of the pictures, in metres."""
    scale: float
    """Length of a canonical unit in metres."""
    summary: dict[str, Any]
    """Losses, steps, seconds; figures of the views that were withheld."""

    def to_canonical(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Points of the pictures' frame in canonical units."""
        return (points - self.center) / self.scale

    def from_canonical(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Canonical points in the pictures' frame, in metres."""
        return points * self.scale + self.center


def fit_affordance(
    observation: Observation,
    labels: Labels,
    config: FitConfig | None = None,
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Fitted:
    """Fit an affordance function to posed pictures with labels.

    Args:
        observation: two or more views with object masks, or a single one with depth; their depth is used where they have it
            and `config.depth` says so. What a single view, or several from one side, do not see is cut off where what they
            see ends.
        labels: contact masks, descriptors and flow, see `Labels`.
        config: see `FitConfig`.
        checkpoint: folder that keeps the standing of the fit. If it exists, the fit goes on from there and ends with the
            same numbers as one that was never stopped; it is deleted when the fit is complete.
        progress: show progress bars.

    Raises:
        AfieldError: there is nothing to fit to, see `check_labels`, the views do not look at one thing, or the checkpoint
            is that of another fit.
    """
    config = config or FitConfig()
    _check_config(config)
    check_labels(observation, labels, one_view=config.one_view)
    begin = time.process_time()
    identity = fingerprint(observation, labels) if checkpoint is not None else ""
    keeper = Checkpoint(checkpoint, config.checkpoint_every, identity, asdict(config) | {"version": VERSION})
    standing = keeper.load(config.seed)
    everything = (observation, labels)
    observation, labels, kept = withhold_views(observation, labels, config.withhold)
    center, scale = canonical_frame(observation, labels.floor, depth=config.depth)
    network = _new_field(observation, labels, config, center, scale)
    if standing.phase == "static":
        pixels = Pixels.of(observation, labels, center, scale)
        _static_phase(network, pixels, config, standing, keeper, begin, progress=progress)
    if labels.flow is not None:
        _dynamic_phase(network, labels.flow, center, scale, config, standing, keeper, begin, progress=progress)
    spent = standing.seconds + time.process_time() - begin
    losses = {name: values[:: max(1, len(values) // 50)] for name, values in standing.history.items()}
    static = losses.pop("static_seconds", [spent])[-1]
    summary: dict[str, Any] = {
        "backend": config.backend,
        "losses": losses,
        "steps": config.steps,
        "cpu_seconds_static": round(static, 2),
        "cpu_seconds": round(spent, 2),
    }
    fitted = Fitted(network.requires_grad_(False), center, scale, summary)
    if kept:
        views = tuple(everything[0].views[index] for index in kept)
        summary["held_out"] = judge_views(
            fitted.field, center, scale, views, tuple(everything[1].contact[index] for index in kept)
        )
    keeper.remove()
    return fitted


def withhold_views(observation: Observation, labels: Labels, every: int) -> tuple[Observation, Labels, list[int]]:
    """Views and labels without every so many-th view, and the numbers of those left out."""
    if every == 0:
        return observation, labels, []
    kept = list(range(every - 1, len(observation.views), every))
    rest = [index for index in range(len(observation.views)) if index not in kept]
    fewer = replace(
        labels,
        contact=tuple(labels.contact[index] for index in rest),
        descriptors=None if labels.descriptors is None else labels.descriptors[rest],
    )
    observation = replace(observation, views=tuple(observation.views[index] for index in rest))
    check_labels(observation, fewer)
    return observation, fewer, kept


def _check_config(config: FitConfig) -> None:
    if config.backend not in ("grid", "neus"):
        raise AfieldError(f"There is no backend '{config.backend}'; choose grid or neus.")
    if config.withhold < 0 or config.withhold == 1:
        raise AfieldError(f"withhold is {config.withhold}; it must be 0 (fit all views) or at least 2.")
    if config.checkpoint_every < 1:
        raise AfieldError(f"checkpoint_every is {config.checkpoint_every}; it must be at least 1.")


def _new_field(
    observation: Observation, labels: Labels, config: FitConfig, center: Float[Tensor, "3"], scale: float
) -> GridAffordance | NeusAffordance:
    """The function as it begins: a grid as the visual hull, the networks as a ball."""
    sizes = config.grid if config.backend == "grid" else config.neus
    channels = sizes.channels if labels.descriptors is None else labels.descriptors.shape[1]
    horizon = sizes.horizon if labels.flow is None else labels.flow.displacement.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.backend == "neus":
            return NeusAffordance(replace(config.neus, channels=channels, horizon=horizon))
        found = GridAffordance(replace(config.grid, channels=channels, horizon=horizon, resolution=config.coarse))
    hull = hull_distance(observation, center, scale, config.coarse, labels.floor, depth=config.depth)
    if not config.depth:
        inset = min(config.inset, -0.5 * float(hull.min()))
        hull = hull_distance(observation, center, scale, config.coarse) + inset
        if labels.floor is not None:  # the object stands on its floor; there it does not have to grow
            height = torch.linspace(-1.0, 1.0, config.coarse)[:, None, None] - (labels.floor - float(center[2])) / scale
            hull = torch.maximum(hull, -height)
    found.distance = nn.Parameter(hull)
    return found


def _static_phase(
    network: GridAffordance | NeusAffordance,
    pixels: Pixels,
    config: FitConfig,
    standing: Standing,
    keeper: Checkpoint,
    begin: float,
    *,
    progress: bool,
) -> None:
    """Eq. 4: geometry, colour, descriptors and contact together; a grid from coarse to fine."""
    weights = config.weights if config.depth else replace(config.weights, depth=0.0)
    if isinstance(network, GridAffordance) and standing.parameters:
        network.refine(len(standing.parameters["distance"]))
    optimizer = _optimizer(network, config)
    if standing.parameters:
        restore(standing, network, optimizer)
    bar = tqdm(range(config.steps), desc="static phase", unit="step", initial=standing.step, disable=not progress)
    for step in range(standing.step, config.steps):
        if isinstance(network, GridAffordance):
            if step == config.steps // 2 and config.grid.resolution > config.coarse:
                network.refine(config.grid.resolution)
                optimizer = _optimizer(network, config)
            low, high = config.sharpness
            network.sharpness = torch.tensor(low * (high / low) ** (step / max(1, config.steps - 1)))
        _set_rates(optimizer, config, step, config.steps)
        index = pixels.draw(config.rays, standing.generator)
        losses = static_losses(network, pixels, index, weights, config.rendering, standing.generator)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        for name, value in losses.items():
            standing.history.setdefault(name, []).append(round(float(value.detach()), 5))
        standing.step = step + 1
        keeper.save(standing, network, optimizer, time.process_time() - begin)
        bar.update()
    bar.close()
    standing.phase, standing.step, standing.parameters = "dynamic", 0, {}
    standing.history["static_seconds"] = [standing.seconds + time.process_time() - begin]


def _optimizer(network: GridAffordance | NeusAffordance, config: FitConfig) -> torch.optim.Adam:
    """Of everything but the action head."""
    if isinstance(network, GridAffordance):
        rates = [([network.distance], config.learning_rate), ([network.looks, network.descriptors], config.look_rate)]
    else:
        moving = {id(parameter) for parameter in network.action.parameters()}
        rates = [([p for p in network.parameters() if id(p) not in moving], config.learning_rate)]
    return torch.optim.Adam([{"params": params, "lr": rate, "initial_lr": rate} for params, rate in rates], fused=True)


def _set_rates(optimizer: torch.optim.Optimizer, config: FitConfig, step: int, steps: int) -> None:
    """Along a cosine from all to a twentieth of the first rate."""
    share = 0.5 * (1 + math.cos(math.pi * step / max(1, steps - 1))) if config.anneal else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (0.05 + 0.95 * share)


def _dynamic_phase(
    network: GridAffordance | NeusAffordance,
    flow: Flow,
    center: Float[Tensor, "3"],
    scale: float,
    config: FitConfig,
    standing: Standing,
    keeper: Checkpoint,
    begin: float,
    *,
    progress: bool,
) -> None:
    """Eq. 7: the action head alone, everything else frozen; what is not seen does not count for the displacement."""
    start, goal = (flow.start - center) / scale, flow.displacement / scale
    rate = config.flow_rate
    groups = [{"params": list(network.action.parameters()), "lr": rate, "initial_lr": rate}]
    optimizer = torch.optim.Adam(groups, fused=True)
    if standing.parameters:
        if isinstance(network, GridAffordance):
            network.refine(len(standing.parameters["distance"]))
        restore(standing, network, optimizer)
    with torch.no_grad():
        latent, descriptor = network.conditions(start)
    bar = tqdm(range(config.flow_steps), desc="dynamic phase", unit="step", initial=standing.step, disable=not progress)
    for step in range(standing.step, config.flow_steps):
        _set_rates(optimizer, config, step, config.flow_steps)
        moved, visible = network.action(start, latent, descriptor)
        far = ((moved - goal).square().sum(dim=-1) * flow.visible).sum() / flow.visible.sum()
        loss = far + (visible - flow.visible).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        standing.history.setdefault("flow", []).append(round(float(loss.detach()), 6))
        standing.step = step + 1
        keeper.save(standing, network, optimizer, time.process_time() - begin)
        bar.update()
    bar.close()
