"""What `afield distill` takes instead of its defaults: clicks, models by name, and files from other tools."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from distill_samples import (
    FREE,
    DoorVideo,
    door_video,
    moving_frames,
    noise_picture,
    save_tiny_sam2,
    write_mp4,
    write_recording,
)
from safetensors.numpy import save_file

from afield import cli
from afield.distill.from_video import DistillConfig, distill_video
from afield.distill.recording import read_recording
from afield.distill.stages.cameras import given_cameras
from afield.distill.stages.depth import depth_from_network, depth_from_sensor
from afield.distill.stages.masks import find_masks
from afield.errors import AfieldError
from afield.geometry import inverse_pose, matrix_to_quat_wxyz, rotation_angle
from afield.perception.cameras import CameraPath, with_points
from afield.perception.carried_prompt import carry_prompt
from afield.perception.given_tracks import COTRACKER_VARIABLE, CoTracker, read_tracks
from afield.perception.masks import mask_from_click
from afield.perception.propagation import GrabCutFlow, MaskPropagator, Prompt, Sam2Video, mask_propagator_by_name
from afield.perception.tracks import PointTracker, tracker_by_name
from afield.perception.video import Video, read_video

# Which object is meant


def ball_frames(count: int = 6, width: int = 160, height: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball that goes to the right over a dark ground: frames and true masks."""
    ground, thing = noise_picture(width, height) // 3, 140 + noise_picture(width, height, seed=3) // 3
    rows, columns = np.mgrid[:height, :width]
    masks = np.stack([np.hypot(columns - 60 - 3 * i, rows - 55) < 22 for i in range(count)])
    return np.stack([np.where(mask[..., None], thing, ground) for mask in masks]), masks


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("click", [(60, 55), (70, 48), (50.5, 66.0)])
def test_a_click_finds_what_it_is_on(click: tuple[float, float]) -> None:
    frames, masks = ball_frames(1)
    assert overlap(mask_from_click(frames[0], click), masks[0]) > 0.93


def test_a_click_on_the_ground_is_not_the_ball() -> None:
    frames, masks = ball_frames(1)
    assert overlap(mask_from_click(frames[0], (130, 100)), masks[0]) < 0.05


def test_clicks_that_mean_nothing_are_told() -> None:
    with pytest.raises(AfieldError, match=r"click \(160, 3\) lies outside of the 160x120 picture"):
        mask_from_click(ball_frames(1)[0][0], (160, 3))
    with pytest.raises(AfieldError, match="Nothing around the click"):
        mask_from_click(np.full((120, 160, 3), 90, np.uint8), (80, 60))


