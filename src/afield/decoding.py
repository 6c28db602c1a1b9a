"""From point flow to a path of the gripper (Actron3D, III-B and the end of III-D).

The flow says where points of an object go. Those of the part that is taken hold of move as one rigid body, and the gripper
with them: its motion, after every stretch of the flow, is a weighted registration of these points. Published weights only
fall with the distance to the gripper; a body that stands still beside a moving door then spoils the answer, so points that
do not follow the same rigid motion are found and left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, cast

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from afield.errors import AfieldError
from afield.geometry import inverse_pose, pose_from, rotation_about_axis, transform_points
from afield.trajectory import Trajectory

JointKind = Literal["revolute", "prismatic"]


@dataclass(frozen=True)
class DecodeConfig:
    """How flow becomes motion, and motion a trajectory."""

    waypoints: int = 8
    """H': stretches into which the horizon is divided."""
    beta: float = 0.1
    """In metres; points weigh 1 / (distance to the gripper + beta)."""
    visibility: float = 0.5
    """Tracks count where they are more visible than this."""
    moving: float = 0.3
    """Points count that are displaced at least this share of what those around the contact are; 0 keeps all, as published."""
    tolerance: float = 0.25
    """No track farther than this from the common rigid motion is trusted, as a share of the same length; 0 trusts all."""
    hypotheses: int = 256
    """Triples of tracks from which the rigid motion with the most followers is sought."""
    joint: Literal["auto", "none", "revolute", "prismatic"] = "auto"
    """One hinge or slide for the whole path; "auto" supposes one where it explains the tracks about as well as free motion."""
    mode: Literal["grasp", "push"] = "grasp"
    """Hold the part between the fingers, or push it with closed ones."""
    backoff: float = 0.10
    """How far before the contact the gripper begins, and how far it retreats, in metres."""
    clearance: float = 0.02
    """How much wider than what it takes the gripper opens, in metres."""
    max_opening: float = 0.08
    """The widest distance between the fingers, in metres."""
    retreat: bool = True
    """Let go and back off at the end."""
    seed: int = 0
    """Of the triples."""


PUBLISHED = DecodeConfig(moving=0.0, tolerance=0.0, joint="none")
"""The paper's weights and nothing else."""


@dataclass(frozen=True)
class Joint:
    """A hinge or slide: the path of a rigid part with one degree of freedom."""

    kind: JointKind
    axis: Float[Tensor, "3"]
    """Unit direction; amounts grow along the path."""
    point: Float[Tensor, "3"]
    """A point on the axis, in metres; without meaning for a slide."""
    amount: Float[Tensor, "w"]
    """Where the joint stands after every motion: radians, or metres for a slide."""
    pitch: float = 0.0
    """Metres along the axis per radian, as observed; a hinge is supposed to have none."""

    def motions(self) -> Float[Tensor, "w 4 4"]:
        """How the part has moved since the beginning, at every amount."""
        axis = self.axis.expand(len(self.amount), 3)
        if self.kind == "prismatic":
            return pose_from(torch.eye(3).to(axis).expand(len(axis), 3, 3), axis * self.amount[:, None])
        rotation = rotation_about_axis(axis, self.amount)
        return pose_from(rotation, self.point - rotation @ self.point)


def relative_motions(
    start: Float[Tensor, "q 3"],
    displacement: Float[Tensor, "q h 3"],
    visible: Float[Tensor, "q h"],
    gripper_position: Float[Tensor, "3"],
    config: DecodeConfig | None = None,
) -> Float[Tensor, "w 4 4"]:
    """The rigid motions of the held part between consecutive waypoints, in the frame of the points.

    Args:
        start: where the tracks begin, in metres.
        displacement: how far each has moved after every step of the horizon, in metres.
        visible: how visible each is there, 0 to 1.
        gripper_position: where the part is held or pushed.
        config: waypoints and weights.

    Returns:
        One motion per stretch; `compose` makes poses of them.

    Raises:
        AfieldError: fewer than three tracks can be seen, or nothing near the gripper moves.
    """
    config = config or DecodeConfig()
    horizon = displacement.shape[1]
    if not 1 <= config.waypoints <= horizon:
        raise AfieldError(f"A flow of {horizon} steps cannot be divided into {config.waypoints} waypoints.")
    step = [round(horizon * (k + 1) / config.waypoints) - 1 for k in range(config.waypoints)]
    target = (start[:, None] + displacement[:, step]).transpose(0, 1).contiguous()
    distance = (start - gripper_position).norm(dim=-1)
    seen = (visible[:, step] > config.visibility).T.to(start)
    weight = seen / (distance + config.beta)
    reach = _contact_reach(displacement, seen.bool(), distance)
    if config.moving > 0.0:
        weight = weight * (_travel(displacement) >= config.moving * reach)
    if int((weight > 0).sum(dim=1).min()) < 3:
        raise AfieldError(
            f"At some waypoint fewer than three moving tracks are more visible than {config.visibility}; a rigid motion "
            "needs three."
        )
    if config.tolerance > 0.0:
        weight = _followers(start, target, weight, max(0.005, config.tolerance * reach), config)
    total = _register(start, target, weight)
    if config.joint != "none":
        total = _with_joint(start, target, weight, total, config.joint)
    return torch.cat((total[:1], total[1:] @ inverse_pose(total[:-1])))


