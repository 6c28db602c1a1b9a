"""Where a fit stands, on disk, so that a killed one goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afield.artifacts import load_artifact, save_artifact
from afield.distill.labels import Labels
from afield.errors import AfieldError
from afield.observation import Observation

KIND = "fit-checkpoint"
KEYS = ("phase", "step", "history", "seconds", "data", "config")


@dataclass
class Standing:
    """A fit between two steps; everything that the next step depends on."""

    generator: torch.Generator
    """Of rays, samples and slabs."""
    phase: str = "static"
    """static or dynamic."""
    step: int = 0
    """Steps of this phase that are done."""
    history: dict[str, list[float]] = field(default_factory=dict)
    """Losses of every step so far, by name."""
    seconds: float = 0.0
    """CPU seconds spent by earlier processes."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """Of the field, by name; empty where a fit begins."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """State of Adam, by number of the parameter and name of the entry."""


class Checkpoint:
    """The folder that holds the standing of one fit; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, every: int, data: str, config: Mapping[str, Any]) -> None:
        self.folder, self.every, self.data = folder, every, data
        self.config = json.loads(json.dumps(config))

    def load(self, seed: int) -> Standing:
        """Where the fit stands; at its beginning if the folder does not exist.

        Raises:
            AfieldError: the folder holds something else, or the standing of a fit to other data or of other settings.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.folder is None or not self.folder.exists():
            return Standing(generator)
        tensors, header = load_artifact(self.folder, KIND, ("generator",), KEYS)
        if header["data"] != self.data:
            raise AfieldError(
                f"The checkpoint {self.folder} belongs to other pictures or labels; name another folder or delete it."
            )
        if header["config"] != self.config:
            names = sorted(k for k in self.config if header["config"].get(k) != self.config[k]) or ["its version"]
            raise AfieldError(
                f"The checkpoint {self.folder} was made with other settings ({', '.join(names)}); use the same ones, name "
                "another folder, or delete it."
            )
        generator.set_state(tensors["generator"])
        parts = {
            prefix: {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
            for prefix in ("field", "adam")
        }
        return Standing(
            generator,
            header["phase"],
            header["step"],
            header["history"],
            header["seconds"],
            parts["field"],
            parts["adam"],
        )

    def save(self, standing: Standing, network: nn.Module, optimizer: torch.optim.Optimizer, seconds: float) -> None:
        """Write the standing if it is time; `seconds` is the CPU time of this process so far."""
        if self.folder is None or standing.step % self.every:
            return
        adam = {
            f"adam.{index}.{name}": value
            for index, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        tensors = {f"field.{name}": value for name, value in network.state_dict().items()}
        header = {
            "phase": standing.phase,
            "step": standing.step,
            "history": standing.history,
            "seconds": standing.seconds + seconds,
            "data": self.data,
            "config": self.config,
        }
        save_artifact(self.folder, KIND, {**tensors, **adam, "generator": standing.generator.get_state()}, header)

    def remove(self) -> None:
        """The fit is complete and its result is worth more than its standing."""
        if self.folder is not None and self.folder.exists():
            shutil.rmtree(self.folder)


def restore(standing: Standing, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the parameters and the moments of a standing back; shapes must agree already."""
    network.load_state_dict(standing.parameters)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in standing.moments.items():
        index, entry = name.split(".")
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def fingerprint(observation: Observation, labels: Labels) -> str:
    """A hash of everything that a fit reads: pictures, cameras, masks, depth and labels."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        """Take a value into the hash; arrays with their shape."""
        if isinstance(value, Tensor):
            value = value.numpy()
        shape = getattr(value, "shape", None)
        digest.update(repr(value if shape is None else shape).encode())
        if shape is not None:
            digest.update(value.tobytes())  # pyright: ignore[reportAttributeAccessIssue]

    for view in observation.views:
        camera = view.camera
        add((camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy))
        for part in (camera.T_world_camera, view.color, view.depth, view.mask):
            add(part)
    for part in (*labels.contact, labels.descriptors, labels.floor):
        add(part)
    if labels.flow is not None:
        for part in (labels.flow.start, labels.flow.displacement, labels.flow.visible):
            add(part)
    return digest.hexdigest()
