"""Pictures of a grasp test; nothing but these needs a graphics driver."""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import mujoco
import numpy as np
from jaxtyping import Float, UInt8

logger = logging.getLogger(__name__)


def render_states(
    model: mujoco.MjModel,
    states: Sequence[Float[np.ndarray, "q"]],
    look_at: Sequence[float],
    *,
    azimuth: float = 135.0,
    elevation: float = -25.0,
    distance: float = 0.6,
    size: tuple[int, int] = (640, 480),
) -> list[UInt8[np.ndarray, "h w 3"]] | None:
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
        RGB pictures, or None (with a logged reason) where no graphics driver works.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        renderer = mujoco.Renderer(model, size[1], size[0])
    except Exception as error:  # every backend fails with an exception of its own
        logger.warning("No pictures of the physics: no OpenGL driver works (%s); install libegl1 or libosmesa6.", error)
        return None
    camera = mujoco.MjvCamera()
    camera.lookat[:] = look_at
    camera.azimuth, camera.elevation, camera.distance = azimuth, elevation, distance
    option = mujoco.MjvOption()
    option.geomgroup[3] = option.geomgroup[4] = 0
    data = mujoco.MjData(model)
    pictures = []
    with renderer:
        for state in states:
            data.qpos[:] = state
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            renderer.update_scene(data, camera, option)
            pictures.append(renderer.render().copy())
    return pictures
