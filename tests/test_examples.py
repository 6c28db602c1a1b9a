from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example: Path) -> None:
    done = subprocess.run([sys.executable, str(example), "--test"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"quat_wxyz"' in done.stdout
