"""What the page's script draws: plain arrays, little-endian bytes in base64, in one JSON object."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from afield.demonstration import Demonstration
from afield.errors import AfieldError
from afield.hand import Hand
from afield.result import Grasp, GraspHistory
from afield.scene import Scene
from afield.view.hand_mesh import HandMesh, hand_mesh
from afield.view.panels import EnergySection, ReportPanels, attention_ratio, joint_feature_colors, palm_position
from afield.view.stage import Stage, stages_for

PATH_STEPS = 24
"""How many hand poses the slider holds."""
SLAB, WIDE_SLAB = 0.01, 0.04
"""Scene points within these distances of a section's plane are drawn into it strongly and faintly, in metres."""
FIELD_OF_VIEW = math.radians(45)
"""Vertical opening angle of plotly's perspective camera."""
PAIR_ASPECT, WIDE_ASPECT = 1.1, 1.9
"""Width by height of the 3-D pictures, side by side and alone; they vary a little with the window."""
CODES = {"f4": "<f4", "u1": "|u1", "u2": "<u2", "u4": "<u4"}


def page_data(
    hand: Hand, demonstration: Demonstration, scene: Scene, grasp: Grasp, panels: ReportPanels
) -> dict[str, Any]:
    """Everything `report.js` draws, JSON-able."""
    mesh = hand_mesh(hand)
    shown, here = joint_feature_colors(demonstration.scene.features, scene.features)
    kept = panels.field_colors or (None, None)
    placed = ((demonstration.scene, demonstration.beta), (scene, grasp.beta))
    stages = stages_for(hand, demonstration.points, placed)
    return {
        "hand": {
            "vertices": encode(mesh.vertices_link, "f4"),
            "link": encode(mesh.link, "u2"),
            "faces": encode(mesh.faces, "u4"),
            "arm": encode(mesh.arm_faces, "u4"),
            "links": len(hand.link_names),
        },
        "demo": _scene_data(demonstration.scene, (shown, kept[0]), hand, mesh, stages[0], demonstration.beta),
        "target": _scene_data(scene, (here, kept[1]), hand, mesh, stages[1], grasp.beta),
        "attention": [
            {
                which: {
                    "label": panel.label,
                    "points": point.tolist(),
                    "weights": encode(attention_ratio(weights), "f4"),
                }
                for which, point, weights in (
                    ("demo", panel.point_demo, panel.weights_demo),
                    ("target", panel.point_target, panel.weights_target),
                )
            }
            for panel in panels.attention
        ],
        "attention_points": {
            "demo": encode(_stack([p.point_demo for p in panels.attention]), "f4"),
            "target": encode(_stack([p.point_target for p in panels.attention]), "f4"),
        },
        "sections": [_section_data(section, scene) for section in panels.sections],
        "path": _path_data(hand, mesh, demonstration, scene, grasp.history),
        "energy": _energy_data(grasp.history),
        "frames": [jpeg(frame) for frame in panels.frames],
    }


def encode(values: Tensor | np.ndarray, dtype: str) -> dict[str, str]:
    """An array as base64 of its bytes."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    data = np.ascontiguousarray(array, dtype=np.dtype(CODES[dtype])).tobytes()
    return {"dtype": dtype, "bytes": base64.b64encode(data).decode("ascii")}


def jpeg(frame: UInt8[np.ndarray, "h w 3"], quality: int = 82) -> str:
    """An RGB picture as a data URL."""
    done, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise AfieldError(f"A picture of shape {frame.shape} cannot be written as JPEG.")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def recorded_steps(history: GraspHistory, count: int = PATH_STEPS) -> list[int]:
    """Which records a slider shows: the first, the last, and more of the early ones, where the hand moves most."""
    last = len(history.beta) - 1
    return sorted({round(last * (k / max(1, count - 1)) ** 1.5) for k in range(count)})


def _stack(points: list[Tensor]) -> Tensor:
    return torch.stack(points) if points else torch.zeros(0, 3)


def _rgb(colors: Float[Tensor, "n 3"]) -> dict[str, str]:
    return encode((colors.clamp(0, 1) * 255).round(), "u1")


def _pose_rows(hand: Hand, beta: Float[Tensor, "s d"]) -> dict[str, str]:
    """The upper three rows of every link's pose."""
    with torch.no_grad():
        return encode(hand.link_poses(beta)[..., :3, :], "f4")


def _box(*points: Tensor | None) -> list[list[float]]:
    """Smallest box around points, 2 cm wider; lower and upper corner."""
    every = torch.cat([p.detach().reshape(-1, 3).cpu() for p in points if p is not None])
    return [(every.amin(dim=0) - 0.02).tolist(), (every.amax(dim=0) + 0.02).tolist()]


def _camera(stage: Stage, box: list[list[float]], aspect: float) -> dict[str, Any]:
    """The fixed axes and the first camera of a plotly scene, in metres."""
    center, distance = stage.fit(FIELD_OF_VIEW, aspect)
    return {"box": box, "center": center.tolist(), "eye": (center + distance * stage.direction).tolist()}


