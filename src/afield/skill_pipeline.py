"""From files to files, for skills: fit one from a labelled capture, act with it on another, test the act in physics."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from afield.capture import read_capture
from afield.capture.furniture import world_from_extra
from afield.decoding import DecodeConfig, decode_trajectory, push_direction, push_pose
from afield.distill import FitConfig, fit_affordance
from afield.distill.label_files import read_shown
from afield.distill.labels import describe_views
from afield.errors import AfieldError
from afield.fields.volume import Volume
from afield.observation import Observation
from afield.perception.features import extractor_by_name
from afield.perception.grasps import AntipodalConfig, AntipodalDetector, GraspDetector, GripperShape
from afield.scene import estimate_normals
from afield.simulate.execution import ExecutionTest, execute_trajectory, film_execution
from afield.skill_run import SkillRun
from afield.skills import DescriptorBasis, Skill
from afield.target import Target, see_target
from afield.trajectory import Trajectory
from afield.transfer_skill import SOLVERS, SkillTransfer, SkillTransferConfig, carry_over, rival, transfer_skill

logger = logging.getLogger(__name__)

EXECUTION_NAME = "execution"
DETECTORS = ("antipodal", "contact-graspnet")
RIVAL = 2.0
"""Alignments that cost more than so many times the best one are not tried."""
AROUND = 0.35
"""Points this close to the contact keep the gripper from what is there, in metres."""
CONTACT_RADIUS = 0.012
"""Points this close to the contact count as contact, in metres."""
LEAST_ON_SURFACE, LEAST_TOGETHER = 0.5, 1.1
"""An alignment is refused that lays less than this share of what is seen on the surface, or that reaches less than this with the
mean cosine of the descriptors added (`scripts/measure_refusals.py`)."""


def skill_from_capture(
    capture: Path,
    *,
    narration: str | None = None,
    extractor: str = "dinov2-s-embedded",
    config: FitConfig | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Skill:
    """Fit a skill to a capture with labels (see `afield.distill.label_files`).

    Args:
        capture: posed views with masks, and `labels/` beside them.
        narration: instead of the labels' own.
        extractor: name of the image feature extractor.
        config: of the fit.
        checkpoint: folder that keeps the standing of the fit, from which a killed one goes on.
        progress: show progress bars.

    Raises:
        AfieldError: there are no labels, they do not fit the views, or nobody says how the object moves.
    """
    observation = read_capture(capture)
    shown = read_shown(capture, observation)
    if shown.labels.flow is None:
        raise AfieldError(
            f"The labels of {capture} have no flow, so nothing says how the object moves; a skill needs tracks of its points "
            "in labels/flow (docs/affordance.md)."
        )
    maps, mean, basis = describe_views(observation, extractor_by_name(extractor), progress=progress)
    labels = replace(shown.labels, descriptors=maps)
    fitted = fit_affordance(observation, labels, config, checkpoint=checkpoint, progress=progress)
    floor = None if labels.floor is None else float((labels.floor - fitted.center[2]) / fitted.scale)
    return Skill(
        observation.name,
        narration or shown.narration,
        fitted.field,
        fitted.center,
        fitted.scale,
        DescriptorBasis(extractor, mean, basis),
        floor,
        shown.mode,
        observation.views[0].color,
        {"capture": observation.name, "fit": fitted.summary},
    )


def act_from_files(
    skill: Skill,
    capture: Path,
    *,
    solver: str | None = None,
    config: SkillTransferConfig | None = None,
    detector: str | GraspDetector = "antipodal",
    alternative: int = 0,
    force: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> SkillRun:
    """Do elsewhere what was shown.

    Args:
        skill: what was shown.
        capture: folder with one or more RGB-D views with a mask of the object.
        solver: lm, or adam: as printed; the configuration's if None.
        config: of the transfer.
        detector: of grasps: antipodal, contact-graspnet, or your own.
        alternative: 0 is the best way that can be held, 1 the next one that is clearly different, for a robot that failed
            with the best one.
        force: go on where the object does not look like the demonstrated one.
        seed: of everything random.
        progress: show progress bars.

    Raises:
        AfieldError: nothing there looks like the demonstrated object, or no grasp is free.
    """
    config = config or SkillTransferConfig()
    config = replace(config, solver=solver or config.solver)
    if config.solver not in SOLVERS:
        raise AfieldError(f"There is no solver '{config.solver}'; choose one of {', '.join(SOLVERS)}.")
    if isinstance(detector, str) and detector not in DETECTORS:
        raise AfieldError(f"There is no grasp detector '{detector}'; choose one of {', '.join(DETECTORS)}.")
    if alternative < 0:
        raise AfieldError(f"--alternative counts from 0 (the best way), so it cannot be {alternative}.")
    observation = read_capture(capture)
    run = act(
        skill,
        observation,
        config=config,
        detector=detector,
        alternative=alternative,
        force=force,
        seed=seed,
        progress=progress,
    )
    return replace(run, capture=Path(capture))


def act(
    skill: Skill,
    observation: Observation,
    *,
    config: SkillTransferConfig | None = None,
    detector: str | GraspDetector = "antipodal",
    alternative: int = 0,
    force: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> SkillRun:
    """`act_from_files` for pictures at hand; see there."""
    config = config or SkillTransferConfig()
    config = replace(config, decode=replace(config.decode, seed=seed))
    seconds: dict[str, float] = {}
    begin = time.monotonic()
    extractor = extractor_by_name(skill.basis.extractor)
    target = see_target(observation, skill.basis, extractor, seed=seed, progress=progress)
    seconds["see"] = time.monotonic() - begin
    begin = time.monotonic()
    volume = Volume.bake(skill.field, seed=seed)
    result = transfer_skill(skill, target, volume, config)
    seconds["align"] = time.monotonic() - begin
    refuse_if_unlike(skill.name, observation.name, result.quality, force=force)
    begin = time.monotonic()
    found = detector_by_name(detector, target.table, seed) if isinstance(detector, str) else detector
    result, trajectory = first_that_can_be_held(
        skill, observation, target, volume, result, config.decode, found, alternative, force=force
    )
    seconds["grasp"] = time.monotonic() - begin
    return SkillRun(
        skill,
        trajectory,
        result.alignment.similarity,
        result.alignment.cost,
        target.points,
        result.contact,
        result.joint,
        result.quality,
        None,
        seconds,
        {"seed": seed, "solver": config.solver, "detector": type(found).__name__, "alternative": alternative},
    )


def first_that_can_be_held(
    skill: Skill,
    observation: Observation,
    target: Target,
    volume: Volume,
    result: SkillTransfer,
    config: DecodeConfig,
    detector: GraspDetector,
    skip: int = 0,
    *,
    force: bool = False,
) -> tuple[SkillTransfer, Trajectory]:
    """Take the next best alignment where nothing can be taken hold of at the contact of the best one.

    The next one must explain what is seen as well as any (`refuse_if_unlike`), cost at most `RIVAL` times as much, and show
    its contact region to a camera.

    Args:
        skill: what was shown.
        observation: the pictures.
        target: what is seen in them.
        volume: the skill's baked function.
        result: the best alignment and all others.
        config: of the decoding.
        detector: of grasps.
        skip: leave out so many that can be held; the next one is clearly different from them.
        force: take also what does not look like the demonstrated object.

    Returns:
        What the alignment says about contact and motion, in the world, in metres; and the gripper's trajectory.

    Raises:
        AfieldError: the reason why the best one offers no grasp, if no other does; or there are no more.
    """
    everything, reason = result.alignment, None
    worst = RIVAL * float(everything.cost[0])
    held: list[int] = []
    for index in range(len(everything.cost)):
        rest = everything.since(index)
        hidden = "hidden" in rest.terms and bool(rest.terms["hidden"][0])
        if index > 0 and (float(rest.cost[0]) > worst or hidden):
            continue
        if any(everything.same_place(index, other) for other in held):
            continue
        try:
            found = carry_over(skill, target, volume, rest, config) if index > 0 else result
            if index > 0:
                found = replace(found, quality={**found.quality, "rival": rival(everything, index)})
                refuse_if_unlike(skill.name, observation.name, found.quality, force=force)
            trajectory = grasp_and_move(skill, observation, found, config, detector)
        except AfieldError as error:
            reason = reason or error
            continue
        held.append(index)
        if len(held) <= skip:
            continue
        if index > 0 and skip == 0:
            logger.warning(
                "Nothing can be held where the best alignment puts the contact; alignment %d is taken.", index + 1
            )
        return found, trajectory
    if held:
        ways = "is only one way" if len(held) == 1 else f"are only {len(held)} clearly different ways"
        raise AfieldError(f"There {ways} to do this here, so no alternative {skip}.")
    assert reason is not None, "the best one was tried"
    raise reason


def detector_by_name(name: str, floor: float | None, seed: int = 0) -> GraspDetector:
    """A grasp detector, one of `DETECTORS`.

    Args:
        name: antipodal, or contact-graspnet: the network of the `cgn-pytorch` wheel.
        floor: height that no part of the gripper may reach below, in metres.
        seed: of the points that the network is shown.
    """
    antipodal = AntipodalDetector(AntipodalConfig(floor=floor))
    if name == "antipodal":
        return antipodal
    from afield.perception.contact_graspnet import ContactGraspNetDetector

    return ContactGraspNetDetector(check=antipodal, seed=seed)


def is_unlike(quality: Mapping[str, Any]) -> bool:
    """Whether an alignment of this quality (see `afield.transfer_skill.judge`) explains too little of what is seen."""
    on_surface, likeness = quality["on_surface"], quality["likeness"]
    return on_surface < LEAST_ON_SURFACE or on_surface + likeness < LEAST_TOGETHER


def refuse_if_unlike(skill: str, scene: str, quality: Mapping[str, Any], *, force: bool) -> None:
    """Refuse an alignment that does not explain what is seen.

    Args:
        skill: name of what was shown.
        scene: name of what is seen.
        quality: of the alignment, see `afield.transfer_skill.judge`.
        force: only warn.

    Raises:
        AfieldError: it does not, and nobody forces it.
    """
    if not is_unlike(quality):
        return
    if quality["on_surface"] < LEAST_ON_SURFACE:
        why = f"only {quality['on_surface']:.0%} of what is seen lies on its aligned surface"
    else:
        why = (
            f"{quality['on_surface']:.0%} of what is seen lies on its aligned surface, but its descriptors are too different "
            f"(cosine {quality['likeness']:.2f})"
        )
    sentence = f"The object in '{scene}' is not like the one of the skill '{skill}': {why}."
    if not force:
        raise AfieldError(f"{sentence} `--force` tries it anyway.")
    logger.warning("%s", sentence)


def grasp_and_move(
    skill: Skill,
    observation: Observation,
    result: SkillTransfer,
    config: DecodeConfig,
    detector: GraspDetector,
) -> Trajectory:
    """Choose a grasp (or a push) at the contact and go along with the motions."""
    config = replace(config, mode="push" if skill.mode == "push" else "grasp")
    provenance = {"skill": skill.name, "scene": observation.name}
    if config.mode == "push":
        direction = push_direction(result.contact, result.motions)
        pose, width = push_pose(result.contact, direction, tip=GripperShape().tip), 0.0
    else:
        points, normals = scene_points(observation, result.contact)
        contact = contact_probability(points, result.touched)
        grasps = detector.detect(points, normals, contact)
        pose, width = grasps.T_world_gripper[0], float(grasps.width[0])
        provenance["detector"] = type(detector).__name__
    trajectory = decode_trajectory(pose, width, result.motions, config)
    return replace(trajectory, provenance={**trajectory.provenance, **provenance})


def scene_points(
    observation: Observation, around: Float[Tensor, "3"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Everything seen near a place, and its normals towards the cameras."""
    points, eyes = [], []
    for view in observation.views:
        rows, columns = np.nonzero(view.depth > 0)
        pixels = torch.from_numpy(np.stack((columns, rows), axis=1)).float()
        place = view.camera.backproject(pixels, torch.from_numpy(view.depth[rows, columns]).float())
        place = place[(place - around).norm(dim=-1) < AROUND]
        points.append(place)
        eyes.append(view.camera.position.expand(len(place), 3))
    joined, eye = torch.cat(points), torch.cat(eyes)
    return joined, estimate_normals(joined, eye, 16)


