"""The run folder: one grasp and everything that is needed to look at it, simulate it, or send it to a robot.

RUN/
  run.json         the grasp in a robot's words, and where everything came from
  grasp/           the hand configuration and the whole history of its optimization
  demonstration/   a copy of what was repeated
  scene/           a copy of the target scene
  field/           a copy of the field
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afield.artifacts import FORMAT_VERSION, package_versions, read_json, write_folder
from afield.demonstration import Demonstration
from afield.errors import AfieldError
from afield.hand import Hand, hand_by_name
from afield.pretrain import FieldModel
from afield.result import Grasp
from afield.scene import Scene

RUN_NAME = "run.json"


@dataclass(frozen=True)
class Run:
    """One transfer with its inputs."""

    grasp: Grasp
    demonstration: Demonstration
    scene: Scene
    model: FieldModel
    hand: Hand
    capture: Path | None = None
    """The capture of the target scene; a simulation finds the objects through it."""
    hand_file: str = "shadow"
    """What to give to `hand_by_name` to get the hand again: a name or the path of a description."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each step took."""

    def save(self, folder: Path) -> None:
        """Write the run folder in one step; an existing one is replaced."""
        write_folder(folder, self._fill)

    def _fill(self, folder: Path) -> None:
        self.grasp.write_files(folder / "grasp")
        self.demonstration.write_files(folder / "demonstration")
        self.scene.write_files(folder / "scene")
        self.model.write_files(folder / "field")
        content: dict[str, Any] = {
            "format": "afield-run",
            "format_version": FORMAT_VERSION,
            "packages": package_versions(),
            "grasp": self.grasp.describe(self.hand),
            "hand_file": str(Path(self.hand_file).resolve()) if Path(self.hand_file).is_file() else self.hand_file,
            "capture": str(self.capture.resolve()) if self.capture else None,
            "seconds": dict(self.seconds),
            "provenance": dict(self.grasp.provenance),
        }
        (folder / RUN_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read a run folder back.

        Raises:
            AfieldError: the folder is no run, or a part of it is missing or damaged.
        """
        folder = Path(folder)
        if not (folder / RUN_NAME).is_file():
            raise AfieldError(f"{folder} is not a run: it has no {RUN_NAME}; `afield grasp -o {folder}` makes one.")
        content = read_json(folder / RUN_NAME)
        if content.get("format") != "afield-run" or content.get("format_version") != FORMAT_VERSION:
            raise AfieldError(f"{folder / RUN_NAME} is not a run of format version {FORMAT_VERSION}.")
        demonstration = Demonstration.load(folder / "demonstration")
        hand_file = str(content.get("hand_file", "shadow"))
        hand = hand_by_name(hand_file)
        demonstration.check_hand(hand)
        capture = content.get("capture")
        return cls(
            grasp=Grasp.load(folder / "grasp"),
            demonstration=demonstration,
            scene=Scene.load(folder / "scene"),
            model=FieldModel.load(folder / "field"),
            hand=hand,
            capture=Path(capture) if capture else None,
            hand_file=hand_file,
            seconds=content.get("seconds", {}),
        )
