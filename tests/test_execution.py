"""An arm opens and closes furniture: its kinematics, its paths, the verdict and the reasons for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from afield.benchmark import execution_bench
from afield.benchmark.execution_bench import ExecutionBenchConfig, disturbed
from afield.capture.furniture import Furniture, PlacedFurniture, handle_box, joint_motion
from afield.capture.opengl import opengl_environment
from afield.errors import AfieldError
from afield.geometry import rotation_angle
from afield.simulate.arm_path import ArmPath, PathConfig, PathFinder, base_candidates, densify
from afield.simulate.execution import (
    ExecutionConfig,
    ExecutionTest,
    build_execution_world,
    execute_trajectory,
    film_execution,
    path_stages,
    threshold_of,
)
from afield.simulate.oracle import ideal_trajectory
from afield.simulate.robot import GRIPPER, TCP, Grip, Robot, add_robot, place_robot, read_robot

DH = [  # a, d, alpha of the joint before: the maker's table for the Panda, in Craig's convention
    (0.0, 0.333, 0.0), (0.0, 0.0, -math.pi / 2), (0.0, 0.316, math.pi / 2), (0.0825, 0.0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2), (0.0, 0.0, math.pi / 2), (0.088, 0.0, math.pi / 2), (0.0, 0.107, 0.0),
]  # fmt: skip
CABINET = PlacedFurniture(Furniture("cabinet", 0.26, 0.22, 0.28, "left"), 0.05, 0.1, 0.3)
DRAWER = PlacedFurniture(Furniture("drawer", 0.30, 0.25, 0.18), -0.05, 0.0, -0.2)
BASE = (0.05, -0.6, 0.0, math.pi / 2)


@pytest.fixture(scope="module")
def panda() -> Robot:
    return read_robot("panda")


@pytest.fixture(scope="module")
def opened(panda: Robot) -> ExecutionTest:
    return execute_trajectory(CABINET, *ideal_trajectory(CABINET), robot=panda, progress=False)


def _craig(a: float, d: float, alpha: float, theta: float) -> np.ndarray:
    c, s, ca, sa = math.cos(theta), math.sin(theta), math.cos(alpha), math.sin(alpha)
    return np.array([[c, -s, 0, a], [s * ca, c * ca, -sa, -d * sa], [s * sa, c * sa, ca, d * ca], [0, 0, 0, 1]])


def test_the_panda_is_the_makers(panda: Robot) -> None:
    spec = mujoco.MjSpec()
    add_robot(spec, panda, Grip())
    model = spec.compile()
    data = mujoco.MjData(model)
    q = np.array([0.3, -0.5, 0.4, -1.9, 0.6, 1.7, -0.8])
    data.qpos[:7] = q
    mujoco.mj_kinematics(model, data)
    expected = np.eye(4)
    for row, theta in zip(DH, [*q, -math.pi / 4], strict=True):
        expected = expected @ _craig(*row, theta)
    assert np.allclose(data.body(f"{GRIPPER}hand").xpos, expected[:3, 3], atol=1e-5)
    assert np.allclose(data.body(f"{GRIPPER}hand").xmat.reshape(3, 3), expected[:3, :3], atol=1e-5)
    tcp = data.site(GRIPPER + TCP)
    assert np.allclose(tcp.xpos, expected[:3, 3] + 0.1034 * expected[:3, 2], atol=1e-5)
    pads = [data.geom(f"{GRIPPER}{side}_pad").xpos for side in ("left", "right")]
    assert np.allclose((pads[0] + pads[1]) / 2, tcp.xpos, atol=2e-3)
    assert abs(float((pads[0] - pads[1]) @ tcp.xmat.reshape(3, 3)[:, 1])) == pytest.approx(0.009, abs=1e-5)


def test_an_arm_without_gripper_is_refused() -> None:
    with pytest.raises(AfieldError, match="'ur10e' has no gripper"):
        read_robot("ur10e")


@pytest.mark.parametrize("placed", [CABINET, DRAWER])
def test_the_ideal_trajectory_holds_the_handle_all_the_way(placed: PlacedFurniture) -> None:
    poses, opening, labels = ideal_trajectory(placed)
    item = placed.item
    assert labels[:3] == ("pregrasp", "grasp", "move") and len(labels) == len(poses)
    assert float(opening[0]) == pytest.approx(0.08) and float(opening[1:].max()) == 0.0
    center, half = handle_box(item)
    long = placed.T_world_furniture[:3, :3] @ np.eye(3)[int(np.argmax(half))]
    assert abs(float(poses[1, :3, 1].double() @ torch.from_numpy(long))) < 1e-5  # the fingers close across it
    for index, amount in ((1, 0.0), (len(poses) - 1, item.travel)):
        expected = placed.T_world_furniture @ joint_motion(item, amount) @ np.append(center, 1.0)
        assert np.allclose(poses[index, :3, 3], expected[:3], atol=1e-5)
    back = poses[1, :3, 3] - poses[0, :3, 3]
    assert torch.allclose(back, 0.10 * poses[1, :3, 2], atol=1e-5)
    with pytest.raises(AfieldError, match="oven"):
        ideal_trajectory(PlacedFurniture(Furniture.random("oven"), opened=0.5), "close")


def test_paths_are_dense_and_keep_their_waypoints() -> None:
    poses = ideal_trajectory(CABINET)[0].double().numpy()
    dense, leads = densify(poses, PathConfig())
    for waypoint in range(len(poses)):
        assert np.allclose(dense[np.flatnonzero(leads == waypoint)[-1]], poses[waypoint], atol=1e-6)
    assert np.linalg.norm(np.diff(dense[:, :3, 3], axis=0), axis=1).max() <= 0.015 + 1e-9
    turns = torch.from_numpy(dense[:, :3, :3])
    assert float(rotation_angle(turns[:-1], turns[1:]).max()) <= math.radians(4.0) + 1e-3


def test_stages_end_where_the_fingers_change() -> None:
    waypoint = np.array([0, 1, 1, 2, 2, 3])
    path = ArmPath(BASE, np.zeros((6, 7)), waypoint, np.zeros(6), None, 1.0)
    assert path_stages(path, np.array([0.08, 0.0, 0.0, 0.08])) == [[0, 1, 2], [2, 3, 4, 5]]
    assert path_stages(path, np.array([0.08, 0.08, 0.0, 0.0])) == [[0, 1, 2, 3, 4], [4, 5]]
    assert path_stages(path, np.zeros(4)) == [[0, 1, 2, 3, 4, 5]]
    nothing = replace(path, joints=path.joints[:1], waypoint=waypoint[:1], distance=path.distance[:1])
    assert path_stages(nothing, np.zeros(4)) == []


def test_the_joints_bring_the_gripper_along_the_path(panda: Robot) -> None:
    poses, _, labels = ideal_trajectory(CABINET)
    goals = poses.double().numpy()
    model = build_execution_world(CABINET, panda)
    finder = PathFinder(model, panda)
    path = finder.find(goals, labels, base_candidates(goals), 0.0)
    assert path.miss is None and path.margin > 0.0
    place_robot(model, np.array(path.base[:3]), path.base[3])
    data = mujoco.MjData(model)
    for waypoint, goal in enumerate(goals):
        data.qpos[finder.qpos] = path.joints[np.flatnonzero(path.waypoint == waypoint)[-1]]
        mujoco.mj_kinematics(model, data)
        found = data.site(GRIPPER + TCP).xmat.reshape(3, 3)
        assert np.linalg.norm(data.site(GRIPPER + TCP).xpos - goal[:3, 3]) < 0.005
        flipped = goal[:3, :3] @ np.diag([-1.0, -1.0, 1.0])  # two equal fingers: turned by half a turn is the same
        angles = [float(rotation_angle(torch.tensor(found), torch.tensor(g))) for g in (goal[:3, :3], flipped)]
        assert min(angles) < math.radians(3.0)
    assert np.abs(np.diff(path.joints, axis=0)).max() < 0.3  # no jumps between postures


def test_the_panda_opens_a_cabinet(opened: ExecutionTest, tmp_path: Path) -> None:
    assert opened.success, opened.failure
    assert opened.moved > math.radians(70.0)
    assert opened.joint[0] == 0.0 and np.all(np.diff(opened.joint) > -0.01)
    assert len(opened.joint) == len(opened.frames)
    assert opened.slip < 0.01 and opened.behind < 0.02
    opened.save(tmp_path / "test")
    again = ExecutionTest.load(tmp_path / "test")
    assert again.to_json() == opened.to_json()
    assert np.array_equal(again.frames, opened.frames)


def test_two_runs_give_the_same_verdict(opened: ExecutionTest, panda: Robot) -> None:
    again = execute_trajectory(CABINET, *ideal_trajectory(CABINET), robot=panda, progress=False)
    assert again.moved == opened.moved and np.array_equal(again.frames, opened.frames)


@pytest.mark.skipif(opengl_environment()[0] is None, reason="no OpenGL here")
def test_the_film_shows_it(opened: ExecutionTest, panda: Robot) -> None:
    first, last = film_execution(CABINET, opened, robot=panda, count=2)
    assert first.shape == (480, 640, 3)
    changed = np.abs(first.astype(int) - last.astype(int)).max(axis=-1) > 30
    assert 0.01 < changed.mean() < 0.4


def test_the_panda_closes_a_drawer_by_pushing(panda: Robot) -> None:
    ajar = replace(DRAWER, opened=0.8 * DRAWER.item.travel)
    test = execute_trajectory(ajar, *ideal_trajectory(ajar, "close"), task="close", robot=panda, progress=False)
    assert test.success, test.failure
    assert test.joint[-1] < 0.01 and test.slip == 0.0


def test_reasons_of_failure(panda: Robot) -> None:
    poses, opening, labels = ideal_trajectory(DRAWER)

    def reason(poses: torch.Tensor, opening: torch.Tensor, config: ExecutionConfig | None = None) -> str:
        names = labels[: len(poses)]
        config = config or ExecutionConfig(base=(-0.05, -0.75, 0.0, math.pi / 2))
        test = execute_trajectory(DRAWER, poses, opening, names, robot=panda, config=config, progress=False)
        assert not test.success and test.failure is not None
        return test.failure

    assert "ended too early: the joint moved" in reason(poses[:5], opening[:5])
    weak = ExecutionConfig(base=(-0.05, -0.75, 0.0, math.pi / 2), grip=Grip(force=1.0))
    assert "slipped" in reason(poses, opening, weak)
    far = ExecutionConfig(base=(2.0, 0.0, 0.0, 0.0))
    assert "cannot reach all of the trajectory" in reason(poses, opening, far)
    beside = poses.clone()
    beside[:, 2, 3] += 0.07
    assert "closed beside the drawer" in reason(beside, opening)
    inside = poses.clone()
    inside[:, :2, 3] += 0.12 * poses[1, :2, 2] / poses[1, :2, 2].norm()
    assert "blocked by" in reason(inside, 0 * opening)


def test_what_is_no_trajectory_is_refused(panda: Robot) -> None:
    poses, opening, labels = ideal_trajectory(DRAWER)
    for wrong, words in (
        ((poses[:1], opening[:1], labels[:1]), "at least two poses"),
        ((poses, opening[:3], labels), "10 poses, 3 openings"),
        ((poses * 2, opening, labels), "Pose 0"),
        ((torch.where(torch.arange(10)[:, None, None] == 4, math.nan, poses), opening, labels), "Pose 4"),
    ):
        with pytest.raises(AfieldError, match=words):
            execute_trajectory(DRAWER, *wrong, robot=panda, progress=False)


def test_thresholds() -> None:
    assert threshold_of(CABINET.item, "open") == pytest.approx(math.radians(25.0))
    assert threshold_of(CABINET.item, "close") == pytest.approx(math.radians(40.0))
    assert threshold_of(DRAWER.item, "open") == 0.10


def test_a_disturbed_trajectory_is_wrong_by_what_was_asked_for() -> None:
    poses = ideal_trajectory(CABINET)[0]
    found = disturbed(poses, 0.02, math.radians(10.0), 3)
    assert float((found[1, :3, 3] - poses[1, :3, 3]).norm()) == pytest.approx(0.02, abs=1e-5)
    angles = rotation_angle(found[:, :3, :3].double(), poses[:, :3, :3].double())
    assert torch.allclose(angles, torch.full_like(angles, math.radians(10.0)), atol=1e-3)
    assert torch.allclose(disturbed(poses, 0.0, 0.0, 3), poses, atol=1e-6)


def test_the_bench_counts(panda: Robot) -> None:
    figures = execution_bench.run(ExecutionBenchConfig(("drawer",), 1, grip=Grip(force=1.0)), progress=False)
    assert figures["success"] == 0.0 and figures["success_drawer"] == 0.0 and figures["count"] == 1
    assert "slipped" in figures["failures"][0]
    with pytest.raises(AfieldError, match="0 instances"):
        execution_bench.run(ExecutionBenchConfig(instances=0), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["open", "close"])
def test_who_knows_the_furniture_succeeds(task: str) -> None:
    kinds = ("microwave", "cabinet", "drawer", "oven" if task == "open" else "laptop")
    figures = execution_bench.run(ExecutionBenchConfig(kinds, 6, task), progress=False)  # pyright: ignore[reportArgumentType]
    assert figures["success"] >= 0.95, figures["failures"]
    assert figures["largest_slip"] < 0.015


@pytest.mark.slow
def test_the_stock_gain_lets_handles_slip() -> None:
    figures = execution_bench.run(ExecutionBenchConfig(("drawer",), 4, grip=Grip(force=2.0)), progress=False)
    assert figures["success"] < 0.5
