"""How well objects that touch are told apart without masks, in the scenes in context of the grasp benchmark's dev rows.

    python scripts/measure_instances.py --out runs/bench_dev

Scenes that are not in the benchmark's work folder are rendered. Every object that is seen by at least 40 points counts
with the largest overlap (intersection over union) of its points, by the true surfaces, with an instance. `--cut 0` is
proximity alone, `--along 0` drops the demand for a visible border.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from tqdm import tqdm

from afield.benchmark.grasp import prepare
from afield.benchmark.grasp.prepare import Bench
from afield.benchmark.grasp.run import SHIPPED
from afield.capture import read_capture
from afield.capture.opengl import drawing_pool
from afield.fields import instances as module
from afield.scene import Scene
from afield.simulate import World, world_from_capture
from afield.synthesis import find_part

FEWEST = 40
"""Points of an object that is to be found."""


def main(
    out: Path = Path("runs/bench_grasp"),
    trials: int = 4,
    split: str = "dev",
    softness: float = module.SOFTNESS,
    concave: float = module.CONCAVE,
    cut: float = module.CUT,
    different: float = module.DIFFERENT,
    along: float = module.ALONG,
    jump: float = module.JUMP,
) -> None:
    """Measure.

    Args:
        out: work folder of the benchmark.
        trials: scenes per row.
        split: of the manifest; settings are chosen on dev.
        softness: as in `afield.fields.instances`, like the following ones.
        concave: how neighbours hold together across a crease.
        cut: largest normalized cut.
        different: largest cosine of the halves' features.
        along: smallest share of creases along a cut.
        jump: or smallest jump of the features.
    """
    module.SOFTNESS, module.CONCAVE, module.CUT = softness, concave, cut
    module.DIFFERENT, module.ALONG, module.JUMP = different, along, jump
    bench = Bench(SHIPPED, out.resolve())
    rows = [row for row in bench.manifest().rows[split] if row.context]
    specs = [prepare.trial_scene(bench, row, trial) for row in rows for trial in range(trials)]
    with drawing_pool(1) as pool:
        for spec in tqdm(specs, desc="scenes"):
            pool.submit(prepare.make_scene, bench, spec).result()
    target, every = [], []
    for spec in specs:
        folder = bench.scene_folder(spec)
        scene, world = Scene.load(bench.described(spec)), world_from_capture(read_capture(folder / "capture"))
        truth = nearest_object(world, scene.points.numpy())
        found = module.instances(scene).numpy()
        for number, thing in enumerate(world.objects):
            own = truth == number
            if own.sum() >= FEWEST:
                overlap = max(_overlap(own, found == label) for label in np.unique(found[own]))
                every.append(overlap)
                target += [overlap] if thing.name == world.target else []
        print(f"{spec.name}: {len(world.objects)} objects, {found.max() + 1} instances, target {target[-1]:.2f}")
    share = np.mean(np.array(target) > 0.8)
    print(f"{len(specs)} scenes: target found with IoU > .8 in {share:.2f}, mean {np.mean(target):.3f}")
    print(f"{len(every)} objects: mean IoU {np.mean(every):.3f}, > .8 in {np.mean(np.array(every) > 0.8):.2f}")


def nearest_object(world: World, points: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, "n"]:
    """The number of the object whose true surface is nearest to each point."""
    distance = [
        KDTree(find_part(replace(world, target=thing.name), None, 20_000).points.numpy()).query(points)[0]
        for thing in world.objects
    ]
    return np.argmin(distance, axis=0)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


if __name__ == "__main__":
    tyro.cli(main)
