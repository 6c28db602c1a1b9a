"""Pictures of a skill: every modality of its affordance function, and where it was found in the robot's picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from afield.fields.rendering import Rendered, camera_rays, render
from afield.geometry import look_at
from afield.observation import Camera, View
from afield.skill_run import SkillRun
from afield.skills import Skill

CONTACT, PATH, AXIS, FLOW = (209, 73, 170), (31, 157, 85), (230, 150, 30), (44, 108, 176)
"""RGB of the contact region, the gripper's path, the joint, the flow."""
PAPER = 246.0
"""Gray behind rendered objects."""
Picture = UInt8[np.ndarray, "h w 3"]


def modalities(skill: Skill, size: int = 220) -> dict[str, Picture]:
    """Colour, normals, descriptors, contact and flow of a skill, rendered from the side that is touched."""
    camera = _facing(skill, size)
    with torch.no_grad():
        seen = _render(skill, camera, size)
    solid = seen.opacity[:, None]

    def paint(colors: Float[Tensor, "p 3"], share: Float[Tensor, "p 1"] = solid) -> Picture:
        image = share * colors.clamp(0, 1) * 255 + (1 - share) * PAPER
        return image.reshape(size, size, 3).round().byte().numpy()

    descriptor = seen.descriptor / seen.opacity.clamp_min(1e-3)[:, None]
    inside = seen.opacity > 0.5
    gray = seen.color.mean(dim=-1, keepdim=True).expand(-1, 3) * 0.6 + 0.3
    tint = torch.tensor(CONTACT) / 255.0
    touched = (seen.contact / seen.opacity.clamp_min(1e-3))[:, None].clamp(0, 1)
    return {
        "colour": paint(seen.color / solid.clamp_min(1e-3)),
        "normals": paint((seen.normal + 1) / 2),
        "descriptors": paint(_three_colors(descriptor, inside)),
        "contact": paint(gray * (1 - touched) + tint * touched),
        "flow": _with_flow(paint(gray), skill, camera),
    }


def found(run: SkillRun, view: View) -> Picture:
    """The robot's picture with the contact region, the joint's axis and the gripper's path drawn into it."""
    picture = np.ascontiguousarray(view.color.copy())
    thick = max(1, view.camera.width // 320)
    index = torch.tensor([0])
    region = run.similarity[index].invert(run.skill.contact_points(4000))[0]
    for x, y in _pixels(view.camera, region):
        cv2.circle(picture, (x, y), thick, CONTACT, -1, cv2.LINE_AA)
    if run.joint.kind == "revolute":
        reach = 0.15 * run.joint.axis
        middle = run.joint.point + run.joint.axis * ((run.contact - run.joint.point) @ run.joint.axis)
        _line(picture, view.camera, torch.stack((middle - reach, middle + reach)), AXIS, 2 * thick)
    moving = [k for k, label in enumerate(run.trajectory.labels) if label in ("grasp", "move")]
    _line(picture, view.camera, run.trajectory.poses[moving, :3, 3], PATH, 2 * thick)
    for pose in run.trajectory.poses[moving[:: max(1, len(moving) // 4)]]:
        _line(picture, view.camera, gripper_lines(pose), PATH, thick)
    return picture


def gripper_lines(pose: Float[Tensor, "4 4"], half: float = 0.03, length: float = 0.045) -> Float[Tensor, "7 3"]:
    """A fork that shows a gripper: finger, palm, wrist, palm, finger, in the world."""
    y, z = half, -length
    points = torch.tensor(
        [[0, y, 0.0], [0, y, z], [0, 0, z], [0, 0, 1.7 * z], [0, 0, z], [0, -y, z], [0, -y, 0]], dtype=torch.float32
    )
    return points @ pose[:3, :3].T + pose[:3, 3]


def _facing(skill: Skill, size: int) -> Camera:
    """A camera a little to the side of where the object is touched, in the canonical frame."""
    turn = torch.arange(24) * (2 * math.pi / 24)
    circle = torch.stack((turn.cos(), turn.sin(), torch.full((24,), 0.4)), dim=-1)
    region = skill.contact_points(3000)[:60]
    along = torch.linspace(0.08, 2.0, 24)
    way = region[None, :, None] + circle[:, None, None] * along[:, None]
    with torch.no_grad():
        hidden = (skill.field.sdf(way.reshape(-1, 3)) < -0.04).reshape(24, len(region), -1).any(dim=-1)
    free = 1.0 - hidden.float().mean(dim=-1)
    front = functional.normalize((free[:, None] * circle).sum(dim=0) * torch.tensor([1.0, 1.0, 0.0]) + 1e-6, dim=0)
    lean = math.radians(32.0)
    side = torch.stack(
        (
            front[0] * math.cos(lean) - front[1] * math.sin(lean),
            front[0] * math.sin(lean) + front[1] * math.cos(lean),
            torch.tensor(0.55),
        )
    )
    eye = 4.2 * functional.normalize(side, dim=0)
    pose = look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return Camera(size, size, 1.75 * size, 1.75 * size, (size - 1) / 2, (size - 1) / 2, pose)


def _render(skill: Skill, camera: Camera, size: int) -> Rendered:
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pixels = torch.stack((column, row), dim=-1).reshape(-1, 2).float()
    parts = [render(skill.field, camera_rays(camera, part, torch.zeros(3), 1.0)) for part in pixels.split(8192)]
    names = ("opacity", "depth", "color", "normal", "descriptor", "contact")
    return Rendered(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _three_colors(values: Float[Tensor, "p d"], inside: Tensor) -> Float[Tensor, "p 3"]:
    """The three main directions of some descriptors as colours."""
    kept = values[inside]
    center = kept.mean(dim=0)
    _, _, axes = torch.linalg.svd(kept - center, full_matrices=False)
    shown = (values - center) @ axes[:3].T
    low, high = torch.quantile(shown[inside][:: 1 + len(kept) // 100_000], torch.tensor([0.03, 0.97]), dim=0)
    return (shown - low) / (high - low).clamp_min(1e-6)


def _with_flow(picture: Picture, skill: Skill, camera: Camera, count: int = 160) -> Picture:
    """Tracks of surface points that move, drawn over a picture of the object."""
    picture = np.ascontiguousarray(picture)
    points, normals = skill.field.surface(1500, torch.Generator().manual_seed(1))
    with torch.no_grad():
        displacement, _ = skill.field.flow(points)
    facing = ((camera.position - points) * normals).sum(dim=-1) > 0
    moving = (displacement[:, -1].norm(dim=-1) > 0.1) & facing
    chosen = moving.nonzero()[:count, 0]
    for start, moved in zip(points[chosen], displacement[chosen], strict=True):
        _line(picture, camera, torch.cat((start[None], start + moved[3::4])), FLOW, 1)
    return picture


def _pixels(camera: Camera, points: Float[Tensor, "n 3"]) -> list[tuple[int, int]]:
    pixel, depth = camera.project(points)
    return [(round(x), round(y)) for (x, y), z in zip(pixel.tolist(), depth.tolist(), strict=True) if z > 0.05]


def _line(picture: Picture, camera: Camera, points: Float[Tensor, "n 3"], color: Sequence[int], thick: int) -> None:
    place = np.array(_pixels(camera, points), dtype=np.int32)
    if len(place) > 1:
        cv2.polylines(picture, [place.reshape(-1, 1, 2)], False, tuple(color), thick, cv2.LINE_AA)
