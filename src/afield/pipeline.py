"""From files to files: what each verb of the command line does, for scripts and notebooks too."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from afield.artifacts import check_replaceable
from afield.attend import unlikeness
from afield.capture import read_capture
from afield.capture.folder import write_capture
from afield.confidence import Calibration, Evidence
from afield.demonstration import Demonstration, demonstrate
from afield.distill.from_video import DistillConfig, Distilled, Parts, distill_video
from afield.errors import AfieldError
from afield.fusion import SceneConfig, build_scene
from afield.hand import Hand, hand_by_name, hand_configuration_from_json
from afield.observation import Observation
from afield.perception.features import extractor_by_name
from afield.perception.masks import Box as PixelBox
from afield.perception.masks import crop_to_workspace, mask_observation
from afield.pretrain import KINDS, FieldModel, check_training, train_field
from afield.recognition import Recognized
from afield.result import Grasp
from afield.run import Run
from afield.scene import FeatureSource, Scene
from afield.simulate import GraspTest, World, rehearse, simulate_grasp, world_from_capture, world_from_scene
from afield.simulate.arm import ArmWithHand, read_arm
from afield.simulate.world import table_height
from afield.skill_pipeline import act_appendix
from afield.skill_run import SkillRun
from afield.synthesis import SynthesisConfig, find_part, synthesize_grasp
from afield.transfer import FULL, HALVING, TransferConfig, transfer_grasp
from afield.view.distill_page import write_distill_page

logger = logging.getLogger(__name__)

SIMULATION_NAME = "simulation"
REPORT_NAME = "report.html"


def default_device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def scene_from_capture(
    capture: Path,
    *,
    extractor: str = "dinov2-s-embedded",
    like: FeatureSource | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Scene:
    """Read a capture and describe it: points with features.

    Args:
        capture: a capture in any layout that `read_capture` knows.
        extractor: name of the feature extractor, at its default layer and resolution.
        like: describe it exactly like another scene, so that the two can be compared; overrides `extractor`.
        seed: of plane search and point choice.
        progress: show a progress bar.
    """
    if like is None:
        return build_scene(read_capture(capture), extractor_by_name(extractor), seed=seed, progress=progress)
    same = extractor_by_name(like.extractor, like.layer, like.resolution)
    return build_scene(read_capture(capture), same, SceneConfig(span=like.span), seed=seed, progress=progress)


def mask_capture(
    capture: Path, out: Path, boxes: Mapping[str, PixelBox], workspace: tuple[float, ...] | None = None
) -> Observation:
    """Write a capture again with masks of one object, or without what lies outside a workspace.

    Args:
        capture: a capture in any layout that `read_capture` knows.
        out: folder for the new capture.
        boxes: view name to a box around the object: left, top, right, bottom in pixels. Other views get theirs from it.
        workspace: lowest and highest corner in metres, world frame: x0, y0, z0, x1, y1, z1. Depth outside is erased.
    """
    check_replaceable(out)
    observation = read_capture(capture)
    if not boxes and workspace is None:
        raise AfieldError("Give a box around the object, or a workspace.")
    if workspace is not None:
        observation = crop_to_workspace(observation, workspace)
    if boxes:
        observation = mask_observation(observation, boxes)
    write_capture(observation, out)
    return observation


def train_from_captures(
    captures: Sequence[Path],
    *,
    kind: str = "attention",
    preset: str = "default",
    extractor: str = "dinov2-s-embedded",
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FieldModel:
    """Build the scenes of some captures and train a field on them (section 3.3)."""
    check_training(kind, preset, len(captures))
    scenes = [scene_from_capture(capture, extractor=extractor, seed=seed, progress=progress) for capture in captures]
    return train_field(scenes, kind=kind, preset=preset, steps=steps, seed=seed, progress=progress)


def demonstrate_from_files(
    configuration: Path,
    capture: Path,
    *,
    hand: str = "shadow",
    extractor: str = "dinov2-s-embedded",
    query_points: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> Demonstration:
    """Make a demonstration from a hand-configuration file and the capture it belongs to."""
    model = hand_by_name(hand)
    beta = hand_configuration_from_json(configuration, model)
    scene = scene_from_capture(capture, extractor=extractor, seed=seed, progress=progress)
    provenance = {"configuration": configuration.name, "capture": scene.name, "extractor": extractor}
    return demonstrate(
        configuration.stem, model, beta, scene, query_count=query_points, seed=seed, provenance=provenance
    )


def demonstrate_part(
    part: str,
    capture: Path,
    *,
    hand: str = "shadow",
    extractor: str = "dinov2-s-embedded",
    query_points: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> Demonstration:
    """Synthesize a stable grasp on a named part of a capture's target and make a demonstration of it.

    Args:
        part: one of the parts in the target's `object.json`.
        capture: a capture that remembers its simulation, such as the samples.
        hand: name of a hand or path of a hand description.
        extractor: name of the feature extractor.
        query_points: points sampled on the hand's surface.
        seed: of the synthesis and of everything else random.
        progress: show progress bars.

    Raises:
        AfieldError: the capture knows no objects, the target has no such part, or no candidate holds in physics.
    """
    model, world = hand_by_name(hand), world_from_capture(read_capture(capture))
    found = synthesize_grasp(world, find_part(world, part), model, SynthesisConfig(seed=seed), progress=progress)
    scene = scene_from_capture(capture, extractor=extractor, seed=seed, progress=progress)
    provenance = {"capture": scene.name, "extractor": extractor, "part": part, "robustness": found.robustness}
    name = f"{world.target}_{part}"
    return demonstrate(name, model, found.beta, scene, query_count=query_points, seed=seed, provenance=provenance)


def sample_capture(name: str) -> Path:
    """The sample capture of a single object.

    Raises:
        AfieldError: there is none of that name.
    """
    folder = Path(__file__).parent / "samples" / "captures"
    if not (folder / name / "capture.json").is_file():
        known = sorted(entry.name for entry in folder.iterdir() if "_in_" not in entry.name)
        raise AfieldError(f"There is no sample capture of '{name}'; there are {', '.join(known)}. Or give --capture.")
    return folder / name


def load_field(field: str, demonstration: Demonstration) -> FieldModel:
    """A trained field from its folder, or an untrained one by kind, with its projection fitted to the demonstration."""
    if Path(field).is_dir():
        return FieldModel.load(Path(field))
    if field in KINDS:
        return train_field([demonstration.scene], kind=field, progress=False)
    raise AfieldError(f"'{field}' is neither the folder of a trained field nor one of the kinds {', '.join(KINDS)}.")


def grasp_from_files(
    demo: Path,
    field: str,
    capture: Path,
    *,
    hand: str = "shadow",
    preset: str = "default",
    full: bool = False,
    align: bool = True,
    force: bool = False,
    arm: str | None = None,
    arm_base: tuple[float, float, float, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Run:
    """Repeat the demonstration in folder `demo` in the captured scene.

    Args:
        demo: folder of the demonstration.
        field: folder of a trained field, or the kind of an untrained one.
        capture: the target scene.
        hand: name of a hand or path of a hand description.
        preset: default or faithful.
        full: optimize all starts to the end.
        align: align the objects as wholes and carry the hand along (not with the faithful preset). A probability of success
            is given with it and the field `attention` only: so it was calibrated.
        force: go on where nothing is like the demonstrated object.
        arm: name of an arm or path of an arm description; grasps out of its reach are taken only if there is no other.
        arm_base: x, y, z in metres and yaw in radians of its base, instead of the description's.
        seed: of everything random.
        progress: show progress bars.

    Raises:
        AfieldError: no instance of the scene is like the demonstrated object (unless `force`), or something does not fit.
    """
    if preset not in ("default", "faithful"):
        raise AfieldError(f"There is no preset '{preset}'; choose default or faithful.")
    begin = time.monotonic()
    demonstration = Demonstration.load(demo)
    model = load_field(field, demonstration)
    hand_model = hand_by_name(hand)
    demonstration.check_hand(hand_model)
    model.check_source(demonstration.scene)
    arm_description = None if arm is None else read_arm(arm, arm_base)
    scene = scene_from_capture(capture, like=demonstration.scene.source, seed=seed, progress=progress)
    described = time.monotonic()
    if preset == "default" and not force:
        refuse_if_absent(demonstration, scene, hand_model)
    stages = FULL if full else HALVING
    config = TransferConfig(preset=cast(Literal["default", "faithful"], preset), align=align, stages=stages, seed=seed)
    robot = None if arm_description is None else ArmWithHand(arm_description, hand_model, table_height(scene))
    result = transfer_and_rehearse(demonstration, scene, model, hand_model, config, arm=robot, progress=progress)
    if is_calibrated(config, model):
        result = with_confidence(result, hand_model)
    seconds = {"scene": described - begin, "transfer": time.monotonic() - described}
    return Run(result, demonstration, scene, model, hand_by_name(hand), capture, hand, seconds)


def transfer_and_rehearse(
    demonstration: Demonstration,
    scene: Scene,
    model: FieldModel,
    hand: Hand,
    config: TransferConfig,
    *,
    arm: ArmWithHand | None = None,
    progress: bool = True,
) -> Grasp:
    """`transfer_grasp` on the best device; the last minima are tried in physics on the observed points.

    The `faithful` preset takes the least energy, as the paper does. With an arm only minima within its reach are tried,
    unless none is; `reach` in the provenance says what became of it.
    """
    device = default_device()
    tests: list[GraspTest] = []

    def judge(finalists: Float[Tensor, "k d"], same: Recognized | None) -> int:
        within = list(range(len(finalists))) if arm is None else within_reach(arm, finalists)
        choice = 0
        if config.preset == "default":
            choice, made = rehearse(scene, hand, finalists[within], same=same, progress=progress)
            tests.extend(made)
        return within[choice]

    grasp = transfer_grasp(
        demonstration.to(device),
        scene.to(device),
        model.to(device),
        hand.to(device),
        config,
        judge=judge if config.preset == "default" or arm is not None else None,
        progress=progress,
    )
    rehearsal = [{"held": test.success, "failure": test.failure} for test in tests]
    reach = {"reach": arm.reach(grasp.beta).to_json()} if arm is not None else {}
    return replace(grasp, provenance={**grasp.provenance, "rehearsal": rehearsal, **reach})


def within_reach(arm: ArmWithHand, candidates: Float[Tensor, "k d"]) -> list[int]:
    """Which candidates the arm can perform, in their order; all of them where it can perform none."""
    found = [index for index, beta in enumerate(candidates) if arm.reach(beta).reachable]
    return found or list(range(len(candidates)))


def is_calibrated(config: TransferConfig, model: FieldModel) -> bool:
    """Whether the probability of success was fitted to grasps that were found like this; energies of other fields differ."""
    return config.preset == "default" and config.align and model.kind == "attention"


def with_confidence(grasp: Grasp, hand: Hand) -> Grasp:
    """The grasp with its evidence and its calibrated probability of success in the provenance."""
    evidence = Evidence.of(grasp, hand)
    chance = round(Calibration.load().probability(evidence), 3)
    return replace(grasp, provenance={**grasp.provenance, "evidence": asdict(evidence), "success_probability": chance})


def refuse_if_absent(demonstration: Demonstration, scene: Scene, hand: Hand) -> None:
    """Say so when nothing in the scene is like the demonstrated object, rather than return a random grasp.

    Raises:
        AfieldError: the most similar instance is less alike than in nine of ten scenes that hold such an object.
    """
    found, most = unlikeness(demonstration, scene, hand), Calibration.load().most_unlike
    if found > most:
        raise AfieldError(
            f"Nothing in '{scene.name}' is to be grasped like '{demonstration.name}': laid upon what was shown, the most "
            f"similar thing there is off by {found:.2f}, at most {most:.2f} is expected (shape, features and size "
            "together). `--force` tries it anyway."
        )


def simulate_run(folder: Path, *, progress: bool = True) -> GraspTest:
    """Test the grasp of a run folder in physics; verdict and recorded motion go to `simulation` in that folder."""
    run = Run.load(folder)
    test = simulate_grasp(world_of_run(run), run.hand, run.grasp.beta, run.scene.points, progress=progress)
    test.save(folder / SIMULATION_NAME)
    return test


def world_of_run(run: Run) -> World:
    """The capture's own simulated world if it has one, else the observed geometry."""
    observation = None
    if run.capture is not None:
        try:
            observation = read_capture(run.capture)
        except AfieldError as error:
            logger.warning("The capture of this run cannot be read any more (%s); using what was observed.", error)
    if observation is not None and "simulation" in observation.extra:
        return world_from_capture(observation)
    pose, _ = run.hand.split(run.grasp.beta)
    return world_from_scene(run.scene, pose[:3, :3] @ run.hand.palm_center + pose[:3, 3])


