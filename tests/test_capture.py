"""Capture readers: every layout is written by hand here and must give back the same observation."""

from __future__ import annotations

import json
import math
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from afield.capture import (
    check_capture,
    read_capture,
    read_colmap_capture,
    read_kinect_capture,
    read_record3d_capture,
    read_transforms_capture,
    write_capture,
    write_check_page,
)
from afield.capture.distortion import pinhole_view
from afield.errors import AfieldError
from afield.geometry import inverse_pose, look_at, matrix_to_quat_wxyz
from afield.observation import Camera, Observation, View

WIDTH, HEIGHT = 96, 64
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))


def box_view(index: int, position: tuple[float, float, float]) -> View:
    """A picture of a box (10 x 10 x 8 cm) on a table, ray by ray."""
    pose = look_at(torch.tensor(position), torch.tensor([0.0, 0.0, 0.03]), torch.tensor([0.0, 0.0, 1.0]))
    camera = Camera(WIDTH, HEIGHT, 95.0, 93.0, 47.0, 32.5, pose)
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    pixels = torch.from_numpy(np.stack((x.ravel(), y.ravel()), axis=1)).float()
    direction = (camera.backproject(pixels, torch.ones(len(pixels))) - camera.position).numpy().astype(np.float64)
    start = camera.position.numpy().astype(np.float64)
    table = -start[2] / direction[:, 2]
    low, high = np.array([-0.05, -0.05, 0.0]), np.array([0.05, 0.05, 0.08])
    crossings = np.stack(((low - start) / direction, (high - start) / direction))
    entry, leave = crossings.min(axis=0).max(axis=1), crossings.max(axis=0).min(axis=1)
    hit = entry < leave
    depth = np.where(hit, entry, table).reshape(HEIGHT, WIDTH)
    color = np.where(hit.reshape(HEIGHT, WIDTH, 1), [200, 60, 40], [120, 130, 140]).astype(np.uint8)
    return View(f"camera{index}", camera, color, np.round(depth, 3).astype(np.float32), hit.reshape(HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def scene() -> Observation:
    corners = ((0.4, 0.4, 0.6), (-0.4, 0.4, 0.6), (-0.4, -0.4, 0.6), (0.4, -0.4, 0.6))
    views = tuple(box_view(index, position) for index, position in enumerate(corners))
    return Observation(views, name="box", extra={"attribution": "nobody"})


def assert_same(found: Observation, expected: Observation, *, exact_color: bool = True) -> None:
    assert len(found.views) == len(expected.views)
    for a, b in zip(found.views, expected.views, strict=True):
        torch.testing.assert_close(a.camera.T_world_camera, b.camera.T_world_camera, atol=2e-5, rtol=0)
        torch.testing.assert_close(a.camera.intrinsics, b.camera.intrinsics, atol=1e-4, rtol=0)
        np.testing.assert_allclose(a.depth, b.depth, atol=1e-6)
        if exact_color:
            np.testing.assert_array_equal(a.color, b.color)


def test_folder_round_trip(scene: Observation, tmp_path: Path) -> None:
    write_capture(scene, tmp_path / "box", jpeg_quality=None)
    found = read_capture(tmp_path / "box")
    assert_same(found, scene)
    assert found.name == "box"
    assert found.extra == {"attribution": "nobody"}
    assert found.folder == tmp_path / "box"
    for a, b in zip(found.views, scene.views, strict=True):
        assert a.mask is not None
        np.testing.assert_array_equal(a.mask, b.mask)


def test_jpeg_is_close_and_rewriting_replaces(scene: Observation, tmp_path: Path) -> None:
    for _ in range(2):
        write_capture(scene, tmp_path / "box")
    found = read_capture(tmp_path / "box" / "capture.json")
    assert_same(found, scene, exact_color=False)
    assert np.abs(found.views[0].color.astype(int) - scene.views[0].color).mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


def test_depth_out_of_range_leaves_nothing(scene: Observation, tmp_path: Path) -> None:
    far = replace(scene.views[0], depth=np.full((HEIGHT, WIDTH), 70.0, np.float32))
    with pytest.raises(AfieldError, match=r"70\.0 m does not fit"):
        write_capture(Observation((far,)), tmp_path / "far")
    assert list(tmp_path.iterdir()) == []


def edit_json(path: Path, change: dict[str, object]) -> None:
    content = json.loads(path.read_text())
    content["views"][0].update(change)
    path.write_text(json.dumps(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("capture.json", cut, "not valid JSON"),
        ("camera0_color.jpg", cut, "truncated"),
        ("camera1_depth.png", cut, "truncated"),
        ("camera2_mask.png", cut, "truncated"),
        ("camera0_color.jpg", Path.unlink, "No such file"),
        ("camera0_depth.png", lambda p: p.write_bytes(b"\x89PNG no image IEND"), "not an image"),
        ("camera0_depth.png", lambda p: cv2.imwrite(str(p), np.ones((HEIGHT, WIDTH), np.uint8)), "holds uint8"),
        ("camera0_depth.png", lambda p: cv2.imwrite(str(p), np.ones((9, 7), np.uint16)), "7x9 pixels"),
        ("camera0_depth.png", lambda p: cv2.imwrite(str(p), np.ones((HEIGHT, WIDTH, 3), np.uint16)), "one channel"),
        ("capture.json", lambda p: edit_json(p, {"width": 40}), "calibrated for 40x64"),
        ("capture.json", lambda p: edit_json(p, {"width": 0.5}), "whole number of pixels"),
        ("capture.json", lambda p: edit_json(p, {"fx": None}), "'fx' in view 0"),
        ("capture.json", lambda p: edit_json(p, {"fx": -1}), "positive focal lengths"),
        ("capture.json", lambda p: edit_json(p, {"depth": 3}), "needs 'depth'"),
        ("capture.json", lambda p: edit_json(p, {"T_world_camera": [[1, 2], [3]]}), "T_world_camera"),
        ("capture.json", lambda p: edit_json(p, {"T_world_camera": np.diag([2, 1, 1, 1]).tolist()}), "not a rotation"),
        ("capture.json", lambda p: p.write_text('{"format": "other"}'), "afield-capture"),
        ("capture.json", lambda p: p.write_text('{"format": "afield-capture", "format_version": 9}'), "version 9"),
        (
            "capture.json",
            lambda p: p.write_text('{"format": "afield-capture", "format_version": 1, "views": []}'),
            "'views'",
        ),
    ],
)
def test_damaged_folder(scene: Observation, tmp_path: Path, name: str, spoil, message: str) -> None:
    write_capture(scene, tmp_path / "box")
    spoil(tmp_path / "box" / name)
    with pytest.raises(AfieldError, match=message):
        read_capture(tmp_path / "box")


def test_float_depth_with_nan_names_the_file(scene: Observation, tmp_path: Path) -> None:
    write_capture(scene, tmp_path / "box")
    depth = scene.views[0].depth.copy()
    np.save(tmp_path / "box" / "depth.npy", depth * 1000)
    edit_json(tmp_path / "box" / "capture.json", {"depth": "depth.npy"})
    np.testing.assert_allclose(read_capture(tmp_path / "box").views[0].depth, depth, rtol=1e-5)
    depth[3, 4] = math.nan
    np.save(tmp_path / "box" / "depth.npy", depth)
    with pytest.raises(AfieldError, match=r"depth.npy has 1 NaN"):
        read_capture(tmp_path / "box")


@pytest.mark.parametrize("name", ["missing", "."])
def test_unknown_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises(AfieldError, match=r"no capture"):
        read_capture(tmp_path / name)


def write_transforms(scene: Observation, folder: Path, *, scale: float = 1.0) -> dict[str, object]:
    frames = []
    for view in scene.views:
        pose = view.camera.T_world_camera @ FLIP
        pose[:3, 3] *= scale
        cv2.imwrite(str(folder / f"{view.name}.png"), view.color[..., ::-1])
        cv2.imwrite(str(folder / f"{view.name}_d.png"), np.round(view.depth * 1000).astype(np.uint16))
        frames.append(
            {
                "file_path": f"{view.name}.png",
                "depth_file_path": f"{view.name}_d.png",
                "transform_matrix": pose.tolist(),
            }
        )
    content = {"fl_x": 95.0, "fl_y": 93.0, "cx": 47.5, "cy": 33.0, "w": WIDTH, "h": HEIGHT, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    return content


def test_transforms(scene: Observation, tmp_path: Path) -> None:
    write_transforms(scene, tmp_path)
    assert_same(read_capture(tmp_path), scene)
    assert_same(read_capture(tmp_path / "transforms.json"), scene)
    assert [view.name for view in read_transforms_capture(tmp_path, max_views=2).views] == ["camera0", "camera3"]


def test_transforms_scale_and_turned_world(scene: Observation, tmp_path: Path) -> None:
    content = write_transforms(scene, tmp_path, scale=0.25)
    content["applied_scale"] = 0.25
    applied = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0.5]])
    content["applied_transform"] = applied.tolist()
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    assert_same(read_capture(tmp_path), scene)
    turned = read_transforms_capture(tmp_path, undo_applied_transform=True)
    full = torch.cat((applied, torch.tensor([[0.0, 0, 0, 1]])))
    expected = scene.views[2].camera.T_world_camera
    torch.testing.assert_close(full @ turned.views[2].camera.T_world_camera, expected, atol=1e-5, rtol=0)


