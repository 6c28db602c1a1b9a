"""Which OpenGL works here without a screen. MuJoCo binds its driver when it is imported, so trying needs a fresh process."""

from __future__ import annotations

import functools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from tqdm import tqdm

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


@contextmanager
def drawing_pool(jobs: int = 0) -> Iterator[ProcessPoolExecutor]:
    """New processes in which MuJoCo finds its driver; they end when this one does, even if it is killed.

    An exception in the body of the `with` ends at once all processes that were started in it, whatever they are at.

    Args:
        jobs: how many; 0 is one per core. The cores are shared out among them as threads, unless OMP_NUM_THREADS is set.

    Raises:
        AfieldError: no OpenGL driver works here.
    """
    variables, reason = opengl_environment()
    if variables is None:
        raise AfieldError(
            f"Pictures must be drawn, but no OpenGL driver works ({reason}); install libegl1 or libosmesa6."
        )
    cores = os.cpu_count() or 1
    jobs = jobs or cores
    before = dict(os.environ)
    # Processes inherit these, and start when the first work comes; so they stay until the pool has ended.
    os.environ.update({"OMP_NUM_THREADS": str(max(1, cores // jobs)), **before, **variables})
    try:
        context = multiprocessing.get_context("spawn")
        others = multiprocessing.active_children()
        with ProcessPoolExecutor(jobs, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
            try:
                yield pool
            except BaseException:  # what is under way may take minutes, and nobody waits for it any more
                pool.shutdown(wait=False, cancel_futures=True)
                own = set(multiprocessing.active_children()).difference(others)
                for child in own:
                    child.terminate()
                for child in own:
                    child.join()
                raise
    finally:
        os.environ.clear()
        os.environ.update(before)


def draw_elsewhere(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that draws in a new process; what it returns is pickled, not kept.

    Raises:
        AfieldError: no OpenGL driver works here.
    """
    with drawing_pool(1) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _end_with(parent: int) -> None:
    """Let a worker end when the process that started it is gone; a killed one cannot tell its workers."""

    def watch() -> None:
        """Look for the parent every second."""
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which a process that is ended would leave behind
