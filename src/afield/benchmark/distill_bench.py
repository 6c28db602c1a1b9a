"""`afield bench distill`: how far each stage of the distillation is from the truth, on rendered videos of a human hand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afield.artifacts import HEADER_NAME, read_json
from afield.capture.hand_tasks import TASKS, HandTask, task_by_name
from afield.capture.hand_videos import Truth, VideoConfig, contact_region, load_truth, render_video
from afield.capture.opengl import draw_elsewhere
from afield.distill.from_video import DistillConfig, Distilled, distill_video
from afield.errors import AfieldError
from afield.geometry import rotation_angle
from afield.observation import Camera
from afield.perception.cameras import CameraPath

FIGURES = (
    "camera_rotation_deg",
    "camera_position_percent",
    "focal_error_percent",
    "depth_error_percent",
    "depth_coverage",
    "surface_error_percent",
    "mask_iou",
    "hand_recall",
    "contact_frame_error",
    "release_frame_error",
    "contact_iou",
    "track_error_percent",
    "still_error_percent",
    "up_error_deg",
    "seconds",
)
"""In the order in which they are printed; what each means is in docs/distill.md."""
SAME_PLACE = 0.015
"""Metres by which the depth of a surface point may differ between what two frames say about it."""


@dataclass(frozen=True)
class DistillBenchConfig:
    """Which videos."""

    tasks: int = len(TASKS)
    """How many of the tasks, in their order."""
    names: tuple[str, ...] = ()
    """These tasks instead."""
    out: Path = Path("runs/bench_distill")
    """Work folder: videos that are there are not rendered again, and an interrupted run goes on."""
    seed: int = 0
    """Of instances, rooms and camera paths."""
    seeds: int = 1
    """So many videos of every task, with this seed and those after it."""
    start: str | None = None
    """Run the stages from this one on again."""


def run(config: DistillBenchConfig | None = None, *, progress: bool = True) -> dict[str, Any]:
    """Distil every video with a box around the object as the only help, and compare each stage with the truth.

    Returns:
        `videos`: per task (and seed, if there are several) the figures, or `error`, the sentence with which a stage stopped;
        `median` of each figure over all videos, in which one that stopped counts as the worst; `median_of_finished` without
        those; `stopped`: how many did.
    """
    config = config or DistillBenchConfig()
    names = config.names or tuple(TASKS)[: config.tasks]
    if not config.names and not 1 <= config.tasks <= len(TASKS):
        raise AfieldError(f"--tasks must be between 1 and {len(TASKS)}, not {config.tasks}.")
    if config.seeds < 1:
        raise AfieldError(f"--seeds must be at least 1, not {config.seeds}.")
    videos = {}
    for seed in range(config.seed, config.seed + config.seeds):
        for name in names:
            folder = config.out / f"{name}_{seed}"
            if not (folder / "video" / HEADER_NAME).is_file():
                draw_elsewhere(render_video, folder / "video", VideoConfig(task=name, seed=seed), progress=progress)
            found = _one(folder, name, seed, config.start, progress)
            videos[name if config.seeds == 1 else f"{name} {seed}"] = found
    median = {figure: median_of([video.get(figure) for video in videos.values()], figure) for figure in FIGURES}
    finished = [video for video in videos.values() if "error" not in video]
    among = {figure: median_of([video[figure] for video in finished], figure) for figure in FIGURES} if finished else {}
    stopped = len(videos) - len(finished)
    return {
        "videos": videos,
        "median": median,
        "median_of_finished": among,
        "stopped": stopped,
        "seed": config.seed,
        "seeds": config.seeds,
    }


def _one(folder: Path, name: str, seed: int, start: str | None, progress: bool) -> dict[str, Any]:
    truth = load_truth(folder / "video" / "truth")
    begin = time.process_time()
    narration = read_json(folder / "video" / HEADER_NAME)["narration"]
    video, settings = folder / "video" / "video.mp4", box_settings(truth, truth_reference(folder), seed)
    try:
        found = distill_video(
            video,
            narration,
            folder / "run",
            settings,
            start=start,
            stop="views",
            progress=progress,
        )
    except AfieldError as error:
        return {"error": str(error)}
    return {**compare(found, truth, task_by_name(name, seed)), "seconds": round(time.process_time() - begin, 1)}


def box_settings(truth: Truth, frame: int, seed: int) -> DistillConfig:
    """With a box as the only help that a person gives, who draws it in a frame before the hand comes and says which."""
    return DistillConfig(box=object_box(truth, frame), prompt_frame=frame, extractor=None, seed=seed)


def truth_reference(folder: Path) -> int:
    """A frame shortly before the hand comes, in which the box is drawn."""
    return int(read_json(folder / "video" / HEADER_NAME)["config"]["free"]) - 1


def object_box(truth: Truth, frame: int, margin: int = 5) -> tuple[int, int, int, int]:
    """What a person would draw around the object: a little larger than it."""
    rows, columns = np.nonzero(truth.mask(frame))
    return int(columns.min()) - margin, int(rows.min()) - margin, int(columns.max()) + margin, int(rows.max()) + margin


def compare(found: Distilled, truth: Truth, task: HandTask) -> dict[str, float]:
    """All figures of one video; lengths are compared after the one scale that a video cannot tell was taken from the depth."""
    reference = found.contact.free_frame
    true_depth, mask = truth.depth(reference), truth.mask(reference)
    depth = found.depth.reference(found.video.size)
    small = found.depth.depth[-1]
    known = cv2.resize(small, depth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    scale = float(np.median((true_depth / np.maximum(depth, 1e-6))[mask & known]))
    inside = mask & known
    figures: dict[str, float] = {
        **compare_cameras(found.cameras, truth.cameras, reference, scale, float(np.median(true_depth[mask]))),
        "depth_error_percent": _percent_off(depth * scale, true_depth, inside),
        "depth_coverage": float(inside.sum() / mask.sum()),
        "surface_error_percent": _percent_off(found.surface * scale, true_depth, mask & found.masks.masks[reference]),
        "mask_iou": float(np.mean([_iou(found.masks.masks[i], truth.mask(i)) for i in range(len(truth.cameras))])),
        "hand_recall": hand_recall(found, truth),
        "contact_frame_error": float(abs(found.contact.contact_frame - truth.contact_frame)),
        "release_frame_error": float(abs(found.contact.release_frame - truth.release_frame)),
        "contact_iou": _iou(found.contact.region, true_contact(task, truth, reference)),
        **compare_tracks(found, truth, scale, float(np.linalg.norm(task.thing.size))),
    }
    return {name: round(value, 3) for name, value in figures.items()}


def compare_cameras(
    found: CameraPath, cameras: Sequence[Camera], reference: int, scale: float, away: float
) -> dict[str, float]:
    """Rotation and place relative to the reference frame, focal length, and where up is.

    Args:
        found: the estimated path.
        cameras: the true ones.
        reference: frame that both have in common.
        scale: true metres a unit of the path.
        away: how far the object is in the reference frame, in metres; places are told in per cent of it.
    """
    poses, true = found.T_world_camera, torch.stack([camera.T_world_camera for camera in cameras])
    own, real = poses[reference, :3, :3], true[reference, :3, :3]
    angle = rotation_angle(own.T @ poses[:, :3, :3], real.T @ true[:, :3, :3])
    places = [(path[:, :3, 3] - path[reference, :3, 3]) @ path[reference, :3, :3] for path in (poses, true)]
    up = torch.dot(own[2], real[2]).clamp(-1, 1).arccos()
    focal = cameras[0].fx
    return {
        "camera_rotation_deg": float(torch.rad2deg(angle).median()),
        "camera_position_percent": 100 * float((scale * places[0] - places[1]).norm(dim=-1).median()) / away,
        "focal_error_percent": 100 * abs(found.focal - focal) / focal,
        "up_error_deg": float(torch.rad2deg(up)),
    }


def true_contact(task: HandTask, truth: Truth, frame: int) -> Bool[np.ndarray, "h w"]:
    """What the hand will touch, as a frame before the motion sees it."""
    return contact_region(task, truth.cameras[frame], truth.depth(frame), truth.mask(frame))


def compare_tracks(found: Distilled, truth: Truth, scale: float, diagonal: float) -> dict[str, float]:
    """Mean distance between the points of the flow and the truth about the same surface points, in per cent of the diagonal."""
    tracks, reference = found.tracks, found.contact.free_frame
    flow = found.labels.flow
    assert flow is not None, "the stages always make one"
    pixels = torch.from_numpy(tracks.pixels[reference]).float()
    column, row = pixels.round().long().T.numpy()
    camera = truth.cameras[reference]
    start = camera.backproject(pixels, torch.from_numpy(truth.depth(reference)[row, column]))
    moves, known = truly_moving(truth, start)
    object_pixel = truth.mask(reference)[row, column] & known
    rest_before = truth.motion[reference]
    errors = []
    times = np.linspace(found.contact.contact_frame, found.contact.release_frame, flow.displacement.shape[1] + 1)[1:]
    for step, moment in enumerate(times):
        low = int(np.floor(moment))
        share = moment - low
        high = min(low + 1, len(truth.cameras) - 1)
        real = sum(
            weight * _moved(start, truth.motion[index] @ torch.linalg.inv(rest_before))
            for weight, index in ((1 - share, low), (share, high))
        )
        real = torch.where(torch.from_numpy(moves)[:, None], real, start)
        own = _in_camera(found.cameras.camera(reference), flow.start + flow.displacement[:, step]) * scale
        errors.append((own - _in_camera(camera, real)).norm(dim=-1))
    error, rests = torch.stack(errors).mean(dim=0).numpy(), ~moves & object_pixel
    return {
        "track_error_percent": 100 * float(error[moves & object_pixel].mean()) / diagonal,
        "still_error_percent": 100 * float(error[rests].mean()) / diagonal if rests.any() else 0.0,
    }


def truly_moving(truth: Truth, points: Float[Tensor, "n 3"]) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Which points, in the world before the motion, belong to the part that will move, and of which that is known.

    The truth is a mask of the first frame; what an open door hides there, and another frame shows, is not known.
    """
    place, away = truth.cameras[0].project(points)
    height, width = truth.moving.shape
    column, row = place.round().long().numpy().T
    row, column = row.clip(0, height - 1), column.clip(0, width - 1)
    near = np.abs(truth.depth(0)[row, column] - away.numpy()) < SAME_PLACE
    return truth.moving[row, column], near


