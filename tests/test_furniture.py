"""Furniture on a table: drawn from a seed, put anywhere, photographed, remembered."""

from __future__ import annotations

import json
import math
from typing import get_args

import mujoco
import numpy as np
import pytest
import torch

from afield.capture.furniture import (
    BODY,
    HANDLE,
    JOINT,
    Furniture,
    Kind,
    PlacedFurniture,
    add_furniture,
    front_camera,
    handle_box,
    joint_motion,
    photograph_scene,
    random_scene,
    surface_points,
    world_from_extra,
)
from afield.capture.opengl import draw_elsewhere, opengl_environment
from afield.errors import AfieldError

KINDS = get_args(Kind)


@pytest.mark.parametrize("kind", KINDS)
def test_placed_furniture_moves_as_it_says(kind: Kind) -> None:
    item = Furniture.random(kind, 3)
    placed = PlacedFurniture(item, 0.1, -0.2, 0.7)
    spec = mujoco.MjSpec()
    add_furniture(spec, placed)
    model = spec.compile()
    data = mujoco.MjData(model)
    joint = model.joint(f"{BODY}_{JOINT}")
    assert model.jnt_range[joint.id][1] > item.travel
    for amount in (0.0, 0.5 * item.travel, item.travel):
        data.qpos[joint.qposadr[0]] = amount
        mujoco.mj_kinematics(model, data)
        expected = placed.T_world_furniture @ joint_motion(item, amount) @ np.append(handle_box(item)[0], 1.0)
        assert np.allclose(data.geom(f"{BODY}_{HANDLE}").xpos, expected[:3], atol=1e-6)
        assert expected[2] > 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_hinders_the_joint_but_its_friction(kind: Kind) -> None:
    item = Furniture.random(kind, 1)
    spec = mujoco.MjSpec()
    spec.option.gravity = [0.0, 0.0, 0.0]
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 1])
    add_furniture(spec, item)
    model = spec.compile()
    data = mujoco.MjData(model)
    friction = float(model.dof_frictionloss[0])
    data.qfrc_applied[0] = 0.5 * friction
    mujoco.mj_step(model, data, 500)
    assert abs(float(data.qpos[0])) < 0.1 * item.travel  # MuJoCo's dry friction is soft: it creeps
    data.qfrc_applied[0] = 1.5 * friction
    mujoco.mj_step(model, data, 3000)
    assert float(data.qpos[0]) > item.travel


def test_instances_come_from_their_seed() -> None:
    for kind in KINDS:
        assert Furniture.random(kind, 5) == Furniture.random(kind, 5)
        many = [Furniture.random(kind, seed) for seed in range(12)]
        assert len({(item.width, item.height) for item in many}) == 12
        assert len({item.handle for item in many}) == 2
        assert many[0].slides or len({item.hinge for item in many}) == 2
        assert len({item.part_color for item in many}) > 3
        points, moves = surface_points(many[0], 500)
        assert 0.0 < float(moves.float().mean()) < 1.0
        assert float(points[:, :2].abs().max()) < 0.3
    with pytest.raises(AfieldError, match="no furniture of kind 'sofa'; choose microwave"):
        Furniture.random("sofa")


def test_a_capture_remembers_its_furniture() -> None:
    placed = PlacedFurniture(Furniture.random("oven", 2), 0.1, 0.2, -0.3, 0.4)
    extra = json.loads(json.dumps({"furniture": placed.extra(), "other": 1}))
    assert world_from_extra(extra) == placed
    entry = extra["furniture"]
    for wrong, words in (
        ({}, "no furniture"),
        ({"furniture": {**entry, "colour": 1}}, "unknown 'colour'"),
        ({"furniture": {key: value for key, value in entry.items() if key != "yaw"}}, "lacks 'yaw'"),
        ({"furniture": {**entry, "kind": "sofa"}}, "sofa.*microwave, cabinet"),
        ({"furniture": {**entry, "x": math.nan}}, "'x': nan"),
        ({"furniture": {**entry, "width": -1.0}}, "'width': -1.0"),
        ({"furniture": {**entry, "height": "tall"}}, "'height': 'tall'"),
        ({"furniture": {**entry, "body_color": [0.1, 0.2]}}, "'body_color'"),
    ):
        with pytest.raises(AfieldError, match=words):
            world_from_extra(wrong)


def test_the_camera_stands_in_front() -> None:
    placed = PlacedFurniture(Furniture(), 0.1, 0.2, 0.5)
    handle = torch.from_numpy(placed.T_world_furniture @ np.append(handle_box(placed.item)[0], 1.0)).float()[:3]
    for sideways in (-1.0, 0.0, 1.0):
        camera = front_camera(placed, sideways=sideways, distance=0.6, above=0.2)
        pixels, depth = camera.project(handle[None])
        assert float(depth) > 0.3
        assert 0 < float(pixels[0, 0]) < camera.width and 0 < float(pixels[0, 1]) < camera.height
        local = placed.T_world_furniture[:3, :3].T @ (camera.position.numpy() - placed.T_world_furniture[:3, 3])
        front = local - [0.0, -placed.item.depth / 2, placed.item.height / 2]
        assert math.atan2(front[0], -front[1]) == pytest.approx(sideways, abs=1e-4)
        assert front[2] == pytest.approx(0.2, abs=1e-5)
    with pytest.raises(AfieldError, match="80 degrees sideways"):
        front_camera(placed, sideways=math.radians(80.0))
    with pytest.raises(AfieldError, match=r"0\.2 to 2 m"):
        front_camera(placed, distance=5.0)


@pytest.mark.skipif(opengl_environment()[0] is None, reason="no OpenGL here")
def test_a_scene_shows_the_furniture_where_it_stands() -> None:
    placed, _ = random_scene(Furniture.random("cabinet", 1), 4)
    camera = front_camera(placed, sideways=0.5, size=(160, 120))
    observation = draw_elsewhere(photograph_scene, placed, camera)
    assert world_from_extra(observation.extra) == placed
    view = observation.views[0]
    assert view.mask is not None
    truth, _ = surface_points(placed.item, 20_000)
    row, column = np.nonzero(view.mask)
    pixels = torch.from_numpy(np.stack((column, row), axis=-1)).float()
    world = camera.backproject(pixels, torch.from_numpy(view.depth[row, column]))
    pose = torch.from_numpy(placed.T_world_furniture).float()
    local = (world - pose[:3, 3]) @ pose[:3, :3]
    assert float(torch.cdist(local, truth).amin(dim=-1).median()) < 0.005
    row, column = np.nonzero(~view.mask & (view.depth > 0))
    pixels = torch.from_numpy(np.stack((column, row), axis=-1)).float()
    table = camera.backproject(pixels, torch.from_numpy(view.depth[row, column]))
    assert float(table[:, 2].abs().median()) < 1e-3
    away = front_camera(PlacedFurniture(placed.item, 5.0, 5.0), size=(160, 120))
    with pytest.raises(AfieldError, match="does not see the cabinet"):
        draw_elsewhere(photograph_scene, placed, away)
