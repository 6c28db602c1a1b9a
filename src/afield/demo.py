"""`afield demo`: the whole method on the sample captures, from pictures to a verdict from physics."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from afield.artifacts import check_replaceable, write_json
from afield.demonstration import demonstrate
from afield.hand import hand_by_name, hand_configuration_from_json
from afield.perception.features import extractor_by_name
from afield.pipeline import scene_from_capture, simulate_run, transfer_and_rehearse, view_run
from afield.pretrain import train_field
from afield.run import Run
from afield.transfer import TransferConfig

SAMPLES = Path(__file__).parent / "samples"
PRETRAINING = ("bulldog", "deer", "horse")
DEMONSTRATED = "horse"
TARGET = "cat_in_clutter"


def run_demo(out: Path, *, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Show a grasp on the toy horse's back, repeat it on the cat in clutter, and test it in physics.

    Args:
        out: folder for `report.html`, `summary.json`, figures and all artifacts.
        seed: seed of everything random: sampling, pretraining, starts.
        progress: show progress bars.

    Returns:
        What `summary.json` holds.
    """
    check_replaceable(out)
    seconds: dict[str, float] = {}
    hand = hand_by_name("shadow")
    captures = SAMPLES / "captures"

    with _step("1/6 describe the scenes with DINOv2", "describe", seconds, progress):
        extractor_by_name("dinov2-s-embedded")
        names = dict.fromkeys((*PRETRAINING, DEMONSTRATED, TARGET))
        scenes = {name: scene_from_capture(captures / name, seed=seed, progress=progress) for name in names}
    with _step("2/6 pretrain the attention field, without demonstrations", "pretrain", seconds, progress):
        model = train_field([scenes[name] for name in PRETRAINING], kind="attention", seed=seed, progress=progress)
    with _step(f"3/6 show a grasp on the back of the {DEMONSTRATED}", "demonstrate", seconds, progress):
        configuration = SAMPLES / "demonstrations" / f"{DEMONSTRATED}_back.json"
        beta = hand_configuration_from_json(configuration, hand)
        demonstration = demonstrate(
            configuration.stem, hand, beta, scenes[DEMONSTRATED], seed=seed, provenance={"capture": DEMONSTRATED}
        )
    with _step(f"4/6 repeat it in the scene '{TARGET}'", "transfer", seconds, progress):
        config = TransferConfig(seed=seed)
        scene = scenes[TARGET]
        grasp = transfer_and_rehearse(demonstration, scene, model, hand, config, progress=progress)
        run = Run(grasp, demonstration, scene, model, hand, captures / TARGET, "shadow", seconds)
        run.save(out)
    with _step("5/6 test it in physics", "simulate", seconds, progress):
        test = simulate_run(out, progress=progress)
    with _step("6/6 draw the report", "report", seconds, progress):
        view_run(out)

    summary = {
        "seed": seed,
        "verdict": "The grasp holds in physics." if test.success else f"The grasp fails in physics: {test.failure}",
        "grasp": {
            **test.to_json(),
            "demonstrated_on": DEMONSTRATED,
            "repeated_in": TARGET,
            "energy": grasp.energy,
            "terms": dict(grasp.terms),
        },
        "field": model.describe(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "next": _next_commands(captures),
    }
    write_json(out / "summary.json", summary)
    return summary


@contextmanager
def _step(title: str, name: str, seconds: dict[str, float], progress: bool) -> Iterator[None]:
    """Announce a step and time it."""
    if progress:
        tqdm.write(title)
    begin = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begin


def _next_commands(captures: Path) -> list[str]:
    """The demo step by step, with paths that can be pasted."""
    quoted = {name: shlex.quote(str(captures / name)) for name in (*PRETRAINING, DEMONSTRATED, TARGET)}
    pretraining = " ".join(quoted[name] for name in PRETRAINING)
    configuration = shlex.quote(str(captures.parent / "demonstrations" / f"{DEMONSTRATED}_back.json"))
    afield = "afield" if shutil.which("afield") else f"{shlex.quote(sys.executable)} -m afield"
    return [
        f"{afield} capture check {quoted[TARGET]}",
        f"{afield} train {pretraining} -o runs/field",
        f"{afield} demonstrate --configuration {configuration} --capture {quoted[DEMONSTRATED]} -o runs/demonstration",
        f"{afield} grasp --demo runs/demonstration --field runs/field --scene {quoted[TARGET]} -o runs/grasp",
        f"{afield} simulate runs/grasp",
        f"{afield} view runs/grasp",
    ]
