"""What a robot executes for a skill: a `Trajectory` of gripper poses, and the files in which others can read it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from afield.artifacts import HEADER_NAME, load_artifact, write_artifact_files, write_file, write_folder, write_json
from afield.errors import AfieldError
from afield.geometry import matrix_to_quat_wxyz

FRAME = (
    "world, metres, +Z up; the pose is that of the gripper frame: origin between the fingertips, +z from palm to tips, "
    "fingers close along y"
)
COLUMNS = ("x", "y", "z", "quat_w", "quat_x", "quat_y", "quat_z", "opening")
"""What a row of `Trajectory.rows` holds; lengths in metres."""


@dataclass(frozen=True)
class Trajectory:
    """Where the gripper goes, one waypoint after the other, and how far it is open there.

    Raises:
        AfieldError: no waypoints, fields of different lengths, or numbers that are not finite.
    """

    poses: Float[Tensor, "n 4 4"]
    """`T_world_gripper`: origin between the fingertips, +z the approach direction, fingers close along y; metres."""
    opening: Float[Tensor, "_n"]
    """Commanded distance between the fingers in metres; 0 closes until something is held."""
    labels: tuple[str, ...]
    """Phase of each waypoint: "pregrasp", "approach", "grasp", "move", "release", "retreat"."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Skill, scene, grasp detector, configuration and seed."""

    def __post_init__(self) -> None:
        count = len(self.poses)
        if count == 0:
            raise AfieldError("A trajectory needs at least one waypoint, but has none.")
        if len(self.opening) != count or len(self.labels) != count:
            raise AfieldError(
                f"A trajectory has {count} poses, but {len(self.opening)} openings and {len(self.labels)} labels; there "
                "must be one of each for every waypoint."
            )
        if not bool(torch.isfinite(self.poses).all() and torch.isfinite(self.opening).all()):
            raise AfieldError("A trajectory holds NaN or infinite numbers; all poses and openings must be finite.")

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def rows(self) -> Float[Tensor, "n 8"]:
        """One row of `COLUMNS` for every waypoint; quaternions do not change their sign on the way."""
        quat_wxyz = matrix_to_quat_wxyz(self.poses[:, :3, :3])
        turned = (quat_wxyz[1:] * quat_wxyz[:-1]).sum(dim=-1) < 0
        sign = torch.where(torch.cat((quat_wxyz[:1, 0] < 0, turned)), -1.0, 1.0).cumprod(dim=0)
        return torch.cat((self.poses[:, :3, 3], quat_wxyz * sign[:, None], self.opening[:, None]), dim=-1).float()

    def describe(self) -> dict[str, Any]:
        """The trajectory in the words of a robot, JSON-able."""
        return {
            "frame": FRAME,
            "waypoints": [
                {"label": label, "position": row[:3], "quat_wxyz": row[3:7], "opening": row[7]}
                for label, row in zip(self.labels, self.rows.tolist(), strict=True)
            ],
            "provenance": dict(self.provenance),
        }

    def write_files(self, folder: Path) -> None:
        """Write the trajectory's files into an existing folder; for use inside `write_folder`."""
        header = {"frame": FRAME, "labels": list(self.labels), "provenance": dict(self.provenance)}
        write_artifact_files(folder, "trajectory", {"poses": self.poses, "opening": self.opening}, header)

    @classmethod
    def load(cls, folder: Path) -> Trajectory:
        """Read a trajectory back."""
        tensors, header = load_artifact(folder, "trajectory", ("poses", "opening"), ("labels",))
        poses, opening = tensors["poses"], tensors["opening"]
        if poses.ndim != 3 or poses.shape[1:] != (4, 4) or opening.ndim != 1:
            raise AfieldError(
                f"{folder} holds poses of shape {tuple(poses.shape)} and openings of shape {tuple(opening.shape)}; a "
                "trajectory needs (n, 4, 4) and (n)."
            )
        return cls(poses, opening, tuple(header["labels"]), header.get("provenance", {}))

    def export(self, path: Path, *, task: str = "", hertz: int = 10) -> None:
        """Write the trajectory for other programs, by the suffix of `path`.

        Args:
            path: `name.json`, `name.csv`, or, without a suffix, the folder of a LeRobot dataset with one episode.
            task: what is done, in words; only LeRobot keeps it.
            hertz: waypoints per second that the time stamps of a LeRobot dataset pretend; a trajectory has no clock.

        Raises:
            AfieldError: another suffix, the place cannot be written, or `pyarrow` is missing for a dataset.
        """
        path = check_export(path)
        if path.suffix == ".json":
            write_json(path, self.describe())
        elif path.suffix == ".csv":
            write_file(path, self._csv().encode("utf-8"))
        else:
            self._export_lerobot(path, task or "unnamed task", hertz)

    def _csv(self) -> str:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        units = [f"{name}_m" if name in ("x", "y", "z", "opening") else name for name in COLUMNS]
        table.writerow(["waypoint", "label", *units])
        for index, (label, row) in enumerate(zip(self.labels, self.rows.tolist(), strict=True)):
            table.writerow([index, label, *(f"{value:.7g}" for value in row)])
        return text.getvalue()

    def _export_lerobot(self, folder: Path, task: str, hertz: int) -> None:
        """A LeRobotDataset v3.0 of one episode: the state is a waypoint, the action the one to go to next."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise AfieldError(
                "A LeRobot dataset is made of parquet files, for which pyarrow is missing; install afield[lerobot]."
            ) from error
        if hertz < 1:
            raise AfieldError(f"A LeRobot dataset cannot have {hertz} frames per second; at least 1 is needed.")
        columns, episode = _lerobot_columns(self.rows, hertz), _lerobot_episode(len(self), task)
        tasks = pyarrow.table({"task_index": [0], "task": [task]}).replace_schema_metadata({"pandas": _TASK_INDEX})

        def fill(temporary: Path) -> None:
            def write(table: Any, place: str) -> None:
                (temporary / place).parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(table, temporary / place)

            vector = pyarrow.list_(pyarrow.float32(), len(COLUMNS))
            arrays = {
                name: pyarrow.array(values.tolist(), type=vector) if values.ndim == 2 else pyarrow.array(values.numpy())
                for name, values in columns.items()
            }
            write(pyarrow.table(arrays), "data/chunk-000/file-000.parquet")
            write(pyarrow.table(episode), "meta/episodes/chunk-000/file-000.parquet")
            write(tasks, "meta/tasks.parquet")
            write_json(temporary / "meta/info.json", _lerobot_info(columns, hertz))
            write_json(temporary / "meta/stats.json", {name: _statistics(values) for name, values in columns.items()})
            write_json(temporary / HEADER_NAME, {"format": "afield-lerobot", "format_version": 1, **self.describe()})

        write_folder(folder, fill)


_TASK_INDEX = json.dumps(
    {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ],
    }
)
"""LeRobot reads its table of tasks through pandas, with the task's words as the index."""


