"""Batched solvers: many starts of one small problem, solved together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
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
    still: Bool[Tensor, "s"] | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Trace:
    """Minimize an energy from many starts at once with Adam.

    Adam is elementwise, so the starts do not influence each other: the sum of their energies is minimized. A start whose
    energy stops being finite keeps its last finite configuration and counts as infinitely bad.

    Args:
        energy: batch of parameters to (energy per start, terms by name).
        starts: first parameters, one row per start.
        config: steps and learning rates.
        still: starts that are only looked at and stay where they are.
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
            if still is not None:
                beta.grad[still] = 0.0
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
    return torch.tensor(sorted(chosen, key=order.index), dtype=torch.long, device=energy.device)


@dataclass(frozen=True)
class Quadratic:
    """A batch of energies with gradient and Gauss-Newton matrix: E(x + d) ~ cost + gradient d + d' matrix d / 2."""

    cost: Float[Tensor, "s"]
    gradient: Float[Tensor, "s p"]
    matrix: Float[Tensor, "s p p"]
    terms: Mapping[str, Float[Tensor, "s"]]

    @classmethod
    def zero(cls, count: int, parameters: int) -> Quadratic:
        """Nothing yet."""
        return cls(torch.zeros(count), torch.zeros(count, parameters), torch.zeros(count, parameters, parameters), {})

    @classmethod
    def of(
        cls, residual: Float[Tensor, "s n c"], slope: Float[Tensor, "s n c 3"], jacobian: Float[Tensor, "s n 3 p"]
    ) -> Quadratic:
        """Huber energy (threshold 1) of n points' residual vectors, averaged over the points.

        Args:
            residual: of unit width.
            slope: its derivative with respect to the point.
            jacobian: derivative of the point with respect to the parameters.
        """
        count = residual.shape[1]
        size = residual.norm(dim=-1)
        weight = (1.0 / size.clamp_min(1.0)) / count
        cost = torch.where(size <= 1.0, 0.5 * size.square(), size - 0.5).mean(dim=-1)
        metric = torch.einsum("snca,sncb,sn->snab", slope, slope, weight)
        pull = torch.einsum("snca,snc,sn->sna", slope, residual, weight)
        matrix = torch.einsum("snap,snab,snbq->spq", jacobian, metric, jacobian)
        return cls(cost, torch.einsum("snap,sna->sp", jacobian, pull), matrix, {})

    @classmethod
    def plain(cls, residual: Float[Tensor, "s r"], jacobian: Float[Tensor, "s r p"]) -> Quadratic:
        """Half the squared residuals."""
        return cls(
            0.5 * residual.square().sum(dim=-1),
            torch.einsum("srp,sr->sp", jacobian, residual),
            torch.einsum("srp,srq->spq", jacobian, jacobian),
            {},
        )

    def plus(self, name: str, other: Quadratic) -> Quadratic:
        """The sum; the other one's cost is remembered under its name."""
        return Quadratic(
            self.cost + other.cost,
            self.gradient + other.gradient,
            self.matrix + other.matrix,
            {**self.terms, name: other.cost},
        )


@runtime_checkable
class Manifold(Protocol):
    """A batch of configurations that can be moved along a tangent."""

    def retract(self, step: Float[Tensor, "s p"]) -> Any:
        """The configurations after a step."""
        ...

    def where(self, keep: Bool[Tensor, "s"], other: Any) -> Any:
        """This one where `keep`, else the other."""
        ...


State = TypeVar("State", bound=Manifold)


@dataclass(frozen=True)
class LevenbergMarquardtConfig:
    """Damped Gauss-Newton."""

    steps: int = 30
    """Trial steps, accepted or not."""
    damping: float = 1e-2
    """First damping, relative to the diagonal of the Gauss-Newton matrix."""


@dataclass(frozen=True)
class Solved(Generic[State]):
    """Where a batch ended."""

    state: State
    quadratic: Quadratic


def minimize_lm(
    problem: Callable[[State], Quadratic],
    start: State,
    config: LevenbergMarquardtConfig,
    basis: Float[Tensor, "p q"] | None = None,
) -> Solved[State]:
    """Levenberg-Marquardt on a batch of configurations; each has its own damping.

    Args:
        problem: cost and quadratic model at a batch of configurations.
        start: where to begin.
        config: steps and damping.
        basis: directions in which the configurations may move; all if None.
    """
    state, here = start, problem(start)
    damping = torch.full_like(here.cost, config.damping)
    for _ in range(config.steps):
        gradient, matrix = here.gradient, here.matrix
        if basis is not None:
            gradient, matrix = gradient @ basis, basis.T @ matrix @ basis
        diagonal = matrix.diagonal(dim1=-2, dim2=-1).clamp_min(1e-9)
        damped = matrix + torch.diag_embed(damping[:, None] * diagonal + 1e-9)
        step = -torch.linalg.solve(damped, gradient[..., None])[..., 0]
        if basis is not None:
            step = step @ basis.T
        trial = state.retract(step)
        there = problem(trial)
        better = there.cost < here.cost
        state, here = trial.where(better, state), _choose(better, there, here)
        damping = torch.where(better, damping / 4, damping * 5).clamp(1e-7, 1e7)
    return Solved(state, here)


def _choose(keep: Bool[Tensor, "s"], a: Quadratic, b: Quadratic) -> Quadratic:
    return Quadratic(
        torch.where(keep, a.cost, b.cost),
        torch.where(keep[:, None], a.gradient, b.gradient),
        torch.where(keep[:, None, None], a.matrix, b.matrix),
        {name: torch.where(keep, a.terms[name], b.terms[name]) for name in a.terms},
    )
