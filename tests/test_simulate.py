from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

import afield
from afield.capture import read_capture
from afield.capture.opengl import drawing_pool, opengl_environment
from afield.errors import AfieldError
from afield.fields.registration import Registration
from afield.geometry import pose_from, rotation_about_axis, transform_points
from afield.hand import Hand, hand_by_name, hand_configuration_from_json
from afield.observation import Observation
from afield.recognition import Recognized
from afield.scene import FeatureSource, Plane, Scene
from afield.simulate import (
    GraspTest,
    GraspTestConfig,
    World,
    build_world,
    rehearse,
    simulate_grasp,
    world_from_capture,
    world_from_scene,
)
from afield.simulate.closing import closing_step, finger_points
from afield.simulate.grasp_test import _Episode
from afield.simulate.render import render_states
from afield.simulate.world import CARRIER, HandActuation, WorldObject, carrier_pose, hand_joint_ids

SAMPLES = Path(afield.__file__).parent / "samples"
SHORT = GraspTestConfig(push_seconds=0.1)


@pytest.fixture(scope="module")
def hand() -> Hand:
    return hand_by_name("shadow")


@pytest.fixture(scope="module")
def observation() -> Observation:
    return read_capture(SAMPLES / "captures" / "horse")


@pytest.fixture(scope="module")
def world(observation: Observation) -> World:
    return world_from_capture(observation)


@pytest.fixture(scope="module")
def points(world: World) -> torch.Tensor:
    """What depth cameras would see of the horse: vertices of its visual mesh in the world, thinned."""
    thing = world.objects[0]
    assert thing.folder is not None
    lines = (thing.folder / "visual.obj").read_text().splitlines()
    vertices = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], dtype=float)
    pose = thing.T_world_object
    return torch.tensor(vertices[::2] @ pose[:3, :3].T + pose[:3, 3], dtype=torch.float32)


