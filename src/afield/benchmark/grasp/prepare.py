"""What the trials of a row need, made once and kept in the work folder: scenes, demonstrations, fields.

Every function is a task of its own process: it takes names and paths, and skips what is already there.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from jaxtyping import Float
from torch import Tensor

from afield.artifacts import read_json, write_json
from afield.attend import GLANCE, RESIZED, unlikeness
from afield.benchmark.grasp.manifest import BenchObject, Manifest, Row, read_manifest
from afield.benchmark.grasp.methods import METHODS
from afield.benchmark.grasp.scenes import STAND_HEIGHT, SceneSpec, render_scene, world_of
from afield.benchmark.grasp.trial import TEST, Setting, run_trial
from afield.capture import read_capture
from afield.capture.objects import PlacedObject
from afield.capture.room import RenderConfig, settle
from afield.demonstration import Demonstration, demonstrate
from afield.geometry import matrix_to_quat_wxyz, pose_from, quat_wxyz_to_matrix
from afield.hand import Hand, hand_by_name
from afield.pipeline import scene_from_capture
from afield.pretrain import FieldModel, train_field
from afield.scene import Scene
from afield.simulate import World, world_from_capture
from afield.simulate.rehearse import STRICT
from afield.synthesis import SynthesisConfig, find_part, synthesize_grasp

HAND, EXTRACTOR = "shadow", "dinov2-s-embedded"
"""Hand and image features of the benchmark, if no others are asked for."""
PRETRAIN_SEED, DEMO_SEED, TRIAL_SEED = 100, 200, 1000
PRESENT, ABSENT = "present", "absent"
"""In the place of a method's name: how like what was shown is what is in a scene, with and without the target?"""
TRIAL_VERSION = 4
"""Raised when the code of transfer, rehearsal or physics changes what comes out, so that old records are not taken for new."""


@dataclass(frozen=True)
class Bench:
    """A benchmark run: where its inputs are and where it works."""

    manifest_file: Path
    work: Path
    hand: str = HAND
    extractor: str = EXTRACTOR
    seed: int = 0

    def load_hand(self) -> Hand:
        """The hand; compiled once per process."""
        return _hand(self.hand)

    def manifest(self) -> Manifest:
        """Objects and rows."""
        return read_manifest(self.manifest_file, self.work)

    def scene_folder(self, spec: SceneSpec) -> Path:
        """Where a scene's capture is kept; its points are in `described`."""
        return self.work / "scenes" / spec.name

    def described(self, spec: SceneSpec) -> Path:
        """Where a scene's points with their features are kept."""
        return self.scene_folder(spec) / self.of_extractor("scene")

    def of_extractor(self, name: str) -> str:
        """Name of a folder for what depends on the features: another one for every extractor, plain for the default."""
        return name if self.extractor == EXTRACTOR else f"{name}_{quote(self.extractor, safe='')}"

    def of_hand(self, name: str) -> str:
        """The same for what depends on the hand."""
        return name if self.hand == HAND else f"{name}_{quote(self.hand, safe='')}"

    def field_folder(self, row: Row, field: str) -> Path:
        """Where a trained field is kept."""
        name = f"{field}_{'_'.join(row.pretrain)}_{self.seed}_{int(row.context)}"
        return self.work / self.of_extractor("fields") / name

    def trial_file(self, row: Row, trial: int, method: str) -> Path:
        """Where a trial's record is kept."""
        return (
            self.work
            / self.of_hand(self.of_extractor("trials"))
            / row.name
            / f"{trial:03d}_{method.replace(', ', '_').replace(' + ', '_')}.json"
        )


_hand = functools.cache(hand_by_name)


def pretraining(row: Row) -> list[SceneSpec]:
    """The scenes without demonstrations that a row's fields are trained on.

    The paper's scenes in context come in any orientation; so every second one of the same object does here.
    """
    specs = []
    for index, name in enumerate(row.pretrain):
        number = row.pretrain[:index].count(name)
        specs.append(SceneSpec(name, None, PRETRAIN_SEED + number, any_pose=row.context and number % 2 == 1))
    return specs


def demo_scene(row: Row) -> SceneSpec:
    """The demonstrated object alone."""
    return SceneSpec(row.demo[0], None, DEMO_SEED)


def trial_scene(bench: Bench, row: Row, trial: int) -> SceneSpec:
    """The scene of a trial; the same for all methods. No distractor is of the demonstrated object's family."""
    family = bench.manifest().objects[row.demo[0]].family if row.context else ""
    seed = TRIAL_SEED + 1000 * bench.seed + trial
    return SceneSpec(row.test[0], row.test[1], seed, context=row.context, without=family)