def _lerobot_columns(rows: Float[Tensor, "n 8"], hertz: int) -> dict[str, Tensor]:
    """The columns of the frames, with the names that LeRobot gives them."""
    frame, zero = torch.arange(len(rows)), torch.zeros(len(rows), dtype=torch.int64)
    return {
        "observation.state": rows,
        "action": torch.cat((rows[1:], rows[-1:])),
        "timestamp": frame.float() / hertz,
        "frame_index": frame,
        "episode_index": zero,
        "index": frame,
        "task_index": zero,
    }


def _lerobot_episode(count: int, task: str) -> dict[str, list[Any]]:
    places = ("data/chunk_index", "data/file_index", "meta/episodes/chunk_index", "meta/episodes/file_index")
    return {
        "episode_index": [0],
        "tasks": [[task]],
        "length": [count],
        "dataset_from_index": [0],
        "dataset_to_index": [count],
        **{place: [0] for place in places},
    }


def _lerobot_info(columns: Mapping[str, Tensor], hertz: int) -> dict[str, Any]:
    count = len(columns["index"])
    return {
        "codebase_version": "v3.0",
        "robot_type": "gripper_pose",
        "total_episodes": 1,
        "total_frames": count,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": hertz,
        "splits": {"train": "0:1"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": {
            name: {
                "dtype": "float32" if values.is_floating_point() else "int64",
                "shape": [len(COLUMNS)] if values.ndim == 2 else [1],
                "names": list(COLUMNS) if values.ndim == 2 else None,
            }
            for name, values in columns.items()
        },
    }


def _statistics(values: Tensor) -> dict[str, list[float | int]]:
    """What LeRobot normalizes with."""
    table = values.double().reshape(len(values), -1)
    found = {
        "min": table.amin(dim=0),
        "max": table.amax(dim=0),
        "mean": table.mean(dim=0),
        "std": table.std(dim=0, correction=0),
    }
    return {**{name: row.tolist() for name, row in found.items()}, "count": [len(values)]}


def check_export(path: Path) -> Path:
    """The path itself, if `Trajectory.export` knows its suffix.

    Raises:
        AfieldError: it does not.
    """
    path = Path(path)
    if path.suffix not in (".json", ".csv", ""):
        raise AfieldError(
            f"Cannot export a trajectory as '{path.suffix}'; choose .json, .csv, or a folder (no suffix) for LeRobot."
        )
    return path
