"""What `import afield` sets before PyTorch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()
sys.meta_path.insert(0, Watch())
import afield
"""


@pytest.mark.parametrize(
    ("given", "wanted"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_waiting_threads_sleep_unless_the_user_wants_otherwise(given: dict[str, str], wanted: str) -> None:
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", WATCH], env={**own, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == wanted
