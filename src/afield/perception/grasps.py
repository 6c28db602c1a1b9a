"""Where a parallel gripper can take hold near a contact point, from the points that cameras have seen.

A detector proposes grasps; what touches nothing, encloses the contact region and is centred on it comes first.
`AntipodalDetector` needs no weights. Other detectors (AnyGrasp, say) fit in by the protocol.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import roma
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from afield.errors import AfieldError
from afield.geometry import pose_from


@dataclass(frozen=True)
class GripperShape:
    """A parallel gripper as boxes, in its own frame: origin between the fingertips, +z from palm to tips, closing along y.

    The defaults are those of the Franka hand; lengths in metres.
    """

    max_opening: float = 0.08
    finger_thickness: float = 0.01
    """Along the closing direction."""
    finger_width: float = 0.02
    """Across it."""
    finger_length: float = 0.045
    """From the palm to the origin."""
    tip: float = 0.009
    """How far the fingers reach beyond the origin."""
    palm: tuple[float, float, float] = (0.063, 0.204, 0.066)
    """Size of the palm along x, y and z."""


@dataclass(frozen=True)
class Grasps:
    """Proposals, the best first."""

    T_world_gripper: Float[Tensor, "k 4 4"]
    width: Float[Tensor, "k"]
    """How thick the thing is between the fingers, in metres."""
    score: Float[Tensor, "k"]
    """Larger is better; only comparable within one detector."""

    def __len__(self) -> int:
        return len(self.width)


@runtime_checkable
class GraspDetector(Protocol):
    """Proposes grasps around the points that should be touched."""

    def detect(
        self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], contact: Float[Tensor, "n"]
    ) -> Grasps:
        """Grasps near the contact region, the best first.

        Args:
            points: what was seen of object and surroundings, in metres.
            normals: unit normals, towards the cameras.
            contact: for every point, how likely it is touched, 0 to 1.

        Raises:
            AfieldError: no grasp is possible there.
        """
        ...


@dataclass(frozen=True)
class AntipodalConfig:
    """How many grasps are tried, and what is preferred."""

    contact: float = 0.5
    """Points above this are to be touched; if there are none, the top 2% are."""
    centers: int = 12
    """Points of the contact region around which grasps are tried."""
    rolls: int = 12
    """Closing directions tried in half a turn."""
    tilt: float = math.radians(25.0)
    """How far the approach leans from the surface's normal, in radians; eight directions lean."""
    voxel: float = 0.003
    """Points are thinned to this distance, in metres; to three times of it where only the palm may come."""
    clearance: float = 0.010
    """Free space between each finger and the thing, in metres; less where the gripper does not open that far."""
    margin: float = 0.003
    """The gripper is thought larger by this when it is kept from touching what was seen, in metres."""
    floor: float | None = None
    """Height of the table, where it is known: the gripper stays above it, though pictures may not show it there. Metres."""
    backoff: float = 0.10
    """The way on which the gripper comes, in metres; it has to be above the floor there."""
    touching: int = 1
    """So many points inside the gripper are taken for noise."""
    keep: int = 32
    """Grasps that are returned."""


def contact_point(points: Float[Tensor, "n 3"], contact: Float[Tensor, "n"], threshold: float = 0.5) -> Int[Tensor, ""]:
    """Index of the point to touch: of the likely ones, the one nearest to their middle.

    The paper takes the largest probability alone, which on a plateau is decided by noise.
    """
    chosen = contact_region(contact, threshold).nonzero()[:, 0]
    weight = contact[chosen] / contact[chosen].sum()
    middle = (weight[:, None] * points[chosen]).sum(dim=0)
    return chosen[(points[chosen] - middle).norm(dim=-1).argmin()]


