"""Which OpenGL works here without a screen. MuJoCo binds its driver when it is imported, so trying needs a fresh process."""

from __future__ import annotations

import functools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

from afield.errors import AfieldError

P = ParamSpec("P")
T = TypeVar("T")

DRIVERS = ("egl", "osmesa") if sys.platform == "linux" else ("",)
"""Values of MUJOCO_GL, in the order in which they are tried."""
TRIAL = """
import mujoco
with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>"), 8, 8) as renderer:
    renderer.render()
"""


@functools.cache
def opengl_environment() -> tuple[dict[str, str] | None, str]:
    """Environment variables with which a new process can draw.

    Returns:
        The variables to add to a new process's environment (a MUJOCO_GL that the user has set is kept), or None where
        no driver works; and the reasons of those that do not.
    """
    reasons = []
    for driver in (os.environ["MUJOCO_GL"],) if os.environ.get("MUJOCO_GL") else DRIVERS:
        variables = {"MUJOCO_GL": driver} if driver else {}
        done = subprocess.run(
            [sys.executable, "-c", TRIAL], env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return variables, "; ".join(reasons)
        said = done.stderr.strip().splitlines()
        reasons.append(f"{driver or 'default'}: {said[-1] if said else f'exit code {done.returncode}'}")
    return None, "; ".join(reasons)


def draw_elsewhere(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that draws in a new process, where MuJoCo finds its driver; what it returns is pickled, not kept.

    Raises:
        AfieldError: no OpenGL driver works here.
    """
    variables, reason = opengl_environment()
    if variables is None:
        raise AfieldError(
            f"Pictures must be drawn, but no OpenGL driver works ({reason}); install libegl1 or libosmesa6."
        )
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args, **kwargs).result()
    finally:
        os.environ.clear()
        os.environ.update(before)
