"""Labels on disk, beside a capture: what was shown with the object in these pictures.

CAPTURE/labels/
  labels.json          narration, mode, floor, and the contact mask of every view that has one
  contact_NAME.png     where hand and object touch
  flow/                tracks of points from first contact to release (start, displacement, visible)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from afield.artifacts import load_artifact, read_json, write_artifact_files, write_folder
from afield.distill.labels import Flow, Labels
from afield.errors import AfieldError
from afield.observation import Observation

LABELS = "labels"
MODES = ("grasp", "push")
LEAST_STEPS = 8
"""Of the flow: as many as a decoded trajectory has waypoints."""


@dataclass(frozen=True)
class Shown:
    """Labels as a person gives them: without descriptors, which are computed."""

    labels: Labels
    narration: str
    mode: str = "grasp"


def write_shown(capture: Path, observation: Observation, shown: Shown) -> None:
    """Write the labels of a capture into its folder."""

    def fill(folder: Path) -> None:
        """Write the masks and the flow, and the JSON file that names them."""
        masks = {}
        for view, mask in zip(observation.views, shown.labels.contact, strict=True):
            if mask is not None:
                masks[view.name] = f"contact_{view.name}.png"
                cv2.imwrite(str(folder / masks[view.name]), mask.astype(np.uint8) * 255)
        flow = shown.labels.flow
        if flow is not None:
            tensors = {"start": flow.start, "displacement": flow.displacement.half(), "visible": flow.visible.half()}
            write_artifact_files(folder / "flow", "flow", tensors, {})
        header = {"narration": shown.narration, "mode": shown.mode, "floor": shown.labels.floor, "contact": masks}
        (folder / "labels.json").write_text(_text(header), encoding="utf-8")

    write_folder(Path(capture) / LABELS, fill)


def read_shown(capture: Path, observation: Observation) -> Shown:
    """Read the labels of a capture.

    Raises:
        AfieldError: there are none, or they do not belong to these views.
    """
    folder = Path(capture) / LABELS
    if not (folder / "labels.json").is_file():
        raise AfieldError(
            f"{capture} has no labels ({folder / 'labels.json'}): contact masks and flow say what is done with the object "
            "(docs/affordance.md); `afield distill` makes them from a video."
        )
    header = read_json(folder / "labels.json")
    mode = header.get("mode", "grasp")
    if mode not in MODES:
        raise AfieldError(f"{folder / 'labels.json'}: the mode must be one of {', '.join(MODES)}, but is {mode!r}.")
    names = header.get("contact", {})
    strange = sorted(set(names) - {view.name for view in observation.views})
    if strange:
        raise AfieldError(f"{folder / 'labels.json'}: there is no view '{strange[0]}' in {capture}.")
    contact = tuple(_mask(folder / names[view.name]) if view.name in names else None for view in observation.views)
    flow = None
    if (folder / "flow").is_dir():
        tensors, _ = load_artifact(folder / "flow", "flow", ("start", "displacement", "visible"))
        flow = _flow(folder / "flow", *(tensors[name].float() for name in ("start", "displacement", "visible")))
    floor = header.get("floor")
    return Shown(
        Labels(contact, None, None if floor is None else float(floor), flow), str(header.get("narration", "")), mode
    )


def _flow(folder: Path, start: Tensor, displacement: Tensor, visible: Tensor) -> Flow:
    """Refuse tensors that do not belong together."""
    count, horizon = (displacement.shape[0], displacement.shape[1]) if displacement.ndim == 3 else (-1, -1)
    wanted = {"start": (count, 3), "displacement": (count, horizon, 3), "visible": (count, horizon)}
    for (name, shape), tensor in zip(wanted.items(), (start, displacement, visible), strict=True):
        if tuple(tensor.shape) != shape:
            raise AfieldError(
                f"{folder}: the flow must be start [q, 3], displacement [q, h, 3] and visible [q, h], but {name} is "
                f"{list(tensor.shape)}."
            )
    if horizon < LEAST_STEPS:
        raise AfieldError(
            f"{folder}: the flow has {horizon} steps; at least {LEAST_STEPS} are needed for a trajectory."
        )
    return Flow(start, displacement, visible)


def _mask(file: Path) -> Any:
    image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise AfieldError(f"Cannot read the contact mask {file}.")
    return image > 127


def _text(header: dict[str, Any]) -> str:
    return json.dumps(header, indent=2) + "\n"
