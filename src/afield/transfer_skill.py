"""A skill shown once, done elsewhere (Actron3D, III-D): align, find the contact, decode the motion.

target     = see_target(capture)            what the robot sees of the object
alignment  = align(skill, target)           where the demonstrated object would lie in it
contact    = where the seen points lie on the skill's contact region
motions    = the skill's flow, decoded where it was fitted and carried over as a joint
trajectory = a grasp near the contact, and the motions after it
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from afield.alignment import AlignConfig, Alignment, Similarity, align
from afield.alignment_adam import AdamAlignConfig, align_adam
from afield.decoding import PUBLISHED, DecodeConfig, Joint, joint_from_motions, relative_motions
from afield.fields.volume import Volume
from afield.geometry import inverse_pose, pose_from, rotation_angle
from afield.skills import CONTACT, Skill
from afield.target import Target

SOLVERS = ("lm", "adam")
FLOW_POINTS = 1500
"""Surface points of the skill whose flow is decoded."""
NEAR_CONTACT = 1.0
"""Likeness (a cosine) that a canonical unit away from the aligned contact region is worth."""
TOUCHED = 12
"""Seen points that are taken for the contact region."""


@dataclass(frozen=True)
class SkillTransferConfig:
    """How a skill is carried over."""

    align: AlignConfig = field(default_factory=AlignConfig)
    """The search for the alignment."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """How flow becomes motion."""
    solver: str = "lm"
    """lm, or adam: the paper's rendering and descent."""
    adam: AdamAlignConfig = field(default_factory=AdamAlignConfig)
    """Of the latter."""

    @classmethod
    def published(cls) -> SkillTransferConfig:
        """The paper's rendering and descent, and its weights of the flow."""
        return cls(decode=PUBLISHED, solver="adam")


@dataclass(frozen=True)
class SkillTransfer:
    """Where and how to move, before any gripper has been chosen."""

    alignment: Alignment
    contact: Float[Tensor, "3"]
    """Where to touch, in the world, in metres."""
    touched: Float[Tensor, "k 3"]
    """Seen points on the contact region."""
    motions: Float[Tensor, "w 4 4"]
    """Rigid motions of the part between consecutive waypoints, in the world."""
    joint: Joint
    """The hinge or slide that comes closest to them."""
    quality: Mapping[str, Any]
    """How well seen surface and descriptors agree with the skill."""


def transfer_skill(
    skill: Skill, target: Target, volume: Volume | None = None, config: SkillTransferConfig | None = None
) -> SkillTransfer:
    """Align a skill with what is seen and carry its contact and its motion over.

    Args:
        skill: what was shown.
        target: what is seen.
        volume: the skill's baked function, where it is at hand.
        config: see `SkillTransferConfig`.
    """
    config = config or SkillTransferConfig()
    volume = volume or Volume.bake(skill.field)
    region = skill.contact_points()
    if config.solver == "adam":
        alignment = align_adam(skill.field, volume, target, skill.scale, region, config.adam, metric=skill.metric)
    else:
        alignment = align(volume, target, skill.scale, skill.floor, region, config.align, metric=skill.metric)
    return carry_over(skill, target, volume, alignment, config.decode)


def carry_over(
    skill: Skill, target: Target, volume: Volume, alignment: Alignment, config: DecodeConfig
) -> SkillTransfer:
    """Contact and motion of a skill by an alignment with what is seen."""
    region = skill.contact_points()
    best = alignment.similarity[torch.tensor([0])]
    contact, touched = find_contact(best, target, volume, region)
    motions = carry_motions(skill, volume, best, region.mean(dim=0), config)
    return SkillTransfer(
        alignment, contact, touched, motions, joint_from_motions(motions), judge(best, alignment, volume, target)
    )


def find_contact(
    similarity: Similarity, target: Target, volume: Volume, region: Float[Tensor, "k 3"]
) -> tuple[Float[Tensor, "3"], Float[Tensor, "n 3"]]:
    """The seen points that look like the contact region and lie near where the alignment puts it; their middle, and all of them.

    Geometry alone misses the handle of a thing that is built otherwise, a double door say; looks alone find it on the wrong side.
    """
    far = torch.cdist(similarity.apply(target.points)[0], region).amin(dim=-1)
    likely = volume.contact >= min(CONTACT, float(volume.contact.topk(4).values[-1]))
    wanted = functional.normalize(volume.descriptors[likely], dim=-1)
    likeness = functional.normalize(target.descriptors, dim=-1) @ wanted.T
    score = likeness.topk(min(5, len(wanted)), dim=-1).values.mean(dim=-1) - NEAR_CONTACT * far
    touched = target.points[score.topk(min(TOUCHED, len(score))).indices]
    middle = touched.median(dim=0).values
    return touched[(touched - middle).norm(dim=-1).argmin()], touched


