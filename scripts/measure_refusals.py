"""How often a skill is refused where it belongs, and where nothing like it stands.

    afield bench act --instances 3
    python scripts/measure_refusals.py

Where it belongs: the trials of the benchmark, whose alignments are on record unless they were refused. Where it does not: its
skills before the shipped captures of toys and a hammer, seen from one side and from four. Trials that were refused as they ran
count as refused in every row, also in those of smaller limits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from afield.artifacts import read_json
from afield.benchmark.act_bench import VERSION
from afield.capture import read_capture
from afield.fields.volume import Volume
from afield.perception.features import extractor_by_name
from afield.skill_pipeline import LEAST_ON_SURFACE, LEAST_TOGETHER
from afield.skills import Skill
from afield.target import see_target
from afield.transfer_skill import transfer_skill

CAPTURES = Path(__file__).parents[1] / "src" / "afield" / "samples" / "captures"
OTHERS = ("cat", "bulldog", "deer", "hammer", "horse", "teddy")


def main(out: Path = Path("runs/bench_act"), seed: int = 0) -> None:
    """Measure.

    Args:
        out: work folder of the benchmark.
        seed: of everything random.
    """
    trials = [read_json(file) for file in sorted((out / "trials").glob("*.json"))]
    trials = [trial for trial in trials if trial["version"] == VERSION]
    refused = sum("is not like the one of the skill" in str(t.get("failure")) for t in trials)
    known = np.array([(t["quality"]["on_surface"], t["quality"]["likeness"]) for t in trials if "quality" in t])
    other = np.array([_agreement(folder, seed) for folder in tqdm(sorted((out / "skills").iterdir()))]).reshape(-1, 2)
    print(f"{len(trials)} trials, {refused} refused as they ran; {len(other)} looks at other things.")
    for least in sorted({1.0, 1.1, 1.15, 1.2, 1.3, LEAST_TOGETHER}):
        wrongly, let_in = (1.0 - _accepted(known, least)).sum() + refused, _accepted(other, least).mean()
        print(f"least {least}: refuses {wrongly:.0f} of the trials, lets in {let_in:.2f} of other things")


def _agreement(folder: Path, seed: int) -> list[list[float]]:
    """Share on the surface and likeness of a skill with everything that is something else."""
    skill = Skill.load(folder)
    volume, extractor = Volume.bake(skill.field, seed=seed), extractor_by_name(skill.basis.extractor)
    found = []
    for name in OTHERS:
        observation = read_capture(CAPTURES / name)
        for count in (1, len(observation.views)):
            seen = replace(observation, views=observation.views[:count])
            target = see_target(seen, skill.basis, extractor, seed=seed, progress=False)
            quality = transfer_skill(skill, target, volume).quality
            found.append([quality["on_surface"], quality["likeness"]])
    return found


def _accepted(figures: np.ndarray, least: float) -> np.ndarray:
    return ((figures[:, 0] >= LEAST_ON_SURFACE) & (figures.sum(axis=1) >= least)).astype(float)


if __name__ == "__main__":
    tyro.cli(main)
