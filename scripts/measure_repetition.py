"""How often the demonstrated hand itself holds where the object lies now, and how exactly its place is found.

    python scripts/measure_repetition.py --out runs/bench_grasp

For the rows in which the very same object is shown and met: the hand is moved exactly as the object was, by the true poses,
and tested in physics. Whatever neighbours and the table are in the way then, and how firm the grasp was in the first place,
is what a transfer has to make up for. Beside it: how far the shown points are from where they belong (mean, in millimetres)
by the alignment of both objects with their raw features, and by recognition of the very same object. For all rows: how near
the shown points come to what is seen (`recognition.settle`), in their own spacings, by which the same objects are told from
others.
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
from afield.benchmark.grasp.trial import TEST, Setting, holds_part
from afield.capture import read_capture
from afield.capture.opengl import drawing_pool
from afield.carry import moved
from afield.fields.prepare import best_instance, center_features, relevance
from afield.fields.registration import Registration, register
from afield.recognition import SHAPE, Recognized, recognize, settle
from afield.scene import Scene
from afield.simulate import World, simulate_grasp, world_from_capture


def main(out: Path = Path("runs/bench_grasp"), split: str = "test", trials: int = 10) -> None:
    """Measure.

    Args:
        out: work folder of the benchmark.
        split: of the shipped manifest.
        trials: scenes per row.
    """
    bench = Bench(SHIPPED, out.resolve())
    rows = bench.manifest().rows[split]
    with drawing_pool(1) as pool:
        specs = {prepare.demo_scene(row): None for row in rows}
        specs |= {prepare.trial_scene(bench, row, n): None for row in rows for n in range(trials)}
        for spec in tqdm(specs, desc="scenes"):
            pool.submit(prepare.make_scene, bench, spec).result()
    for row in rows:
        apart = [nearness(setting_of(bench, row, trial)) for trial in tqdm(range(trials), desc=row.name, leave=False)]
        print(f"{row.name}: shown points within {spread(apart, 2)} of their spacings from half of what is seen")
    for row in rows:
        if row.demo != row.test:
            continue
        shown = target_pose(world_from_capture(read_capture(bench.scene_folder(prepare.demo_scene(row)) / "capture")))
        found, aligned, recognized = [], [], []
        for trial in tqdm(range(trials), desc=row.name, leave=False):
            setting = setting_of(bench, row, trial)
            world = world_from_capture(setting.observation)
            motion = target_pose(world) @ torch.linalg.inv(shown)
            true = Registration(motion[:3, :3], 1.0, motion[:3, 3], 0.0)
            hand = moved(setting.demonstration, setting.hand, true)
            test = simulate_grasp(world, setting.hand, hand, setting.scene.points, TEST, progress=False)
            found.append(test.success and holds_part(test.contacts, setting.objects[row.test[0]].parts[row.test[1]]))
            first, same = place_found(setting)
            points = setting.demonstration.scene.points
            aligned.append(1000 * float((first.carry(points) - true.carry(points)).norm(dim=-1).mean()))
            if same is not None:
                recognized.append(1000 * float((same.alignment.carry(points) - true.carry(points)).norm(dim=-1).mean()))
        low, high = wilson(sum(found), trials)
        print(
            f"{row.name}: holds in {sum(found)} of {trials} [{low:.2f}, {high:.2f}] ({''.join('.x'[held] for held in found)}); "
            f"alignment off by {spread(aligned)} mm, recognized in {len(recognized)}, off by {spread(recognized)} mm"
        )


def place_found(setting: Setting) -> tuple[Registration, Recognized | None]:
    """Where the alignment with features puts the shown object, and where recognition does."""
    shown, here = attended(setting)
    first = register(shown, here)
    return first, recognize(first, shown, here, setting.scene)


def nearness(setting: Setting) -> float:
    """What `recognition.SAME` is compared with."""
    shown, here = attended(setting)
    return min(settle(register(shown, here, config), shown, here)[1] for config in (None, SHAPE))


def attended(setting: Setting) -> tuple[Scene, Scene]:
    """The instances that the gate looks at, in the demonstration and here."""
    demonstration, scene = setting.demonstration, setting.scene
    wanted = demonstration.scene.features[demonstration.region(setting.hand)]
    shown, here = (
        center_features(either.select(best_instance(either, relevance(either, wanted))[0]))
        for either in (demonstration.scene, scene)
    )
    return shown, here


def spread(values: list[float], digits: int = 1) -> str:
    """Median, least and most."""
    if not values:
        return "-"
    middle = sorted(values)[len(values) // 2]
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def target_pose(world: World) -> Float[Tensor, "4 4"]:
    """Where the world's target is."""
    return torch.tensor(next(thing.T_world_object for thing in world.objects if thing.name == world.target)).float()


if __name__ == "__main__":
    tyro.cli(main)