def passing_frames(count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """A camera that passes a box of 70 x 50 pixels, whose right side is nearer: it goes 4 pixels a frame to the left, the
    left side 2, the ground 1. Frames, and left, top, right, bottom of the box in each.
    """
    wide, thing = noise_picture(200, 120) // 3, 130 + noise_picture(70, 50, seed=3) // 3
    frames, boxes = [], []
    for i in range(count):
        left, right = 70 - 2 * i, 140 - 4 * i
        frame = wide[:, 20 + i : 180 + i].copy()
        frame[35:85, left:right] = cv2.resize(thing, (right - left, 50), interpolation=cv2.INTER_AREA)
        frames.append(frame)
        boxes.append((left, 35, right, 85))
    return np.stack(frames), np.array(boxes, float)


def test_a_box_drawn_in_another_frame_goes_with_every_side_of_the_object() -> None:
    frames, boxes = passing_frames()
    for order in (1, -1):
        drawn = boxes[::order][0] + [-4, -4, 4, 4]
        found = carry_prompt(frames[::order], Prompt(box=tuple(drawn)))
        assert found.box == pytest.approx(boxes[::order][-1] + [-4, -4, 4, 4], abs=2.5)


def test_all_of_a_box_goes_where_no_object_stands_out() -> None:
    frames, _ = passing_frames()
    found = carry_prompt(frames, Prompt(box=(5, 95, 45, 118)))  # bare ground, which goes by one pixel a frame
    assert found.box == pytest.approx((-1, 95, 39, 118), abs=2.5)


def test_so_does_a_click_and_one_that_leaves_the_picture_is_told() -> None:
    frames, _ = passing_frames()
    assert carry_prompt(frames, Prompt(click=(132, 60))).click == pytest.approx((110, 60), abs=1.5)
    assert carry_prompt(frames[:1], Prompt(click=(132, 60))).click == (132, 60)
    video = Video(frames, np.arange(len(frames)) / 15, "passing", (320, 240), tuple(range(0, 14, 2)))
    hidden = np.zeros(frames.shape[:3], bool)
    with pytest.raises(
        AfieldError, match="from frame 0 to 12, in which .*, what was marked has left the picture; give .* nearer"
    ):
        find_masks(video, Prompt(click=(4, 200)), 6, hidden, GrabCutFlow(), drawn=0, progress=False)


def test_the_object_is_looked_for_where_a_box_from_another_frame_belongs() -> None:
    frames, boxes = passing_frames()
    video = Video(frames, np.arange(len(frames)) / 15, "passing", (160, 120), tuple(range(0, 14, 2)))
    assert [video.nearest(number) for number in (0, 4, 5, 13)] == [0, 2, 2, 6]
    assert [video.backwards().nearest(number) for number in (0, 4, 13)] == [6, 4, 0]
    hidden = np.zeros(frames.shape[:3], bool)
    prompt = Prompt(box=tuple(boxes[0] + [-3, -3, 3, 3]))
    last = len(frames) - 1
    rows, columns = np.mgrid[:120, :160]
    left, top, right, bottom = boxes[last]
    truth = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
    there, here = (
        find_masks(video, prompt, last, hidden, GrabCutFlow(), drawn=drawn, progress=False).masks[last]
        for drawn in (0, None)
    )
    assert overlap(there, truth) > 0.93 > overlap(here, truth) + 0.03


@pytest.mark.parametrize("prompt", [Prompt(box=(34, 29, 86, 81)), Prompt(click=(60, 55))])
def test_a_prompt_is_carried_through_the_video(prompt: Prompt) -> None:
    frames, truth = ball_frames()
    found = GrabCutFlow().masks(frames, prompt, 0, np.zeros_like(truth), progress=False)
    assert min(overlap(a, b) for a, b in zip(found, truth, strict=True)) > 0.9


@pytest.fixture(scope="module")
def tiny_sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return save_tiny_sam2(tmp_path_factory.mktemp("sam2"))


def test_a_sam2_model_is_loaded_from_a_folder_and_follows_its_prompt(tiny_sam2: Path) -> None:
    model = mask_propagator_by_name(str(tiny_sam2))
    assert isinstance(model, Sam2Video) and isinstance(model, MaskPropagator)
    frames, truth = ball_frames(5)
    hidden = np.zeros_like(truth)
    hidden[2:, 50:] = True
    by_box = model.masks(frames, Prompt(box=(34, 29, 86, 81)), 2, hidden, progress=False)
    assert by_box.shape == truth.shape and not (by_box & hidden).any()
    assert by_box[[0, 1, 3, 4]].any(axis=(1, 2)).all(), "both directions in time have an answer"
    again = model.masks(frames, Prompt(box=(34, 29, 86, 81)), 2, hidden, progress=False)
    by_click = model.masks(frames, Prompt(click=(60, 55)), 2, hidden, progress=False)
    assert np.array_equal(by_box, again) and not np.array_equal(by_box, by_click)
    corners = model._said(Prompt(box=(0, 30, 160, 90)), 160, 120)["point_coords"]
    assert corners.flatten().tolist() == pytest.approx([0, 16, 64, 48]), (
        "pixels of the square picture that the network sees"
    )


def test_missing_and_other_models_are_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(AfieldError, match="hf download facebook/sam2.1-hiera-small"):
        mask_propagator_by_name("facebook/sam2.1-hiera-none")
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(AfieldError, match="a model of the kind vit, not a SAM 2 video model"):
        mask_propagator_by_name(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"box": (1, 2, 30, 40), "click": (5, 5)}, "--box and --click both say which object"),
        ({"click": (5, 5), "object_masks": Path()}, "--click and --object-masks both say which object"),
        ({"click": (96, 5)}, r"click \(96, 5\) lies outside of the 96x64 picture"),
        ({"box": (120, 0, 140, 30)}, "lies outside of the 96x64 picture"),
        ({"box": (40, 0, 10, 30)}, "right must exceed left"),
        ({"box": (4, 0, 40, 30), "prompt_frame": 14}, "--prompt-frame must be between 0 and 13"),
        ({"prompt_frame": 3}, "--prompt-frame says where --box or --click were given; there is neither"),
    ],
)
def test_contradicting_prompts_stop_before_anything_is_written(
    tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    video = write_mp4(tmp_path / "v.mp4", moving_frames(14))
    with pytest.raises(AfieldError, match=sentence):
        distill_video(video, "open it", tmp_path / "out", DistillConfig(**settings), progress=False)
    assert not (tmp_path / "out").exists()


# Cameras from elsewhere


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> tuple[DoorVideo, Video, np.ndarray]:
    """A drawn video by a moving camera, as it is read, and its hand masks."""
    drawn = door_video(tmp_path_factory.mktemp("door"), arc=0.35)
    hands = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) > 127 for file in sorted((drawn.folder / "hands").iterdir())]
    return drawn, read_video(drawn.frames, progress=False), np.stack(hands)


