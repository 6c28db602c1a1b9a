"""How often the demonstrated hand itself holds where the object lies now: what mere repetition could reach at best.

    python scripts/measure_repetition.py --out runs/bench_grasp

For the rows in which the very same object is shown and met: the hand is moved exactly as the object was, by the true poses,
and tested in physics. Whatever neighbours and the table are in the way then, and how firm the grasp was in the first place,
is what a transfer has to make up for.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from afield.benchmark.grasp import prepare
from afield.benchmark.grasp.prepare import Bench, setting_of
from afield.benchmark.grasp.run import SHIPPED
from afield.benchmark.grasp.tables import wilson
from afield.benchmark.grasp.trial import TEST, holds_part
from afield.capture import read_capture
from afield.capture.opengl import drawing_pool
from afield.simulate import World, simulate_grasp, world_from_capture


def main(out: Path = Path("runs/bench_grasp"), split: str = "test", trials: int = 10) -> None:
    """Measure.

    Args:
        out: work folder of the benchmark.
        split: of the shipped manifest.
        trials: scenes per row.
    """
    bench = Bench(SHIPPED, out.resolve())
    rows = [row for row in bench.manifest().rows[split] if row.demo == row.test]
    with drawing_pool(1) as pool:
        specs = {prepare.demo_scene(row): None for row in rows}
        specs |= {prepare.trial_scene(bench, row, n): None for row in rows for n in range(trials)}
        for spec in tqdm(specs, desc="scenes"):
            pool.submit(prepare.make_scene, bench, spec).result()
    for row in rows:
        shown = target_pose(world_from_capture(read_capture(bench.scene_folder(prepare.demo_scene(row)) / "capture")))
        found = []
        for trial in tqdm(range(trials), desc=row.name, leave=False):
            setting = setting_of(bench, row, trial)
            world = world_from_capture(setting.observation)
            pose, joints = setting.hand.split(setting.demonstration.beta)
            moved = setting.hand.join(target_pose(world) @ torch.linalg.inv(shown) @ pose, joints)
            test = simulate_grasp(world, setting.hand, moved, setting.scene.points, TEST, progress=False)
            found.append(test.success and holds_part(test.contacts, setting.objects[row.test[0]].parts[row.test[1]]))
        low, high = wilson(sum(found), trials)
        print(f"{row.name}: {sum(found)} of {trials} [{low:.2f}, {high:.2f}]: {''.join('.x'[held] for held in found)}")


def target_pose(world: World) -> Float[Tensor, "4 4"]:
    """Where the world's target is."""
    return torch.tensor(next(thing.T_world_object for thing in world.objects if thing.name == world.target)).float()


if __name__ == "__main__":
    tyro.cli(main)
