"""The arrays behind the report's pictures: attention of chosen hand points, energy sections, feature colors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from afield.errors import AfieldError
from afield.hand import Hand, HandPoints


@dataclass(frozen=True)
class AttentionPanel:
    """What one point of the hand looks at, in the demonstrated scene and in the target scene."""

    label: str
    """What the point is, for people: "thumb tip", "palm"."""
    point_demo: Float[Tensor, "3"]
    """The hand point in the demonstrated scene's world frame, in metres."""
    point_target: Float[Tensor, "3"]
    """The same hand point in the target scene's world frame, on the final hand, in metres."""
    weights_demo: Float[Tensor, "n"]
    """Weight of every demonstrated scene point; they sum to one, and a point that was left out has weight 0."""
    weights_target: Float[Tensor, "m"]
    """Weight of every target scene point."""


@dataclass(frozen=True)
class SectionPlane:
    """A rectangle in space over which the hand is moved without turning; its center is where the palm ended."""

    name: str
    """"vertical" or "horizontal"."""
    center: Float[Tensor, "3"]
    """Final position of the palm's center in the world, in metres."""
    across: Float[Tensor, "3"]
    """Unit vector of the picture's horizontal axis."""
    up: Float[Tensor, "3"]
    """Unit vector of the picture's vertical axis."""