@pytest.fixture(scope="module")
def beta(hand: Hand, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return _configuration("horse_back", hand, tmp_path_factory.mktemp("configuration"))


@pytest.fixture(scope="module")
def shown(world: World, hand: Hand, beta: torch.Tensor, points: torch.Tensor) -> GraspTest:
    """The sample demonstration in its own scene."""
    return simulate_grasp(world, hand, beta, points, progress=False)


def _configuration(name: str, hand: Hand, folder: Path) -> torch.Tensor:
    content = json.loads((SAMPLES / "demonstrations" / f"{name}.json").read_text())
    content = {key: content[key] for key in ("hand", "T_world_hand", "joints")}
    (folder / "configuration.json").write_text(json.dumps(content))
    return hand_configuration_from_json(folder / "configuration.json", hand)


def _shifted(beta: torch.Tensor, *offset: float) -> torch.Tensor:
    return torch.cat((beta[:3] + torch.tensor(offset), beta[3:]))


def test_the_sample_demonstration_rests_on_the_surface_and_holds(shown: GraspTest) -> None:
    assert shown.success, shown.failure
    assert shown.failure is None
    assert shown.geometry == "known"
    assert shown.target == "horse"
    assert shown.initial_penetration < 0.003, "query points must lie on the surface, not in it"
    assert shown.lift_height > 0.09
    assert list(shown.pushes) == ["+x", "-x", "+y", "-y", "+z", "-z"]


def test_the_verdict_is_json_without_the_frames(shown: GraspTest) -> None:
    content = json.loads(json.dumps(shown.to_json()))
    assert content["success"] is True
    assert "frames" not in content
    assert content["pushes"]["+x"]["ok"] is True


def test_a_test_repeats_itself_exactly(world: World, hand: Hand, beta: torch.Tensor, points: torch.Tensor) -> None:
    first, second = (simulate_grasp(world, hand, beta, points, SHORT, progress=False) for _ in range(2))
    assert np.array_equal(first.frames, second.frames)


def test_frames_lift_the_object_with_the_hand(shown: GraspTest, world: World, hand: Hand, beta: torch.Tensor) -> None:
    model = build_world(world, hand)
    height = shown.frames[:, int(model.joint("horse_free").qposadr[0]) + 2]
    carrier = shown.frames[:, int(model.joint(f"{CARRIER}_free").qposadr[0]) + 2]
    assert abs(height[0]) < 0.002
    assert height.max() > 0.08
    assert carrier.max() == pytest.approx(float(carrier_pose(hand, beta)[2]) + 0.1, abs=0.003)


def test_every_condition_that_fails_is_named(
    world: World,
    hand: Hand,
    beta: torch.Tensor,
    points: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def failure(beta: torch.Tensor, config: GraspTestConfig = SHORT) -> str:
        test = simulate_grasp(world, hand, beta, points, config, progress=False)
        assert not test.success
        assert test.failure is not None
        return test.failure

    assert "rose by" in failure(_shifted(beta, 0.0, 0.0, 0.15))
    assert "overlaps the object by" in failure(_shifted(beta, 0.0, 0.0, -0.03))
    assert "along +x moved the object" in failure(beta, replace(SHORT, max_displacement=0.0))
    assert "along +x turned the object" in failure(beta, replace(SHORT, max_rotation=0.0))
    assert "unstable" in failure(beta, replace(SHORT, push=1e12))
    assert not any(tmp_path.iterdir()), "MuJoCo's warnings belong to the log, not into the user's folder"


def test_a_grasp_that_overlaps_is_not_tried_where_one_failure_is_enough(
    world: World, hand: Hand, beta: torch.Tensor, points: torch.Tensor, tmp_path: Path
) -> None:
    lowered, early = _shifted(beta, 0.0, 0.0, -0.03), replace(SHORT, stop_early=True)
    test = simulate_grasp(world, hand, lowered, points, early, progress=False)
    assert "overlaps the object by" in (test.failure or "")
    assert test.pushes == {} and len(test.frames) == 0
    test.save(tmp_path / "test")
    assert GraspTest.load(tmp_path / "test").frames.shape == test.frames.shape


def test_a_strong_push_tears_the_object_away(
    world: World, hand: Hand, beta: torch.Tensor, points: torch.Tensor, shown: GraspTest
) -> None:
    test = simulate_grasp(world, hand, beta, points, replace(SHORT, push=400.0), progress=False)
    assert not test.success
    assert test.pushes["-z"]["displacement"] > 0.05
    for name, push in test.pushes.items():
        assert push["displacement"] > 2 * shown.pushes[name]["displacement"], name


def test_each_push_starts_from_the_same_lifted_state(
    world: World, hand: Hand, beta: torch.Tensor, points: torch.Tensor
) -> None:
    episode = _Episode(build_world(world, hand), hand, beta, points, SHORT)
    episode.pick_up("horse", lambda: None)
    first = episode.push("horse", np.array([1.0, 0.0, 0.0]))
    episode.push("horse", np.array([0.0, -1.0, 0.0]))
    assert episode.push("horse", np.array([1.0, 0.0, 0.0])) == first


def test_penetration_is_the_depth_of_the_deepest_contact(hand: Hand) -> None:
    """A palm that is lowered by d mm more into a flat box overlaps it by d mm more."""
    corners = np.array([[x, y, z] for x in (-0.2, 0.2) for y in (-0.2, 0.2) for z in (0.0, 0.1)])
    world = World((WorldObject("box", np.eye(4), 0.1, hull=corners),), 0.0, "box", "observed")
    down = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]).T  # palm normal -y -> -z
    rotation = down if float((down @ hand.palm_normal)[2]) < 0 else down.T
    joints = torch.zeros(len(hand.joint_names)).clamp(hand.limits[:, 0], hand.limits[:, 1])
    depths = []
    for height in (0.2, 0.115, 0.113, 0.111):
        beta = hand.join(pose_from(rotation, torch.tensor([0.0, 0.0, height])), joints)
        depths.append(_Episode(build_world(world, hand), hand, beta, torch.zeros(1, 3), SHORT).penetration("box"))
    assert depths[0] == 0.0
    assert depths[3] > depths[2] > depths[1] > 0.0
    assert depths[3] - depths[1] == pytest.approx(0.004, abs=3e-4)