def view_run(folder: Path) -> Path:
    """Write `report.html` and the figures of a run folder; returns the page's path. A skill's run in `act` is shown too."""
    from afield.simulate.render import film
    from afield.view.run_report import write_run_report

    run = Run.load(folder)
    more = act_appendix(folder / "act") if SkillRun.is_run(folder / "act") else ("", "")
    if not (folder / SIMULATION_NAME).is_dir():
        return write_run_report(folder, run, appendix=more)
    test = GraspTest.load(folder / SIMULATION_NAME)
    frames = film(world_of_run(run), run.hand, run.grasp.beta, test)
    return write_run_report(folder, run, test.to_json(), frames=frames, appendix=more)


def distill_from_files(
    video: Path, narration: str, out: Path, *, start: str | None = None, stop: str = "fit", **settings: Any
) -> tuple[Distilled, Path]:
    """Distil a video and write the page that shows every stage, or how far they came.

    Args:
        video: a file or a folder of frames.
        narration: what is done in it.
        out: folder for the stages' results and `report.html`.
        start: name of the first stage to run again.
        stop: "views" ends before the fit.
        settings: of `DistillConfig`.

    Returns:
        What was found, and the page.

    Raises:
        AfieldError: a stage cannot go on; the sentence names it, what would help, and the page.
    """
    page, parts = Path(out) / "report.html", Parts()
    try:
        found = distill_video(video, narration, out, DistillConfig(**settings), start=start, stop=stop, parts=parts)
    except AfieldError as error:
        if "video" not in parts:
            raise
        write_distill_page(parts["video"], narration, parts, page, stopped=str(error))
        raise AfieldError(f"{error} What the stages before it found: {page}") from error
    write_distill_page(found.video, narration, parts, page)
    return found, page