def absent_scene(bench: Bench, row: Row, trial: int) -> SceneSpec | None:
    """A scene like those in context, but without any object of the demonstrated family; None where there is no other family."""
    objects = bench.manifest().objects
    family = objects[row.demo[0]].family
    others = sorted(name for name, thing in objects.items() if thing.family != family and not thing.stand)
    if not others:
        return None
    return SceneSpec(others[trial % len(others)], None, TRIAL_SEED + 1000 * bench.seed + trial, True, without=family)


def make_likeness(bench: Bench, row: Row, trial: int, kind: str) -> None:
    """How unlike what was shown the most similar thing in a scene is, with (`PRESENT`) or without (`ABSENT`) a target."""
    file, spec = bench.trial_file(row, trial, kind), likeness_scene(bench, row, trial, kind)
    if spec is None:
        return
    make_scene(bench, spec)
    mark = trial_mark(bench, row, trial, kind)
    if is_done(file, mark):
        return
    hand = bench.load_hand()
    found = unlikeness(load_demonstration(bench, row, hand), Scene.load(bench.described(spec)), hand)
    write_json(file, {"row": row.name, "scene": spec.name, "unlikeness": found, "fingerprint": mark})


def likeness_scene(bench: Bench, row: Row, trial: int, kind: str) -> SceneSpec | None:
    """The scene of a trial, or the one without its target, if there can be one."""
    return (absent_scene if kind == ABSENT else trial_scene)(bench, row, trial)


def make_scene(bench: Bench, spec: SceneSpec) -> None:
    """Render a scene and describe it."""
    capture, described = bench.scene_folder(spec) / "capture", bench.described(spec)
    render_scene(spec, bench.manifest().objects, capture)
    if not described.is_dir():
        scene_from_capture(capture, extractor=bench.extractor, progress=False).save(described)


def make_demonstration(bench: Bench, name: str, part: str) -> None:
    """Find a stable grasp on an object's part, in the object's frame, unless one is shipped or was found before."""
    file = demonstration_file(bench, name, part)
    if file.is_file():
        return
    objects, hand = bench.manifest().objects, bench.load_hand()
    world = upright_world(objects[name])
    found = synthesize_grasp(world, find_part(world, part), hand, SynthesisConfig(seed=bench.seed), progress=False)
    write_json(file, demonstration_content(found.beta, found.robustness, world, hand, name, part))


def demonstration_content(
    beta: Float[Tensor, "d"], robustness: float, world: World, hand: Hand, name: str, part: str
) -> dict[str, Any]:
    """A synthesized grasp in its object's frame, for a JSON file; `robustness` is the share of noisy repetitions that hold."""
    pose, joints = hand.split(beta)
    T_object_hand = torch.linalg.inv(torch.tensor(world.objects[0].T_world_object).float()) @ pose
    return {
        "hand": hand.name,
        "object": name,
        "part": part,
        "T_object_hand": {
            "position": [round(float(x), 5) for x in T_object_hand[:3, 3]],
            "quat_wxyz": [round(float(x), 6) for x in matrix_to_quat_wxyz(T_object_hand[:3, :3])],
        },
        "joints": {name: round(float(angle), 4) for name, angle in zip(hand.joint_names, joints, strict=True)},
        "robustness": round(robustness, 3),
    }


def demonstration_file(bench: Bench, name: str, part: str) -> Path:
    """The shipped demonstration beside the manifest, or the one in the work folder."""
    shipped = bench.manifest_file.parent / "grasp_demonstrations" / f"{name}_{part}.json"
    if shipped.is_file() and read_json(shipped).get("hand") == bench.hand:
        return shipped
    return bench.work / bench.of_hand("demonstrations") / f"{name}_{part}.json"


def upright_world(thing: BenchObject) -> World:
    """The object alone at rest on the table, or on its post."""
    placed = [PlacedObject(thing.folder, stand=STAND_HEIGHT if thing.stand else 0.0)]
    return world_of(settle(placed, RenderConfig()), placed)


def load_demonstration(bench: Bench, row: Row, hand: Hand) -> Demonstration:
    """The demonstration of a row in its own scene."""
    spec = demo_scene(row)
    world = world_from_capture(read_capture(bench.scene_folder(spec) / "capture"))
    beta = place_demonstration(read_json(demonstration_file(bench, *row.demo)), world, hand)
    return demonstrate("_".join(row.demo), hand, beta, Scene.load(bench.described(spec)))


