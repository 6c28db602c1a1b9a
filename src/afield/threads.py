"""Imported before PyTorch: its threads shall not keep a shared core busy while they wait.

Between two operations the threads of libgomp spin for milliseconds. Where another program needs one of the cores, each such wait
costs a time slice: a fit beside one busy process takes 25 s instead of 230 s with this, and an idle machine loses nothing.
"""

from __future__ import annotations

import os

SPIN = "1000"
"""Turns after which a waiting thread goes to sleep."""

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
