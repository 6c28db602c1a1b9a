"""A skill: the affordance function of one demonstrated object, with the words that go with it, as a folder on disk.

SKILL/
  tensors.safetensors, afield.json    the function, its frame, how pictures are described, the narration
  picture.png                         the object before it was touched
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from afield.artifacts import HEADER_NAME, load_artifact, read_json, write_artifact_files, write_folder
from afield.errors import AfieldError
from afield.fields.affordance import AffordanceField
from afield.fields.affordance_grid import GridAffordance, GridConfig
from afield.fields.affordance_neus import NeusAffordance, NeusConfig

CLOSING = ("close", "shut", "push")
"""Narrations that begin so move a joint back; what they move stands open at first."""
DISTILLED = Path("stages") / "fit"
"""Where the skill lies in the folder of `afield distill`."""
CONTACT = 0.5
"""Probability above which a surface point counts as touched."""
CONTACT_SHARE = 0.02
"""Where no point is that probable: this share of the surface, the most probable."""


@dataclass(frozen=True)
class DescriptorBasis:
    """How a picture becomes descriptors: an extractor's unit tokens, projected onto principal components of the object."""

    extractor: str
    """Name of the image feature extractor."""
    mean: Float[Tensor, "c"]
    basis: Float[Tensor, "c d"]

    def project(self, tokens: Float[Tensor, "*b c"]) -> Float[Tensor, "*b d"]:
        """Descriptors of tokens."""
        return (functional.normalize(tokens, dim=-1) - self.mean) @ self.basis


@dataclass(frozen=True)
class Skill:
    """What was shown once: an affordance function F, the frame it lives in, and the sentence that names it."""

    name: str
    narration: str
    """What was done, for instance "open the microwave"."""
    field: AffordanceField
    center: Float[Tensor, "3"]
    """Origin of the canonical frame in the frame of the pictures, in metres; its axes are parallel, +Z is up."""
    scale: float
    """Metres per canonical unit."""
    basis: DescriptorBasis
    floor: float | None = None
    """Canonical height of what the object stood on; None where it did not stand."""
    mode: str = "grasp"
    """How it is touched: "grasp", or "push" with closed fingers."""
    picture: UInt8[np.ndarray, "h w 3"] | None = None
    """The object before it was touched, RGB."""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metric: bool = True
    """Whether lengths are metres; an ordinary video leaves the scale open."""

    @property
    def task(self) -> Literal["open", "close"]:
        """Which way the joint is to move, by the first word of the narration."""
        return task_of(self.narration)

    def contact_points(self, count: int = 8000, seed: int = 0) -> Float[Tensor, "k 3"]:
        """Q_c: canonical surface points where the object is touched."""
        points, _ = self.field.surface(count, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            probability = self.field.appearance(points)[2]
        chosen = probability > CONTACT
        if int(chosen.sum()) < 4:
            chosen = torch.zeros_like(chosen)
            chosen[probability.topk(round(CONTACT_SHARE * len(points))).indices] = True
        return points[chosen]

    def save(self, folder: Path) -> None:
        """Write the folder, as a whole or not at all."""
        write_folder(folder, self.write_files)

    def write_files(self, folder: Path) -> None:
        """Write the files into an existing folder; for use inside `write_folder`."""
        state = {f"field.{name}": tensor for name, tensor in _module(self.field).state_dict().items()}
        tensors = {**state, "center": self.center, "basis.mean": self.basis.mean, "basis.basis": self.basis.basis}
        header = {
            "name": self.name,
            "narration": self.narration,
            "backend": self.field.backend,
            "config": asdict(_module(self.field).config),
            "scale": self.scale,
            "floor": self.floor,
            "mode": self.mode,
            "metric": self.metric,
            "extractor": self.basis.extractor,
            "provenance": dict(self.provenance),
        }
        write_artifact_files(folder, "skill", tensors, header)
        if self.picture is not None:
            cv2.imwrite(str(folder / "picture.png"), self.picture[..., ::-1])

    @staticmethod
    def is_skill(folder: Path) -> bool:
        """Whether a folder holds a skill."""
        file = Path(folder) / HEADER_NAME
        return file.is_file() and read_json(file).get("format") == "afield-skill"

    @classmethod
    def load(cls, folder: Path) -> Skill:
        """Read a skill; of the folder of `afield distill`, the one that came out.

        Raises:
            AfieldError: there is none, or it is damaged.
        """
        folder = Path(folder)
        if (folder / DISTILLED / HEADER_NAME).is_file():
            folder = folder / DISTILLED
        if not folder.is_dir():
            raise AfieldError(f"There is no skill in {folder}; make one with `afield distill` or `afield fit`.")
        required = ("center", "basis.mean", "basis.basis")
        keys = ("name", "narration", "backend", "config", "scale", "extractor")
        tensors, header = load_artifact(folder, "skill", required, keys)
        state = {name.removeprefix("field."): t for name, t in tensors.items() if name.startswith("field.")}
        picture = cv2.imread(str(folder / "picture.png"))
        return cls(
            name=header["name"],
            narration=header["narration"],
            field=_field(header, state, folder),
            center=tensors["center"],
            scale=float(header["scale"]),
            basis=DescriptorBasis(header["extractor"], tensors["basis.mean"], tensors["basis.basis"]),
            floor=header.get("floor"),
            mode=header.get("mode", "grasp"),
            picture=None if picture is None else np.ascontiguousarray(picture[..., ::-1]),
            provenance=header.get("provenance", {}),
            metric=bool(header.get("metric", True)),
        )


def task_of(narration: str) -> Literal["open", "close"]:
    """Which way a joint is to move, by the first word of a narration; what is not known to close opens."""
    first = narration.strip().lower().split(" ", 1)[0]
    return "close" if first in CLOSING else "open"


def mode_of(narration: str) -> Literal["grasp", "push"]:
    """How a part is touched, by the first word of a narration: what closes or is pressed is pushed with closed fingers."""
    first = narration.strip().lower().split(" ", 1)[0]
    return "push" if first in (*CLOSING, "press") else "grasp"


def _module(function: AffordanceField) -> GridAffordance | NeusAffordance:
    assert isinstance(function, GridAffordance | NeusAffordance), "these are the backends"
    return function


def _field(header: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path) -> GridAffordance | NeusAffordance:
    """Build the backend that the header names and fill it."""
    backend = header["backend"]
    try:
        if backend == "grid":
            side = state["distance"].shape[0]
            function = GridAffordance(GridConfig(**{**header["config"], "resolution": side}))
        elif backend == "neus":
            function = NeusAffordance(NeusConfig(**header["config"]))
        else:
            raise AfieldError(
                f"{folder} holds a function of the backend '{backend}'; this release reads grid and neus."
            )
        function.load_state_dict(dict(state))
    except (KeyError, TypeError, RuntimeError) as error:
        raise AfieldError(f"The tensors in {folder} do not fit its configuration: {error}") from error
    return function.requires_grad_(False)
