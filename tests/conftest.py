"""Shared fixtures, and runtime checks of the shapes written in the signatures."""

from __future__ import annotations

import os

import pytest
from jaxtyping import install_import_hook

# Every jaxtyping annotation of the library is checked at run time while the tests run.
_hook = install_import_hook("afield", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(int(os.environ.get("AFIELD_TEST_THREADS", "1")))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