def joint_from_motions(motions: Float[Tensor, "w 4 4"], least_angle: float = 0.1) -> Joint:
    """The hinge or slide that comes closest to consecutive motions.

    Args:
        motions: as from `relative_motions`.
        least_angle: radians that a hinge must turn in all; less is a slide.
    """
    total = _accumulate(motions)
    joint = _hinge(total)
    if float(joint.amount.abs().max()) >= least_angle:
        return joint
    return _slide(total[:, :3, 3])


def compose(T_world_gripper: Float[Tensor, "4 4"], motions: Float[Tensor, "w 4 4"]) -> Float[Tensor, "w 4 4"]:
    """Absolute poses of a gripper that goes along with consecutive motions of the world frame."""
    return _accumulate(motions) @ T_world_gripper


def decode_trajectory(
    T_world_gripper: Float[Tensor, "4 4"],
    width: float,
    motions: Float[Tensor, "w 4 4"],
    config: DecodeConfig | None = None,
) -> Trajectory:
    """The whole path: approach, take hold (or touch), move along, let go and retreat.

    Args:
        T_world_gripper: where the part is held, or touched by closed fingers; +z is the approach direction.
        width: how thick the part is between the fingers, in metres; a push does not need it.
        motions: as from `relative_motions`.
        config: mode, distances.

    Raises:
        AfieldError: what is to be held is wider than the gripper opens.
    """
    config = config or DecodeConfig()
    if config.mode == "grasp" and not 0.0 <= width <= config.max_opening:
        raise AfieldError(
            f"The gripper opens {100 * config.max_opening:.1f} cm, but {100 * width:.1f} cm are to be held between its fingers."
        )
    wide = min(width + config.clearance, config.max_opening) if config.mode == "grasp" else 0.0
    moved = compose(T_world_gripper, motions)
    back = torch.eye(4).to(moved)
    back[2, 3] = -config.backoff
    phases = [("pregrasp", T_world_gripper @ back, wide), ("approach", T_world_gripper, wide)]
    if config.mode == "grasp":
        phases.append(("grasp", T_world_gripper, 0.0))
    phases += [("move", pose, 0.0) for pose in moved]
    if config.retreat:
        if config.mode == "grasp":
            phases.append(("release", moved[-1], wide))
        phases.append(("retreat", moved[-1] @ back, wide))
    labels, poses, opening = zip(*phases, strict=True)
    provenance = {"width": width, "decoding": asdict(config)}
    return Trajectory(torch.stack(poses), torch.tensor(opening, dtype=torch.float32), labels, provenance)


def push_direction(contact: Float[Tensor, "3"], motions: Float[Tensor, "w 4 4"]) -> Float[Tensor, "3"]:
    """The way a point of the part goes at first: fingers that push come from behind it.

    Args:
        contact: where to push, in metres.
        motions: as from `relative_motions`.
    """
    return torch.nn.functional.normalize(transform_points(motions[0], contact[None])[0] - contact, dim=0)


