"""The objects and rows of a benchmark, from a JSON file that anyone can write for his own meshes (docs/benchmark.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from afield.artifacts import read_json
from afield.benchmark.grasp.meshes import prepare_object
from afield.errors import AfieldError


@dataclass(frozen=True)
class BenchObject:
    """An object of the benchmark."""

    name: str
    family: str
    """What it is grasped like; grasps are transferred inside a family, and distractors come from other families."""
    folder: Path
    """With `object.json`, the mesh, and its convex pieces."""
    parts: Mapping[str, Mapping[str, Sequence[float]]]
    """Named boxes in the object's frame: `center` and `size` in metres."""
    stand: bool
    """A flat tool that lies on a post, so that a hand can reach below its handle."""


@dataclass(frozen=True)
class Row:
    """One row of a table: train on some objects, show a grasp on one, repeat it on another."""

    table: int
    """1: object in context, 2: cross-object transfer, 3: functional grasping."""
    pretrain: tuple[str, ...]
    demo: tuple[str, str]
    """Object and part."""
    test: tuple[str, str]
    paper: Mapping[str, float]
    """What the paper reports for its own objects, as a share of 10; for comparison only."""

    @property
    def context(self) -> bool:
        """The target lies among distractors, every object in any orientation."""
        return self.table == 1

    @property
    def name(self) -> str:
        """For files."""
        trained = "-".join(dict.fromkeys(self.pretrain))
        return f"table{self.table}_{trained}_{'_'.join(self.demo)}_to_{'_'.join(self.test)}"

    def title(self) -> str:
        """For people."""
        counts = {name: self.pretrain.count(name) for name in dict.fromkeys(self.pretrain)}
        trained = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"{trained} | {' '.join(self.demo)} | {self.test[0]}{' in context' if self.context else ''}"


@dataclass(frozen=True)
class Manifest:
    """Objects by name, and the rows of every split."""

    objects: Mapping[str, BenchObject]
    rows: Mapping[str, tuple[Row, ...]]


def read_manifest(path: Path, work: Path) -> Manifest:
    """Read a manifest; meshes are prepared in `work`, with convex pieces made by coacd where none are given.

    Raises:
        AfieldError: a file is missing, an entry is incomplete, or a row names what does not exist.
    """
    path = Path(path)
    content = read_json(path)
    entries = content.get("objects")
    if not isinstance(entries, list) or not entries:
        raise AfieldError(f"{path} must have a list 'objects'.")
    objects = {}
    for entry in entries:
        found = _object(entry, path, work)
        if found.name in objects:
            raise AfieldError(f"{path} names the object '{found.name}' twice.")
        objects[found.name] = found
    given = content.get("rows")
    if given is None:
        return Manifest(objects, {"all": tuple(_default_rows(objects))})
    rows = {split: tuple(_row(row, objects, path) for row in of_split) for split, of_split in given.items()}
    return Manifest(objects, rows)


def _object(entry: Mapping[str, Any], manifest: Path, work: Path) -> BenchObject:
    try:
        if "folder" in entry:
            folder = (manifest.parent / entry["folder"]).resolve()
        else:
            folder = prepare_object(entry, manifest.parent, work / "objects" / entry["name"])
        content = read_json(folder / "object.json")
        parts = {
            name: {key: tuple(float(value) for value in box[key]) for key in ("center", "size")}
            for name, box in content["parts"].items()
        }
        return BenchObject(str(content["name"]), str(content["family"]), folder, parts, bool(entry.get("stand", False)))
    except (KeyError, TypeError, ValueError) as error:
        raise AfieldError(f"An object in {manifest} is incomplete: it lacks {error}.") from error


def _row(row: Mapping[str, Any], objects: Mapping[str, BenchObject], manifest: Path) -> Row:
    try:
        demo, test = ((str(row[key][0]), str(row[key][1])) for key in ("demo", "test"))
        paper = {key: float(value) for key, value in row.get("paper", {}).items()}
        found = Row(int(row["table"]), tuple(row["pretrain"]), demo, test, paper)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise AfieldError(f"A row in {manifest} is incomplete: {row} ({error}).") from error
    for name in found.pretrain:
        if name not in objects:
            raise AfieldError(f"A row in {manifest} names the object '{name}', which is not in its list.")
    for name, part in (found.demo, found.test):
        if name not in objects or part not in objects[name].parts:
            raise AfieldError(f"A row in {manifest} names the part '{part}' of '{name}', which is not in its list.")
    return found


def _default_rows(objects: Mapping[str, BenchObject]) -> list[Row]:
    """Every part in context, and from every object to the next of its family that has the same part."""
    rows = []
    owners: dict[tuple[str, str], list[str]] = {}
    for thing in objects.values():
        for part in thing.parts:
            rows.append(Row(1, (thing.name,) * 4, (thing.name, part), (thing.name, part), {}))
            owners.setdefault((thing.family, part), []).append(thing.name)
    for (_, part), names in owners.items():
        for shown, other in pairwise([*names, names[0]] if len(names) > 2 else names):
            table = 3 if objects[shown].stand else 2
            rows.append(Row(table, (shown, other), (shown, part), (other, part), {}))
    return rows