def test_transforms_opening_angle_per_frame(scene: Observation, tmp_path: Path) -> None:
    content = write_transforms(scene, tmp_path)
    del content["fl_x"], content["fl_y"], content["cx"], content["cy"]
    content["camera_angle_x"] = 2 * math.atan(WIDTH / 2 / 80)
    content["frames"][1]["fl_x"] = 70.0
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    views = read_capture(tmp_path).views
    assert views[0].camera.fx == pytest.approx(80)
    assert views[0].camera.fy == pytest.approx(80)
    assert views[0].camera.cx == pytest.approx((WIDTH - 1) / 2)
    assert views[1].camera.fx == 70


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"w": 50}, "has 96x64 pixels"),
        ({"k4": 0.1}, "OPENCV_FISHEYE"),
        ({"fl_x": "wide"}, "must be a finite number"),
        ({"frames": []}, "'frames'"),
        ({"frames": [{"file_path": "camera0.png"}]}, "lacks 'depth_file_path'"),
        ({"frames": [{"file_path": "none.png", "depth_file_path": "camera0_d.png"}]}, "none.png"),
        ({"frames": [{"file_path": "camera0.png", "depth_file_path": "camera0_d.png"}]}, "transform_matrix"),
        ({"applied_scale": 0}, "must be positive"),
    ],
)
def test_damaged_transforms(scene: Observation, tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = write_transforms(scene, tmp_path) | change
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(AfieldError, match=message):
        read_capture(tmp_path)


def test_undistortion_straightens() -> None:
    """A grid drawn through the lens model becomes the grid of the pinhole camera."""
    intrinsics = np.array([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]])
    coefficients = [-0.25, 0.06, 0.001, -0.002, 0.0]
    x, y = np.meshgrid(np.arange(320.0), np.arange(240.0))
    pinhole = cv2.undistortPoints(
        np.stack((x, y), -1).reshape(-1, 1, 2), intrinsics, np.array(coefficients), P=intrinsics
    )
    # Color and depth encode the undistorted pixel column that each distorted pixel truly shows.
    column = pinhole[:, 0, 0].reshape(240, 320)
    color = np.repeat(np.clip(column / 2, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    view = pinhole_view(
        "lens", color, (column + 100).astype(np.float32), intrinsics, torch.eye(4), distortion=coefficients
    )
    inner = (slice(60, 180), slice(80, 240))
    assert np.abs(view.depth[inner] - 100 - x[inner]).max() < 1.0
    assert np.abs(view.color[inner][..., 0] - x[inner] / 2).max() < 2
    assert np.abs(column[inner] - x[inner]).max() > 1.5, "the lens must bend something for this test to mean anything"


def write_kinect(scene: Observation, root: Path) -> Path:
    capture = root / "data" / "take"
    T_camera0_world = inverse_pose(scene.views[0].camera.T_world_camera)
    poses: dict[str, object] = {"cam0": {"R": np.eye(3).tolist(), "T": [0, 0, 0]}}
    for index, view in enumerate(scene.views):
        folder = capture / f"serial{9 - index}"
        folder.mkdir(parents=True)
        np.save(folder / "colors.npy", view.color[..., ::-1])
        np.save(folder / "depth.npy", np.round(view.depth * 1000).astype(np.uint16))
        np.save(folder / "intrinsic.npy", view.camera.intrinsics.double().numpy())
        np.save(folder / "distortion.npy", np.zeros(8))
        relative = inverse_pose(view.camera.T_world_camera) @ inverse_pose(T_camera0_world)
        poses[f"cam{index}_to_cam0"] = {"R": relative[:3, :3].tolist(), "T": relative[:3, 3].tolist()}
    workspace = root / "camera" / "workspace"
    workspace.mkdir(parents=True)
    (workspace / "calibration.json").write_text(json.dumps({"camera_poses": poses}))
    (workspace / "cameras.json").write_text(json.dumps({f"cam{i}": f"serial{9 - i}" for i in range(4)}))
    w, x, y, z = matrix_to_quat_wxyz(T_camera0_world[:3, :3]).tolist()
    px, py, pz = T_camera0_world[:3, 3].tolist()
    (root / "camera" / "transform.yaml").write_text(
        "# pose:\n#   position:\n#     x: 9\ncam2base: '[[ 1 0 0 0]'\n"
        f"pose:\n  position:\n    x: {px}\n    y: {py}\n    z: {pz}\n"
        f"  orientation:\n    x: {x}\n    y: {y}\n    z: {z}\n    w: {w}\n"
    )
    return capture


def test_kinect(scene: Observation, tmp_path: Path) -> None:
    assert_same(read_capture(write_kinect(scene, tmp_path)), scene)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c, r: (c / "serial9" / "depth.npy").unlink(), "depth.npy"),
        (lambda c, r: cut(c / "serial8" / "colors.npy"), "not a complete NumPy array"),
        (lambda c, r: np.save(c / "serial9" / "intrinsic.npy", np.eye(4)), "must be 3x3"),
        (lambda c, r: np.save(c / "serial9" / "depth.npy", np.full((HEIGHT, WIDTH), np.nan)), "NaN"),
        (lambda c, r: np.save(c / "serial9" / "depth.npy", np.ones((5, 5))), "5x5 pixels"),
        (lambda c, r: np.save(c / "serial9" / "colors.npy", np.array([{}], object)), "not a complete NumPy array"),
        (lambda c, r: (r / "camera" / "transform.yaml").write_text("pose:\n  position:\n    x: a\n"), "'position.x'"),
        (lambda c, r: (r / "camera" / "transform.yaml").write_text("pose:\n  position:\n    x: 1\n"), "position.y"),
        (lambda c, r: (r / "camera" / "transform.yaml").unlink(), "Found no transform.yaml"),
        (lambda c, r: (r / "camera" / "workspace" / "cameras.json").unlink(), "order of its cameras is unknown"),
        (lambda c, r: (r / "camera" / "workspace" / "calibration.json").write_text("{}"), "camera_poses"),
    ],
)
def test_damaged_kinect(scene: Observation, tmp_path: Path, spoil, message: str) -> None:
    capture = write_kinect(scene, tmp_path)
    spoil(capture, tmp_path)
    with pytest.raises(AfieldError, match=message):
        read_kinect_capture(capture)