def _scene_data(
    scene: Scene,
    features: tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"] | None],
    hand: Hand,
    mesh: HandMesh,
    stage: Stage,
    beta: Float[Tensor, "d"],
) -> dict[str, Any]:
    raw, kept = features
    with torch.no_grad():
        vertices = mesh.pose(hand.link_poses(beta))
    return {
        "points": encode(scene.points, "f4"),
        "natural": _rgb(scene.colors),
        "pca": _rgb(raw),
        "kept": None if kept is None else _rgb(kept),
        "pose": _pose_rows(hand, beta[None]),
        "table": None if stage.table is None else encode(stage.table, "f4"),
        **_camera(stage, _box(scene.points, vertices, stage.table), PAIR_ASPECT),
    }


def _section_data(section: EnergySection, scene: Scene) -> dict[str, Any]:
    plane = section.plane
    return {
        "across": encode(section.across, "f4"),
        "up": encode(section.up, "f4"),
        "values": encode(section.scaled, "f4"),
        "near": encode(points_in_section(section, scene, 0.0, SLAB), "f4"),
        "beside": encode(points_in_section(section, scene, SLAB, WIDE_SLAB), "f4"),
        "lowest": section.lowest.tolist(),
        "across_label": "across the fingers (cm)",
        "up_label": "height (cm)" if plane.name == "vertical" else "along the fingers (cm)",
    }


def points_in_section(section: EnergySection, scene: Scene, low: float, high: float) -> Float[Tensor, "k 2"]:
    """Scene points between two distances from a section's plane, as offsets (across, up) in metres."""
    plane = section.plane
    offset = scene.points.detach().cpu() - plane.center.cpu()
    away = (offset @ torch.linalg.cross(plane.across, plane.up).cpu()).abs()
    chosen = offset[(away >= low) & (away < high)]
    return torch.stack((chosen @ plane.across.cpu(), chosen @ plane.up.cpu()), dim=-1)


def _path_data(
    hand: Hand, mesh: HandMesh, demonstration: Demonstration, scene: Scene, history: GraspHistory
) -> dict[str, Any] | None:
    if not len(history.beta):
        return None
    chosen = recorded_steps(history)
    beta = history.beta[chosen]
    with torch.no_grad():
        vertices = mesh.pose(hand.link_poses(beta))
    palm = palm_position(hand, history.beta)
    with torch.no_grad():
        begin = hand.place(demonstration.points, beta[0])
    (stage,) = stages_for(hand, demonstration.points, [(scene, beta[-1])], begin, palm)
    total = _total(history)
    return {
        "steps": history.step[chosen].tolist(),
        "energy": [float(total[index]) for index in chosen],
        "poses": _pose_rows(hand, beta),
        "palm": encode(palm, "f4"),
        **_camera(stage, _box(scene.points, vertices, palm, stage.table), WIDE_ASPECT),
    }


def _total(history: GraspHistory) -> Float[Tensor, "steps"]:
    return torch.stack(list(history.terms.values())).sum(dim=0)


def _energy_data(history: GraspHistory) -> dict[str, Any] | None:
    if not len(history.beta) or not history.terms:
        return None
    total = _total(history)
    lines = [("total", total), *((name.replace("_", " "), values) for name, values in history.terms.items())]
    first, rounds = 0, []
    for stage in history.stages:
        rounds.append({"step": first, "starts": int(stage["starts"])})
        first += int(stage["steps"])
    return {
        "steps": encode(history.step, "f4"),
        "lines": [{"name": name, "values": encode(values, "f4")} for name, values in lines if bool((values > 0).any())],
        "floor": max(1e-9, float(total.min()) * 1e-4),
        "rounds": rounds,
        "starts": start_groups(history),
    }


def start_groups(history: GraspHistory) -> list[Mapping[str, Any]]:
    """All starts by their last energy, grouped by the round that gave them up; the winner is a group of its own."""
    energy = history.start_energy.double()
    ended = torch.zeros(len(energy), dtype=torch.long)
    for number, (alive, _, _) in enumerate(history.rounds):
        ended[alive] = number
    last = int(ended.max())
    winner = history.winner
    rank = energy.argsort().argsort() + 1
    steps = [int(stage["steps"]) for stage in history.stages]
    groups: list[Mapping[str, Any]] = []
    for number in range(last + 1):
        members = [i for i in range(len(energy)) if int(ended[i]) == number and i != winner and energy[i].isfinite()]
        given_up = sum(steps[: number + 1])
        name = "finished" if number == last else f"given up after {given_up} steps" if given_up else "not begun"
        groups.append(_group(name, members, energy, rank))
    return [group for group in groups if group["start"]] + [
        {**_group("chosen", [winner], energy, rank), "winner": True}
    ]


def _group(name: str, members: list[int], energy: Tensor, rank: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "start": members,
        "rank": [int(rank[i]) for i in members],
        "energy": [float(energy[i]) for i in members],
        "winner": False,
    }