@dataclass(frozen=True)
class EnergySection:
    """The feature energy (Eq. 7) of the final hand, moved over a plane: one group of Fig. 4."""

    field: str
    """Which field the energy belongs to: "attention", "sparsedff"."""
    plane: SectionPlane
    across: Float[Tensor, "nx"]
    """Offsets along `plane.across` in metres."""
    up: Float[Tensor, "ny"]
    """Offsets along `plane.up` in metres."""
    values: Float[Tensor, "ny nx"]
    """Energy with the palm's center at each place."""

    @property
    def lowest(self) -> Float[Tensor, "2"]:
        """Offset (across, up) in metres of the place with the least energy."""
        index = int(self.values.argmin())
        return torch.stack((self.across[index % self.values.shape[1]], self.up[index // self.values.shape[1]]))

    @property
    def scaled(self) -> Float[Tensor, "ny nx"]:
        """The energy as a picture shows it: 0 at its least, 1 at its median and above.

        Half of a section is far from everything and says nothing; ending the scale at the median leaves the colors
        to the part where the hand decides. It also makes fields comparable whose energies have different magnitudes.
        """
        low, middle = self.values.min(), self.values.median()
        return ((self.values - low) / (middle - low).clamp_min(1e-12)).clamp_max(1.0)

    @property
    def basin(self) -> float:
        """Area in square centimetres where the scaled energy is below one quarter: small means a sharp minimum."""
        cell = float((self.across[1] - self.across[0]) * (self.up[1] - self.up[0])) * 1e4
        return float((self.scaled < 0.25).sum()) * cell


@dataclass(frozen=True)
class ReportPanels:
    """What a report shows beyond the run itself; every part may be empty."""

    attention: tuple[AttentionPanel, ...] = ()
    """Attention of chosen hand points."""
    sections: tuple[EnergySection, ...] = ()
    """Energy sections of one or several fields over the same planes."""
    field_colors: tuple[Float[Tensor, "n 3"], Float[Tensor, "m 3"]] | None = None
    """Colors of the features as the field sees them (gated, projected, centered), for both scenes; RGB, 0 to 1."""
    frames: tuple[np.ndarray, ...] = ()
    """Pictures of the physics test in order of time, 8-bit RGB [height, width, 3]."""


def section_planes(hand: Hand, beta: Float[Tensor, "d"]) -> tuple[SectionPlane, SectionPlane]:
    """A vertical and a horizontal plane through the center of the posed palm.

    The vertical one stands across the fingers, so that it runs along a body that the hand grips from above.
    """
    pose, _ = hand.split(beta)
    center = palm_position(hand, beta)
    fingers = (pose[:3, :3] @ hand.finger_direction.to(beta)) * torch.tensor([1.0, 1.0, 0.0]).to(beta)
    if float(fingers.norm()) < 0.2:  # fingers straight up or down: the palm's normal then says where "across" is
        fingers = (pose[:3, :3] @ hand.palm_normal.to(beta)) * torch.tensor([1.0, 1.0, 0.0]).to(beta)
    fingers = torch.nn.functional.normalize(fingers, dim=0)
    up = torch.tensor([0.0, 0.0, 1.0]).to(beta)
    across = torch.linalg.cross(fingers, up)
    if float(across[int(across.abs().argmax())]) < 0:  # so that the picture runs with the world's axis, not against it
        across = -across
    return (
        SectionPlane("vertical", center, across, up),
        SectionPlane("horizontal", center, across, torch.linalg.cross(up, across)),
    )


def palm_position(hand: Hand, beta: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 3"]:
    """The center of the palm in the world, in metres."""
    pose, _ = hand.split(beta)
    return (pose[..., :3, :3] @ hand.palm_center.to(beta)[:, None])[..., 0] + pose[..., :3, 3]


def energy_section(
    feature_energy: Callable[[Float[Tensor, "b d"]], Float[Tensor, "b"]],
    beta: Float[Tensor, "d"],
    plane: SectionPlane,
    *,
    name: str,
    extent: tuple[float, float, float, float] = (-0.2, 0.2, -0.2, 0.2),
    spacing: float = 0.01,
    batch: int = 64,
) -> EnergySection:
    """Evaluate an energy with the hand moved, but neither turned nor bent, over a plane.

    Args:
        feature_energy: energy of a batch of hand configurations, without the physical terms.
        beta: the final hand configuration.
        plane: where to move it.
        name: what to call the field, "attention" or "sparsedff".
        extent: first and last offset across, first and last offset up, in metres.
        spacing: distance of neighbouring places in metres.
        batch: how many configurations are evaluated at a time.

    Returns:
        The section; its values are finite.

    Raises:
        AfieldError: an energy is NaN or infinite, or the extent is empty.
    """
    left, right, bottom, top = extent
    if not (right > left and top > bottom and spacing > 0):
        raise AfieldError(f"An energy section over {extent} m with spacing {spacing} m has no place to evaluate.")
    across = torch.linspace(left, right, max(2, round((right - left) / spacing) + 1))
    up = torch.linspace(bottom, top, max(2, round((top - bottom) / spacing) + 1))
    offset = up[:, None, None] * plane.up.cpu() + across[None, :, None] * plane.across.cpu()
    moved = beta.repeat(offset[..., 0].numel(), 1)
    moved[:, :3] += offset.reshape(-1, 3).to(beta)
    with torch.no_grad():
        values = torch.cat([feature_energy(part) for part in moved.split(batch)]).cpu()
    if not torch.isfinite(values).all():
        raise AfieldError(f"The energy of the field '{name}' is not finite in its {plane.name} section.")
    return EnergySection(name, plane, across, up, values.reshape(len(up), len(across)))


def chosen_hand_points(
    hand: Hand, points: HandPoints, contact: Float[Tensor, "q"]
) -> tuple[tuple[str, ...], Int[Tensor, "k"]]:
    """One query point for each fingertip and one for the palm.

    Args:
        hand: the hand.
        points: its query points.
        contact: distance of each query point to the demonstrated object, in metres; a tip's closest is taken.

    Returns:
        Labels for people, and indices into `points`.
    """
    labels, chosen = [], []
    for finger, bodies in hand.description.fingers.items():
        for body in reversed(
            bodies
        ):  # a tip without query points, such as a fingernail, gives way to the link before it
            on_link = (points.link == hand.link_names.index(body)).nonzero()[:, 0]
            if len(on_link):
                labels.append("thumb tip" if finger == "thumb" else f"{finger} fingertip")
                chosen.append(int(on_link[contact[on_link].argmin()]))
                break
    neutral = hand.join(torch.eye(4).to(hand.palm_center), hand.neutral())
    distance = (hand.place(points, neutral) - hand.palm_center).norm(dim=-1)
    return (*labels, "palm"), torch.tensor([*chosen, int(distance.argmin())])


def joint_feature_colors(
    first: Float[Tensor, "n c"], second: Float[Tensor, "m k"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "m 3"]]:
    """Colors of the features of two scenes by one common PCA: the same color means the same feature.

    Returns:
        RGB in 0..1 for both scenes: the three strongest components, each stretched over its 2nd to 98th percentile.
    """
    if first.shape[1] != second.shape[1]:
        raise AfieldError(
            f"Features of {first.shape[1]} and of {second.shape[1]} channels have no common colors; "
            "both scenes must come from the same extractor."
        )
    both = torch.cat((first, second)).double()
    centered = both - both.mean(dim=0)
    _, vectors = torch.linalg.eigh(centered.T @ centered)
    basis = vectors[:, -3:].flip(-1)
    if basis.shape[1] < 3:
        basis = torch.nn.functional.pad(basis, (0, 3 - basis.shape[1]))
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    scores = centered @ (basis * largest.sign())  # eigenvectors have no sign of their own
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    colors = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0).float()
    return colors[: len(first)], colors[len(first) :]


def attention_ratio(weights: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """How many times more a point is attended to than the average point; the decimal logarithm, within -1..2."""
    return (weights * len(weights)).clamp(0.1, 100.0).log10()