def true_path(drawn: DoorVideo) -> CameraPath:
    poses = torch.stack([camera.T_world_camera for camera in drawn.cameras])
    return CameraPath(240, 180, 250.0, poses, torch.zeros(0, 3), torch.zeros(0), static=False, metric=True)


def test_points_are_triangulated_under_given_poses(door: tuple[DoorVideo, Video, np.ndarray]) -> None:
    drawn, video, hands = door
    path = with_points(true_path(drawn), video.frames, hands, progress=False)
    assert len(path.points) > 150 and float(path.spread.max()) < 1.5
    x, y, z = path.points.T
    # Everything that stands still lies on the table, on the wall, or on the door and panel.
    off = torch.stack((z.abs(), (y - 0.5).abs(), y.abs() + (x.abs() - 0.2).clamp_min(0))).amin(dim=0)
    assert float(off.median()) < 0.006 and float(off.quantile(0.9)) < 0.03


def test_poses_that_do_not_fit_the_video_are_told(door: tuple[DoorVideo, Video, np.ndarray]) -> None:
    drawn, video, hands = door
    wrong = true_path(drawn)
    wrong = replace(wrong, T_world_camera=wrong.T_world_camera[torch.arange(38) * 15 % 38])  # in another order
    with pytest.raises(
        AfieldError, match="tracked corners fit the given poses; check that they belong to these frames"
    ):
        with_points(wrong, video.frames, hands, progress=False)


def write_colmap_model(drawn: DoorVideo, folder: Path, *, camera: str = "PINHOLE 240 180 250 250 120 90") -> Path:
    """A model without points, in a world that lies on its side and in a unit of its own."""
    folder.mkdir(parents=True)
    aside = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    lines = []
    for index, view in enumerate(drawn.cameras):
        pose = view.T_world_camera.clone()
        pose[:3, :3], pose[:3, 3] = aside @ pose[:3, :3], 4.0 * aside @ pose[:3, 3]
        other = inverse_pose(pose)
        numbers = [*matrix_to_quat_wxyz(other[:3, :3]).tolist(), *other[:3, 3].tolist()]
        lines += [f"{index + 1} {' '.join(map(str, numbers))} 1 frame{index}.png", ""]
    (folder / "cameras.txt").write_text(f"1 {camera}\n")
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text("")
    return folder


