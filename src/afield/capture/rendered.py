"""Rendered captures: objects settle on a table under physics, and four cameras take their pictures.

The ground truth goes into `Observation.extra["simulation"]`, from where the grasp test rebuilds the same world. Drawing needs a
process that was started with the variables of `opengl_environment`.
"""

# MuJoCo's stubs do not cover its compiled part.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Int, UInt8

from afield.capture.objects import TABLE_GROUP, PlacedObject, body_pose
from afield.capture.room import RenderConfig, Room, corner_cameras, settle
from afield.errors import AfieldError
from afield.observation import Observation, View


def render_capture(
    name: str,
    objects: Sequence[PlacedObject],
    config: RenderConfig | None = None,
    *,
    target: int = 0,
    masks: bool = False,
    relative_to: Path | None = None,
) -> Observation:
    """Settle `objects` on a table and photograph them from the four corners.

    Args:
        name: name of the observation.
        objects: what lies on the table.
        config: cameras and room.
        target: index of the object of interest.
        masks: add the target's visible pixels to every view.
        relative_to: folder from which the object paths in the ground truth are written; absolute paths without it.

    Returns:
        Four views "camera0" to "camera3", world frame at the table center, z up, the table top at height 0.
    """
    config = config or RenderConfig()
    return photograph(
        name, settle(objects, config), objects, config, target=target, masks=masks, relative_to=relative_to
    )


def photograph(
    name: str,
    room: Room,
    objects: Sequence[PlacedObject],
    config: RenderConfig,
    *,
    target: int = 0,
    masks: bool = False,
    relative_to: Path | None = None,
) -> Observation:
    """The second half of `render_capture`: the pictures of `objects` that are at rest in `room`."""
    model, data, names = room.model, room.data, room.names
    poses = [body_pose(data, body) for body in names]
    target_body = model.body(names[target]).id
    generator = np.random.default_rng(config.seed)
    lamps = [generator.normal(size=2) * config.lamp_radius / 2 for _ in range(config.shadow_samples)]
    views = []
    with open_renderer(model, config.width, config.height) as renderer:
        for index, camera in enumerate(corner_cameras(config)):
            color, depth, bodies = _photograph(renderer, model, data, index, lamps)
            mask = bodies == target_body if masks else None
            views.append(View(f"camera{index}", camera, color, depth, mask))
    truth: dict[str, Any] = {
        "table_height": 0.0,
        "target": names[target],
        "stands": [asdict(stand) for stand in room.stands],
        "objects": [
            {
                "name": body,
                "object": _path_text(placed.folder, relative_to),
                "T_world_object": np.round(pose, 6).tolist(),
            }
            for body, placed, pose in zip(names, objects, poses, strict=True)
        ],
    }
    return Observation(tuple(views), name=name, extra={"simulation": truth})


def open_renderer(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    """MuJoCo's renderer, to be closed after use.

    Raises:
        AfieldError: no graphics driver works.
    """
    try:
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # each OpenGL binding has its own exceptions
        reason = str(error).strip().splitlines() or [repr(error)]
        raise AfieldError(
            f"Rendering needs a headless OpenGL, but MuJoCo found none ({reason[0]}); install libegl1 or "
            "libosmesa6 and set MUJOCO_GL to egl or osmesa before Python starts."
        ) from error


def _path_text(folder: Path, relative_to: Path | None) -> str:
    return str(Path(folder).resolve()) if relative_to is None else Path(os.path.relpath(folder, relative_to)).as_posix()


def _photograph(
    renderer: mujoco.Renderer,
    model: mujoco.MjModel,
    data: mujoco.MjData,
    index: int,
    lamps: Sequence[Float[np.ndarray, 2]],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Color with soft shadows, depth in meters, and the body id of every pixel (-1 on none) for camera `index`."""
    option = mujoco.MjvOption()
    option.geomgroup[:] = 0
    option.geomgroup[TABLE_GROUP] = 1
    lamp = model.light("lamp")
    home = lamp.pos.copy()
    total = 0.0
    for shift in lamps:
        lamp.pos[:2] = home[:2] + shift
        mujoco.mj_forward(model, data)
        renderer.update_scene(data, f"camera{index}", option)
        total = total + renderer.render().astype(np.float32)
    lamp.pos[:] = home
    mujoco.mj_forward(model, data)
    color = np.clip(np.round(total / len(lamps)), 0, 255).astype(np.uint8)
    renderer.update_scene(data, f"camera{index}", option)
    depth, geoms = _measure(renderer, model)
    return color, depth, bodies_of(model, geoms)


def shoot(
    renderer: mujoco.Renderer,
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera: str,
    option: mujoco.MjvOption | None = None,
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Color, depth in meters (0 where nothing is), and the geom of every pixel (-1 on none), as a camera sees them.

    Args:
        renderer: of the size of the pictures.
        model: the world.
        data: its state, up to date.
        camera: its name in the model.
        option: what is shown; MuJoCo's default if None.
    """
    renderer.update_scene(data, camera, option or mujoco.MjvOption())
    color = renderer.render().copy()
    return color, *_measure(renderer, model)


def _measure(
    renderer: mujoco.Renderer, model: mujoco.MjModel
) -> tuple[Float[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Depth and geoms of what the renderer was told last to show."""
    renderer.enable_depth_rendering()
    depth = renderer.render().copy()
    renderer.disable_depth_rendering()
    renderer.enable_segmentation_rendering()
    geoms = renderer.render()[..., 0].copy()
    renderer.disable_segmentation_rendering()
    seen = (geoms >= 0) & (depth < model.vis.map.zfar * model.stat.extent * 0.99)
    return np.where(seen, depth, 0).astype(np.float32), geoms


def bodies_of(model: mujoco.MjModel, geoms: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """The body of every pixel, -1 on none."""
    return np.where(geoms >= 0, model.geom_bodyid[np.maximum(geoms, 0)], -1)
