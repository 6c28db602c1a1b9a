"""`afield bench align`: does a skill find its place on *other instances*, seen once from one side?

Before anything is built on an alignment, this shows whether it holds: pairs of different microwaves, cabinets, drawers and
laptops, one RGB-D view within 60 degrees of the front, other sizes, real features. Every row is another way to align.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from afield.alignment import AlignConfig, Weights
from afield.artifacts import read_json
from afield.capture.articulated import (
    ArticulatedObject,
    Photographs,
    Placed,
    photograph_object,
    place,
    read_objects,
    ring,
)
from afield.capture.opengl import draw_elsewhere
from afield.distill import FitConfig, Flow, Labels, fit_affordance
from afield.distill.labels import describe_views
from afield.errors import AfieldError
from afield.fields.volume import Volume
from afield.geometry import look_at
from afield.observation import Camera
from afield.perception.features import extractor_by_name
from afield.skills import DescriptorBasis, Skill
from afield.target import Target, see_target
from afield.transfer_skill import SkillTransferConfig, transfer_skill

EXTRACTOR = "dinov2-s-embedded"
SHIPPED = Path(__file__).parents[1] / "samples" / "articulated_objects.json"
NO_FEATURES = 1e6
"""So wide that a residual does not count."""


@dataclass(frozen=True)
class AlignBenchConfig:
    """What is aligned with what."""

    objects: Path = SHIPPED
    """Manifest of articulated objects with the pairs."""
    trials: int = 10
    """Views per pair."""
    rows: tuple[str, ...] = ()
    """Only these ways to align."""
    out: Path = Path("runs/bench_align")
    """Work folder: skills and trials; an interrupted run goes on from there."""
    seed: int = 0


ROWS: dict[str, AlignConfig] = {
    "surface": AlignConfig(weights=Weights(feature=NO_FEATURES), fine=0),
    "both": AlignConfig(fine=0),
    "default": AlignConfig(),
    "rigid": AlignConfig(weights=Weights(stretch=0.0), mirror=False),
}


@dataclass(frozen=True)
class Truth:
    """What the maker of a scene knows of it, in the world."""

    handle: np.ndarray
    """Points on the handle."""
    kind: str
    point: np.ndarray
    axis: np.ndarray
    diagonal: float
    contact: tuple[float, float, float] = (0.0, 0.0, 0.0)


def run(config: AlignBenchConfig, *, progress: bool = True) -> dict[str, Any]:
    """Align every pair in every way; see the module's head.

    Returns:
        `share_ok` per row and pair, `share_ok_default` over all pairs of different instances, and every trial.
    """
    manifest = read_objects(config.objects)
    pairs = read_json(config.objects).get("pairs", [])
    rows = {name: ROWS[name] for name in (config.rows or ROWS)}
    trials, skipped = [], []
    work = [(a, b, trial) for a, b in pairs for trial in range(config.trials)]
    for first, second, trial in tqdm(work, "align", unit="trial", disable=not progress):
        try:
            skill = make_skill(manifest[first], config)
            trials += _trial(skill, manifest[second], trial, rows, config)
        except AfieldError as error:
            if trial == 0:
                skipped.append({"pair": [first, second], "why": str(error)})
    return {"trials": trials, "skipped": skipped, **summarize(trials)}


def make_skill(item: ArticulatedObject, config: AlignBenchConfig) -> Skill:
    """Fit an object from twelve posed pictures with true contact and flow; kept in the work folder."""
    folder = config.out / "skills" / item.name
    if folder.exists():
        return Skill.load(folder)
    observation, labels, basis = draw_elsewhere(_show, item, config.seed)
    fitted = fit_affordance(observation, labels, FitConfig(flow_steps=300, seed=config.seed), progress=False)
    skill = Skill(
        item.name,
        f"open the {item.kind}",
        fitted.field,
        fitted.center,
        fitted.scale,
        basis,
        floor=float(-fitted.center[2] / fitted.scale),
        picture=observation.views[0].color,
    )
    skill.save(folder)
    return skill


def _show(item: ArticulatedObject, seed: int) -> Any:
    cameras = ring(place(item), 12, 160)
    placed = place(item, cameras=cameras)
    pictures = photograph_object(placed, cameras)
    maps, mean, basis = describe_views(pictures.observation, extractor_by_name(EXTRACTOR), progress=False)
    labels = Labels(tuple(pictures.handle), maps, 0.0, true_flow(placed, pictures, 600, seed=seed))
    return pictures.observation, labels, DescriptorBasis(EXTRACTOR, mean, basis)


def _trial(
    skill: Skill, item: ArticulatedObject, trial: int, rows: Mapping[str, AlignConfig], config: AlignBenchConfig
) -> list[dict[str, Any]]:
    target, truth = draw_elsewhere(_scene, item, skill.basis, config.seed * 1000 + trial)
    volume = Volume.bake(skill.field)
    found = []
    for name, align in rows.items():
        begin = time.monotonic()
        result = transfer_skill(skill, target, volume, SkillTransferConfig(align=align))
        seconds = time.monotonic() - begin
        found.append(
            {
                "skill": skill.name,
                "target": item.name,
                "trial": trial,
                "row": name,
                **compare(result, truth),
                "seconds": round(seconds, 3),
                "quality": dict(result.quality),
            }
        )
    return found


def _scene(item: ArticulatedObject, basis: DescriptorBasis, seed: int) -> tuple[Target, Truth]:
    """One view of an instance of another size, within 60 degrees of its front."""
    draw = np.random.default_rng(seed).uniform
    scale, turn, lift = float(draw(0.8, 1.3)), math.radians(float(draw(-60, 60))), math.radians(float(draw(15, 45)))
    placed = place(item, scale=scale)
    diagonal = float(np.linalg.norm(placed.size))
    middle = torch.tensor([0.0, 0.0, float(placed.size[2]) / 2])
    away = torch.tensor([math.sin(turn) * math.cos(lift), -math.cos(turn) * math.cos(lift), math.sin(lift)])
    pose = look_at(middle + float(draw(1.5, 2.2)) * diagonal * away, middle, torch.tensor([0.0, 0.0, 1.0]))
    camera = Camera(640, 480, 560.0, 560.0, 319.5, 239.5, pose)
    placed = place(item, scale=scale, cameras=[camera])
    pictures = photograph_object(placed, [camera])
    target = see_target(pictures.observation, basis, extractor_by_name(EXTRACTOR), seed=seed, progress=False)
    kind, point, axis = placed.axis
    return target, Truth(placed.handle_points(), kind, point, axis, diagonal)


def compare(result: Any, truth: Truth) -> dict[str, Any]:
    """Errors of one transfer; `ok` is a contact within 5 cm and an axis within 15 degrees of the truth."""
    rotation = result.alignment.similarity.rotation[0]
    yaw = math.degrees(math.atan2(float(rotation[1, 0]), float(rotation[0, 0])))
    contact = float(np.linalg.norm(truth.handle - result.contact.numpy(), axis=1).min())
    axis = result.joint.axis.numpy()
    cosine = float(np.clip(axis @ truth.axis, -1, 1))
    same = (result.joint.kind == "prismatic") == (truth.kind == "slide")
    axis_error = math.degrees(math.acos(cosine)) if same else 180.0
    away = result.joint.point.numpy() - truth.point
    position = (
        float(np.linalg.norm(away - (away @ truth.axis) * truth.axis)) if truth.kind == "hinge" and same else None
    )
    return {
        "yaw_deg": round(yaw, 1),
        "contact_cm": round(100 * contact, 2),
        "contact_percent": round(100 * contact / truth.diagonal, 2),
        "axis_deg": round(axis_error, 1),
        "axis_cm": None if position is None else round(100 * position, 2),
        "mirrored": bool(result.alignment.similarity.sign[0, 0] < 0),
        "ok": bool(contact < 0.05 and axis_error < 15.0),
    }


def summarize(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares and medians by row and pair."""
    table: dict[str, Any] = {}
    for trial in trials:
        pair = f"{trial['skill']} -> {trial['target']}"
        table.setdefault(trial["row"], {}).setdefault(pair, []).append(trial)
    rows = {
        row: {
            pair: {
                "ok": round(float(np.mean([t["ok"] for t in found])), 3),
                **{
                    key: round(float(np.median([abs(t[key]) for t in found])), 2)
                    for key in ("yaw_deg", "contact_cm", "contact_percent", "axis_deg", "seconds")
                },
            }
            for pair, found in pairs.items()
        }
        for row, pairs in table.items()
    }
    others = [t for t in trials if t["skill"] != t["target"] and t["row"] == "default"]
    share = round(float(np.mean([t["ok"] for t in others])), 3) if others else None
    return {"rows": rows, "share_ok_default": share}