def test_a_colmap_model_is_turned_upright(door: tuple[DoorVideo, Video, np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    drawn, video, hands = door
    path = given_cameras(write_colmap_model(drawn, tmp_path / "m"), video, hands, progress=False)
    true = torch.stack([camera.T_world_camera for camera in drawn.cameras])
    assert not path.metric and path.focal == pytest.approx(250)
    relative, wanted = (p[0, :3, :3].T @ p[:, :3, :3] for p in (path.T_world_camera, true))
    assert float(rotation_angle(relative, wanted).max()) < 1e-3
    assert float(path.T_world_camera[0, 2, :3] @ true[0, 2, :3]) > np.cos(np.radians(1.5)), "the table lies level"
    depth = path.camera(20).project(path.points)[1]
    assert 0.7 < float(depth.median()) < 1.4, "scaled until the scene lies about a metre away"


@pytest.mark.parametrize(
    ("camera", "sentence"),
    [
        ("SIMPLE_RADIAL 240 180 250 120 90 -0.2", "the lens bends the corners by"),
        ("PINHOLE 240 180 250 250 150 90", "describe a cropped or stretched picture"),
        ("PINHOLE 240 240 250 250 120 120", "is of pictures of 240x240 pixels, but the video has 240x180"),
    ],
)
def test_colmap_cameras_that_are_no_pinhole_are_refused(
    door: tuple[DoorVideo, Video, np.ndarray], tmp_path: Path, camera: str, sentence: str
) -> None:
    pytest.importorskip("pycolmap")
    drawn, video, hands = door
    with pytest.raises(AfieldError, match=sentence):
        given_cameras(write_colmap_model(drawn, tmp_path / "m", camera=camera), video, hands, progress=False)


def write_transforms(drawn: DoorVideo, folder: Path, count: int | None = None) -> Path:
    """In the order of a dictionary, not of the frames."""
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    frames = [
        {"file_path": f"images/frame_{i}.png", "transform_matrix": (camera.T_world_camera @ flip).tolist()}
        for i, camera in enumerate(drawn.cameras[:count])
    ]
    content = {"w": 240, "h": 180, "fl_x": 250.0, "fl_y": 250.0, "cx": 120.0, "cy": 90.0, "metric": True}
    folder.mkdir(parents=True)
    file = folder / "transforms.json"
    file.write_text(json.dumps({**content, "frames": sorted(frames, key=lambda frame: frame["file_path"])}))
    return file


def test_a_transforms_json_is_read_in_the_order_of_its_numbers(
    door: tuple[DoorVideo, Video, np.ndarray], tmp_path: Path
) -> None:
    drawn, video, hands = door
    file = write_transforms(drawn, tmp_path / "t")
    path = given_cameras(file.parent, video, hands, progress=False)
    assert path.metric
    assert torch.allclose(path.T_world_camera, true_path(drawn).T_world_camera, atol=1e-5)
    with pytest.raises(AfieldError, match="has poses of 20 pictures, but the video has at least 38 frames"):
        given_cameras(write_transforms(drawn, tmp_path / "s", 20), video, hands, progress=False)
    with pytest.raises(AfieldError, match="Stage cameras: there is no file or folder"):
        given_cameras(tmp_path / "nothing", video, hands, progress=False)


# Depth from elsewhere


class Told:
    """A depth network that has learnt one video by heart; its numbers are as good as they say."""

    def __init__(self, drawn: DoorVideo, video: Video, metric: bool) -> None:
        self.metric, self._drawn, self._video = metric, drawn, video

    def estimate(self, color: np.ndarray) -> np.ndarray:
        frame = next(i for i, other in enumerate(self._video.frames) if np.array_equal(other, color))
        depth = cv2.imread(str(self._drawn.folder / "depth" / f"{frame:03d}.png"), cv2.IMREAD_UNCHANGED) / 1000.0
        return depth.astype(np.float32) if self.metric else (1 / (0.2 + 0.6 / depth)).astype(np.float32)


def test_a_network_that_knows_metres_tells_how_long_the_camera_path_is(
    door: tuple[DoorVideo, Video, np.ndarray],
) -> None:
    drawn, video, hands = door
    unknown = with_points(true_path(drawn), video.frames, hands, progress=False).scaled(3.1, metric=False)
    free = list(range(FREE - 3))
    maps, path = depth_from_network(video, unknown, Told(drawn, video, metric=True), free)
    assert maps.metric and path.metric
    assert torch.allclose(path.T_world_camera, true_path(drawn).T_world_camera, atol=0.01)
    true = cv2.imread(str(drawn.folder / "depth" / f"{free[-1]:03d}.png"), cv2.IMREAD_UNCHANGED) / 1000.0
    assert np.median(np.abs(maps.depth[-1] / true - 1)) < 0.01
    maps, path = depth_from_network(video, unknown, Told(drawn, video, metric=False), free)
    assert not maps.metric and path is unknown
    assert np.median(np.abs(maps.depth[-1] / (3.1 * true) - 1)) < 0.01


def test_a_still_camera_needs_a_network_that_knows_metres(door: tuple[DoorVideo, Video, np.ndarray]) -> None:
    drawn, video, _ = door
    path = replace(true_path(drawn), static=True, metric=False)
    with pytest.raises(AfieldError, match="this network's depth is known up to scale and shift only; name one that"):
        depth_from_network(video, path, Told(drawn, video, metric=False), [0, 1, 2])
    maps, turned = depth_from_network(video, path, Told(drawn, video, metric=True), [0, 1, 2])
    assert maps.metric and turned.metric and maps.frames == (2,)


def test_a_record3d_file_brings_depth_and_cameras(door: tuple[DoorVideo, Video, np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("liblzfse")
    drawn, _, _ = door
    video, sensed = read_recording(write_recording(drawn, tmp_path / "take.r3d"), longest=200, most=14, progress=False)
    assert sensed is not None
    assert len(video.frames) == 14 and video.size == (200, 150) and video.read[-1] == 37
    true = true_path(drawn).T_world_camera[list(video.read)]
    assert torch.allclose(sensed.cameras.T_world_camera, true, atol=1e-4)
    assert sensed.cameras.focal == pytest.approx(250 * 200 / 240) and sensed.cameras.metric
    maps, path = depth_from_sensor(video, sensed.cameras, sensed.depth, [0, 1, 2])
    want = cv2.imread(str(drawn.folder / "depth" / f"{video.read[2]:03d}.png"), cv2.IMREAD_UNCHANGED) / 1000.0
    want = cv2.resize(want, (200, 150), interpolation=cv2.INTER_NEAREST)
    assert np.median(np.abs(maps.depth[-1] - want)) < 0.004 and path is sensed.cameras
    again = sensed.backwards()
    assert torch.equal(again.cameras.T_world_camera[0], sensed.cameras.T_world_camera[-1])
    assert np.array_equal(again.depth[0], sensed.depth[-1])
    other, nothing = read_recording(drawn.frames, longest=240, most=20, progress=False)
    assert nothing is None and len(other.frames) == 20


# Tracks from elsewhere


def known_tracks(count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A grid of points that goes to the right by two pixels a frame of a 96x64 video."""
    columns, rows = np.meshgrid(np.arange(10.0, 80, 4), np.arange(10.0, 60, 4))
    start = np.stack((columns.ravel(), rows.ravel()), axis=-1)
    pixels = np.stack([start + [2.0 * frame, 0.0] for frame in range(count)])
    return pixels.astype(np.float32), pixels[..., 0] < 95


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_tracks_of_a_file_are_taken_in_the_size_of_the_frames(tmp_path: Path, suffix: str) -> None:
    pixels, visible = known_tracks()
    file = tmp_path / f"tracks{suffix}"
    content = {"pixels": pixels, "visible": visible}
    np.savez(file, **content) if suffix == ".npz" else save_file(content, file)
    tracks = read_tracks(file, (0, 4, 8, 12), (48, 32), (96, 64))
    assert isinstance(tracks, PointTracker)
    mask = np.zeros((32, 48), bool)
    mask[8:24, 10:30] = True
    start = tracks.inside(mask, 1, 30)
    assert len(start) <= 30 and all(mask[round(y), round(x)] for x, y in start.tolist())
    found = tracks.track(np.zeros((4, 32, 48, 3), np.uint8), start, 1)
    assert np.array_equal(found.pixels[1], start) and found.seen[1].all()
    assert np.allclose((found.pixels[2] - start)[found.seen[2]], [4.0, 0.0], atol=1e-4), (
        "eight pixels of a video twice as large"
    )
    with pytest.raises(AfieldError, match="only 0 are seen on the object in the hands-free frame; at least 20"):
        tracks.inside(np.zeros((32, 48), bool), 1, 30)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        ({"tracks": np.zeros((20, 5, 2))}, r"lacks pixels and visible \(it has tracks\)"),
        ({"pixels": np.zeros((20, 5, 3)), "visible": np.ones((20, 5))}, r"pixels is \[20, 5, 3\]"),
        ({"pixels": np.zeros((9, 5, 2)), "visible": np.ones((9, 5))}, "has 9 frames, but the video has at least 13"),
        ({"pixels": np.full((20, 5, 2), np.nan), "visible": np.ones((20, 5))}, "pixels that are no numbers"),
    ],
)
def test_bad_track_files_are_named(tmp_path: Path, content: dict[str, np.ndarray] | None, sentence: str) -> None:
    file = tmp_path / "t.npz"
    if content is None:
        file.write_bytes(b"PK\x03\x04 broken")
    else:
        np.savez(file, **content)
    with pytest.raises(AfieldError, match=sentence):
        read_tracks(file, (0, 4, 8, 12), (48, 32), (96, 64))


def test_cotracker_runs_from_a_file_of_weights(tmp_path: Path) -> None:
    """A random model of the real class; runs where the package is installed (docs/distill.md says how)."""
    build = pytest.importorskip("cotracker.models.build_cotracker").build_cotracker
    torch.manual_seed(0)
    torch.save(build(None, offline=True, window_len=60, v2=False).state_dict(), tmp_path / "w.pth")
    tracker = tracker_by_name(str(tmp_path / "w.pth"))
    frames = np.stack([noise_picture(128, 96)] * 8)
    points = np.array([[20.0, 30.0], [60.0, 50.0], [100.0, 80.0]], np.float32)
    found = tracker.track(frames, points, 5, progress=False)
    assert found.pixels.shape == (8, 3, 2) and found.seen.shape == (8, 3)
    np.testing.assert_allclose(found.pixels[5], points, atol=1e-3)
    assert found.seen[5].all()


def test_cotracker_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import cotracker  # noqa: F401
    except ImportError:
        with pytest.raises(AfieldError, match=r"pip install git\+https://github.com/facebookresearch/co-tracker"):
            tracker_by_name("cotracker")
        return
    monkeypatch.setenv(COTRACKER_VARIABLE, str(tmp_path / "none.pth"))
    with pytest.raises(AfieldError, match=r"weights of CoTracker3 are not at .*none.pth: curl -LO"):
        CoTracker()


# The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.mp4"], "There is no video none.mp4"),
        (["empty.mp4"], "empty.mp4"),
        (["one.mp4"], "has 1 frame; a demonstration needs at least 12"),
        (["black.mp4"], "is black in 14 of 14 frames"),
        (["portrait.mp4", "--click", "70", "5"], "lies outside of the 64x96 picture"),
        (["portrait.mp4", "--click", "5", "5", "--box", "1", "1", "9", "9"], "--box and --click both say"),
        (["portrait.mp4", "--click", "5", "5", "--prompt-frame", "-1"], "--prompt-frame must be between 0 and 13"),
        (["portrait.mp4", "--from", "camera"], "There is no stage 'camera'"),
        (["portrait.mp4", "--views", "none"], "There is no file or folder none (--views)"),
        (["portrait.mp4", "--hand-masks", "none"], "There is no file or folder none (--hand-masks)"),
        (["portrait.mp4", "--tracker", "none.npz"], "There is no file or folder none.npz (--tracker)"),
        (["take.r3d"], "take.r3d is not a complete .r3d file"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.mp4").write_bytes(b"")
    Path("take.r3d").write_bytes(b"no zip")
    write_mp4(Path("one.mp4"), moving_frames(1))
    write_mp4(Path("black.mp4"), [np.zeros((64, 96, 3), np.uint8)] * 14)
    write_mp4(Path("portrait.mp4"), moving_frames(14, 64, 96))
    monkeypatch.setattr(sys, "argv", ["afield", "distill", *arguments, "--narration", "open it", "-o", "out"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("afield: ")]
    assert len(sentences) == 1 and words in sentences[0]
    assert not Path("out").exists()