def carry_motions(
    skill: Skill, volume: Volume, similarity: Similarity, contact: Float[Tensor, "3"], config: DecodeConfig
) -> Float[Tensor, "w 4 4"]:
    """Decode the flow in the skill's own frame and carry the motions into the world.

    In its own frame a door is rigid; where the alignment stretches the axes differently, a stretched rotation would be none. So a
    joint is carried over by its axis, and any other motion by the nearest rotation.

    Args:
        skill: whose flow.
        volume: its baked function.
        similarity: one alignment.
        contact: canonical point that is held.
        config: of the decoding.
    """
    unit = float((-similarity.log_scale[0].mean()).exp())
    points = volume.surface[:FLOW_POINTS]
    with torch.no_grad():
        displacement, visible = skill.field.flow(points)
    own = relative_motions(points * unit, displacement * unit, visible, contact * unit, config)
    joint = joint_from_motions(own)
    explained = joint.motions()
    total = torch.eye(4)
    free = False
    for motion, wanted in zip(own, explained, strict=True):
        total = motion @ total
        turned = float(rotation_angle(total[:3, :3], wanted[:3, :3]))
        free |= turned > 0.05 or float((total[:3, 3] - wanted[:3, 3]).norm()) > 0.01 + 0.05 * float(total[:3, 3].norm())
    if not free:
        return _steps(carry_joint(joint, similarity, unit).motions())
    inner, _, outer = torch.linalg.svd(similarity.linear()[0])
    frame = torch.eye(4)  # world to canonical metres, rigid but for a mirror, exact at the contact
    frame[:3, :3] = inner @ outer
    here = similarity.invert(contact[None])[0, 0]
    frame[:3, 3] = contact * unit - frame[:3, :3] @ here
    return torch.linalg.inv(frame) @ own @ frame


def carry_joint(joint: Joint, similarity: Similarity, unit: float) -> Joint:
    """A joint of the canonical frame (in metres: canonical units times `unit`) in the world."""
    linear = similarity.linear()[0]
    along = torch.linalg.solve(linear, joint.axis / unit)
    length = float(along.norm())
    axis = along / length
    point = similarity.invert(joint.point[None] / unit)[0, 0]
    if joint.kind == "prismatic":
        return Joint("prismatic", axis, point, joint.amount * length)
    handed = math.copysign(1.0, float(torch.linalg.det(linear)))  # a mirror turns rotations round
    return Joint("revolute", axis * handed, point, joint.amount)


def judge(similarity: Similarity, alignment: Alignment, volume: Volume, target: Target) -> dict[str, Any]:
    """How well the best alignment explains what is seen.

    Returns:
        `on_surface`: share of seen points within 2 cm of the aligned surface; `likeness`: mean cosine of descriptors;
        `rival`: cost of the best clearly different alignment over that of the best one, None if there is none.
    """
    value, _ = volume.look_up(similarity.apply(target.points))
    unit = float((-similarity.log_scale[0].mean()).exp())
    near = (value[0, :, 0].abs() * unit < 0.02).float().mean()
    likeness = torch.cosine_similarity(value[0, :, 1:-1], target.descriptors, dim=-1).mean()
    agreement = {"on_surface": round(float(near), 3), "likeness": round(float(likeness), 3)}
    return {**agreement, "rival": rival(alignment)}


def rival(alignment: Alignment, index: int = 0) -> float | None:
    """Cost of the best hypothesis that is clearly different from one over the cost of that one; None if there is none.

    Below 1 another place explains better what is seen.
    """
    others = [float(cost) for other, cost in enumerate(alignment.cost) if not alignment.same_place(index, other)]
    return round(min(others) / float(alignment.cost[index]), 3) if others else None


def _steps(total: Float[Tensor, "w 4 4"]) -> Float[Tensor, "w 4 4"]:
    """Motions between waypoints out of motions since the beginning."""
    before = torch.cat((pose_from(torch.eye(3), torch.zeros(3))[None], total[:-1]))
    return total @ inverse_pose(before)