def test_the_wrist_follows_and_no_servo_exceeds_its_limit(
    world: World, hand: Hand, beta: torch.Tensor, points: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lag, force = [], []
    record = _Episode._record

    def watch(self: _Episode, step: int) -> None:
        lag.append(float(np.linalg.norm(self.data.xpos[self.carrier] - self.data.mocap_pos[0])))
        force.append(float(np.abs(self.data.actuator_force).max()))
        record(self, step)

    monkeypatch.setattr(_Episode, "_record", watch)
    weak = replace(SHORT, actuation=HandActuation(force_limit=0.2))
    simulate_grasp(world, hand, beta, points, weak, progress=False)
    assert max(lag) < 0.004
    assert 0.19 < max(force) <= 0.2 + 1e-9


def test_masses_and_poses_are_those_of_the_capture(hand: Hand) -> None:
    observation = read_capture(SAMPLES / "captures" / "deer_in_clutter")
    world = world_from_capture(observation)
    model = build_world(world, hand)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert len(world.objects) > 1
    for thing in world.objects:
        assert model.body(thing.name).mass[0] == pytest.approx(thing.mass)
        assert np.allclose(data.body(thing.name).xpos, thing.T_world_object[:3, 3], atol=1e-9)
        assert np.allclose(data.body(thing.name).xmat.reshape(3, 3), thing.T_world_object[:3, :3], atol=1e-4)


def test_objects_stay_where_they_stand_until_they_are_touched(hand: Hand) -> None:
    world = world_from_capture(read_capture(SAMPLES / "captures" / "deer_in_clutter"))
    model = build_world(world, hand)
    data = mujoco.MjData(model)
    for _ in range(250):
        mujoco.mj_step(model, data)
    for thing in world.objects:
        assert np.linalg.norm(data.body(thing.name).xpos - thing.T_world_object[:3, 3]) < 0.003, thing.name


def test_the_hand_stands_where_the_configuration_says(world: World, hand: Hand, beta: torch.Tensor) -> None:
    model = build_world(world, hand)
    data = mujoco.MjData(model)
    start = int(model.joint(f"{CARRIER}_free").qposadr[0])
    data.qpos[start : start + 7] = carrier_pose(hand, beta)
    data.qpos[model.jnt_qposadr[hand_joint_ids(model, hand)]] = beta[9:].numpy()
    mujoco.mj_kinematics(model, data)
    expected = hand.link_poses(beta)
    for index, name in enumerate(hand.link_names):
        assert np.allclose(data.body(f"hand/{name}").xpos, expected[index, :3, 3].numpy(), atol=1e-5), name


def test_a_capture_without_a_simulated_world_is_refused(observation: Observation) -> None:
    with pytest.raises(AfieldError, match="'horse' has no simulated world"):
        world_from_capture(replace(observation, extra={}))
    broken = {"simulation": {"table_height": 0.0, "objects": [{"name": "horse"}]}}
    with pytest.raises(AfieldError, match=r"incomplete.*'object'"):
        world_from_capture(replace(observation, extra=broken))


def _scene(points: torch.Tensor) -> Scene:
    ones, table = torch.ones(len(points), 1), Plane(torch.tensor([0.0, 0.0, 1.0]), 0.0)
    source = FeatureSource("color", 1, 224, 0.3)
    up = torch.tensor([0.0, 0.0, 1.0]).expand(len(points), 3)
    return Scene(points, ones, ones.expand(-1, 3), up, source, table, "seen")


def test_an_observed_world_takes_the_cluster_at_the_palm(points: torch.Tensor) -> None:
    two = torch.cat((points, points + torch.tensor([0.4, 0.0, 0.0])))
    palm = points[points[:, 2].argmax()] + torch.tensor([0.4, 0.0, 0.03])
    world = world_from_scene(_scene(two), palm)
    assert world.geometry == "observed"
    assert world.table_height == pytest.approx(0.0, abs=1e-6)
    target = next(thing for thing in world.objects if thing.name == world.target)
    assert target.balls is not None, "the target keeps its legs"
    assert target.T_world_object[0, 3] == pytest.approx(float(points[:, 0].mean()) + 0.4, abs=0.02)
    assert any(thing.hull is not None for thing in world.objects if thing.name != world.target)


def test_what_would_float_is_given_a_support(points: torch.Tensor) -> None:
    """A bar 8 cm above the table must lie on something that was not seen; a toy on its feet must not."""
    generator = torch.Generator().manual_seed(0)
    bar = torch.rand(600, 3, generator=generator) * torch.tensor([0.2, 0.03, 0.02]) + torch.tensor([-0.1, 0.0, 0.08])
    world = world_from_scene(_scene(bar), torch.tensor([0.0, 0.0, 0.12]))
    assert len(world.stands) == 1
    assert world.stands[0].height == pytest.approx(0.08, abs=0.006)
    assert world.stands[0].position == pytest.approx((0.0, 0.015), abs=0.01)
    model = build_world(world, hand_by_name("shadow"))
    data = mujoco.MjData(model)
    height = model.body("object0").id
    data.mocap_pos[0], data.qpos[-29:-26] = [0, 0, 2.0], [0, 0, 2.0]
    mujoco.mj_forward(model, data)
    before = float(data.xipos[height][2])
    for _ in range(300):
        mujoco.mj_step(model, data)
    assert float(data.xipos[height][2]) == pytest.approx(before, abs=0.005)
    assert world_from_scene(_scene(points), points.mean(dim=0)).stands == ()


def test_what_lies_on_another_object_needs_no_support() -> None:
    """A bar on a block; neither is given a post, wherever the palm is. Without the block, or below it, the bar is."""
    generator = torch.Generator().manual_seed(0)
    block = torch.rand(900, 3, generator=generator) * torch.tensor([0.1, 0.1, 0.06]) - torch.tensor([0.05, 0.05, 0.0])
    bar = torch.rand(900, 3, generator=generator) * torch.tensor([0.3, 0.03, 0.02]) + torch.tensor([-0.15, 0.0, 0.065])
    both, label = _scene(torch.cat((block, bar))), torch.arange(2).repeat_interleave(900)
    on_bar, beside = torch.tensor([0.1, 0.0, 0.12]), torch.tensor([0.0, -0.1, 0.02])
    assert world_from_scene(both, on_bar, label).stands == ()
    assert world_from_scene(both, beside, label).stands == ()
    apart = _scene(torch.cat((block + torch.tensor([0.0, 0.3, 0.0]), bar)))
    assert len(world_from_scene(apart, on_bar, label).stands) == 1
    loaded = _scene(torch.cat((block + torch.tensor([0.0, 0.0, 0.09]), bar)))
    assert len(world_from_scene(loaded, on_bar, label).stands) == 1


def test_what_is_hidden_belongs_to_the_object_it_is_part_of(points: torch.Tensor) -> None:
    """Points that a demonstration knows and no camera saw, here the lower half of the nearer of two objects."""
    other = points + torch.tensor([0.4, 0.0, 0.0])
    low = points[:, 2] < points[:, 2].median()
    seen, label = (
        torch.cat((points[~low], other)),
        torch.cat((torch.zeros(int((~low).sum())), torch.ones(len(other)))).long(),
    )
    palm = points.mean(dim=0)

    def known_as(member: torch.Tensor, hidden: torch.Tensor) -> Recognized:
        return Recognized(
            Registration(torch.eye(3), 1.0, torch.zeros(3), 0.0), member, hidden, torch.zeros_like(hidden)
        )

    below = torch.cat((points[low], torch.tensor([[0.0, 0.0, -0.05]])))
    same = known_as(points[~low], below)
    without, known = (world_from_scene(_scene(seen), palm, label, one) for one in (None, same))
    assert known.target == without.target
    here, there = ({thing.name: thing for thing in world.objects} for world in (known, without))
    balls, before = here[known.target].balls, there[known.target].balls
    assert balls is not None and before is not None and len(balls) >= len(before) + int(low.sum()) - 1
    assert float(balls[:, 2].min()) >= 0.0, "nothing lies below the table"
    beside = next(name for name in here if name != known.target)
    np.testing.assert_array_equal(here[beside].hull, there[beside].hull)
    far = world_from_scene(_scene(seen), palm, label, known_as(other[~low], other[low]))
    assert len(far.objects) == 2 and len(next(o for o in far.objects if o.name == far.target).balls) == len(before)


def test_a_scene_without_clusters_cannot_be_simulated() -> None:
    sparse = torch.tensor([[0.1 * i, 0.0, 0.1] for i in range(40)])
    with pytest.raises(AfieldError, match="No cluster of the scene 'seen' has 20 points"):
        world_from_scene(_scene(sparse), torch.zeros(3))


def test_rehearsal_stops_at_the_first_candidate_that_holds(
    hand: Hand, beta: torch.Tensor, points: torch.Tensor
) -> None:
    away = _shifted(beta, 0.0, 0.0, 0.15)
    lenient = replace(SHORT, max_penetration=0.02)
    best, tests = rehearse(_scene(points), hand, torch.stack((away, beta, away)), lenient, progress=False)
    assert best == 1
    assert [test.success for test in tests] == [False, True]


def test_closing_moves_fingers_towards_what_they_hold_and_opening_moves_them_away(
    hand: Hand, beta: torch.Tensor, points: torch.Tensor
) -> None:
    fingers = finger_points(hand)
    placed = hand.place(fingers, beta)
    near = torch.cdist(points, placed).amin(dim=-1) < 0.04
    middle = points[near].mean(dim=0)

    def distance(depth: float) -> float:
        joints = closing_step(hand, beta, points, depth)
        assert bool((joints >= hand.limits[:, 0]).all())
        assert bool((joints <= hand.limits[:, 1]).all())
        return float((hand.place(fingers, torch.cat((beta[:9], joints))) - middle).norm(dim=-1).mean())

    assert distance(0.0) == pytest.approx(float((placed - middle).norm(dim=-1).mean()), abs=1e-6)
    assert distance(0.02) < distance(0.01) < distance(0.0) < distance(-0.02)


def test_closing_does_not_depend_on_where_the_scene_stands(
    hand: Hand, beta: torch.Tensor, points: torch.Tensor
) -> None:
    turn = rotation_about_axis(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(1.1))
    pose = pose_from(turn, torch.tensor([0.3, -0.2, 0.1]))
    T_world_hand, joints = hand.split(beta)
    moved = hand.join(pose @ T_world_hand, joints)
    here = closing_step(hand, beta, points, 0.02)
    there = closing_step(hand, moved, transform_points(pose, points), 0.02)
    assert torch.allclose(here, there, atol=1e-3)


def test_far_points_do_not_change_how_the_hand_closes(hand: Hand, beta: torch.Tensor, points: torch.Tensor) -> None:
    clutter = points + torch.tensor([0.5, 0.0, 0.0])
    assert torch.equal(
        closing_step(hand, beta, torch.cat((points, clutter)), 0.02), closing_step(hand, beta, points, 0.02)
    )


def test_a_hand_far_from_everything_still_closes(hand: Hand, beta: torch.Tensor) -> None:
    joints = closing_step(hand, beta, torch.tensor([[5.0, 5.0, 0.0]]), 0.02)
    assert torch.isfinite(joints).all()
    assert not torch.equal(joints, beta[9:])


def test_the_table_is_where_the_objects_are(hand: Hand) -> None:
    """A scene two metres from the world's origin stands on a table as well."""
    generator = torch.Generator().manual_seed(0)
    points = 0.05 * torch.rand(300, 3, generator=generator) + torch.tensor([2.0, -1.0, 0.4])
    plain = torch.full((300, 3), 1 / 3**0.5)
    source = FeatureSource("color", 0, 64, 0.3)
    scene = Scene(points, plain, plain, plain, source, Plane(torch.tensor([0.0, 0.0, 1.0]), 0.4))
    far = world_from_scene(scene, points.mean(dim=0))
    model = build_world(far, hand)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 300)
    assert float(data.body(far.objects[0].name).xpos[2]) == pytest.approx(0.4, abs=0.01)


