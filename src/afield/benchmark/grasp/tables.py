"""From the records of the trials to the paper's tables, with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from afield.benchmark.grasp.manifest import Row

TITLES = {1: "Object in scene contexts", 2: "Cross-object grasp transfer", 3: "Functional grasping"}


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a rate, by default at 95%."""
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    middle = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates and means of some trials of one method."""
    count, successes = len(records), sum(bool(record["success"]) for record in records)
    causes = [str(record["cause"]) for record in records]

    def mean(key: str) -> float | None:
        """Over the trials that have it."""
        values = [float(record[key]) for record in records if record.get(key) is not None]
        return round(sum(values) / len(values), 4) if values else None

    def interval(key: str) -> list[float]:
        """Wilson's interval of a rate."""
        return [round(end, 3) for end in wilson(sum(bool(record[key]) for record in records), count)]

    return {
        "trials": count,
        "success": round(successes / count, 3) if count else None,
        "interval": interval("success"),
        "held": mean("held"),
        "held_interval": interval("held"),
        "on_part": mean("on_part"),
        "on_part_interval": interval("on_part"),
        "distance_to_part": mean("distance_to_part"),
        "penetration": mean("penetration"),
        "seconds": mean("seconds"),
        "causes": {cause: causes.count(cause) for cause in sorted(set(causes))},
    }


def evaluate(records: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """Summaries by table and method, and the mean success of each method over all trials."""
    tables = sorted({int(record["table"]) for record in records})
    by_method = {name: [record for record in records if record["method"] == name] for name in methods}
    return {
        "mean_success": {name: summarize(found)["success"] for name, found in by_method.items() if found},
        "tables": {
            str(table): {
                name: summarize([record for record in found if record["table"] == table])
                for name, found in by_method.items()
            }
            for table in tables
        },
    }


def markdown(rows: Sequence[Row], records: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> str:
    """The tables as text: successes by row, the mean with its interval, and the paper's figures for comparison."""
    blocks = []
    for table in sorted({row.table for row in rows}):
        head = ["pre-train", "demonstration", "test scene", *methods, "paper: ours / SparseDFF / DFF"]
        lines = [f"## Table {table}: {TITLES.get(table, '')}", "", _line(head), _line(["---"] * len(head))]
        for row in (row for row in rows if row.table == table):
            cells = [_count([r for r in records if r["row"] == row.name and r["method"] == name]) for name in methods]
            paper = " / ".join(f"{row.paper[key]:g}" for key in ("ours", "sparsedff", "dff") if key in row.paper)
            lines.append(_line([*row.title().split(" | "), *cells, paper]))
        of_table = {name: [r for r in records if r["table"] == table and r["method"] == name] for name in methods}
        lines.append(_line(["**mean**", "", "", *(_rate(of_table[name], "success", "**") for name in methods), ""]))
        for key, label in (("held", "held"), ("on_part", "on the part")):
            lines.append(_line([label, "", "", *(_rate(of_table[name], key) for name in methods), ""]))
        for key, label, scale in (
            ("distance_to_part", "hand to part, cm", 100), ("penetration", "overlap, cm", 100), ("seconds", "seconds", 1),
        ):  # fmt: skip
            values = [summarize(of_table[name])[key] for name in methods]
            lines.append(_line([label, "", "", *("" if v is None else f"{v * scale:.2f}" for v in values), ""]))
        lines.append(_line(["failures", "", "", *(_failures(of_table[name]) for name in methods), ""]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def confidence_markdown(trust: Mapping[str, Any]) -> str:
    """The calibration curve and the share of false alarms, as text."""
    lines = ["", "## Confidence", "", _line(["predicted", "actual", "trials"]), _line(["---"] * 3)]
    for group in trust["reliability"]:
        count = group["trials"]
        share = _share(round(group["actual"] * count), count)
        lines.append(_line([f"{group['predicted']:.2f}", share, str(count)]))
    if not (trust["scenes_without_target"] and trust["scenes_with_target"]):
        return "\n".join([*lines, ""])
    lines += [
        "",
        f"Scenes without the target that were not refused: {_share(*_counted(trust, 'false_alarms', 'without'))} of "
        f"{trust['scenes_without_target']}; scenes with the target that were: "
        f"{_share(*_counted(trust, 'refused_with_target', 'with'))} of {trust['scenes_with_target']}. "
        "Of a scene without and one with the target the former is more unlike what was shown in "
        f"{trust['separation']:.2f} of pairs."
        + (" Fitted on these very trials." if trust["fitted_on_these_trials"] else ""),
        "",
    ]
    return "\n".join(lines)


def _count(records: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(bool(record['success']) for record in records)}/{len(records)}" if records else "-"


def _rate(records: Sequence[Mapping[str, Any]], key: str, mark: str = "") -> str:
    if not records:
        return "-"
    return _share(sum(bool(record[key]) for record in records), len(records), mark)


def _share(count: int, total: int, mark: str = "") -> str:
    """A rate with its interval."""
    low, high = wilson(count, total)
    return f"{mark}{count / total:.2f}{mark} [{low:.2f}, {high:.2f}]"


def _counted(trust: Mapping[str, Any], rate: str, scenes: str) -> tuple[int, int]:
    """How many, of how many."""
    total = int(trust[f"scenes_{scenes}_target"])
    return round(trust[rate] * total), total


def _failures(records: Sequence[Mapping[str, Any]]) -> str:
    """How many by cause, the most frequent first."""
    causes = summarize(records)["causes"]
    counts = sorted((-count, cause) for cause, count in causes.items() if cause != "success")
    return ", ".join(f"{-count} {cause}" for count, cause in counts)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