def write_colmap(scene: Observation, root: Path, *, units_per_meter: float = 1.0, binary: bool = False) -> None:
    for name in ("images", "depth", "sparse/0"):
        (root / name).mkdir(parents=True)
    model = root / "sparse" / "0"
    (model / "cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} 95 93 47.5 33\n")
    generator = np.random.default_rng(0)
    lines, points = [], []
    for index, view in enumerate(scene.views):
        cv2.imwrite(str(root / "images" / f"{view.name}.png"), view.color[..., ::-1])
        cv2.imwrite(str(root / "depth" / f"{view.name}.png"), np.round(view.depth * 1000).astype(np.uint16))
        T_camera_world = inverse_pose(view.camera.T_world_camera)
        quaternion = " ".join(map(str, matrix_to_quat_wxyz(T_camera_world[:3, :3]).tolist()))
        position = " ".join(map(str, (T_camera_world[:3, 3] * units_per_meter).tolist()))
        observed = []
        for _ in range(12):
            x, y = generator.integers(WIDTH), generator.integers(HEIGHT)
            depth = torch.tensor([float(view.depth[y, x])])
            point = view.camera.backproject(torch.tensor([[float(x), float(y)]]), depth)[0] * units_per_meter
            points.append(
                f"{len(points) + 1} {' '.join(map(str, point.tolist()))} 9 9 9 0.1 {index + 1} {len(observed)}"
            )
            observed.append(f"{x + 0.5} {y + 0.5} {len(points)}")
        lines += [f"{index + 1} {quaternion} {position} 1 {view.name}.png", " ".join(observed)]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    (model / "points3D.txt").write_text("\n".join(points) + "\n")
    if binary:
        import pycolmap

        pycolmap.Reconstruction(str(model)).write_binary(str(model))
        for path in model.glob("*.txt"):
            path.unlink()


