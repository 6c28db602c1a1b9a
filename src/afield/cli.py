"""The command line: one verb per intent. It holds no logic of its own; every verb calls one function of the library."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from afield.errors import AfieldError

app = tyro.extras.SubcommandApp()
capture_app = tyro.extras.SubcommandApp()
bench_app = tyro.extras.SubcommandApp()
app.command(capture_app, name="capture", help="Look at captures: folders with colour, depth and cameras.")
app.command(bench_app, name="bench", help="Measure; each benchmark can write its figures as JSON.")

Out = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Captures = tyro.conf.Positional[tuple[Path, ...]]


def _say(text: str = "") -> None:
    """Write a line for the user; the library itself never prints."""
    sys.stdout.write(text + "\n")


@app.command
def demo(seed: int = 0, out: Out = Path("runs/demo")) -> None:
    """Do two things elsewhere that were shown once, test both in physics, and write a report.

    A grasp of one toy animal is repeated on another one in clutter; a microwave is opened whose like was shown in pictures.

    Args:
        seed: seed of everything random.
        out: folder for report, summary and figures.
    """
    from afield.demo import run_demo

    summary = run_demo(out, seed=seed)
    _say()
    _say(summary["verdict"])
    for name in ("report.html", "summary.json", "figures"):
        _say(f"  {out / name}")
    _say()
    _say("Next, the same step by step, on the sample captures or on your own (README.md):")
    for command in summary["next"]:
        _say(f"  {command}")


@capture_app.command
def check(
    capture: tyro.conf.Positional[Path],
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> None:
    """Read a capture, warn of what looks wrong, and draw its cameras and cloud into an HTML page.

    Args:
        capture: a capture folder, a transforms.json, a COLMAP model or a .r3d file.
        out: the page; `check.html` in the current folder by default.
    """
    from afield.capture import check_capture, read_capture, write_check_page

    observation = read_capture(capture)
    result = check_capture(observation)
    page = out or Path("check.html")
    write_check_page(observation, result, page)
    _say(f"{observation.name}: {len(observation.views)} views; the picture is in {page}")
    for warning in result.warnings:
        _say(f"warning: {warning}")
    if not result.warnings:
        _say("Nothing looks wrong.")


@capture_app.command
def mask(
    capture: tyro.conf.Positional[Path],
    out: Out,
    box: tuple[tuple[str, int, int, int, int], ...] = (),
    workspace: tuple[float, float, float, float, float, float] | None = None,
) -> None:
    """Write a capture again with masks of one object, or cut to a workspace.

    Args:
        capture: a capture folder, a transforms.json, a COLMAP model or a .r3d file.
        out: folder for the new capture.
        box: view name, left, top, right, bottom in pixels; one view suffices, several can be given one after the other.
        workspace: x0 y0 z0 x1 y1 z1 in metres, world frame; depth outside is erased.
    """
    from afield.pipeline import mask_capture

    boxes = {name: (left, top, right, bottom) for name, left, top, right, bottom in box}
    observation = mask_capture(capture, out, boxes, workspace)
    seen = sum(int(view.mask.sum()) for view in observation.views if view.mask is not None)
    _say(f"{observation.name}: {seen} pixels masked in {len(observation.views)} views; saved in {out}")
    _say(f"Next: afield capture check {out}")


@app.command
def train(
    captures: Captures,
    out: Out,
    kind: str = "attention",
    preset: str = "default",
    extractor: str = "dinov2-s-embedded",
    steps: int | None = None,
    seed: int = 0,
) -> None:
    """Pretrain a field on two to four captures without demonstrations (section 3.3).

    Args:
        captures: captures of related scenes.
        out: folder for the field.
        kind: dff, sparsedff, attention or geometry.
        preset: of the attention field: default, faithful (the paper to the letter) or block (a full decoder block).
        extractor: name of the image feature extractor.
        steps: Adam steps of attention and sparsedff; the kind's default if left out.
        seed: seed of everything random.
    """
    from afield.artifacts import check_replaceable
    from afield.pipeline import train_from_captures

    check_replaceable(out)
    model = train_from_captures(captures, kind=kind, preset=preset, extractor=extractor, steps=steps, seed=seed)
    model.save(out)
    _say(f"{model.describe()}\nsaved in {out}")


@app.command
def demonstrate(
    out: Out = Path("runs/demonstration"),
    configuration: Path | None = None,
    capture: Path | None = None,
    part: str | None = None,
    object: str | None = None,
    hand: str = "shadow",
    extractor: str = "dinov2-s-embedded",
    query_points: int = 256,
    seed: int = 0,
) -> None:
    """Make a demonstration from a hand configuration in a captured scene, or find a stable grasp on a part of a known object.

    Args:
        out: folder for the demonstration.
        configuration: JSON file with the pose of the palm frame in the world and the joint angles (docs/hands.md).
        capture: capture of the scene that the configuration belongs to.
        part: instead of a configuration: search for a grasp on this part (back, handle, ...) of the capture's target.
        object: with `part`: a sample object instead of a capture, for instance horse.
        hand: name of a hand or path of a hand description.
        extractor: name of the image feature extractor.
        query_points: points sampled on the hand's surface.
        seed: seed of everything random.
    """
    from afield.artifacts import check_replaceable
    from afield.pipeline import demonstrate_from_files, demonstrate_part, sample_capture

    check_replaceable(out)
    if object is not None and capture is None:
        capture = sample_capture(object)
    if capture is None or (configuration is None) == (part is None):
        raise AfieldError("Give --configuration and --capture, or --part and --object (or --capture).")
    options = {"hand": hand, "extractor": extractor, "query_points": query_points, "seed": seed}
    if configuration is not None:
        demonstration = demonstrate_from_files(configuration, capture, **options)
    else:
        assert part is not None, "one of the two was given"
        demonstration = demonstrate_part(part, capture, **options)
    demonstration.save(out)
    _say(f"Demonstration '{demonstration.name}' of the hand '{demonstration.hand}' saved in {out}")


@app.command
def grasp(
    demo: Path,
    field: str,
    scene: Path,
    out: Out,
    hand: str = "shadow",
    preset: str = "default",
    full: bool = False,
    align: bool = True,
    force: bool = False,
    arm: str | None = None,
    arm_base: tuple[float, float, float, float] | None = None,
    seed: int = 0,
) -> None:
    """Repeat a demonstrated grasp in another scene.

    Args:
        demo: a demonstration made by `afield demonstrate`.
        field: a field made by `afield train`, or the kind of an untrained one: dff or geometry.
        scene: capture of the target scene.
        out: folder for the run.
        hand: name of a hand or path of a hand description.
        preset: default, or faithful: Eq. 7-9 as printed, without gate, centring, geometry channel and alignment.
        full: optimize all 64 starts to the end with the exact field instead of halving them.
        align: lay the demonstrated object as a whole upon the target, and try the hand that it carries along first
            (docs/fields.md). Without it, or with another field than attention, no probability of success is given.
        force: go on where nothing in the scene is like the demonstrated object.
        arm: ur10e, panda, or the path of an arm description: prefer grasps that it can reach (docs/arms.md).
        arm_base: x y z in metres and yaw in radians of the arm's base in the world.
        seed: seed of everything random.
    """
    from afield.artifacts import check_replaceable
    from afield.pipeline import grasp_from_files
    from afield.simulate.arm import Reach

    check_replaceable(out)
    run = grasp_from_files(
        demo,
        field,
        scene,
        hand=hand,
        preset=preset,
        full=full,
        align=align,
        force=force,
        arm=arm,
        arm_base=arm_base,
        seed=seed,
    )
    run.save(out)
    terms = ", ".join(f"{name} {value:.4f}" for name, value in run.grasp.terms.items())
    _say(f"Energy {run.grasp.energy:.4f} ({terms}); saved in {out}")
    if "success_probability" in run.grasp.provenance:
        _say(f"Probability of success: {run.grasp.provenance['success_probability']:.0%} (docs/benchmark.md)")
    alignment = run.grasp.provenance.get("alignment", {})
    if alignment.get("same_object"):
        _say(
            "This is the object that was shown, or one of nearly the same shape and size: its hidden sides are taken from the "
            "demonstration."
        )
    if alignment.get("carried"):
        _say("This is the hand that the aligned object carries along, as it is; it is tried before the minima.")
    rehearsal = run.grasp.provenance.get("rehearsal")
    if rehearsal and not any(entry["held"] for entry in rehearsal):
        _say(f"None of the {len(rehearsal)} best candidates held in the rehearsal; this is the one that got farthest.")
    if "reach" in run.grasp.provenance:
        _say(Reach(**run.grasp.provenance["reach"]).sentence())
    _say(f"Next: afield simulate {out}; afield view {out}")


@app.command
def fit(
    capture: tyro.conf.Positional[Path],
    out: Out,
    narration: str | None = None,
    extractor: str = "dinov2-s-embedded",
    backend: Literal["grid", "neus"] = "grid",
    depth: bool = True,
    withhold: int = 0,
    seed: int = 0,
) -> None:
    """Fit a skill to posed pictures of an object with labels: where it is touched and how it moves.

    Args:
        capture: a capture with masks, and `labels/` beside it (docs/affordance.md).
        out: folder for the skill.
        narration: what is done, for instance "open the microwave"; the labels' own by default.
        extractor: name of the image feature extractor.
        backend: grid, or neus: the paper's networks and protocol, which take hours without a GPU.
        depth: use measured depth where there is some; the paper's protocol does not.
        withhold: keep every so many-th view away from the fit and judge the skill on it; 0 fits all.
        seed: seed of everything random.
    """
    from afield.artifacts import check_replaceable
    from afield.distill import FitConfig
    from afield.skill_pipeline import skill_from_capture

    check_replaceable(out)
    config = FitConfig(depth=depth) if backend == "grid" else FitConfig.published()
    config = replace(config, withhold=withhold, seed=seed)
    checkpoint = out.with_name(f".{out.name}.fit")
    skill = skill_from_capture(capture, narration=narration, extractor=extractor, config=config, checkpoint=checkpoint)
    skill.save(out)
    for name, value in skill.provenance["fit"].get("held_out", {}).items():
        _say(f"on withheld views: {name} {value}")
    _say(f"Skill '{skill.name}' ({skill.narration}) saved in {out}")
    _say(f"Next: afield act --skill {out} --scene CAPTURE -o RUN")


@app.command
def act(
    skill: Path,
    scene: Path,
    out: Out,
    preset: Literal["default", "published"] = "default",
    solver: Literal["lm", "adam"] | None = None,
    detector: Literal["antipodal", "contact-graspnet"] = "antipodal",
    alternative: int = 0,
    export: tuple[Path, ...] = (),
    force: bool = False,
    seed: int = 0,
) -> None:
    """Do elsewhere what was shown: align a skill with what the robot sees and decode a gripper trajectory.

    Args:
        skill: a skill made by `afield fit` or `afield distill`.
        scene: capture of the target, one RGB-D view with a mask suffices.
        out: folder for the run.
        preset: default, or published: the paper's solver and its weights of the flow.
        solver: lm, or adam: the paper's rendering and descent; the preset's if left out.
        detector: of grasps: antipodal, or contact-graspnet (the network of the wheel `cgn-pytorch`).
        alternative: 0 is the best way, 1 the next one that is clearly different, for when the arm failed with the best one.
        export: further files for the trajectory: NAME.json, NAME.csv, or a folder for a LeRobot dataset.
        force: go on where the object is not like the demonstrated one.
        seed: seed of everything random.
    """
    from afield.artifacts import check_replaceable
    from afield.skill_pipeline import act_from_files
    from afield.skills import Skill
    from afield.trajectory import check_export
    from afield.transfer_skill import SkillTransferConfig

    check_replaceable(out)
    for file in export:
        check_export(file)
    config = SkillTransferConfig.published() if preset == "published" else SkillTransferConfig()
    shown = Skill.load(skill)
    run = act_from_files(
        shown, scene, solver=solver, config=config, detector=detector, alternative=alternative, force=force, seed=seed
    )
    run.save(out)
    for file in export:
        run.trajectory.export(file, task=shown.narration)
    quality = run.quality
    _say(
        f"{quality['on_surface']:.0%} of what is seen lies on the aligned surface, descriptors agree to "
        f"{quality['likeness']:.2f}; {len(run.trajectory)} waypoints along a {run.joint.kind} joint, saved in {out}"
    )
    _say(f"Next: afield simulate {out}; afield view {out}")


@app.command
def simulate(run: tyro.conf.Positional[Path], task: Literal["open", "close"] | None = None) -> None:
    """Test a run in physics: a grasp by lifting and six pushes, a skill by an arm that performs it.

    Args:
        run: a run made by `afield grasp` or `afield act`.
        task: which way a joint is to move; as the skill's narration says if left out.
    """
    from afield.pipeline import simulate_run
    from afield.skill_pipeline import execute_run
    from afield.skill_run import SkillRun

    if SkillRun.is_run(run):
        done = execute_run(run, task=task)
        _say("The arm did it." if done.success else f"The arm failed: {done.failure}")
        return
    test = simulate_run(run)
    _say("The grasp holds." if test.success else f"The grasp fails: {test.failure}")


@app.command
def view(run: tyro.conf.Positional[Path]) -> None:
    """Write the page of a run (report.html) or of a skill (skill.html).

    Args:
        run: a run made by `afield grasp` or `afield act`, to whose report `afield simulate` adds the physics; or a skill.
    """
    from afield.pipeline import view_run
    from afield.skill_pipeline import view_act, view_skill
    from afield.skill_run import SkillRun
    from afield.skills import Skill

    if Skill.is_skill(run):
        _say(f"The page is in {view_skill(run)}")
        return
    if SkillRun.is_run(run):
        _say(f"The report is in {view_act(run)}")
        return
    _say(f"The report is in {view_run(run)}")


@dataclass(frozen=True)
class DistillInputs:
    """What the stages of `afield distill` use; each can be replaced by something stronger, or by a file."""

    box: tuple[int, int, int, int] | None = None
    """Left, top, right, bottom of the object in pixels of the video, in the last frame before the hand comes."""
    click: tuple[int, int] | None = None
    """Column and row of a pixel of the object in that frame, instead of a box."""
    prompt_frame: int | None = None
    """Number of the frame in which box or click were given (0 is the first), if it is another one without a hand."""
    object_masks: Path | None = None
    """Folder with a mask of the object for every frame, instead of a box or a click."""
    masks: str = "grabcut"
    """What finds the object in the other frames: grabcut, or a SAM 2 video model of transformers by name or folder."""
    hand_models: Path | None = None
    """The wheel of mediapipe 0.10.21, where it is not installed."""
    hand_masks: Path | None = None
    """Folder with a mask of the hand for every frame, instead of a detector."""
    cameras: Path | None = None
    """Poses instead of structure from motion: a JSON file, a transforms.json or a COLMAP model (docs/distill.md)."""
    focal: float | None = None
    """Focal length in pixels of the video, if it is known."""
    depth: str = "plane-sweep"
    """plane-sweep, a folder of 16-bit depth images in millimetres, or a depth model of transformers by name or folder."""
    views: Path | None = None
    """Instead of the video's own frames: a capture with masks whose first view is the last hands-free frame; or zero123plus,
    which draws views of it (docs/distill.md)."""
    tracker: str = "lucas-kanade"
    """What follows points: lucas-kanade, cotracker, or a file with tracks (.npz or .safetensors)."""


@app.command
def distill(
    video: tyro.conf.Positional[Path],
    narration: str,
    out: Out,
    inputs: Annotated[DistillInputs, tyro.conf.OmitArgPrefixes] = DistillInputs(),
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    seed: int = 0,
) -> None:
    """Turn an ordinary video of a hand that moves something into an affordance function (docs/distill.md).

    Args:
        video: mp4, mov, a folder of frames, or .r3d; an object alone first, then a hand that comes and moves it, or the reverse.
        narration: what is done, for instance "open the microwave".
        out: folder for the result of every stage and for report.html; an interrupted run goes on from there.
        inputs: what the stages use.
        start: name of the first stage to run again: hands, cameras, depth, masks, tracks, contact, views or fit.
        seed: seed of everything random.
    """
    from afield.distill import FitConfig
    from afield.pipeline import distill_from_files

    settings = {**vars(inputs), "fit": FitConfig(seed=seed), "seed": seed}
    found, page = distill_from_files(video, narration, out, start=start, **settings)
    first, last = found.held
    _say(
        f"'{narration}': contact in frame {first}, release after frame {last}; {int(found.tracks.moving.sum())} points move; "
        f"lengths are {'metres' if found.depth.metric else 'up to scale'}."
    )
    _say(f"Every stage on the video: {page}")
    _say(f"Next: afield act --skill {out} --scene CAPTURE -o RUN")


@bench_app.command(name="distill")
def bench_distill(
    tasks: int = 9,
    names: tuple[str, ...] = (),
    out: Out = Path("runs/bench_distill"),
    seed: int = 0,
    seeds: int = 1,
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Distil rendered videos of a human hand and compare every stage with the truth.

    Args:
        tasks: how many of the tasks.
        names: these tasks instead.
        out: work folder; an interrupted run goes on from there.
        seed: seed of instances, rooms and camera paths.
        seeds: so many videos of every task, with this seed and those after it.
        start: name of the first stage to run again.
        json_file: write the figures here.
    """
    from afield.artifacts import write_json
    from afield.benchmark.distill_bench import DistillBenchConfig, markdown, run

    result = run(DistillBenchConfig(tasks, names, out, seed, seeds, start))
    _say(markdown(result))
    if json_file is not None:
        write_json(json_file, result)


