"""Is the successive halving of the starts no worse than optimizing all of them to the end?

Both begin from the same starts of the same seed and are judged by the same energy: exact field, all query points, all scene
points. The figures of `afield bench halving` come from here.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from afield.attend import attend
from afield.demonstration import Demonstration
from afield.hand import Hand
from afield.pretrain import FieldModel
from afield.scene import Scene
from afield.transfer import FULL, HALVING, Stage, TransferConfig, grasp_energy, transfer_grasp


def exact_energy(
    demonstration: Demonstration,
    scene: Scene,
    model: FieldModel,
    hand: Hand,
    beta: torch.Tensor,
    config: TransferConfig,
) -> float:
    """Eq. 9 of one hand configuration with the exact field, all query points and all scene points."""
    shown, here = attend(demonstration, scene, model, hand, use_gate=config.gate, center=config.center)
    goal = model.build(shown.scene, geometry=config.geometry)(demonstration.query_points(hand))
    field = model.build(here.scene, geometry=config.geometry)
    everything = Stage(1, 0, len(demonstration.points.link), len(scene.points), False)
    energy = grasp_energy(demonstration, hand, scene.points, scene.table, field, goal, everything, config.weights)
    with torch.no_grad():
        total, _ = energy(beta[None])
    return float(total)


def compare(
    demonstration: Demonstration, scene: Scene, model: FieldModel, hand: Hand, seeds: range, *, progress: bool = True
) -> dict[str, Any]:
    """Run both schedules for some seeds.

    Returns:
        For each schedule the energies and seconds by seed; and the mean of energy(halving) / energy(full).
    """
    figures: dict[str, Any] = {name: {"energy": [], "seconds": []} for name in ("halving", "full")}
    for seed in seeds:
        for name, stages in (("halving", HALVING), ("full", FULL)):
            config = replace(TransferConfig(), align=False, stages=stages, seed=seed)  # the search alone
            begin = time.monotonic()
            grasp = transfer_grasp(demonstration, scene, model, hand, config, progress=progress)
            figures[name]["seconds"].append(round(time.monotonic() - begin, 1))
            figures[name]["energy"].append(exact_energy(demonstration, scene, model, hand, grasp.beta, config))
    ratios = [a / b for a, b in zip(figures["halving"]["energy"], figures["full"]["energy"], strict=True)]
    figures["energy_halving_over_full"] = sum(ratios) / len(ratios)
    figures["speedup"] = sum(figures["full"]["seconds"]) / sum(figures["halving"]["seconds"])
    return figures


def run(folder: Path, seeds: int = 2, *, progress: bool = True) -> dict[str, Any]:
    """Compare the schedules on the inputs of a run folder, for instance `runs/demo`."""
    from afield.run import Run

    loaded = Run.load(folder)
    return compare(loaded.demonstration, loaded.scene, loaded.model, loaded.hand, range(seeds), progress=progress)