def true_flow(placed: Placed, pictures: Photographs, count: int, horizon: int = 32, seed: int = 0) -> Flow:
    """Where points that the cameras see go while the joint opens; half of them lie on the moving part."""
    generator = torch.Generator().manual_seed(seed)
    points, moves = [], []
    for view, part in zip(pictures.observation.views, pictures.moving, strict=True):
        rows, columns = np.nonzero(view.mask & (view.depth > 0))
        pixels = torch.from_numpy(np.stack((columns, rows), axis=1)).float()
        points.append(view.camera.backproject(pixels, torch.from_numpy(view.depth[rows, columns]).float()))
        moves.append(torch.from_numpy(part[rows, columns]))
    place, mine = torch.cat(points), torch.cat(moves)
    chosen = []
    for which in (mine, ~mine):
        index = which.nonzero()[:, 0]
        chosen.append(index[torch.randperm(len(index), generator=generator)[: count // 2]])
    start, mine = place[torch.cat(chosen)], mine[torch.cat(chosen)]
    steps = []
    for step in range(1, horizon + 1):
        motion = torch.from_numpy(placed.motion(placed.item.travel * step / horizon)).float()
        steps.append(torch.where(mine[:, None], start @ motion[:3, :3].T + motion[:3, 3] - start, 0.0))
    return Flow(start, torch.stack(steps, dim=1), torch.ones(len(start), horizon))