def hand_recall(found: Distilled, truth: Truth) -> float:
    """Share of the frames with at least 1% of hand or sleeve in which the hand was found."""
    there = np.array([truth.hand(i).mean() > 0.01 for i in range(len(truth.cameras))])
    return float((found.hands.state[there] == 2).mean())


def markdown(result: dict[str, Any]) -> str:
    """The figures as a table, a video a line."""
    lines = ["| task | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    among = [("median of those that finish", result["median_of_finished"])] if result["median_of_finished"] else []
    for name, video in (*result["videos"].items(), ("median", result["median"]), *among):
        cells = [video["error"]] if "error" in video else [f"{video[figure]:g}" for figure in FIGURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def median_of(values: list[float | None], figure: str) -> float:
    """The median, in which a missing value is the worst one."""
    worst = 0.0 if figure.endswith(("iou", "recall", "coverage")) else 1e9
    return round(float(np.median([worst if value is None else value for value in values])), 3)


def _iou(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _percent_off(
    depth: Float[np.ndarray, "h w"], true: Float[np.ndarray, "h w"], where: Bool[np.ndarray, "h w"]
) -> float:
    """Mean error of depth in a mask, in per cent of the true one."""
    return 100 * float(np.mean(np.abs(depth - true)[where] / true[where]))


def _points(camera: Camera, depth: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> Float[Tensor, "n 3"]:
    rows, columns = np.nonzero(mask)
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    return camera.backproject(pixels, torch.from_numpy(depth[rows, columns]).float())


def _moved(points: Float[Tensor, "n 3"], motion: Float[Tensor, "4 4"]) -> Float[Tensor, "n 3"]:
    return points @ motion[:3, :3].T + motion[:3, 3]


def _in_camera(camera: Camera, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    return (points - camera.position) @ camera.T_world_camera[:3, :3]
