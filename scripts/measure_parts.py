"""How well the demonstrated part of one object is told from the rest of another, by features and by alignment.

    python scripts/measure_parts.py --out runs/bench_dev

On the true points of the target of every dev row's scenes. Two figures for each descriptor: the area under the curve
(AUC; .5 is chance) of a score for points on the named part against the rest, and whether the one place that the
descriptor points out lies on the part (within 1 cm, as the benchmark counts contacts).

- features: the score is the mean cosine to the five most similar points near the demonstrated hand, the place is the
  middle of the best 30 points. `--layers` and `--span` describe the scenes anew (several blocks are joined), `--turns 4`
  averages over crops that are turned by quarter turns.
- local shape: the same with how points spread around each point, within several radii, instead of features; and joined.
- alignment: the score is the distance to the carried region, the place is the carried middle of the demonstrated part. Also
  with features that are not centered, with local shape as features, and with the better of the shown object and its mirror image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from tqdm import tqdm

from afield.benchmark.grasp import prepare
from afield.benchmark.grasp.manifest import Row
from afield.benchmark.grasp.prepare import Bench
from afield.benchmark.grasp.run import SHIPPED
from afield.benchmark.grasp.scenes import SceneSpec, target_points
from afield.capture import read_capture
from afield.capture.opengl import drawing_pool
from afield.demonstration import Demonstration
from afield.fields.prepare import center_features
from afield.fields.registration import RegistrationConfig, register
from afield.fusion import SceneConfig, build_scene
from afield.perception.features import FeatureExtractor, extractor_by_name
from afield.scene import Scene
from afield.simulate import world_from_capture
from afield.synthesis import in_box


@dataclass(frozen=True)
class Case:
    """A demonstration and the target's points of one scene."""

    row: Row
    demonstration: Demonstration
    target: Scene
    on_part: Bool[Tensor, "n"]
    T_world_demo: Float[Tensor, "4 4"]
    T_world_target: Float[Tensor, "4 4"]


class Turned:
    """Another extractor, averaged over quarter turns of its pictures."""

    def __init__(self, inner: FeatureExtractor, turns: int) -> None:
        self.inner, self.turns = inner, turns
        self.name, self.layer = f"{inner.name}, {turns} turns", inner.layer
        self.resolution, self.channels = inner.resolution, inner.channels

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b rows columns c"]:
        """Mean of the unit tokens, each turned back."""
        total = torch.zeros(1)
        for turn in range(self.turns):
            tokens = self.inner(np.ascontiguousarray(np.rot90(images, turn, axes=(1, 2))))
            total = total + torch.nn.functional.normalize(torch.rot90(tokens, -turn, dims=(1, 2)), dim=-1)
        return total


