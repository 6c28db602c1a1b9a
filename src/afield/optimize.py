"""Batched solvers: many starts of one small problem, solved together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

EnergyFunction = Callable[[Float[Tensor, "s d"]], tuple[Float[Tensor, "s"], dict[str, Float[Tensor, "s"]]]]


@dataclass(frozen=True)
class AdamConfig:
    """Batched Adam with a cosine schedule."""

    steps: int = 300
    """Number of steps."""
    learning_rate: float = 1e-2
    """First step size, in the unit of the parameters (metres, radians)."""
    final_learning_rate: float = 1e-4
    """Last step size."""


@dataclass(frozen=True)
class Trace:
    """What one call of `minimize_adam` did: t recorded steps of s starts, before each step and after the last one."""

    beta: Float[Tensor, "t s d"]
    energy: Float[Tensor, "t s"]
    terms: Mapping[str, Float[Tensor, "t s"]]

    @property
    def final(self) -> Float[Tensor, "s d"]:
        """The configurations with the least energy along each start's path."""
        best = self.energy.argmin(dim=0)
        return self.beta[best, torch.arange(self.beta.shape[1], device=self.beta.device)]

    @property
    def final_energy(self) -> Float[Tensor, "s"]:
        """Their energies."""
        return self.energy.amin(dim=0)


def minimize_adam(
    energy: EnergyFunction,
    starts: Float[Tensor, "s d"],
    config: AdamConfig,
    *,
    on_step: Callable[[], object] = lambda: None,
) -> Trace:
    """Minimize an energy from many starts at once with Adam.

    Adam is elementwise, so the starts do not influence each other: the sum of their energies is minimized. A start whose
    energy stops being finite keeps its last finite configuration and counts as infinitely bad.

    Args:
        energy: batch of parameters to (energy per start, terms by name).
        starts: first parameters, one row per start.
        config: steps and learning rates.
        on_step: called after every step, for progress bars.

    Returns:
        The whole trace, `config.steps + 1` records.
    """
    beta = starts.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([beta], lr=config.learning_rate)
    betas, energies, terms = [], [], []
    for step in range(config.steps + 1):
        total, parts = energy(beta)
        betas.append(beta.detach().clone())
        energies.append(torch.where(total.isfinite(), total, torch.inf).detach())
        terms.append({name: value.detach() for name, value in parts.items()})
        if step == config.steps:
            break
        optimizer.zero_grad(set_to_none=True)
        total.sum().backward()
        if beta.grad is not None:
            beta.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        progress = step / max(config.steps - 1, 1)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        rate = config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        on_step()
    names = terms[0].keys()
    return Trace(
        torch.stack(betas), torch.stack(energies), {name: torch.stack([t[name] for t in terms]) for name in names}
    )


def best_distinct(
    energy: Float[Tensor, "s"],
    distance: Float[Tensor, "s s"],
    keep: int,
    apart: float,
) -> Int[Tensor, "k"]:
    """The `keep` starts of least energy, no two of them closer than `apart`; filled up with near ones if too few.

    Args:
        energy: energy of each start.
        distance: how different two starts are, in any unit.
        keep: how many survive.
        apart: starts closer than this count as the same minimum.

    Returns:
        Their indices, best first.
    """
    order = torch.argsort(energy, stable=True).tolist()
    chosen: list[int] = []
    for candidate in order:
        if len(chosen) == keep:
            break
        if all(float(distance[candidate, other]) >= apart for other in chosen):
            chosen.append(candidate)
    for candidate in order:
        if len(chosen) >= min(keep, len(order)):
            break
        if candidate not in chosen:
            chosen.append(candidate)
    return torch.tensor(sorted(chosen, key=order.index), device=energy.device)