@bench_app.command(name="field")
def bench_field(json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None) -> None:
    """Time one step of the attention field against the naive evaluation of Eq. 3 and SparseDFF's interpolation, and look-ups.

    Args:
        json_file: write the figures here.
    """
    from afield.benchmark import field_bench

    _finish(field_bench.run(), json_file)


@bench_app.command(name="fit")
def bench_fit(
    kind: str = "microwave", seed: int = 0, json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
) -> None:
    """Fit an affordance function to twelve small pictures of furniture and compare it with the known truth.

    Args:
        kind: microwave, cabinet or drawer.
        seed: seed of everything random.
        json_file: write the figures here.
    """
    from afield.benchmark import fit_bench

    _finish(fit_bench.run(fit_bench.FitBenchConfig(kind=kind, seed=seed)), json_file)


@bench_app.command(name="execute")
def bench_execute(
    kinds: tuple[str, ...] = ("microwave", "cabinet", "drawer"),
    instances: int = 8,
    task: Literal["open", "close"] = "open",
    robot: str = "panda",
    noise: float = 0.0,
    turn: float = 0.0,
    softness: float = 1.0,
    force: float = 40.0,
    friction: float = 1.0,
    impratio: float = 10.0,
    seed: int = 0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Open or close random furniture in physics along the trajectory of one who knows it (docs/execution.md).

    Args:
        kinds: microwave, cabinet, drawer, oven, laptop.
        instances: random ones of each kind.
        task: which way the joint is to move.
        robot: name or description of an arm with a gripper.
        noise: shift the trajectory by this in a random direction, in metres.
        turn: and turn it by this about a random axis through its grasp, in degrees.
        softness: divide the arm's stiffness by this.
        force: of a finger, in newtons.
        friction: of the finger pads.
        impratio: MuJoCo's ratio of frictional to normal impedance.
        seed: of the first instance.
        json_file: write figures and every trial here.
    """
    from afield.benchmark import execution_bench
    from afield.simulate.robot import Grip

    grip = Grip(force=force, friction=friction, impratio=impratio)
    config = execution_bench.ExecutionBenchConfig(kinds, instances, task, robot, noise, turn, softness, grip, seed)
    figures = execution_bench.run(config)
    trials = figures.pop("trials")
    _finish(figures, None)
    if json_file is not None:
        from afield.artifacts import write_json

        write_json(json_file, {**figures, "trials": trials})


@bench_app.command(name="align")
def bench_align(
    objects: Path | None = None,
    trials: int = 10,
    rows: tuple[str, ...] = (),
    out: Out = Path("runs/bench_align"),
    seed: int = 0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Align skills with other instances, each seen once from one side, in several ways.

    Args:
        objects: manifest of articulated objects and pairs of them (docs/affordance.md); the shipped one by default.
        trials: views per pair.
        rows: only these ways to align; `default` is what `afield act` does.
        out: work folder; an interrupted run goes on from there.
        seed: seed of views and sizes.
        json_file: write shares, medians and every trial here.
    """
    from afield.artifacts import write_json
    from afield.benchmark import align_bench

    config = align_bench.AlignBenchConfig(objects or align_bench.SHIPPED, trials, rows, out, seed)
    result = align_bench.run(config)
    _say(align_bench.markdown(result))
    if json_file is not None:
        write_json(json_file, result)


@bench_app.command(name="act")
def bench_act(
    tasks: tuple[str, ...] = (),
    instances: int = 5,
    out: Out = Path("runs/bench_act"),
    seed: int = 0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Show tasks once and let an arm do them on other instances, in physics.

    Args:
        tasks: open or close and a kind of furniture, for instance "open microwave"; all seven by default.
        instances: other instances for each task.
        out: work folder; an interrupted run goes on from there.
        seed: of the first instance.
        json_file: write rates and every trial here.
    """
    from afield.artifacts import write_json
    from afield.benchmark import act_bench

    config = act_bench.ActBenchConfig(instances=instances, out=out, seed=seed)
    result = act_bench.run(replace(config, tasks=tasks or config.tasks))
    _say(act_bench.markdown(result))
    if json_file is not None:
        write_json(json_file, result)


@bench_app.command(name="halving")
def bench_halving(
    run: Path = Path("runs/demo"),
    seeds: int = 2,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Compare the successive halving of the starts with the full run: energy reached and seconds.

    Args:
        run: a run made by `afield demo` or `afield grasp`, whose inputs are used.
        seeds: how many seeds.
        json_file: write the figures here.
    """
    from afield.benchmark import halving_bench

    _finish(halving_bench.run(run, seeds), json_file)


@bench_app.command(name="grasp")
def bench_grasp(
    objects: Path | None = None,
    split: str = "test",
    table: int | None = None,
    trials: int = 10,
    methods: tuple[str, ...] = (),
    out: Out = Path("runs/bench_grasp"),
    jobs: int = 0,
    hand: str = "shadow",
    seed: int = 0,
    report: bool = False,
    figure6: bool = False,
    pictures: bool = False,
    calibrate: bool = False,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Repeat demonstrated grasps in new scenes with every method and judge them in physics: the paper's Tables 1 to 3.

    Args:
        objects: manifest of your own objects (docs/benchmark.md); the shipped one by default.
        split: rows to run: dev, or test, on other objects.
        table: only this table.
        trials: scenes per row.
        methods: only these columns; all by default but `attention, not aligned` and `geometry + alignment`.
        out: work folder; an interrupted run goes on from there.
        jobs: processes; 0 is one per core.
        hand: name of a hand or path of a hand description.
        seed: seed of scenes, fields and starts.
        report: run nothing, print the tables of the trials that are there, for instance of an interrupted run.
        figure6: instead of the tables: one to four pretraining scenes, with and without the demonstrated one.
        pictures: draw a few trials of the first method for every cause of failure, into `failures` in the work folder.
        calibrate: fit the probability of success to these trials; writes confidence.json into the work folder.
        json_file: write summaries and every trial here.
    """
    from afield.artifacts import write_json
    from afield.benchmark.grasp import GraspBenchConfig, run
    from afield.benchmark.grasp.methods import COLUMNS
    from afield.benchmark.grasp.run import SHIPPED

    config = GraspBenchConfig(
        objects or SHIPPED,
        split,
        table,
        trials,
        methods or COLUMNS,
        out,
        jobs,
        hand,
        seed=seed,
        report=report,
        figure6=figure6,
        pictures=pictures,
        calibrate=calibrate,
    )
    result = run(config)
    _say(result["markdown"])
    if json_file is not None:
        write_json(json_file, result)


@app.command
def info() -> None:
    """Print versions and the machine, to paste into a bug report."""
    import torch

    from afield.artifacts import package_versions

    for name, value in package_versions().items():
        _say(f"{name}: {value}")
    _say(f"python: {sys.version.split()[0]}")
    _say(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}")
    _say(f"threads: {torch.get_num_threads()}")


def _finish(figures: dict[str, object], json_file: Path | None) -> None:
    from afield.artifacts import write_json

    _say(json.dumps(figures, indent=2))
    if json_file is not None:
        write_json(json_file, figures)


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    begin = time.monotonic()
    try:
        app.cli(prog="afield", description=__doc__.splitlines()[0] if __doc__ else None)
    except AfieldError as error:
        sys.stderr.write(f"afield: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(f"afield: interrupted after {time.monotonic() - begin:.0f} s\n")
        sys.exit(130)