def test_a_hand_without_named_fingers_closes_with_all_its_links(hand: Hand) -> None:
    plain = replace(hand, description=replace(hand.description, fingers={}))
    assert set(finger_points(plain).link.tolist()) >= set(finger_points(hand).link.tolist())


def test_a_test_is_read_back_as_it_was_written(
    world: World, hand: Hand, beta: torch.Tensor, points: torch.Tensor, tmp_path: Path
) -> None:
    test = simulate_grasp(world, hand, beta, points, SHORT, progress=False)
    test.save(tmp_path / "simulation")
    again = GraspTest.load(tmp_path / "simulation")
    assert again.to_json() == test.to_json()
    assert np.array_equal(again.frames, test.frames)
    assert 0 < again.lifted_frame < len(again.frames)


def test_pictures_show_the_states(world: World, hand: Hand) -> None:
    """Two states that differ in the object's place give two pictures that differ; skipped without a graphics driver."""
    model = build_world(world, hand)
    states = np.stack((model.qpos0, model.qpos0))
    joint = model.joint(f"{world.objects[0].name}_free")
    states[1, joint.qposadr[0]] += 0.1
    pictures = render_states(model, states, (0.0, 0.0, 0.1), size=(160, 120))
    if not pictures:
        pytest.skip("no OpenGL driver on this machine")
    assert [picture.shape for picture in pictures] == [(120, 160, 3)] * 2
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() > 40


