"""`afield demo`: both halves on the sample captures, from pictures to a verdict from physics.

A grasp shown on the toy horse is repeated on the cat in clutter; opening a microwave, shown in twelve small pictures, is done
on another microwave by an arm.
"""

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
from afield.distill import FitConfig
from afield.hand import hand_by_name, hand_configuration_from_json
from afield.perception.features import extractor_by_name
from afield.pipeline import scene_from_capture, simulate_run, transfer_and_rehearse, view_run
from afield.pretrain import train_field
from afield.run import Run
from afield.simulate.execution import ExecutionTest
from afield.skill_pipeline import act_from_files, execute_run, skill_from_capture
from afield.skill_run import SkillRun
from afield.transfer import TransferConfig

SAMPLES = Path(__file__).parent / "samples"
PRETRAINING = ("bulldog", "deer", "horse")
DEMONSTRATED = "horse"
TARGET = "cat_in_clutter"
SHOWN = "microwave_shown"
ELSEWHERE = "microwave_elsewhere"


def run_demo(out: Path, *, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Repeat a grasp on another toy in clutter, open another microwave, and test both in physics.

    Args:
        out: folder for `report.html`, `summary.json`, figures and all artifacts; `act` in it is the run of the skill.
        seed: seed of everything random: sampling, pretraining, starts.
        progress: show progress bars.

    Returns:
        What `summary.json` holds.
    """
    check_replaceable(out)
    seconds: dict[str, float] = {}
    hand = hand_by_name("shadow")
    captures = SAMPLES / "captures"

    with _step("1/9 describe the scenes with DINOv2", "describe", seconds, progress):
        extractor_by_name("dinov2-s-embedded")
        names = dict.fromkeys((*PRETRAINING, DEMONSTRATED, TARGET))
        scenes = {name: scene_from_capture(captures / name, seed=seed, progress=progress) for name in names}
    with _step("2/9 pretrain the attention field, without demonstrations", "pretrain", seconds, progress):
        model = train_field([scenes[name] for name in PRETRAINING], kind="attention", seed=seed, progress=progress)
    with _step(f"3/9 show a grasp on the back of the {DEMONSTRATED}", "demonstrate", seconds, progress):
        configuration = SAMPLES / "demonstrations" / f"{DEMONSTRATED}_back.json"
        beta = hand_configuration_from_json(configuration, hand)
        demonstration = demonstrate(
            configuration.stem, hand, beta, scenes[DEMONSTRATED], seed=seed, provenance={"capture": DEMONSTRATED}
        )
    with _step(f"4/9 repeat it in the scene '{TARGET}'", "transfer", seconds, progress):
        config = TransferConfig(seed=seed)
        scene = scenes[TARGET]
        grasp = transfer_and_rehearse(demonstration, scene, model, hand, config, progress=progress)
        run = Run(grasp, demonstration, scene, model, hand, captures / TARGET, "shadow", seconds)
        run.save(out)
    with _step("5/9 test it in physics", "simulate", seconds, progress):
        test = simulate_run(out, progress=progress)
    act, done = _act(out / "act", captures, seed, seconds, progress)
    with _step("9/9 draw the report", "report", seconds, progress):
        view_run(out)

    summary = {
        "seed": seed,
        "verdict": _verdict(test.success, test.failure, done.success, done.failure),
        "grasp": {
            **test.to_json(),
            "demonstrated_on": DEMONSTRATED,
            "repeated_in": TARGET,
            "energy": grasp.energy,
            "terms": dict(grasp.terms),
        },
        "act": {
            **done.to_json(),
            "shown_on": SHOWN,
            "done_in": ELSEWHERE,
            "joint": act.joint.kind,
            "quality": dict(act.quality),
        },
        "field": model.describe(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "next": _next_commands(captures),
    }
    write_json(out / "summary.json", summary)
    return summary


def _act(
    out: Path, captures: Path, seed: int, seconds: dict[str, float], progress: bool
) -> tuple[SkillRun, ExecutionTest]:
    """The second half: fit a skill, do it elsewhere, let an arm perform it."""
    with _step(f"6/9 fit a skill to twelve pictures of '{SHOWN}'", "fit", seconds, progress):
        skill = skill_from_capture(captures / SHOWN, config=FitConfig(seed=seed), progress=progress)
    with _step(f"7/9 find it in one view of '{ELSEWHERE}' and decode a trajectory", "act", seconds, progress):
        run = act_from_files(skill, captures / ELSEWHERE, seed=seed, progress=progress)
        run.save(out)
    with _step("8/9 let an arm perform it in physics", "execute", seconds, progress):
        done = execute_run(out, progress=progress)
    return run, done


def _verdict(holds: bool, drops: str | None, opened: bool, stuck: str | None) -> str:
    first = "The grasp holds in physics." if holds else f"The grasp fails in physics: {drops}"
    second = "The arm opens the microwave." if opened else f"The arm does not open the microwave: {stuck}"
    return f"{first} {second}"


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
        f"{afield} fit {shlex.quote(str(captures / SHOWN))} -o runs/skill",
        f"{afield} act --skill runs/skill --scene {shlex.quote(str(captures / ELSEWHERE))} -o runs/act",
        f"{afield} simulate runs/act",
        f"{afield} view runs/act",
    ]
