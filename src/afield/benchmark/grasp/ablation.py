"""Figure 6: how many scenes the attention field is pretrained on, and whether the demonstrated one is among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from afield.artifacts import read_json, write_json
from afield.benchmark.grasp.manifest import Row
from afield.benchmark.grasp.methods import METHODS
from afield.benchmark.grasp.prepare import Bench, demo_scene, fingerprint, is_done, pretraining, setting_of, trial_scene
from afield.benchmark.grasp.trial import distance_to_part
from afield.pretrain import FieldModel, train_field
from afield.scene import Scene
from afield.transfer import transfer_grasp

COUNTS = (1, 2, 3, 4)
"""Pretraining scenes."""
METHOD = "attention, not aligned"
"""The field alone."""


def setups() -> list[tuple[int, bool]]:
    """Number of pretraining scenes, and whether the demonstrated scene is one of them."""
    return [(count, included) for count in COUNTS for included in (False, True)]


def ablation_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows that repeat a grasp on the same object in context, as the paper's ablation does with one toy."""
    return [row for row in rows if row.context and row.demo == row.test]


def field_folder(bench: Bench, row: Row, count: int, included: bool) -> Path:
    """Where a setup's field is kept."""
    shown = "with" if included else "without"
    return bench.work / bench.of_extractor("fields") / f"figure6_{row.demo[0]}_{count}_{shown}_{bench.seed}"


def trial_file(bench: Bench, row: Row, count: int, included: bool, trial: int) -> Path:
    """Where a trial's record is kept."""
    shown = "with" if included else "without"
    return bench.work / bench.of_hand(bench.of_extractor("figure6")) / row.name / f"{count}_{shown}_{trial:03d}.json"


def make_ablation_field(bench: Bench, row: Row, count: int, included: bool) -> None:
    """Train the attention field of one setup. A single scene is paired with itself: the two copies are turned apart."""
    folder = field_folder(bench, row, count, included)
    if folder.is_dir():
        return
    specs = [demo_scene(row), *pretraining(row)] if included else pretraining(row)
    scenes = [Scene.load(bench.described(spec)) for spec in specs[:count]]
    train_field(scenes * 2 if count == 1 else scenes, seed=bench.seed, progress=False).save(folder)


def make_ablation_trial(bench: Bench, row: Row, count: int, included: bool, trial: int) -> None:
    """Repeat the grasp by least energy, as the paper does, and measure how far the hand is from the part."""
    file, field = trial_file(bench, row, count, included, trial), field_folder(bench, row, count, included)
    mark = trial_mark(bench, row, count, included, trial)
    if is_done(file, mark):
        return
    setting = setting_of(bench, row, trial)
    model, config = FieldModel.load(field), replace(METHODS[METHOD].config, seed=setting.seed)
    grasp = transfer_grasp(setting.demonstration, setting.scene, model, setting.hand, config, progress=False)
    write_json(
        file,
        {
            "row": row.name,
            "scenes": count,
            "demonstration_included": included,
            "trial": trial,
            "distance_to_part": distance_to_part(setting, grasp.beta),
            "fingerprint": mark,
        },
    )


def ablation_records(bench: Bench, rows: Sequence[Row], trials: int) -> list[dict[str, Any]]:
    """The records that are there and not stale."""
    wanted = [(bench, row, *setup, n) for setup in setups() for row in rows for n in range(trials)]
    return [read_json(trial_file(*one)) for one in wanted if is_done(trial_file(*one), trial_mark(*one))]


def trial_mark(bench: Bench, row: Row, count: int, included: bool, trial: int) -> str:
    """The fingerprint that a trial's record must have."""
    field = field_folder(bench, row, count, included)
    return fingerprint(bench, row, trial_scene(bench, row, trial), field, asdict(METHODS[METHOD].config))


def summarize_ablation(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean distance of every setup with a 95% interval of the mean."""
    found = []
    for count, included in setups():
        values = [
            float(record["distance_to_part"])
            for record in records
            if (record["scenes"], record["demonstration_included"]) == (count, included)
        ]
        if not values:
            continue
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values))
        found.append(
            {
                "scenes": count,
                "demonstration_included": included,
                "trials": len(values),
                "distance_to_part": round(mean, 4),
                "median": round(sorted(values)[len(values) // 2], 4),
                "interval": [round(mean - 1.96 * spread, 4), round(mean + 1.96 * spread, 4)],
            }
        )
    return found


def ablation_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Figure 6 as a table."""
    lines = [
        "## Figure 6: pretraining scenes",
        "",
        "| pretraining scenes | demonstration among them | hand to part, cm (mean, 95%) | median | trials |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in found:
        low, high = (f"{value * 100:.1f}" for value in entry["interval"])
        lines.append(
            f"| {entry['scenes']} | {'yes' if entry['demonstration_included'] else 'no'} | "
            f"{entry['distance_to_part'] * 100:.1f} [{low}, {high}] | {entry['median'] * 100:.1f} | {entry['trials']} |"
        )
    return "\n".join(lines) + "\n"
