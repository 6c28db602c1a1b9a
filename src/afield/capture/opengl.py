"""Which OpenGL works here without a screen. MuJoCo binds its driver when it is imported, so trying needs a fresh process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

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
