"""The short JSON files about hands: the description of a hand, and the parts of a hand configuration.

`docs/hands.md` documents both.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from afield.artifacts import read_json
from afield.errors import AfieldError
from afield.geometry import pose_from, quat_wxyz_to_matrix

DESCRIPTIONS = Path(__file__).parent / "hands"
_PACKAGE = "package:"

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class HandDescription:
    """What Afield must know of a hand beyond its MJCF or URDF file."""

    name: str
    """What to call the hand."""
    file: str
    """The MJCF or URDF file: a path relative to the description, or "package:" and a path in an installed package."""
    base: str
    """The body whose frame is the hand frame: the palm."""
    palm_center: Vector
    """A point on the palm's surface, in metres in the hand frame."""
    palm_normal: Vector
    """Where the palm looks, in the hand frame."""
    finger_direction: Vector
    """Where straight fingers point, in the hand frame."""
    root: str | None = None
    """The topmost body that belongs to the hand (an arm above it is cut off); by default the topmost above `base`."""
    joints: tuple[str, ...] | None = None
    """The joints to optimize, in this order; by default every hinge and slide below `base` that is not fixed."""
    fixed: Mapping[str, float] = field(default_factory=dict)
    """Joints held still, with their position in radians (metres for slides), such as a wrist."""
    neutral: Mapping[str, float] = field(default_factory=dict)
    """A half-open resting pose in radians (metres for slides); joints that are not named rest at 0, or at mid-range if
    the whole pose is left out."""
    fingers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Finger name to its bodies from base to tip; by default everything below `base` counts as finger."""
    pads: Mapping[str, Vector] = field(default_factory=dict)
    """Body to the direction its gripping side faces, in the body's frame; by default `palm_normal` at zero joints."""
    ignore: tuple[str, ...] = ()
    """Bodies below `base` that get no query points; they still collide."""
    install: str | None = None
    """The command that installs the package of a "package:" file, for the error message."""
    folder: Path = Path()
    """Where the description lies; relative paths start here."""


def hand_names() -> list[str]:
    """Names of the hand descriptions that ship with Afield."""
    return sorted(path.stem for path in DESCRIPTIONS.glob("*.json"))


def read_description(path: Path) -> HandDescription:
    """Read and check a hand description.

    Raises:
        AfieldError: the file cannot be read, an entry is unknown, missing, or not of its kind.
    """
    path = Path(path)
    content = read_json(path)
    known = {f.name for f in fields(HandDescription)} - {"folder"}
    for key in content:
        if key not in known:
            raise AfieldError(unknown_name(key, known, "entry", f"the hand description {path}"))
    for key in ("name", "file", "base", "palm_center", "palm_normal", "finger_direction"):
        if key not in content:
            raise AfieldError(f"The hand description {path} lacks '{key}', which every hand must have.")
    entries: dict[str, Any] = {"folder": path.parent}
    for key, value in content.items():
        entries[key] = _checked(key, value, path)
    return HandDescription(**entries)


def resolve_file(description: HandDescription) -> Path:
    """The MJCF or URDF file of a description; a package is located without importing it.

    Raises:
        AfieldError: the package is not installed (with the command that installs it), or the file is not there.
    """
    return resolve_package_file(
        description.file, description.folder, f"The hand '{description.name}'", description.install
    )


def resolve_package_file(file: str, folder: Path, who: str, install: str | None) -> Path:
    """A file beside its description, or "package:" and a path (a folder too) in an installed package, which is not imported.

    Args:
        file: as the description says it.
        folder: of the description.
        who: begins the sentence of an error, for instance "The hand 'leap'".
        install: the command that installs the package; guessed if None.

    Raises:
        AfieldError: the package is not installed (with the command that installs it), or the file is not there.
    """
    if not file.startswith(_PACKAGE):
        if not (folder / file).is_file():
            raise AfieldError(f"{who} names the file {folder / file}, which does not exist.")
        return folder / file
    package, _, inner = file.removeprefix(_PACKAGE).partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        command = install or f"pip install {package.replace('_', '-')}"
        raise AfieldError(f"{who} needs the package '{package}': {command}")
    for location in found.submodule_search_locations:
        if (Path(location) / inner).exists():
            return Path(location) / inner
    raise AfieldError(
        f"{who} names '{inner}' in the package '{package}', but the installed release has no such file; install another "
        "release, or describe the file by its path."
    )


