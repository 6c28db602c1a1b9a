"""What comes out: a `Grasp` with the whole history of its optimization, and the run folder that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from afield.artifacts import load_artifact, write_artifact_files
from afield.errors import AfieldError
from afield.geometry import matrix_to_quat_wxyz
from afield.hand import Hand


@dataclass(frozen=True)
class GraspHistory:
    """Everything the optimizer tried; the report draws its slider and curves from it."""

    beta: Float[Tensor, "steps d"]
    """The path of the start that won: one hand configuration per recorded step."""
    step: Int[Tensor, "steps"]
    """The optimizer step of each recorded configuration."""
    terms: Mapping[str, Float[Tensor, "steps"]]
    """Weighted energy terms along that path; they add up to the energy."""
    start_energy: Float[Tensor, "starts"]
    """The last energy of every start, also of those that successive halving dropped early."""
    start_beta: Float[Tensor, "starts d"]
    """The last configuration of every start."""
    winner: int = 0
    """Which start was chosen; not always the one of least energy, for a rehearsal may prefer another."""
    rounds: tuple[tuple[Int[Tensor, "_s"], Float[Tensor, "_t _s d"], Float[Tensor, "_t _s"]], ...] = ()
    """Every round of the successive halving in full: which starts took part, all their configurations and energies."""
    stages: tuple[Mapping[str, Any], ...] = ()
    """How the work was divided: starts, steps and points of each round."""


@dataclass(frozen=True)
class Grasp:
    """A hand configuration for the target scene, and why it was chosen."""

    beta: Float[Tensor, "d"]
    """Hand configuration: translation (m), rotation 6-D, joint angles (rad), in the target scene's world frame."""
    energy: float
    """The minimum of Eq. 9 that was chosen."""
    terms: Mapping[str, float]
    """Its weighted terms, by name."""
    history: GraspHistory
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Demonstration, field, scene, hand, configuration and seed."""

    def describe(self, hand: Hand) -> dict[str, Any]:
        """The grasp in the words of a robot: pose of the palm frame and joint angles by name, JSON-able."""
        pose, joints = hand.split(self.beta)
        return {
            "hand": hand.name,
            "frame": "world, metres, +Z up; the pose is that of the hand's palm frame",
            "position": [float(x) for x in pose[:3, 3]],
            "quat_wxyz": [float(x) for x in matrix_to_quat_wxyz(pose[:3, :3])],
            "joints": {name: float(angle) for name, angle in zip(hand.joint_names, joints, strict=True)},
            "energy": self.energy,
            "terms": dict(self.terms),
        }

    def write_files(self, folder: Path) -> None:
        """Write the grasp's files into an existing folder; for use inside `write_folder`."""
        history = self.history
        tensors = {
            "beta": self.beta,
            "history.beta": history.beta,
            "history.step": history.step,
            "history.start_energy": history.start_energy,
            "history.start_beta": history.start_beta,
            **{f"history.terms.{name}": values for name, values in history.terms.items()},
            **{
                f"history.round{number}.{name}": tensor
                for number, record in enumerate(history.rounds)
                for name, tensor in zip(("start", "beta", "energy"), record, strict=True)
            },
        }
        header = {
            "energy": self.energy,
            "terms": dict(self.terms),
            "winner": history.winner,
            "stages": [dict(stage) for stage in history.stages],
            "provenance": dict(self.provenance),
        }
        write_artifact_files(folder, "grasp", tensors, header)

    @classmethod
    def load(cls, folder: Path) -> Grasp:
        """Read a grasp back."""
        names = ("beta", "history.beta", "history.step", "history.start_beta")
        tensors, header = load_artifact(folder, "grasp", names, ("energy", "terms", "winner"))
        if "history.start_energy" not in tensors:  # infinite where a start failed, so not among the required ones
            raise AfieldError(f"{folder} lacks the tensor 'history.start_energy' that a grasp must have.")
        prefix = "history.terms."
        history = GraspHistory(
            beta=tensors["history.beta"],
            step=tensors["history.step"],
            terms={name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
            start_energy=tensors["history.start_energy"],
            start_beta=tensors["history.start_beta"],
            winner=int(header["winner"]),
            rounds=tuple(
                (
                    tensors[f"history.round{n}.start"],
                    tensors[f"history.round{n}.beta"],
                    tensors[f"history.round{n}.energy"],
                )
                for n in range(sum(name.endswith(".start") for name in tensors))
            ),
            stages=tuple(header.get("stages", ())),
        )
        return cls(tensors["beta"], header["energy"], header["terms"], history, header.get("provenance", {}))
