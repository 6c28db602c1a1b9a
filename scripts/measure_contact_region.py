"""How far the fingers reach: the contact region's overlap with the truth for other numbers of `stages.touched.Reach`.

    afield bench distill --seeds 4
    python scripts/measure_contact_region.py --grasped 0.027 0.030 0.033 0.036 --outside 1 1.5 2

The stages before contact are taken as the benchmark has left them. IoU is averaged over the videos in which the hand pushes
and those in which it takes hold of something; a region that is not found counts as 0. Videos on which a stage stops are named
and left out.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool
from tqdm import tqdm

from afield.artifacts import HEADER_NAME, read_json
from afield.benchmark.distill_bench import box_settings, true_contact, truth_reference
from afield.capture.hand_tasks import TASKS, task_by_name
from afield.capture.hand_videos import load_truth
from afield.distill.from_video import distill_video
from afield.distill.stages.touched import Found, Reach, touched
from afield.distill.stages.touched import pushed as pushed_by_hand
from afield.errors import AfieldError

Case = tuple[str, Found, tuple[int, int], Bool[np.ndarray, "h w"]]


def main(
    out: Path = Path("runs/bench_distill"),
    seeds: int = 4,
    seed: int = 0,
    names: tuple[str, ...] = tuple(TASKS),
    grasped: tuple[float, ...] = (Reach.grasped,),
    outside: tuple[float, ...] = (Reach.outside,),
    pushed: tuple[float, ...] = (Reach.pushed,),
    pushed_located: tuple[float, ...] = (Reach.pushed_located,),
) -> None:
    """Measure all combinations.

    Args:
        out: work folder of the benchmark.
        seeds: of so many videos a task.
        seed: the first of them.
        names: of tasks.
        grasped: numbers to try.
        outside: numbers to try.
        pushed: numbers to try.
        pushed_located: numbers to try.
    """
    pairs = [(name, one) for name in names for one in range(seed, seed + seeds)]
    cases = [case for pair in tqdm(pairs, desc="videos") if (case := load(out, *pair)) is not None]
    push = np.array([pushed_by_hand(found, held) for _, found, held, _ in cases])
    for reach in itertools.starmap(Reach, itertools.product(grasped, outside, pushed, pushed_located)):
        ious = np.array([judge(found, held, reach, truth) for _, found, held, truth in cases])
        print(f"{reach}: median {np.median(ious):.3f}, mean {ious.mean():.3f}", end="")
        for kind, which in (("pushes", push), ("grasps", ~push)):
            print(f", {kind} {ious[which].mean():.3f}" if which.any() else "", end="")
        for name in names:
            own = [f"{iou:.2f}" for (task, *_), iou in zip(cases, ious, strict=True) if task == name]
            print(f"; {name} {' '.join(own)}", end="")
        print(flush=True)


def load(out: Path, name: str, seed: int) -> Case | None:
    """What the stages before have found in one video, the frames of contact and release, and the true region."""
    folder = out / f"{name}_{seed}"
    truth = load_truth(folder / "video" / "truth")
    narration = read_json(folder / "video" / HEADER_NAME)["narration"]
    config = box_settings(truth, truth_reference(folder), seed)
    try:
        run = distill_video(
            folder / "video" / "video.mp4", narration, folder / "run", config, stop="views", progress=False
        )
    except AfieldError as error:
        print(f"{name} {seed}: {error}")
        return None
    mask = run.masks.masks[run.tracks.reference]
    found = Found(run.cameras, run.hands, run.tracks, mask, run.surface, run.backwards)
    held = run.contact.contact_frame, run.contact.release_frame
    return name, found, held, true_contact(task_by_name(name, seed), truth, run.contact.free_frame)


def judge(found: Found, held: tuple[int, int], reach: Reach, truth: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union with the true region."""
    try:
        region = touched(found, held, reach)
    except AfieldError:
        return 0.0
    return float((region & truth).sum() / max(1, (region | truth).sum()))


if __name__ == "__main__":
    tyro.cli(main)
