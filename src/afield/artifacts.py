"""Artifacts on disk: a folder with tensors (safetensors) and a JSON header, written atomically.

Every artifact of Afield (a scene, a field, a demonstration, a run) is such a folder. There is no pickle anywhere. A folder
appears under its final name only when it is complete, so a full disk or a kill leaves nothing half-written behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from afield.errors import AfieldError

FORMAT_VERSION = 1
HEADER_NAME = "afield.json"
TENSORS_NAME = "tensors.safetensors"
OWN_FILES = (HEADER_NAME, "run.json", "capture.json", "summary.json")
"""A folder with one of these was written by Afield and may be replaced."""


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what an artifact means, for its header."""
    versions = {}
    for name in ("afield", "torch", "numpy", "mujoco"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Create the folder `path` in one step: `fill` writes into a temporary sibling, which is then renamed.

    Args:
        path: the final folder. An existing folder of that name is replaced, but only after `fill` has succeeded.
        fill: receives the temporary folder and writes the contents into it.

    Raises:
        AfieldError: the disk is full, the place cannot be written, or holds something else than an artifact. Nothing is
            left behind then, and nothing is deleted.
    """
    path = Path(path)
    check_replaceable(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o755)
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        _replace(temporary, path)
    except OSError as error:
        raise AfieldError(f"Cannot write {path}: {error.strerror or error}; nothing was saved.") from error
    except SafetensorError as error:  # safetensors reports a full disk through its own exception
        raise AfieldError(f"Cannot write {path}: {error}; nothing was saved.") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path) -> None:
    """Refuse to replace a folder that Afield has not written; an empty one, or none, is fine.

    Raises:
        AfieldError: there is a file, or a folder with other things in it.
    """
    path = Path(path)
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if names and not names & set(OWN_FILES):
            raise AfieldError(
                f"{path} holds other files (for instance {min(names)}) and would be replaced as a whole; choose a new "
                "folder."
            )
    elif path.exists():
        raise AfieldError(f"Cannot write {path}: a file of that name is in the way; nothing was saved.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, with two spaces of indentation."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode("utf-8"))


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary sibling, fsync, rename.

    Raises:
        AfieldError: the disk is full, or the place cannot be written. Nothing is left behind then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        _fsync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise AfieldError(f"Cannot write {path}: {error.strerror or error}; nothing was saved.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing, truncated or non-object file is an `AfieldError` that names it."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AfieldError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise AfieldError(f"{path} is not valid JSON ({error}); the file may be truncated.") from error
    if not isinstance(content, dict):
        raise AfieldError(f"{path} must hold a JSON object, but holds a {type(content).__name__}.")
    return content


def save_artifact(folder: Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write `tensors` and `header` as the artifact folder `folder`.

    Args:
        folder: where; replaced as a whole if it exists.
        kind: what it is, e.g. "scene"; checked when it is read.
        tensors: name to tensor.
        header: JSON-serialisable description (units, seed, extractor, layer, ...).
    """
    write_folder(folder, lambda temporary: write_artifact_files(temporary, kind, tensors, header))


def write_artifact_files(folder: Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write the files of one artifact into an existing folder (for use inside `write_folder`)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, folder / TENSORS_NAME)
    full = {
        "format": f"afield-{kind}",
        "format_version": FORMAT_VERSION,
        "units": {"length": "metre", "angle": "radian", "mass": "kilogram"},
        "packages": package_versions(),
        **header,
    }
    (folder / HEADER_NAME).write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")


def load_artifact(
    folder: Path, kind: str, required: tuple[str, ...] = (), keys: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an artifact folder.

    Args:
        folder: the folder.
        kind: the kind it must be of.
        required: names of tensors that must be there, all finite if floating.
        keys: what the header must have.

    Returns:
        The tensors by name (on the CPU) and the header.

    Raises:
        AfieldError: not there, of another kind or version, truncated, or with non-finite numbers.
    """
    folder = Path(folder)
    if not (folder / HEADER_NAME).is_file():
        raise AfieldError(f"{folder} is not an Afield artifact: it has no {HEADER_NAME}.")
    header = read_json(folder / HEADER_NAME)
    found = str(header.get("format", "")).removeprefix("afield-")
    if found != kind:
        raise AfieldError(f"{folder} holds a {found or 'nameless artifact'}, but a {kind} is needed here.")
    if header.get("format_version") != FORMAT_VERSION:
        raise AfieldError(
            f"{folder} has format version {header.get('format_version')}, but this release reads {FORMAT_VERSION}."
        )
    for key in keys:
        if key not in header:
            raise AfieldError(f"{folder / HEADER_NAME} lacks the entry '{key}' that a {kind} must have.")
    try:
        tensors = load_file(folder / TENSORS_NAME)
    except (OSError, SafetensorError) as error:
        raise AfieldError(f"Cannot read {folder / TENSORS_NAME}: {error}; the file may be truncated.") from error
    for name in required:
        if name not in tensors:
            raise AfieldError(f"{folder / TENSORS_NAME} lacks the tensor '{name}' that a {kind} must have.")
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise AfieldError(f"The tensor '{name}' in {folder / TENSORS_NAME} holds NaN or infinite numbers.")
    return tensors, header


def _fsync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(temporary: Path, path: Path) -> None:
    """Rename a complete folder over `path`; a folder that was there moves aside first and is deleted last."""
    if not path.exists():
        temporary.rename(path)
        return
    if not path.is_dir():
        raise FileExistsError(17, "a file of that name is in the way")
    aside = path.with_name(f".{path.name}.old{os.getpid()}")
    path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
