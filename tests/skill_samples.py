"""An affordance function in closed form, to align and decode without fitting: a box with a knob and a hinged front."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from afield.fields.affordance import sample_surface
from afield.geometry import rotation_about_axis
from afield.skills import DescriptorBasis, Skill
from afield.target import Target

HALF = torch.tensor([0.9, 0.6, 0.5])
KNOB = torch.tensor([0.7, -0.72, 0.1])
HINGE = torch.tensor([-0.9, -0.6, 0.0])
ANGLE = 1.2


@dataclass(frozen=True)
class BoxConfig:
    channels: int = 8


class BoxWithKnob(nn.Module):
    """Its front looks along -y; the front and the knob turn about the left edge by ANGLE."""

    backend = "closed-form"
    channels = 8
    config = BoxConfig()

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = torch.tensor(150.0)
        spread = torch.Generator().manual_seed(3)
        self.register_buffer("waves", torch.randn(3, 8, generator=spread) * 1.5)

    def sdf(self, points: Tensor) -> Tensor:
        away = points.abs() - HALF
        box = away.clamp_min(0.0).norm(dim=-1) + away.amax(dim=-1).clamp_max(0.0)
        return torch.minimum(box, (points - KNOB).norm(dim=-1) - 0.15)

    def normal(self, points: Tensor) -> Tensor:
        with torch.enable_grad():
            at = points.detach().requires_grad_(True)
            return torch.autograd.grad(self.sdf(at).sum(), at)[0]

    def appearance(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        descriptor = functional.normalize((points @ self.waves).sin(), dim=-1)
        contact = ((0.2 - (points - KNOB).norm(dim=-1)) * 40).sigmoid()
        return (points + 1) / 2, descriptor, contact

    def flow(self, points: Tensor) -> tuple[Tensor, Tensor]:
        front = points[:, 1] < -0.55
        angle = torch.linspace(ANGLE / 32, ANGLE, 32)
        turn = rotation_about_axis(torch.tensor([0.0, 0.0, -1.0]).expand(32, 3), angle)
        moved = torch.einsum("hab,nb->nha", turn, points - HINGE) + HINGE - points[:, None]
        return moved * front[:, None, None], torch.ones(len(points), 32)

    def surface(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return sample_surface(self, count, 64, generator)


def box_skill(scale: float = 0.2) -> Skill:
    basis = DescriptorBasis("color", torch.zeros(3), torch.zeros(3, 8))
    return Skill("box", "open the box", BoxWithKnob(), torch.zeros(3), scale, basis, floor=-0.5)


def seen_box(
    function: BoxWithKnob, pose: Tensor, size: Tensor, *, turn: float = 0.4, count: int = 500, seed: int = 0
) -> Target:
    """What a camera would see of the box.

    Args:
        function: the box.
        pose: T_world_object, rigid.
        size: metres per canonical unit along each axis.
        turn: of the camera from the front, in radians.
        count: points.
        seed: of the points.
    """

    def world(x: Tensor) -> Tensor:
        return (x * size) @ pose[:3, :3].T + pose[:3, 3]

    spread = torch.Generator().manual_seed(seed)
    points, normals = function.surface(6 * count, spread)
    eye = 4.0 * torch.tensor([math.sin(turn) * 0.9, -math.cos(turn) * 0.9, 0.45])
    seen = ((eye - points) * normals).sum(dim=-1) > 0.1
    points, normals = points[seen][:count], normals[seen][:count]
    away = torch.rand(4 * count, 3, generator=spread) * 3.2 - 1.6
    front = away[(function.sdf(away) > 0.05) & (((away - torch.zeros(3)) * eye).sum(dim=-1) > 0.6)][:count]

    floor = float(world(torch.tensor([[0.0, 0.0, -0.5]]))[0, 2])
    seen_by = torch.zeros(len(points), dtype=torch.long)
    return Target(
        world(points),
        function.appearance(points)[1],
        normals,
        world(front),
        world(eye[None]),
        seen_by,
        torch.zeros(0, 3),
        floor,
    )


def somewhere(yaw: float) -> Tensor:
    """A pose on a table."""
    pose = torch.eye(4)
    pose[:3, :3] = rotation_about_axis(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(yaw))
    pose[:3, 3] = torch.tensor([0.4, -0.2, 0.3])
    return pose
