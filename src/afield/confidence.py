"""How much to trust a grasp: evidence that is at hand without a second look, and a calibrated probability of success."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from afield.artifacts import read_json
from afield.errors import AfieldError
from afield.geometry import rotation_angle
from afield.hand import Hand
from afield.result import Grasp

CALIBRATION = Path(__file__).with_name("confidence.json")
"""Weights that `afield bench grasp --calibrate` wrote."""


@dataclass(frozen=True)
class Evidence:
    """What speaks for a grasp."""

    similarity: float
    """Of the chosen instance to the demonstrated region, less that of the demonstrated object itself; about 0 for the same
    object, the lower the less alike."""
    feature_energy: float
    """Eq. 7 at the grasp."""
    agreement: float
    """Share of the last minima whose palm is within 3 cm and 30 degrees of the chosen one."""
    rehearsed: float
    """1 if the grasp held in the rehearsal on the observed points, else 0; 0.5 if there was none."""

    @classmethod
    def of(cls, grasp: Grasp, hand: Hand) -> Evidence:
        """Read it from a grasp's history and provenance."""
        similarity = grasp.provenance.get("similarity", {"target": 0.0, "demonstration": 0.0})
        last = grasp.history.rounds[-1]
        final = last[1][-1]
        pose, _ = hand.to("cpu").split(torch.cat((grasp.beta[None], final)))
        apart = (pose[1:, :3, 3] - pose[0, :3, 3]).norm(dim=-1)
        turn = rotation_angle(pose[1:, :3, :3], pose[:1, :3, :3])
        agreement = ((apart < 0.03) & (turn < math.radians(30))).float().mean()
        rehearsal = grasp.provenance.get("rehearsal")
        held = 0.5 if not rehearsal else float(any(entry["held"] for entry in rehearsal))
        return cls(
            similarity=float(similarity["target"]) - float(similarity["demonstration"]),
            feature_energy=float(grasp.terms["feature"]),
            agreement=float(agreement),
            rehearsed=held,
        )

    def numbers(self) -> tuple[float, ...]:
        """As the calibration sees it."""
        return (self.similarity, self.feature_energy, self.agreement, self.rehearsed)


@dataclass(frozen=True)
class Calibration:
    """A logistic model of success, and how unlike the demonstrated object a thing may be to be grasped like it."""

    weights: tuple[float, ...]
    bias: float
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    most_unlike: float
    """Where `afield.attend.unlikeness` exceeds it, the answer is "nothing here to grasp like that"."""
    trials: int
    """How many trials it was fitted to."""

    def probability(self, evidence: Evidence) -> float:
        """Of success in physics, on the demonstrated part."""
        scaled = [(x - m) / s for x, m, s in zip(evidence.numbers(), self.mean, self.scale, strict=True)]
        logit = self.bias + sum(w * x for w, x in zip(self.weights, scaled, strict=True))
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, logit))))

    @classmethod
    def load(cls, path: Path = CALIBRATION) -> Calibration:
        """Read it; the shipped one by default."""
        content = read_json(path)
        try:
            lists = {key: tuple(float(value) for value in content[key]) for key in ("weights", "mean", "scale")}
            return cls(
                **lists,
                bias=float(content["bias"]),
                most_unlike=float(content["most_unlike"]),
                trials=int(content["trials"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise AfieldError(f"{path} is not a calibration: {error}.") from error


def fit_calibration(
    evidence: Sequence[Evidence],
    success: Sequence[bool],
    present: Sequence[float],
    absent: Sequence[float],
    ridge: float = 1.0,
) -> Calibration:
    """Fit the logistic model by Newton's method, and the threshold between scenes with and without the target.

    Args:
        evidence: one per trial.
        success: whether it succeeded.
        present: unlikeness (`afield.attend.unlikeness`) of scenes with the target ...
        absent: ... and of scenes in which it is missing.
        ridge: of the weights, so that few trials do not give certain answers.
    """
    inputs = torch.tensor([item.numbers() for item in evidence], dtype=torch.float64)
    goal = torch.tensor(list(success), dtype=torch.float64)
    mean, scale = inputs.mean(dim=0), inputs.std(dim=0).clamp_min(1e-6)
    design = torch.cat(((inputs - mean) / scale, torch.ones(len(inputs), 1)), dim=1)
    penalty = torch.diag(torch.tensor([ridge] * inputs.shape[1] + [1e-3], dtype=torch.float64))
    weights = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(50):
        chance = torch.sigmoid(design @ weights)
        gradient = design.T @ (chance - goal) + penalty @ weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + penalty
        weights = weights - torch.linalg.solve(curvature, gradient)
    return Calibration(
        tuple(weights[:-1].tolist()),
        float(weights[-1]),
        tuple(mean.tolist()),
        tuple(scale.tolist()),
        separating_threshold(present, absent),
        len(inputs),
    )


def separating_threshold(present: Sequence[float], absent: Sequence[float], most_missed: float = 0.1) -> float:
    """The value below which the fewest scenes without the target lie, with at most this share of those with it above."""
    values = sorted({*present, *absent})
    cuts = [values[0] - 0.01, *((a + b) / 2 for a, b in pairwise(values)), values[-1] + 0.01]

    def missed(cut: float) -> float:
        """Share of scenes with the target that would be refused."""
        return sum(value > cut for value in present) / max(1, len(present))

    allowed = [cut for cut in cuts if missed(cut) <= most_missed]
    return min(allowed, key=lambda cut: (sum(value <= cut for value in absent), missed(cut)))


def separation(present: Sequence[float], absent: Sequence[float]) -> float:
    """In how many of all pairs a scene without the target is more unlike than one with it; 0.5 is chance."""
    pairs = [(without > value) + 0.5 * (without == value) for value in present for without in absent]
    return sum(pairs) / max(1, len(pairs))


def reliability(probability: Sequence[float], success: Sequence[bool], bins: int = 5) -> list[dict[str, float]]:
    """The calibration curve: mean predicted and actual success of trials sorted by their prediction, in equal groups."""
    order = sorted(range(len(probability)), key=lambda i: probability[i])
    groups = [order[len(order) * k // bins : len(order) * (k + 1) // bins] for k in range(bins)]
    return [
        {
            "predicted": sum(probability[i] for i in group) / len(group),
            "actual": sum(bool(success[i]) for i in group) / len(group),
            "trials": len(group),
        }
        for group in groups
        if group
    ]
