"""`afield bench grasp`: prepare, run the trials in parallel, print the tables. What is done already is not done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from afield.artifacts import package_versions, write_json
from afield.benchmark.grasp import ablation, prepare
from afield.benchmark.grasp.manifest import Row
from afield.benchmark.grasp.methods import COLUMNS, METHODS
from afield.benchmark.grasp.pictures import draw_causes
from afield.benchmark.grasp.prepare import Bench
from afield.benchmark.grasp.tables import confidence_markdown, evaluate, markdown
from afield.capture.opengl import drawing_pool
from afield.confidence import Calibration, Evidence, fit_calibration, reliability, separation
from afield.errors import AfieldError

SHIPPED = Path(__file__).parents[2] / "samples" / "grasp_objects.json"


@dataclass(frozen=True)
class GraspBenchConfig:
    """What to run."""

    objects: Path = SHIPPED
    """Manifest of objects and rows; the shipped one by default."""
    split: str = "test"
    """Rows of which split: choices are made on `dev`, figures are reported on `test`."""
    table: int | None = None
    """Only this table."""
    trials: int = 10
    """Scenes per row."""
    methods: tuple[str, ...] = COLUMNS
    """Which methods; `attention, not aligned` and `geometry + alignment` are two more."""
    out: Path = Path("runs/bench_grasp")
    """Work folder: scenes, fields and records are kept here, and taken up again after an interruption."""
    jobs: int = 0
    """Processes; 0 is one per core."""
    hand: str = prepare.HAND
    """Name of a hand or path of a hand description."""
    extractor: str = prepare.EXTRACTOR
    """Image features."""
    seed: int = 0
    """Seed of scenes, fields and starts."""
    report: bool = False
    """Run nothing: print the tables of the trials that are there, of an interrupted run for instance."""
    figure6: bool = False
    """Instead of the tables: how many pretraining scenes, with and without the demonstrated one."""
    pictures: bool = False
    """Draw a few trials of the first method for every cause of failure, into `failures` in the work folder."""
    calibrate: bool = False
    """Fit the probability of success to the trials of `attention` and write `confidence.json` into the work folder."""


def run(config: GraspBenchConfig, *, progress: bool = True) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        `mean_success` by method, summaries by table, every trial, and the tables as Markdown.

    Raises:
        AfieldError: an unknown split, table or method, a damaged manifest, or no way to draw pictures.
    """
    for name in config.methods:
        if name not in METHODS:
            raise AfieldError(f"There is no method '{name}'; choose from {', '.join(METHODS)}.")
    if config.trials < 1 or config.jobs < 0:
        raise AfieldError(
            f"At least one scene per row and no negative number of processes, but {config.trials} and {config.jobs} were "
            "asked for."
        )
    bench = Bench(config.objects.resolve(), config.out.resolve(), config.hand, config.extractor, config.seed)
    rows = _rows(bench, config)
    if not config.report:
        with drawing_pool(config.jobs) as pool:
            _prepare(pool, bench, rows, config, progress)
            (_ablation if config.figure6 else _trials)(pool, bench, rows, config, progress)
    if config.figure6:
        return _figure6(bench, rows, config)
    records = _finished(bench, rows, config)
    trust = _confidence(bench, rows, records, config) if "attention" in config.methods else None
    result = {
        **evaluate(records, config.methods),
        "confidence": trust,
        **_circumstances(config),
        "trials": records,
        "markdown": markdown(rows, records, config.methods) + (confidence_markdown(trust) if trust else ""),
    }
    write_json(bench.work / "result.json", result)
    if config.pictures:
        draw_causes(bench, rows, records, config.methods[0])
    return result


