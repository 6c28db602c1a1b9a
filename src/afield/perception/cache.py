"""The user's cache folder: tensors that are cheap to lose and slow to make again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def cache_folder() -> Path:
    """Where converted weights and image features are kept: `$XDG_CACHE_HOME/afield` or `~/.cache/afield`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afield"


def read_cached(file: Path) -> dict[str, Tensor] | None:
    """The tensors of a cache entry; None if it is not there or damaged, for then it is made again."""
    try:
        return load_file(file) if file.is_file() else None
    except (OSError, SafetensorError):
        return None


def write_cached(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a cache entry in one step. A cache that cannot be written only costs time, so that is no error."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.replace(file)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