class Joined:
    """Several blocks of one extractor, each of unit length, side by side."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.inner = [extractor_by_name("dinov2-s-embedded", layer) for layer in layers]
        self.name, self.layer = f"blocks {layers}", layers[0]
        self.resolution, self.channels = self.inner[0].resolution, sum(inner.channels for inner in self.inner)

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b rows columns c"]:
        """The joined tokens."""
        return torch.cat([torch.nn.functional.normalize(inner(images), dim=-1) for inner in self.inner], dim=-1)


def main(
    out: Path = Path("runs/bench_grasp"),
    trials: int = 2,
    split: str = "dev",
    layers: tuple[int, ...] = (10,),
    span: float = 0.45,
    turns: int = 1,
    weights: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0),
) -> None:
    """Measure.

    Args:
        out: work folder of the benchmark.
        trials: scenes per row.
        split: of the manifest; descriptors are chosen on dev.
        layers: blocks of the features.
        span: side of the feature crops in metres.
        turns: 1, or 4 to average over quarter turns.
        weights: of the features in the alignment.
    """
    bench = Bench(SHIPPED, out.resolve())
    rows = list({(row.demo, row.test): row for row in bench.manifest().rows[split]}.values())
    with drawing_pool(1) as pool:
        specs = {prepare.demo_scene(row): None for row in rows}
        specs |= {prepare.trial_scene(bench, row, n): None for row in rows for n in range(trials)}
        for spec in tqdm(specs, desc="scenes"):
            pool.submit(prepare.make_scene, bench, spec).result()
    inner = extractor_by_name("dinov2-s-embedded", layers[0]) if len(layers) == 1 else Joined(layers)
    extractor = inner if turns == 1 else Turned(inner, turns)
    given = (layers, span, turns) == ((10,), 0.45, 1)
    found: dict[str, list[tuple[int, float, float]]] = {}
    for case in _cases(bench, rows, trials, None if given else (extractor, span)):
        for name, (value, hit) in _figures(bench, case, weights).items():
            found.setdefault(name, []).append((case.row.table, value, hit))
            print(f"{case.row.name}: {name}: AUC {value:.2f}, place {'on' if hit else 'off'} the part")
    for name, values in found.items():
        for tables in ((1,), (2,), (3,), (1, 2, 3)):
            chosen = [(value, hit) for table, value, hit in values if table in tables]
            if chosen:
                value, hit = np.mean(chosen, axis=0)
                print(f"{name}, tables {tables}: AUC {value:.2f}, on the part {hit:.2f} of {len(chosen)}")


def _cases(
    bench: Bench, rows: Sequence[Row], trials: int, other: tuple[FeatureExtractor, float] | None
) -> Iterator[Case]:
    hand, objects = bench.load_hand(), bench.manifest().objects

    def describe(spec: SceneSpec) -> Scene:
        folder = bench.scene_folder(spec)
        if other is None:
            return Scene.load(bench.described(spec))
        return build_scene(read_capture(folder / "capture"), other[0], SceneConfig(span=other[1]), progress=False)

    for row in tqdm(rows, desc="rows"):
        demonstration = prepare.load_demonstration(bench, row, hand)
        demonstration = replace(demonstration, scene=describe(prepare.demo_scene(row)))
        shown = world_from_capture(read_capture(bench.scene_folder(prepare.demo_scene(row)) / "capture"))
        for trial in range(trials):
            spec = prepare.trial_scene(bench, row, trial)
            scene, world = describe(spec), world_from_capture(read_capture(bench.scene_folder(spec) / "capture"))
            target = scene.select(target_points(world, scene.points))
            pose = torch.tensor(next(o.T_world_object for o in world.objects if o.name == world.target)).float()
            local = (target.points - pose[:3, 3]) @ pose[:3, :3]
            inside = in_box(local.numpy(), objects[row.test[0]].parts[row.test[1]], 0.003)
            demo = torch.tensor(shown.objects[0].T_world_object).float()
            yield Case(row, demonstration, target, torch.from_numpy(inside), demo, pose)


def _figures(bench: Bench, case: Case, weights: Sequence[float]) -> dict[str, tuple[float, float]]:
    """AUC and whether the place is on the part, by descriptor."""
    objects, shown, target = bench.manifest().objects, case.demonstration.scene, case.target
    box = objects[case.row.test[0]].parts[case.row.test[1]]
    region = case.demonstration.region(bench.load_hand())

    def hits(place: Float[Tensor, "3"]) -> float:
        local = (place - case.T_world_target[:3, 3]) @ case.T_world_target[:3, :3]
        return float(in_box(local[None].numpy(), box, 0.01)[0])

    figures = {}
    centered = center_features(shown), center_features(target)
    formed = tuple(replace(scene, features=local_shape(scene)) for scene in (shown, target))
    joined = tuple(
        replace(scene, features=torch.cat((scene.features, form.features), dim=-1) / 2**0.5)
        for scene, form in zip(centered, formed, strict=True)
    )
    pairs = {"features": (shown, target), "centered features": centered, "local shape": formed, "both": joined}
    for name, (one, two) in pairs.items():
        score = (two.features @ one.features[region].T).topk(5, dim=-1).values.mean(dim=-1)
        place = two.points[score.topk(30).indices].mean(dim=0)
        figures[name] = (area_under_curve(score, case.on_part), hits(place))
    center = torch.tensor(objects[case.row.demo[0]].parts[case.row.demo[1]]["center"])
    middle = case.T_world_demo[:3, :3] @ center + case.T_world_demo[:3, 3]
    for name, pair in {
        "features": centered,
        "raw features": (shown, target),
        "local shape": formed,
        "both": joined,
    }.items():
        for weight in weights:
            found = register(*pair, RegistrationConfig(features=weight))
            score = -torch.cdist(target.points, found.carry(shown.points[region])).amin(dim=-1)
            figures[f"alignment, {name} {weight:g}"] = (
                area_under_curve(score, case.on_part),
                hits(found.carry(middle)),
            )
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    image = replace(centered[0], points=centered[0].points * mirror)
    plain, mirrored = register(*centered), register(image, centered[1])
    turn = torch.ones(3) if plain.cost <= mirrored.cost else mirror
    found = min(plain, mirrored, key=lambda one: one.cost)
    score = -torch.cdist(target.points, found.carry(shown.points[region] * turn)).amin(dim=-1)
    figures["alignment, or of its mirror image"] = (
        area_under_curve(score, case.on_part),
        hits(found.carry(middle * turn)),
    )
    return figures


RADII = 0.2, 0.4, 0.8, 1.2
"""Around every point, in units of the object's size (root mean square from its middle)."""


def local_shape(scene: Scene) -> Float[Tensor, "n c"]:
    """How points spread around each point: unit descriptors that neither place, turn nor size changes.

    For each radius: the share of the object's points within it, how far their middle lies below the surface and aside, and
    the three eigenvalues of their spread; less the mean and divided by the deviation over the object.
    """
    points = scene.points
    size = float((points - points.mean(dim=0)).square().sum(dim=-1).mean().sqrt())
    distance, columns = torch.cdist(points, points) / size, []
    for radius in RADII:
        near = (distance < radius).float()
        share = near / near.sum(dim=1, keepdim=True)
        middle = share @ points
        offset = (middle - points) / (size * radius)
        below = (offset * scene.normals).sum(dim=-1)
        moment = (share @ (points[:, :, None] * points[:, None]).flatten(1)).unflatten(-1, (3, 3))
        spread = (moment - middle[:, :, None] * middle[:, None]) / (size * radius) ** 2
        values = torch.linalg.eigvalsh(spread).clamp_min(0).sqrt()
        columns += [near.mean(dim=1), below, (offset.square().sum(dim=-1) - below**2).clamp_min(0).sqrt(), *values.T]
    found = torch.stack(columns, dim=-1)
    found = (found - found.mean(dim=0)) / found.std(dim=0).clamp_min(1e-6)
    return torch.nn.functional.normalize(found, dim=-1)


def area_under_curve(score: Float[Tensor, "n"], positive: Bool[Tensor, "n"]) -> float:
    """The chance that a point of the part scores higher than one of the rest."""
    rank = torch.empty(len(score))
    rank[score.argsort()] = torch.arange(1, len(score) + 1).float()
    count = int(positive.sum())
    above = float(rank[positive].sum()) - count * (count + 1) / 2
    return above / max(1, count * (len(score) - count))


if __name__ == "__main__":
    tyro.cli(main)