def test_pictures_are_optional(
    world: World,
    hand: Hand,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "no-such-platform")
    opengl_environment.cache_clear()
    request.addfinalizer(opengl_environment.cache_clear)
    model = build_world(world, hand)
    with caplog.at_level(logging.WARNING):
        assert render_states(model, model.qpos0[None], (0.0, 0.0, 0.1)) == []
    assert "no OpenGL driver works (osmesa: " in caplog.text


@pytest.mark.skipif(opengl_environment()[0] is None, reason="no OpenGL here")
def test_processes_that_draw_inherit_the_driver_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with drawing_pool(10_000) as pool:
        variables = opengl_environment()[0] or {}
        assert pool.submit(os.getenv, "MUJOCO_GL", "").result() == variables.get("MUJOCO_GL", "")
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
    assert dict(os.environ) == before


@pytest.mark.skipif(opengl_environment()[0] is None, reason="no OpenGL here")
def test_what_is_under_way_ends_when_it_is_given_up() -> None:
    before, begin = multiprocessing.active_children(), time.monotonic()

    def give_up() -> None:
        with drawing_pool(1) as pool:
            assert pool.submit(os.getpid).result() != os.getpid()
            pool.submit(time.sleep, 120)
            raise AfieldError("enough")

    with pytest.raises(AfieldError, match="enough"):
        give_up()
    assert time.monotonic() - begin < 100
    assert [child for child in multiprocessing.active_children() if child not in before] == []