def contact_probability(points: Float[Tensor, "n 3"], touched: Float[Tensor, "k 3"]) -> Float[Tensor, "n"]:
    """How likely points are to be touched: above 0.5 within `CONTACT_RADIUS` of what is taken for contact, 0 at twice that."""
    far = torch.cat([torch.cdist(part, touched).amin(dim=-1) for part in points.split(16384)])
    return (1.0 - 0.5 * far / CONTACT_RADIUS).clamp(0.0, 1.0)


def execute_run(folder: Path, *, task: Literal["open", "close"] | None = None, progress: bool = True) -> ExecutionTest:
    """Perform the trajectory of a run with an arm in physics; the verdict goes to `execution` in that folder.

    Args:
        folder: of the run.
        task: which way the joint is to move; as the skill's narration says if None.
        progress: show a progress bar.
    """
    run = SkillRun.load(folder)
    placed = world_from_extra(_capture_of(run).extra)
    trajectory = run.trajectory
    test = execute_trajectory(
        placed,
        trajectory.poses,
        trajectory.opening,
        trajectory.labels,
        task=task or run.skill.task,
        progress=progress,
    )
    test.save(folder / EXECUTION_NAME)
    return test


def view_skill(folder: Path) -> Path:
    """Write `skill.html` into the folder of a skill; returns the page's path."""
    from afield.view.skill_page import write_skill_page

    page = Path(folder) / "skill.html"
    write_skill_page(page, Skill.load(folder))
    return page