def place_demonstration(content: Mapping[str, Any], world: World, hand: Hand) -> Float[Tensor, "d"]:
    """A demonstration in its object's frame as a hand configuration in the world of that object."""
    pose = content["T_object_hand"]
    T_object_hand = pose_from(quat_wxyz_to_matrix(torch.tensor(pose["quat_wxyz"])), torch.tensor(pose["position"]))
    joints = torch.tensor([content["joints"][name] for name in hand.joint_names])
    shown = next(thing for thing in world.objects if thing.name == world.target)
    return hand.join(torch.tensor(shown.T_world_object).float() @ T_object_hand, joints)


def make_field(bench: Bench, row: Row, method: str) -> None:
    """Train a method's field on a row's scenes."""
    chosen = METHODS[method]
    folder = bench.field_folder(row, chosen.field_name)
    if not folder.is_dir():
        scenes = [Scene.load(bench.described(spec)) for spec in pretraining(row)]
        train_field(scenes, kind=chosen.kind, preset=chosen.preset, seed=bench.seed, progress=False).save(folder)


def make_trial(bench: Bench, row: Row, trial: int, method: str) -> None:
    """Run one trial and keep its record."""
    file, chosen, spec = bench.trial_file(row, trial, method), METHODS[method], trial_scene(bench, row, trial)
    field = bench.field_folder(row, chosen.field_name)
    mark = trial_mark(bench, row, trial, method)
    if is_done(file, mark):
        return
    record = run_trial(setting_of(bench, row, trial), chosen, FieldModel.load(field))
    key: Mapping[str, Any] = {
        "table": row.table, "row": row.name, "trial": trial, "method": method, "scene": spec.name, "fingerprint": mark,
    }  # fmt: skip
    write_json(file, {**key, **record})


def finished(bench: Bench, row: Row, trial: int, method: str) -> dict[str, Any] | None:
    """The record of a trial, or of `PRESENT` or `ABSENT`, if there is one that is not stale."""
    file = bench.trial_file(row, trial, method)
    if not file.is_file() or not is_done(file, trial_mark(bench, row, trial, method)):
        return None
    return read_json(file)


def trial_mark(bench: Bench, row: Row, trial: int, method: str) -> str:
    """The fingerprint that a trial's record must have."""
    if method in (PRESENT, ABSENT):
        settings = {"alignment": asdict(GLANCE), "resized": RESIZED}
        spec = likeness_scene(bench, row, trial, method)
        return "" if spec is None else fingerprint(bench, row, spec, None, settings)
    field = bench.field_folder(row, METHODS[method].field_name)
    return fingerprint(bench, row, trial_scene(bench, row, trial), field, asdict(METHODS[method]))


def setting_of(bench: Bench, row: Row, trial: int) -> Setting:
    """What all methods of a trial share."""
    hand, spec = bench.load_hand(), trial_scene(bench, row, trial)
    return Setting(
        row,
        load_demonstration(bench, row, hand),
        Scene.load(bench.described(spec)),
        read_capture(bench.scene_folder(spec) / "capture"),
        bench.manifest().objects,
        hand,
        bench.seed + trial,
    )


def is_done(file: Path, mark: str) -> bool:
    """Whether a record is there that was made of the very same things."""
    return file.is_file() and read_json(file).get("fingerprint") == mark


def fingerprint(bench: Bench, row: Row, spec: SceneSpec, field: Path | None, settings: Mapping[str, Any]) -> str:
    """A hash of all that a record depends on; when it changes, the trial is run again.

    Args:
        bench: the run.
        row: its demonstration counts, and the manifest's objects with their masses and parts.
        spec: the scene that counts.
        field: folder of the field, if one counts.
        settings: what else the record depends on, such as the method.
    """
    objects = {
        name: [(thing.folder / "object.json").read_text(encoding="utf-8"), thing.stand]
        for name, thing in bench.manifest().objects.items()
    }
    demonstration = read_json(demonstration_file(bench, *row.demo))
    given = [
        TRIAL_VERSION,
        bench.hand,
        bench.seed,
        settings,
        asdict(TEST),
        asdict(STRICT),
        asdict(row),
        objects,
        demonstration,
    ]
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
    for folder in (bench.described(demo_scene(row)), bench.described(spec), *([] if field is None else [field])):
        for file in sorted(folder.rglob("*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