def contact_region(contact: Float[Tensor, "n"], threshold: float = 0.5) -> Bool[Tensor, "n"]:
    """Points that are to be touched: those above the threshold, or the top 2% (five at least) where that leaves none.

    Raises:
        AfieldError: nothing has any contact probability.
    """
    if len(contact) == 0 or not float(contact.max()) > 0.0:
        raise AfieldError("No observed point has a contact probability above 0; there is nothing to take hold of.")
    region = contact > threshold
    if not bool(region.any()):
        least = contact.topk(min(len(contact), max(5, len(contact) // 50))).values[-1]
        region = (contact >= least) & (contact > 0.0)
    return region


@dataclass(frozen=True)
class AntipodalDetector:
    """Fingers on both sides of what stands out, as far as it was seen.

    Cameras see a handle from one side, so opposite surfaces are hardly ever observed together. Instead, what lies between the
    fingers is taken to be as wide as its visible outline across the closing direction, and as deep as it is wide; fingers go
    where nothing was seen.
    """

    config: AntipodalConfig = AntipodalConfig()
    gripper: GripperShape = GripperShape()

    def detect(
        self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], contact: Float[Tensor, "n"]
    ) -> Grasps:
        """Grasps near the contact region, the best first; see `GraspDetector`."""
        config = self.config
        middle = points[contact_point(points, contact, config.contact)]
        points, normals, contact = thin(points, normals, contact, middle, config.voxel)
        region = contact_region(contact, config.contact)
        place = points[region]
        centers = _spread(place, middle, config.centers)
        frames, straight = self._frames(normals[region], normals[(points - middle).norm(dim=-1) < 0.10])
        found = [self.around(points, region, center, frames, straight, middle) for center in centers]
        poses, width, score = (torch.cat(parts) for parts in zip(*found, strict=True))
        if len(score) == 0:
            raise AfieldError(
                f"No grasp of at most {100 * self.gripper.max_opening:.0f} cm is free of what was seen around the contact "
                f"point {[round(float(x), 3) for x in middle]}."
            )
        best = score.argsort(descending=True, stable=True)[: config.keep]
        return Grasps(poses[best], width[best], score[best])

    def _frames(
        self, own: Float[Tensor, "m 3"], around: Float[Tensor, "_a 3"]
    ) -> tuple[Float[Tensor, "f 3 3"], Float[Tensor, "f"]]:
        """Rotations to try, and how straight each approaches: along the normal of what is around, or of the region itself.

        What stands out of a panel is best taken along the panel's normal, which is also observed far better than the normals
        of a thin handle.
        """
        axes = [-_mode(around)]
        other = -_mode(own)
        if float(axes[0] @ other) < math.cos(math.radians(10.0)):
            axes.append(other)
        turn = torch.arange(self.config.rolls) * math.pi / self.config.rolls
        rolls = roma.rotvec_to_rotmat(turn[:, None] * torch.tensor([0.0, 0.0, 1.0]))
        angle = torch.arange(8) * math.pi / 4
        lean = torch.stack((angle.cos(), angle.sin(), torch.zeros(8)), dim=-1) * self.config.tilt
        leans = roma.rotvec_to_rotmat(torch.cat((torch.zeros(1, 3), lean)))
        frames = torch.cat([(_frame_of(axis) @ leans[:, None] @ rolls).reshape(-1, 3, 3) for axis in axes])
        along = frames[:, :, 2] @ torch.stack(axes).T
        along[:, 1:] -= 0.25
        return frames, along.amax(dim=1)

    def around(
        self,
        points: Float[Tensor, "n 3"],
        region: Bool[Tensor, "n"],
        center: Float[Tensor, "3"],
        frames: Float[Tensor, "f 3 3"],
        straight: Float[Tensor, "f"],
        middle: Float[Tensor, "3"],
    ) -> tuple[Float[Tensor, "k 4 4"], Float[Tensor, "k"], Float[Tensor, "k"]]:
        """Grasps around one surface point that touch nothing: poses, widths and scores.

        Args:
            points: what must not be touched, in metres.
            region: which of them are to be between the fingers.
            center: the surface point.
            frames: rotations of the gripper to try; it is centred on what it will hold.
            straight: for each, how good its direction is.
            middle: where the contact region has its middle.
        """
        gripper, config = self.gripper, self.config
        local = torch.einsum("nc,fcd->fnd", points - center, frames)  # in the gripper's axes, origin at the center
        x, y, z = local.unbind(dim=-1)
        between = (x.abs() < gripper.finger_width / 2) & (y.abs() < gripper.max_opening / 2)
        # First what stands out at the center; then, as deep as that is wide, all that the fingers will pass.
        low, high = _extent(y, between & (z < 0.006))
        depth = (0.5 * (high - low)).clamp(0.005, 0.02)
        passed = between & (z < (depth + gripper.tip + config.margin)[:, None])
        low, high = _extent(y, passed)
        width, side = high - low, 0.5 * (high + low)
        y = y - side[:, None]
        z = z - depth[:, None]
        place = center + torch.einsum("fcd,fd->fc", frames, torch.stack((torch.zeros_like(side), side, depth), dim=-1))
        half = (0.5 * width + config.clearance).clamp_max(gripper.max_opening / 2)
        free = (half > 0.5 * width + config.margin) & self._clear(x, y, z, half)
        inside = passed & (z > -gripper.finger_length)
        wanted = (inside & region).sum(dim=1)
        share = wanted / inside.sum(dim=1).clamp_min(1)
        gathered = wanted / region.sum().clamp_min(1)
        away = ((place - middle).norm(dim=-1) - 0.01).clamp_min(0.0)
        below = frames[:, 2, 2].clamp_min(0.0)  # where the world's table is, seen or not
        score = gathered + share + 4 * straight - below - away / 0.03 - 3 * width / gripper.max_opening
        good = free & (wanted >= 3) & self._above_floor(frames, place)
        return pose_from(frames[good], place[good]), width[good], score[good]

    def _clear(
        self, x: Float[Tensor, "f n"], y: Float[Tensor, "f n"], z: Float[Tensor, "f n"], half: Float[Tensor, "f"]
    ) -> Bool[Tensor, "f"]:
        """Whether fingers this far apart, and the palm, touch nothing, nor on the way in."""
        gripper, margin = self.gripper, self.config.margin
        beside = (y.abs() > half[:, None] - margin) & (y.abs() < (half + gripper.finger_thickness + margin)[:, None])
        fingers = beside & (x.abs() < gripper.finger_width / 2 + margin) & (z < gripper.tip + margin)
        wide, long, _ = gripper.palm
        palm = (x.abs() < wide / 2 + margin) & (y.abs() < long / 2 + margin) & (z < margin - gripper.finger_length)
        return (fingers | palm).sum(dim=1) <= self.config.touching

    def _above_floor(self, frames: Float[Tensor, "f 3 3"], place: Float[Tensor, "f 3"]) -> Bool[Tensor, "f"]:
        """Whether the palm's corners, on all their way, and the tips stay above the floor."""
        if self.config.floor is None:
            return torch.ones(len(frames), dtype=torch.bool)
        gripper = self.gripper
        wide, long, deep = gripper.palm
        back = -gripper.finger_length - deep - self.config.backoff
        heights = torch.tensor(
            [(x * wide / 2, y * long / 2, z) for x in (-1, 1) for y in (-1, 1) for z in (back, -gripper.finger_length)]
            + [(0.0, side * gripper.max_opening / 2, gripper.tip) for side in (-1, 1)]
        )
        lowest = place[:, 2] + (frames[:, 2] @ heights.T).amin(dim=1)
        return lowest > self.config.floor + self.config.margin


def _extent(y: Float[Tensor, "f n"], chosen: Bool[Tensor, "f n"]) -> tuple[Float[Tensor, "f"], Float[Tensor, "f"]]:
    """From where to where the chosen values reach; both infinite where nothing is chosen."""
    return y.masked_fill(~chosen, torch.inf).amin(dim=1), y.masked_fill(~chosen, -torch.inf).amax(dim=1)


def _mode(normals: Float[Tensor, "m 3"]) -> Float[Tensor, "3"]:
    """The direction that most normals share: the mean of those within 25 degrees of the one with the most neighbours."""
    some = normals[:: max(1, len(normals) // 500)]
    alike = (some @ some.T) > math.cos(math.radians(25.0))
    return functional.normalize(some[alike[alike.sum(dim=1).argmax()]].mean(dim=0), dim=0)


def _frame_of(axis: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    """A rotation whose z is `axis`; its x is as close to the world's up as can be."""
    up = torch.tensor([0.0, 0.0, 1.0]) if abs(float(axis[2])) < 0.9 else torch.tensor([0.0, 1.0, 0.0])
    x = functional.normalize(up - (up @ axis) * axis, dim=0)
    return torch.stack((x, torch.linalg.cross(axis, x), axis), dim=1)


def _spread(place: Float[Tensor, "m 3"], middle: Float[Tensor, "3"], count: int) -> Float[Tensor, "_c 3"]:
    """Points far from each other, beginning with the one nearest to `middle`."""
    far = (place - middle).norm(dim=-1)
    chosen = [int(far.argmin())]
    far = (place - place[chosen[0]]).norm(dim=-1)
    while len(chosen) < min(count, len(place)):
        chosen.append(int(far.argmax()))
        far = torch.minimum(far, (place - place[chosen[-1]]).norm(dim=-1))
    return place[chosen]


def thin(
    points: Float[Tensor, "n 3"],
    normals: Float[Tensor, "n 3"],
    contact: Float[Tensor, "n"],
    middle: Float[Tensor, "3"],
    voxel: float,
) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m 3"], Float[Tensor, "m"]]:
    """One point of every voxel: fine ones within 7 cm of the middle, coarse ones up to 25 cm."""
    far = (points - middle).norm(dim=-1)
    chosen = []
    for part, size in ((far < 0.07, voxel), ((far >= 0.07) & (far < 0.25), 3 * voxel)):
        own = part.nonzero()[:, 0]
        _, cell = torch.unique((points[own] / size).floor().long(), dim=0, return_inverse=True)
        count = int(cell.max()) + 1 if len(own) else 0
        first = torch.full((count,), len(points)).scatter_reduce(0, cell, own, reduce="amin")
        chosen.append(first)
    index = torch.cat(chosen)
    return points[index], normals[index], contact[index]