def view_act(folder: Path) -> Path:
    """Write `report.html` into the run folder of a skill; returns the page's path."""
    from afield.view.skill_page import write_act_page

    run, page = SkillRun.load(folder), Path(folder) / "report.html"
    write_act_page(page, run, *act_pictures(folder, run))
    return page


def act_appendix(folder: Path) -> tuple[str, str]:
    """A run's sections and script for the page of a demo that shows both halves."""
    from afield.view.skill_page import act_sections, plot_script

    run = SkillRun.load(folder)
    text, plots = act_sections(run, *act_pictures(folder, run))
    lead = (
        "<h2>And a skill, done elsewhere</h2><p>The second half of Afield: what was shown of one object is fitted into a "
        "function, found again in what a robot sees, and performed by an arm.</p>"
    )
    return f"<section>{lead}</section>{text}", plot_script(plots)


def act_pictures(folder: Path, run: SkillRun) -> tuple[Observation | None, dict[str, Any] | None, list[Any]]:
    """The target's capture, the verdict and the pictures of the execution, as far as they are there."""
    observation = None
    try:
        observation = _capture_of(run)
    except AfieldError as error:
        logger.warning("The capture of this run cannot be read any more: %s", error)
    if not (folder / EXECUTION_NAME).is_dir():
        return observation, None, []
    test = ExecutionTest.load(folder / EXECUTION_NAME)
    frames = [] if observation is None else film_execution(world_from_extra(observation.extra), test)
    return observation, test.to_json(), frames


def _capture_of(run: SkillRun) -> Observation:
    if run.capture is None:
        raise AfieldError("This run does not know its capture, so there is no world to simulate.")
    return read_capture(run.capture)