def push_pose(
    contact: Float[Tensor, "3"],
    direction: Float[Tensor, "3"],
    up: Float[Tensor, "3"] | None = None,
    *,
    tip: float = 0.0,
) -> Float[Tensor, "4 4"]:
    """`T_world_gripper` of closed fingers that push a point, side by side.

    Args:
        contact: where to push, in metres.
        direction: which way, see `push_direction`.
        up: which way is up; fingers close across it. World +Z without it.
        tip: how far the fingers reach beyond the gripper's origin, in metres; 9 mm those of the Franka hand.
    """
    approach = torch.nn.functional.normalize(direction, dim=0)
    up = torch.tensor([0.0, 0.0, 1.0]).to(approach) if up is None else up
    across = torch.linalg.cross(up, approach)
    if float(across.norm()) < 1e-3:  # pushing straight down or up: any direction does
        across = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).to(approach), approach)
    across = torch.nn.functional.normalize(across, dim=0)
    return pose_from(
        torch.stack((torch.linalg.cross(across, approach), across, approach), dim=1), contact - tip * approach
    )


def _contact_reach(displacement: Float[Tensor, "q h 3"], seen: Tensor, distance: Float[Tensor, "q"]) -> float:
    """How far the points around the gripper go; the reference for what moves at all."""
    usable = seen.any(dim=0)
    if int(usable.sum()) < 3:
        raise AfieldError(f"Only {int(usable.sum())} tracks of the flow are visible; a rigid motion needs three.")
    near = distance.masked_fill(~usable, torch.inf).topk(min(10, int(usable.sum())), largest=False).indices
    reach = float(_travel(displacement[near]).median())
    if reach < 1e-3:
        raise AfieldError(
            f"The points around the gripper move {1000 * reach:.2f} mm in the flow; at least 1 mm is needed to tell how."
        )
    return reach


def _travel(displacement: Float[Tensor, "q h 3"]) -> Float[Tensor, "q"]:
    """How far each track is from its beginning, on the average of its path: noise cancels in that, unlike in the farthest."""
    return displacement.mean(dim=1).norm(dim=-1)


def _register(
    start: Float[Tensor, "q 3"], target: Float[Tensor, "w q 3"], weight: Float[Tensor, "w q"]
) -> Float[Tensor, "w 4 4"]:
    """Weighted Procrustes from the beginning to every waypoint.

    Registering from the beginning instead of from waypoint to waypoint keeps errors from adding up; without errors both are
    the same.
    """
    source = start.expand_as(target)
    found = cast("tuple[Tensor, Tensor]", roma.rigid_points_registration(source, target, weight))
    return pose_from(*found)


def _residual(
    total: Float[Tensor, "*b w 4 4"], start: Float[Tensor, "q 3"], target: Float[Tensor, "w q 3"], seen: Tensor
) -> Float[Tensor, "*b q"]:
    """Root mean square over the seen waypoints of how far each track is from a rigid motion."""
    far = (transform_points(total, start.expand(*total.shape[:-2], -1, -1)) - target).square().sum(dim=-1)
    return ((far * seen).sum(dim=-2) / seen.sum(dim=-2).clamp_min(1)).sqrt()


def _followers(
    start: Float[Tensor, "q 3"],
    target: Float[Tensor, "w q 3"],
    weight: Float[Tensor, "w q"],
    tolerance: float,
    config: DecodeConfig,
) -> Float[Tensor, "w q"]:
    """Weights of the tracks that follow one rigid motion: the best of many triples, then reweighted registration."""
    seen = weight > 0
    prior = weight.amax(dim=0)
    always = torch.where(seen.all(dim=0), prior, 0.0)
    pool = always if int((always > 0).sum()) >= 3 else prior
    generator = torch.Generator().manual_seed(config.seed)
    triple = torch.multinomial(pool.expand(config.hypotheses, -1).cpu(), 3, generator=generator).to(start.device)
    source = start[triple][:, None].expand(-1, len(target), -1, -1)
    guess = roma.rigid_points_registration(source, target[:, triple].transpose(0, 1))
    total = pose_from(*cast("tuple[Tensor, Tensor]", guess))
    error = torch.stack([_residual(one, start, target, seen) for one in total])
    score = (prior * (1 - (error / tolerance).square()).clamp_min(0.0)).sum(dim=-1)
    trust = _trust(error[score.argmax()], prior, tolerance)
    for _ in range(15):
        trust = _trust(
            _residual(_register(start, target, weight * trust), start, target, seen), prior * trust, tolerance
        )
    return weight * trust