def _circumstances(config: GraspBenchConfig) -> dict[str, Any]:
    """What it takes to run the same again."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    return {"settings": settings, "split": config.split, "seed": config.seed, "packages": package_versions()}


def _finished(bench: Bench, rows: Sequence[Row], config: GraspBenchConfig) -> list[dict[str, Any]]:
    """The records of all trials, or of those that are there.

    Raises:
        AfieldError: there is none.
    """
    found = [
        prepare.finished(bench, row, trial, name)
        for row in rows
        for trial in range(config.trials)
        for name in config.methods
    ]
    records = [record for record in found if record is not None]
    if not records:
        raise AfieldError(f"{bench.work} holds no record of these trials that is not stale; run them without --report.")
    return records


def _ablation(
    pool: ProcessPoolExecutor, bench: Bench, rows: Sequence[Row], config: GraspBenchConfig, progress: bool
) -> None:
    """The trials of Figure 6."""
    fields = {
        ablation.field_folder(bench, row, *setup): (ablation.make_ablation_field, (bench, row, *setup))
        for row in rows
        for setup in ablation.setups()
    }
    _stage(pool, "fields", list(fields.values()), progress)
    trials = [
        (ablation.make_ablation_trial, (bench, row, *setup, trial))
        for trial in range(config.trials)
        for row in rows
        for setup in ablation.setups()
    ]
    _stage(pool, "trials", trials, progress)


def _figure6(bench: Bench, rows: Sequence[Row], config: GraspBenchConfig) -> dict[str, Any]:
    """How far the hand is from the part, by number of pretraining scenes.

    Raises:
        AfieldError: there is no trial yet.
    """
    records = ablation.ablation_records(bench, rows, config.trials)
    if not records:
        raise AfieldError(f"{bench.work} holds no trial of Figure 6; run it without --report.")
    found = ablation.summarize_ablation(records)
    result = {
        "figure6": found,
        "trials": records,
        **_circumstances(config),
        "markdown": ablation.ablation_markdown(found),
    }
    write_json(bench.work / "figure6.json", result)
    return result


def _confidence(
    bench: Bench, rows: Sequence[Row], records: Sequence[dict[str, Any]], config: GraspBenchConfig
) -> dict[str, Any] | None:
    """How far the shipped calibration (or with `calibrate` a new one) can be trusted on these trials."""
    found = [record for record in records if record["method"] == "attention" and "evidence" in record]
    if not found:
        return None
    evidence = [Evidence(**record["evidence"]) for record in found]
    success = [bool(record["success"]) for record in found]
    present, absent = (_unlikeness(bench, rows, config, kind) for kind in (prepare.PRESENT, prepare.ABSENT))
    if config.calibrate:
        if not (present and absent):
            raise AfieldError(
                "Nothing tells scenes with the target from those without: there are none of one kind, because all objects of "
                "the manifest are of one family, or because they have not been compared yet (run it without --report)."
            )
        calibration = fit_calibration(evidence, success, present, absent)
        write_json(bench.work / "confidence.json", asdict(calibration))
    else:
        calibration = Calibration.load()
    threshold = calibration.most_unlike
    return {
        "reliability": reliability([calibration.probability(item) for item in evidence], success),
        "threshold": threshold,
        "false_alarms": sum(value <= threshold for value in absent) / max(1, len(absent)),
        "scenes_without_target": len(absent),
        "refused_with_target": sum(value > threshold for value in present) / max(1, len(present)),
        "scenes_with_target": len(present),
        "separation": separation(present, absent),
        "fitted_on_these_trials": config.calibrate,
    }


def _unlikeness(bench: Bench, rows: Sequence[Row], config: GraspBenchConfig, kind: str) -> list[float]:
    """What is recorded of the scenes with or without their target."""
    records = [prepare.finished(bench, row, n, kind) for row in rows for n in range(config.trials)]
    return [float(record["unlikeness"]) for record in records if record is not None]


def _rows(bench: Bench, config: GraspBenchConfig) -> list[Row]:
    found = bench.manifest().rows
    split = config.split if config.split in found else "all"
    if split not in found:
        raise AfieldError(f"There is no split '{config.split}' in {config.objects}; it has {', '.join(found)}.")
    rows = [row for row in found[split] if config.table in (None, row.table)]
    if not rows:
        raise AfieldError(f"The split '{split}' of {config.objects} has no table {config.table}.")
    if config.figure6 and not (rows := ablation.ablation_rows(rows)):
        raise AfieldError(
            f"Figure 6 needs a row that repeats a grasp on the same object in context; '{split}' has none."
        )
    return rows


def _prepare(
    pool: ProcessPoolExecutor, bench: Bench, rows: Sequence[Row], config: GraspBenchConfig, progress: bool
) -> None:
    """Scenes and demonstrations."""
    specs = {spec: None for row in rows for spec in (*prepare.pretraining(row), prepare.demo_scene(row))}
    specs |= {prepare.trial_scene(bench, row, n): None for row in rows for n in range(config.trials)}
    shown = dict.fromkeys(row.demo for row in rows)
    first = [(prepare.make_demonstration, (bench, *demo)) for demo in shown]
    _stage(pool, "scenes", [*first, *((prepare.make_scene, (bench, spec)) for spec in specs)], progress)


def _trials(
    pool: ProcessPoolExecutor, bench: Bench, rows: Sequence[Row], config: GraspBenchConfig, progress: bool
) -> None:
    """Fields, then trials."""
    fields = {
        bench.field_folder(row, METHODS[name].field_name): (prepare.make_field, (bench, row, name))
        for row in rows
        for name in config.methods
    }
    _stage(pool, "fields", list(fields.values()), progress)
    trials = [
        (prepare.make_trial, (bench, row, trial, name))
        for trial in range(config.trials)
        for row in rows
        for name in config.methods
    ]
    _stage(pool, "trials", trials, progress)
    if "attention" in config.methods:
        tasks = [
            (prepare.make_likeness, (bench, row, n, kind))
            for kind in (prepare.PRESENT, prepare.ABSENT)
            for row in rows
            for n in range(config.trials)
        ]
        _stage(pool, "with and without the target", tasks, progress)


def _stage(
    pool: ProcessPoolExecutor, title: str, tasks: Iterable[tuple[Callable[..., None], tuple[Any, ...]]], progress: bool
) -> None:
    futures: list[Future[None]] = [pool.submit(function, *arguments) for function, arguments in tasks]
    for future in tqdm(as_completed(futures), total=len(futures), desc=title, disable=not progress):
        future.result()