@pytest.mark.parametrize("binary", [False, True])
def test_colmap_measures_its_scale(scene: Observation, tmp_path: Path, binary: bool) -> None:
    pytest.importorskip("pycolmap")
    write_colmap(scene, tmp_path, units_per_meter=7.0, binary=binary)
    found = read_capture(tmp_path)
    assert_same(found, scene)
    assert found.extra["meters_per_model_unit"] == pytest.approx(1 / 7, rel=1e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "depth" / "camera1.png").unlink(), "no depth image for 'camera1.png'"),
        (lambda r: (r / "images" / "camera1.png").unlink(), "camera1.png"),
        (lambda r: (r / "sparse/0/images.txt").unlink(), "not a complete COLMAP model"),
        (lambda r: (r / "sparse/0/points3D.txt").write_text(""), "Only 0 points .* give the scale"),
        (lambda r: (r / "sparse/0/cameras.txt").write_text("1 FOV 96 64 95 93 47.5 33 0.1\n"), "lens model FOV"),
        (lambda r: (r / "sparse/0/cameras.txt").write_text("1 PINHOLE 50 64 95 93 47.5 33\n"), "50x64"),
    ],
)
def test_damaged_colmap(scene: Observation, tmp_path: Path, spoil, message: str) -> None:
    pytest.importorskip("pycolmap")
    write_colmap(scene, tmp_path)
    spoil(tmp_path)
    with pytest.raises(AfieldError, match=message):
        read_colmap_capture(tmp_path)