def _trust(residual: Float[Tensor, "q"], prior: Float[Tensor, "q"], tolerance: float) -> Float[Tensor, "q"]:
    """Geman and McClure's weights, with 1.5 times the median residual of those in whom there is trust as their scale."""
    order = residual.argsort()
    median = residual[
        order[torch.searchsorted(prior[order].cumsum(dim=0), 0.5 * prior.sum()).clamp_max(len(order) - 1)]
    ]
    scale = (1.5 * median).clamp(1e-3, tolerance)
    return 1 / (1 + (residual / scale).square()).square()


def _with_joint(
    start: Float[Tensor, "q 3"],
    target: Float[Tensor, "w q 3"],
    weight: Float[Tensor, "w q"],
    total: Float[Tensor, "w 4 4"],
    wanted: Literal["auto", "revolute", "prismatic"],
) -> Float[Tensor, "w 4 4"]:
    """The path along one hinge or slide, or the free one where neither explains the tracks."""

    def misfit(motions: Float[Tensor, "w 4 4"]) -> float:
        """Weighted root mean square distance of the tracks from where the motions take them, in metres."""
        far = (transform_points(motions, start.expand_as(target)) - target).square().sum(dim=-1)
        return float(((far * weight).sum() / weight.sum()).sqrt())

    share = weight / weight.sum(dim=1, keepdim=True)
    slide = _slide((share[..., None] * (target - start)).sum(dim=1)).motions()
    if wanted == "prismatic":
        return slide
    hinge = _best_angles(_hinge(total), start, target, weight).motions()
    if wanted == "revolute":
        return hinge
    free, turned, slid = misfit(total), misfit(hinge), misfit(slide)
    slack = 2e-3
    if slid <= 1.2 * min(free, turned) + slack:
        return slide
    return hinge if turned <= 1.2 * free + slack else total


def _slide(moved: Float[Tensor, "w 3"]) -> Joint:
    """The straight line through the beginning that comes closest to some displacements."""
    axis = torch.linalg.svd(moved)[2][0]
    axis = axis * torch.where((moved @ axis).sum() < 0, -1.0, 1.0)
    return Joint("prismatic", axis, torch.zeros(3).to(axis), moved @ axis)


def _hinge(total: Float[Tensor, "w 4 4"]) -> Joint:
    """The axis that motions since the beginning turn about."""
    turned = roma.rotmat_to_rotvec(total[:, :3, :3])
    axis = torch.linalg.svd(turned)[2][0]
    axis = axis * torch.where((turned @ axis).sum() < 0, -1.0, 1.0)
    amount = turned @ axis
    along = total[:, :3, 3] @ axis
    # A point c on the axis stays where it is, but for the pitch: (1 - R) c = t - along * axis.
    left = torch.eye(3).to(total) - total[:, :3, :3]
    right = total[:, :3, 3] - along[:, None] * axis
    # Along the axis c is free, and lstsq on the CPU wants full rank: ask for the foot of the origin.
    left, right = torch.cat((left.reshape(-1, 3), axis[None])), torch.cat((right.reshape(-1), torch.zeros(1).to(axis)))
    point = torch.linalg.lstsq(left, right[:, None]).solution[:, 0]
    pitch = float((along * amount).sum() / amount.square().sum().clamp_min(1e-9))
    return Joint("revolute", axis, point, amount, pitch)


def _best_angles(
    joint: Joint, start: Float[Tensor, "q 3"], target: Float[Tensor, "w q 3"], weight: Float[Tensor, "w q"]
) -> Joint:
    """The same hinge with the angles, in closed form, that bring the tracks closest to their targets."""
    source = (start - joint.point).expand_as(target)
    source = source - (source @ joint.axis)[..., None] * joint.axis
    goal = target - joint.point
    goal = goal - (goal @ joint.axis)[..., None] * joint.axis
    sine = (weight * (torch.linalg.cross(source, goal) @ joint.axis)).sum(dim=1)
    cosine = (weight * (source * goal).sum(dim=-1)).sum(dim=1)
    return Joint("revolute", joint.axis, joint.point, torch.atan2(sine, cosine), joint.pitch)


def _accumulate(motions: Float[Tensor, "w 4 4"]) -> Float[Tensor, "w 4 4"]:
    total = [motions[0]]
    for motion in motions[1:]:
        total.append(motion @ total[-1])
    return torch.stack(total)
