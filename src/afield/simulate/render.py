"""Pictures of a grasp test. They are drawn in a process of their own, so a missing graphics driver harms nothing else.

MuJoCo binds its OpenGL when it is imported; only a fresh process can still choose between drivers.
"""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from afield.capture.opengl import opengl_environment
from afield.hand import Hand
from afield.simulate.grasp_test import GraspTest
from afield.simulate.world import World, build_world

logger = logging.getLogger(__name__)

PICK_UP_PICTURES = 24
PUSH_PICTURES = 2
FOREARM_ANGLE = 65.0
"""Between the direction of view and the forearm, in degrees."""


def film(world: World, hand: Hand, beta: Float[Tensor, "d"], test: GraspTest) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Pictures of a grasp test in order of time: the picking up, then each push. The forearm points away from the viewer.

    Args:
        world: the one that `test` was made in.
        hand: the hand.
        beta: the grasp that was tested.
        test: with its frames.

    Returns:
        RGB pictures; none (with a logged reason) where no graphics driver works.
    """
    model = build_world(world, hand)
    if test.frames.shape[1] != model.nq or test.target not in {thing.name for thing in world.objects}:
        logger.warning("No pictures of the physics: the world has changed since the test.")
        return []
    count = len(test.frames)
    lifted = min(test.lifted_frame, count)
    chosen = np.linspace(0, lifted - 1, PICK_UP_PICTURES).round().astype(int).tolist()
    chosen += np.linspace(lifted, count - 1, PUSH_PICTURES * len(test.pushes)).round().astype(int).tolist()
    goal = next(thing for thing in world.objects if thing.name == test.target).T_world_object[:3, 3]
    look_at = (float(goal[0]), float(goal[1]), world.table_height + 0.1)
    pose, _ = hand.split(beta)
    forearm = -(pose[:3, :3] @ hand.finger_direction)
    azimuth = math.degrees(math.atan2(float(forearm[1]), float(forearm[0]))) + FOREARM_ANGLE
    states = test.frames[sorted(set(chosen))]
    return render_states(model, states, look_at, azimuth=azimuth)


def render_states(
    model: mujoco.MjModel,
    states: Float[np.ndarray, "f q"],
    look_at: Sequence[float],
    *,
    azimuth: float = 135.0,
    elevation: float = -25.0,
    distance: float = 0.65,
    size: tuple[int, int] = (640, 480),
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Render states of a simulation.

    Args:
        model: from `build_world`.
        states: MuJoCo's qpos of every picture.
        look_at: the point in the middle of the pictures, metres, world.
        azimuth: direction of view in degrees about the vertical.
        elevation: in degrees; negative looks down.
        distance: from the camera to `look_at` in metres.
        size: width and height in pixels.

    Returns:
        RGB pictures; none (with a logged reason) where no graphics driver works.
    """
    variables, reason = opengl_environment()
    if variables is None:
        logger.warning(
            "No pictures of the physics: no OpenGL driver works (%s); install libegl1 or libosmesa6.", reason
        )
        return []
    with tempfile.TemporaryDirectory(prefix="afield-render-") as name:
        folder = Path(name)
        mujoco.mj_saveModel(model, str(folder / "model.mjb"))
        np.save(folder / "states.npy", np.asarray(states, dtype=float), allow_pickle=False)
        camera = {"look_at": list(look_at), "azimuth": azimuth, "elevation": elevation, "distance": distance}
        (folder / "camera.json").write_text(json.dumps({**camera, "size": size}), encoding="utf-8")
        command = [sys.executable, "-m", "afield.simulate.render", name]
        done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            logger.warning("No pictures of the physics: %s", done.stderr.strip().splitlines()[-1:])
            return []
        return list(np.load(folder / "pictures.npy", allow_pickle=False))


def _draw(folder: Path) -> None:
    """What the process of its own does: read model, states and camera, write the pictures."""
    model = mujoco.MjModel.from_binary_path(str(folder / "model.mjb"))
    content = json.loads((folder / "camera.json").read_text(encoding="utf-8"))
    camera = mujoco.MjvCamera()
    camera.lookat[:] = content["look_at"]
    camera.azimuth, camera.elevation, camera.distance = content["azimuth"], content["elevation"], content["distance"]
    option = mujoco.MjvOption()
    option.geomgroup[3] = option.geomgroup[4] = 0
    data = mujoco.MjData(model)
    pictures = []
    with mujoco.Renderer(model, content["size"][1], content["size"][0]) as renderer:
        for state in np.load(folder / "states.npy", allow_pickle=False):
            data.qpos[:] = state
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            renderer.update_scene(data, camera, option)
            pictures.append(renderer.render().copy())
    np.save(folder / "pictures.npy", np.array(pictures), allow_pickle=False)


if __name__ == "__main__":
    _draw(Path(sys.argv[1]))