def write_r3d(scene: Observation, path: Path, **change: object) -> None:
    liblzfse = pytest.importorskip("liblzfse")
    z_up_from_y_up = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    poses = []
    for view in scene.views:
        pose = inverse_pose(z_up_from_y_up) @ view.camera.T_world_camera @ FLIP
        w, x, y, z = matrix_to_quat_wxyz(pose[:3, :3]).tolist()
        poses.append([x, y, z, w, *pose[:3, 3].tolist()])
    metadata = {
        "w": WIDTH, "h": HEIGHT, "dw": WIDTH // 2, "dh": HEIGHT // 2, "poses": poses,
        "K": [95.0, 0, 0, 0, 93.0, 0, 47.0, 32.5, 1], **change,
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata", json.dumps(metadata))
        for index, view in enumerate(scene.views):
            small = view.depth[::2, ::2].astype(np.float32).copy()
            small[0, 0] = math.nan
            confidence = np.full(small.shape, 2, np.uint8)
            confidence[0, 1] = 0
            archive.writestr(f"rgbd/{index}.jpg", cv2.imencode(".jpg", view.color[..., ::-1])[1].tobytes())
            archive.writestr(f"rgbd/{index}.depth", liblzfse.compress(small.tobytes()))
            archive.writestr(f"rgbd/{index}.conf", liblzfse.compress(confidence.tobytes()))


def test_record3d(scene: Observation, tmp_path: Path) -> None:
    write_r3d(scene, tmp_path / "take.r3d")
    found = read_capture(tmp_path / "take.r3d")
    for a, b in zip(found.views, scene.views, strict=True):
        torch.testing.assert_close(a.camera.T_world_camera, b.camera.T_world_camera, atol=2e-5, rtol=0)
        torch.testing.assert_close(a.camera.intrinsics, b.camera.intrinsics)
        assert (a.depth[:2, :4] == 0).all(), "NaN and low confidence are missing depth"
        np.testing.assert_allclose(a.depth[4::2, 4::2], b.depth[4::2, 4::2], atol=1e-6)
    assert len(read_record3d_capture(tmp_path / "take.r3d", max_views=3).views) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dw": 10}, "bytes, but 10x32 pixels need"),
        ({"poses": []}, "not as many poses"),
        ({"poses": [[0, 0, 0, 3, 0, 0, 0]] * 4}, "unit quaternion"),
        ({"K": [1, 2]}, "no usable intrinsics"),
        ({"dh": "tall"}, "'dh'"),
    ],
)
def test_damaged_record3d_metadata(scene: Observation, tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_r3d(scene, tmp_path / "take.r3d", **change)
    with pytest.raises(AfieldError, match=message):
        read_capture(tmp_path / "take.r3d")


def test_truncated_record3d(scene: Observation, tmp_path: Path) -> None:
    write_r3d(scene, tmp_path / "take.r3d")
    cut(tmp_path / "take.r3d")
    with pytest.raises(AfieldError, match=r"not a complete .r3d file"):
        read_capture(tmp_path / "take.r3d")


def with_views(scene: Observation, change) -> Observation:
    return Observation(tuple(change(index, view) for index, view in enumerate(scene.views)), name="changed")


def moved(view: View, pose: torch.Tensor) -> View:
    return replace(view, camera=replace(view.camera, T_world_camera=pose @ view.camera.T_world_camera))


def test_check_of_a_good_capture(scene: Observation) -> None:
    check = check_capture(scene)
    assert check.warnings == ()
    statistics = check.statistics
    assert statistics.plane_tilt is not None
    assert statistics.plane_tilt < 1
    assert statistics.plane_height == pytest.approx(0, abs=0.003)
    assert all(view.agreement > 0.8 for view in statistics.views)
    assert len(check.points) == len(check.colors)


def shifted(dx: float, dz: float = 0.0) -> torch.Tensor:
    pose = torch.eye(4)
    pose[0, 3], pose[2, 3] = dx, dz
    return pose


ON_ITS_SIDE = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda i, v: replace(v, depth=v.depth * 1000), "millimeters seem to have been read as meters"),
        (lambda i, v: replace(v, depth=v.depth / 1000), "meters seem to have been read as millimeters"),
        (lambda i, v: replace(v, depth=v.depth * 0) if i == 1 else v, "Empty depth: camera1"),
        (
            lambda i, v: replace(v, depth=np.where(np.arange(WIDTH) < 9, v.depth, 0)) if i == 2 else v,
            "Sparse depth: camera2",
        ),
        (lambda i, v: moved(v, ON_ITS_SIDE), r"Wrong up axis: .* faces \+y, 90 degrees"),
        (lambda i, v: moved(v, shifted(0.12)) if i == 0 else v, "Cameras disagree"),
        (lambda i, v: moved(v, shifted(0, 0.1)) if i == 0 else v, "Cameras disagree|Little overlap"),
        (lambda i, v: moved(v, shifted(30.0)) if i == 3 else v, "different units"),
        (lambda i, v: moved(v, shifted(5.0)) if i == 3 else v, "Little overlap: .* camera3"),
        (
            lambda i, v: replace(v, camera=replace(v.camera, T_world_camera=v.camera.T_world_camera @ FLIP)),
            "Little overlap",
        ),
        (lambda i, v: replace(v, mask=np.zeros((HEIGHT, WIDTH), bool)), "Mask: the one of 'camera0' is empty"),
        (lambda i, v: replace(v, color=v.color * 0) if i == 0 else v, "Black pictures: camera0"),
    ],
)
def test_check_warns(scene: Observation, change, warning: str) -> None:
    check = check_capture(with_views(scene, change))
    assert any(re.search(warning, sentence) for sentence in check.warnings), check.warnings


def test_check_page_is_complete_and_offline(scene: Observation, tmp_path: Path) -> None:
    spoiled = with_views(scene, lambda i, v: moved(v, ON_ITS_SIDE))
    spoiled = replace(spoiled, name="<box> & co")
    write_check_page(spoiled, check_capture(spoiled), tmp_path / "sub" / "page.html")
    page = (tmp_path / "sub" / "page.html").read_text(encoding="utf-8")
    assert "&lt;box&gt; &amp; co" in page
    assert "Wrong up axis" in page
    assert page.count("data:image/jpeg;base64") == 8
    assert '<script src="http' not in page
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["page.html"]


def test_check_page_survives_empty_depth(scene: Observation, tmp_path: Path) -> None:
    blind = with_views(scene, lambda i, v: replace(v, depth=v.depth * 0))
    write_check_page(blind, check_capture(blind), tmp_path / "page.html")
    assert "Empty depth" in (tmp_path / "page.html").read_text(encoding="utf-8")
