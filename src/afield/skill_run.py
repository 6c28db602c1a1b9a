"""The run folder of a skill: the trajectory for the robot, and how it came about.

RUN/
  run.json          the trajectory in a robot's words, the joint, the quality, where everything came from
  trajectory/       the trajectory
  trajectory.csv    the same as a table
  skill/            a copy of the skill
  alignment/        the best alignments, and what was seen
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from afield.alignment import Similarity
from afield.artifacts import (
    FORMAT_VERSION,
    load_artifact,
    package_versions,
    read_json,
    write_artifact_files,
    write_folder,
)
from afield.decoding import Joint
from afield.errors import AfieldError
from afield.skills import Skill
from afield.trajectory import Trajectory

RUN_NAME = "run.json"
FORMAT = "afield-skill-run"


@dataclass(frozen=True)
class SkillRun:
    """One transfer of a skill with its inputs."""

    skill: Skill
    trajectory: Trajectory
    similarity: Similarity
    """The best alignments, the best first."""
    cost: Float[Tensor, "s"]
    seen: Float[Tensor, "n 3"]
    """Points on the object, in the world, in metres."""
    contact: Float[Tensor, "3"]
    joint: Joint
    quality: Mapping[str, Any]
    capture: Path | None = None
    """The target's capture; a simulation finds its world through it."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Seed, solver, detector, and which of several ways (`alternative`)."""

    def save(self, folder: Path) -> None:
        """Write the run folder in one step; an existing one is replaced."""
        write_folder(folder, self._fill)

    def _fill(self, folder: Path) -> None:
        self.skill.write_files(folder / "skill")
        self.trajectory.write_files(folder / "trajectory")
        state = self.similarity
        tensors = {
            **{name: getattr(state, name) for name in ("rotation", "translation", "log_scale", "sign", "pivot")},
            "cost": self.cost,
            "seen": self.seen,
            "contact": self.contact,
        }
        write_artifact_files(folder / "alignment", "alignment", tensors, {})
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "packages": package_versions(),
            "skill": {"name": self.skill.name, "narration": self.skill.narration},
            "contact": _list(self.contact),
            "joint": {
                "kind": self.joint.kind,
                "axis": _list(self.joint.axis),
                "point": _list(self.joint.point),
                "amount": _list(self.joint.amount),
                "pitch": round(self.joint.pitch, 6),
            },
            "quality": dict(self.quality),
            "capture": None if self.capture is None else str(Path(self.capture).resolve()),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "provenance": dict(self.provenance),
            "trajectory": self.trajectory.describe(),
        }
        text = json.dumps(content, indent=2, allow_nan=False)
        (folder / RUN_NAME).write_text(f"{text}\n", encoding="utf-8")
        self.trajectory.export(folder / "trajectory.csv")

    @staticmethod
    def is_run(folder: Path) -> bool:
        """Whether a folder holds the run of a skill."""
        file = Path(folder) / RUN_NAME
        return file.is_file() and read_json(file).get("format") == FORMAT

    @classmethod
    def load(cls, folder: Path) -> SkillRun:
        """Read a run folder.

        Raises:
            AfieldError: it is none, or damaged.
        """
        folder = Path(folder)
        content = read_json(folder / RUN_NAME)
        if content.get("format") != FORMAT:
            raise AfieldError(f"{folder} is not the run of a skill.")
        names = ("rotation", "translation", "log_scale", "sign", "pivot")
        tensors, _ = load_artifact(folder / "alignment", "alignment", (*names, "cost", "seen", "contact"))
        joint = content["joint"]
        capture = content.get("capture")
        return cls(
            skill=Skill.load(folder / "skill"),
            trajectory=Trajectory.load(folder / "trajectory"),
            similarity=Similarity(*(tensors[name] for name in names)),
            cost=tensors["cost"],
            seen=tensors["seen"],
            contact=tensors["contact"],
            joint=Joint(
                kind=joint["kind"],
                axis=torch.tensor(joint["axis"]),
                point=torch.tensor(joint["point"]),
                amount=torch.tensor(joint["amount"]),
                pitch=float(joint.get("pitch", 0.0)),
            ),
            quality=content.get("quality", {}),
            capture=None if capture is None else Path(capture),
            seconds=content.get("seconds", {}),
            provenance=content.get("provenance", {}),
        )


def _list(values: Tensor) -> list[float]:
    return [round(float(x), 6) for x in values]