def unknown_name(name: str, valid: Iterable[str], kind: str, place: str) -> str:
    """One sentence about a wrong name, with the closest valid ones first and then all."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    nearest = f"did you mean {' or '.join(close)}? " if close else ""
    return f"Unknown {kind} '{name}' in {place}: {nearest}valid names are {', '.join(sorted(valid)) or '(none)'}."


def joint_index(name: str, joint_names: tuple[str, ...], path: Path) -> int:
    """Place of a joint that is named in full or without its prefix."""
    if name in joint_names:
        return joint_names.index(name)
    short = [full.replace("/", ":").rpartition(":")[2] for full in joint_names]
    if short.count(name) == 1:
        return short.index(name)
    raise AfieldError(unknown_name(name, joint_names, "joint", f"'joints' of {path}"))


def pose_from_json(value: Any, path: Path) -> Float[Tensor, "4 4"]:
    """A rigid pose from one of its two notations."""
    try:
        if isinstance(value, dict):
            quat = torch.tensor(value["quat_wxyz"], dtype=torch.float64).reshape(4)
            if abs(float(quat.norm()) - 1) > 1e-2:
                raise AfieldError(
                    f"'quat_wxyz' in {path} has length {float(quat.norm()):.3g}, but must be a unit quaternion."
                )
            position = torch.tensor(value["position"], dtype=torch.float64).reshape(3)
            pose = pose_from(quat_wxyz_to_matrix(quat / quat.norm()), position)
        else:
            pose = torch.tensor(value, dtype=torch.float64).reshape(4, 4)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        if isinstance(error, AfieldError):
            raise
        raise AfieldError(
            f"'T_world_hand' in {path} must be a 4x4 matrix or an object with 'position' (3) and 'quat_wxyz' (4)."
        ) from error
    rotation = pose[:3, :3]
    rigid = torch.isfinite(pose).all() and torch.allclose(rotation @ rotation.T, torch.eye(3).double(), atol=1e-3)
    if not rigid or float(torch.det(rotation)) < 0 or not torch.allclose(pose[3], torch.eye(4).double()[3]):
        raise AfieldError(
            f"'T_world_hand' in {path} is not a rigid pose (finite, orthonormal rotation, last row 0 0 0 1)."
        )
    return pose


def _checked(key: str, value: Any, path: Path) -> Any:
    """One entry of the JSON file, converted to the type of the dataclass field."""

    def fail(expected: str) -> AfieldError:
        """The error that names file, entry and what was expected."""
        return AfieldError(f"'{key}' in the hand description {path} is {value!r}, but must be {expected}.")

    if key in ("palm_center", "palm_normal", "finger_direction"):
        return _direction(value, unit=key != "palm_center", error=fail)
    if key in ("joints", "ignore"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise fail("a list of names")
        return tuple(value)
    if key in ("fixed", "neutral"):
        if not isinstance(value, dict) or not all(_is_number(item) for item in value.values()):
            raise fail("an object of joint name to number")
        return {name: float(item) for name, item in value.items()}
    if key == "fingers":
        if not isinstance(value, dict) or not all(
            isinstance(item, list) and all(isinstance(name, str) for name in item) for item in value.values()
        ):
            raise fail("an object of finger name to a list of bodies")
        return {name: tuple(item) for name, item in value.items()}
    if key == "pads":
        if not isinstance(value, dict):
            raise fail("an object of body name to a direction")
        return {name: _direction(item, unit=True, error=fail) for name, item in value.items()}
    if not isinstance(value, str) or not value:
        raise fail("a text")
    return value


def _direction(value: Any, *, unit: bool, error: Any) -> Vector:
    """Three finite numbers; scaled to length one if `unit`."""
    if not isinstance(value, list) or len(value) != 3 or not all(_is_number(item) for item in value):
        raise error("three numbers")
    length = math.hypot(*value) if unit else 1.0
    if length < 1e-6:
        raise error("a direction, not the zero vector")
    return (value[0] / length, value[1] / length, value[2] / length)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
