"""From a video to labels: reading, tracks, cameras, depth, hands, masks, motion of a part, contact, and the order of stages."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from distill_samples import moving_frames, noise_picture, write_mp4
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from afield.benchmark.distill_bench import truly_moving
from afield.capture.hand_tasks import TASKS, task_by_name
from afield.capture.hand_videos import Truth, VideoConfig, amounts, hand_path
from afield.capture.human_hand import GRIP, OPEN, bend_hand
from afield.distill.from_video import VERSIONS, DistillConfig, Runner, distill_video, fingerprint
from afield.distill.stages.cameras import load_cameras, read_camera_file, save_cameras
from afield.distill.stages.contact import GOES_ON, find_contact, find_release, first_touch, motion_onset
from afield.distill.stages.depth import depth_from_files, free_run
from afield.distill.stages.hands import HandTrack, begins_in_contact, find_hands, hands_from_masks, link
from afield.distill.stages.masks import standing, with_handles
from afield.distill.stages.tracks import ObjectTracks
from afield.distill.stages.views import object_flow
from afield.errors import AfieldError
from afield.geometry import look_at
from afield.observation import Camera
from afield.perception.cameras import CameraPath, cameras_from_video, lying_plane
from afield.perception.depth import DepthFiles, agree, fill_holes, fit_to_points, plane_sweep
from afield.perception.direct import make_surface
from afield.perception.hands import MODEL_VARIABLE, Hand, Region, hand_models, palm_anchors, region_of_hand
from afield.perception.joint_search import (
    BACK,
    Joint,
    follow_joint,
    motions,
    moving_part,
    refine_joint,
    score_joint,
    smooth_paths,
)
from afield.perception.propagation import propagate_mask, without_holes
from afield.perception.screw import fit_screw
from afield.perception.tracks import LucasKanade, tracker_by_name
from afield.perception.video import Video, read_video

# Reading


def test_video_has_frames_in_order_and_their_times(tmp_path: Path) -> None:
    frames = moving_frames(20)
    video = read_video(write_mp4(tmp_path / "a.mp4", frames), progress=False)
    assert video.frames.shape == (20, 64, 96, 3)
    assert np.allclose(video.times, np.arange(20) / 15, atol=1e-3)
    for read, true in zip(video.frames, frames, strict=True):
        assert np.abs(read.astype(int) - true).mean() < 12  # the codec loses a little, a frame off by one would lose 40


@pytest.mark.parametrize(("width", "height", "wanted"), [(90, 160, (90, 160)), (3840, 2160, (640, 360))])
def test_portrait_and_large_videos_are_reduced_without_turning(
    tmp_path: Path, width: int, height: int, wanted: tuple[int, int]
) -> None:
    picture = cv2.resize(noise_picture(96, 64), (width, height))
    video = read_video(write_mp4(tmp_path / "a.mp4", [picture] * 12), progress=False)
    assert video.size == wanted
    assert video.full_size == (width, height)


def test_long_videos_are_thinned_evenly_in_time(tmp_path: Path) -> None:
    video = read_video(write_mp4(tmp_path / "a.mp4", moving_frames(60, 64, 48)), most=20, progress=False)
    assert len(video.frames) == 20
    assert video.read[0] == 0 and video.read[-1] == 59
    assert max(np.diff(video.read)) <= 4


def test_varying_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    stamps = [0, 1, 2, 3, 10, 11, 12, 20, 21, 22, 23, 30, 31, 40]
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for stamp, picture in zip(stamps, moving_frames(len(stamps)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = stamp
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = read_video(tmp_path / "v.mp4", progress=False)
    assert len(video.frames) == len(stamps)
    assert np.allclose(video.times, np.array(stamps) / 30, atol=2e-3)


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index in range(12):
        cv2.imwrite(str(tmp_path / f"frame{index}.png"), np.full((64, 96, 3), 20 * index, np.uint8))
    assert [int(frame.mean()) for frame in read_video(tmp_path, progress=False).frames] == [20 * i for i in range(12)]


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    for index, frame in enumerate(moving_frames(15)):
        cv2.imwrite(str(tmp_path / f"{index:03d}.png"), frame)
    assert len(read_video(tmp_path, progress=False).frames) == 15
    (tmp_path / "007.png").write_bytes(b"no picture")
    with pytest.raises(AfieldError, match="007.png cannot be decoded"):
        read_video(tmp_path, progress=False)


@pytest.mark.parametrize("content", [b"", b"\x00\x01 not a video" * 200])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(AfieldError, match="bad.mp4"):
        read_video(tmp_path / "bad.mp4", progress=False)


def test_missing_short_and_black_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AfieldError, match="There is no video"):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(AfieldError, match="has 1 frame; a demonstration needs at least 12"):
        read_video(write_mp4(tmp_path / "one.mp4", moving_frames(1)), progress=False)
    black = [np.zeros((64, 96, 3), np.uint8)] * 14
    with pytest.raises(AfieldError, match="black in 14 of 14"):
        read_video(write_mp4(tmp_path / "black.mp4", black), progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AfieldError, match="holds no pictures"):
        read_video(tmp_path / "empty", progress=False)


# The one who demonstrates


def test_bending_keeps_the_length_of_bones() -> None:
    flat, bent = bend_hand(OPEN).joints, bend_hand(GRIP).joints
    for finger in ("index", "middle", "ring", "pinky"):
        parts = [
            f"{finger}-finger-{part}" for part in ("phalanx-proximal", "phalanx-intermediate", "phalanx-distal", "tip")
        ]
        for a, b in itertools.pairwise(parts):
            assert np.linalg.norm(flat[a] - flat[b]) == pytest.approx(np.linalg.norm(bent[a] - bent[b]), abs=1e-9)
    # A gripping hand is shorter, and its tips are on the palm's side.
    assert bend_hand(GRIP).pads[2, 1] > bend_hand(OPEN).pads[2, 1] + 0.03
    assert bend_hand(GRIP).pads[2, 0] < bend_hand(OPEN).pads[2, 0] - 0.02


@pytest.mark.parametrize("name", TASKS)
def test_the_hand_stays_where_it_holds(name: str) -> None:
    task = task_by_name(name, seed=1)
    for share in (0.0, 0.4, 1.0):
        amount = task.start + share * (task.end - task.start)
        pose, motion = task.hand_pose(amount), task.thing.motion(amount)
        held = motion[:3, :3] @ task.touch + motion[:3, 3]
        assert np.allclose(pose[:3, :3] @ task.anchor + pose[:3, 3], held, atol=1e-9)
        assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)


def test_the_object_rests_until_it_is_touched() -> None:
    config = VideoConfig()
    task = task_by_name("open_drawer")
    moved, path = amounts(task, config), hand_path(task, config)
    assert np.all(moved[: config.contact_frame + config.hold] == task.start)
    assert moved[config.release_frame] == pytest.approx(task.end)
    assert all(place is None for place in path[: config.free]) and path[config.free] is not None
    contact = path[config.contact_frame]
    assert contact is not None and contact[1] == 1.0
    assert np.allclose(contact[0], task.hand_pose(task.start))


def test_unknown_task_is_named() -> None:
    with pytest.raises(AfieldError, match="'juggle'; choose one of open_microwave"):
        task_by_name("juggle")


# Tracks


def test_lucas_kanade_follows_a_known_shift_and_loses_what_leaves() -> None:
    frames = np.stack(moving_frames(12, 160, 120))
    points = np.array([[80.0, 60.0], [120.0, 30.0], [6.0, 60.0]], np.float32)
    tracks = LucasKanade().track(frames, points, 4, progress=False)
    for frame in range(12):
        wanted = points[:2] - [2 * (frame - 4), 0]
        assert np.abs(tracks.pixels[frame, :2] - wanted).max() < 0.25
        assert tracks.seen[frame, :2].all()
    assert tracks.seen[:6, 2].all() and not tracks.seen[9:, 2].any()


def test_unknown_tracker_is_named() -> None:
    with pytest.raises(AfieldError, match="no point tracker 'x'"):
        tracker_by_name("x")


# Cameras


def arc(count: int, width: int = 320, height: int = 240, focal: float = 300.0, spread: float = 0.5) -> CameraPath:
    """Cameras on an arc that look at the origin from a metre away."""
    poses = []
    for angle in np.linspace(-spread / 2, spread / 2, count):
        place = torch.tensor([math.sin(angle), -math.cos(angle), 0.5])
        poses.append(look_at(place, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])))
    return CameraPath(
        width, height, focal, torch.stack(poses), torch.zeros(0, 3), torch.zeros(0), static=False, metric=False
    )


def test_a_tripod_is_recognised() -> None:
    frames = np.repeat(noise_picture(160, 120)[None], 14, axis=0)
    frames = np.clip(frames + np.random.default_rng(0).normal(0, 2, frames.shape), 0, 255).astype(np.uint8)
    path = cameras_from_video(frames, progress=False)
    assert path.static and len(path) == 14
    assert torch.equal(path.T_world_camera[0], path.T_world_camera[-1])


def test_the_lying_plane_is_found_among_walls() -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.rand(200, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.002])
    wall = torch.rand(400, 3, generator=generator) * torch.tensor([1.0, 0.002, 1.0])
    tilt = torch.from_numpy(Rotation.from_euler("x", 20, degrees=True).as_matrix()).float()
    found = lying_plane(torch.cat((table, wall)) @ tilt.T, torch.tensor([0.0, 0.0, 1.0]))
    assert found is not None
    assert float(found[0] @ tilt[:, 2]) > 0.9999
    assert lying_plane(wall, torch.tensor([0.0, 0.0, 1.0])) is None


def test_camera_paths_survive_the_disk_and_bad_files_are_named(tmp_path: Path) -> None:
    path = arc(5)
    save_cameras(path, tmp_path / "c")
    again = load_cameras(tmp_path / "c")
    assert torch.equal(again.T_world_camera, path.T_world_camera) and again.focal == path.focal and not again.static
    file = tmp_path / "poses.json"
    file.write_text('{"focal": 300, "width": 320}')
    with pytest.raises(AfieldError, match="lacks 'T_world_camera'"):
        read_camera_file(file, 5, (320, 240), (0, 1, 2, 3, 4))
    file.write_text('{"focal": 600, "width": 640, "T_world_camera": ' + str(path.T_world_camera[:3].tolist()) + "}")
    with pytest.raises(AfieldError, match="has 3 poses, but the video has at least 5 frames"):
        read_camera_file(file, 5, (320, 240), (0, 1, 2, 3, 4))
    assert read_camera_file(file, 2, (320, 240), (0, 2)).focal == pytest.approx(300)


# Depth


def plane_views(depth: float) -> list[tuple[np.ndarray, Camera]]:
    """Pictures of a textured wall at a known depth, by cameras that are shifted sideways."""
    texture = noise_picture(400, 300)
    views = []
    for shift in (0.0, -0.06, -0.03, 0.03, 0.06):
        pose = torch.eye(4)
        pose[0, 3] = shift
        camera = Camera(200, 150, 220.0, 220.0, 99.5, 74.5, pose)
        move = np.float32([[1, 0, -100 - shift * 220 / depth * -1 * -1], [0, 1, -75]])
        views.append((cv2.warpAffine(texture, move, (200, 150)), camera))
    return views


@pytest.mark.parametrize("depth", [0.6, 1.1])
def test_plane_sweep_finds_the_depth_of_a_wall(depth: float) -> None:
    views = plane_views(depth)
    found, _ = plane_sweep(*views[0], views[1:], 0.4, 2.0)
    inner = found[20:-20, 40:-40]
    assert (inner > 0).mean() > 0.95
    assert abs(np.median(inner[inner > 0]) / depth - 1) < 0.01


def test_depth_without_agreement_is_dropped_and_holes_are_filled() -> None:
    views = plane_views(0.8)
    maps = [np.full((150, 200), 0.8, np.float32) for _ in views]
    maps[0][60:80, 80:100] = 1.2
    kept = agree(maps, [camera for _, camera in views])[0]
    assert (kept[60:80, 80:100] == 0).all() and kept[20, 100] > 0
    assert fill_holes(kept, views[0][0])[70, 90] == pytest.approx(0.8, abs=1e-3)


def test_a_networks_depth_is_fitted_to_known_points() -> None:
    camera = plane_views(1.0)[0][1]
    columns, rows = np.meshgrid(np.arange(200), np.arange(150))
    true = (0.8 + 0.002 * columns + 0.001 * rows).astype(np.float32)
    raw = (1 / (0.3 / true + 0.05)).astype(np.float32)  # what a network knows: 1/depth up to scale and shift
    pick = torch.randint(0, 150, (60, 2), generator=torch.Generator().manual_seed(0))
    points = camera.backproject(pick.float(), torch.from_numpy(true)[pick[:, 1], pick[:, 0]])
    assert np.abs(fit_to_points(raw, camera, points) / true - 1).max() < 1e-3
    with pytest.raises(AfieldError, match="only 3 known points"):
        fit_to_points(raw, camera, points[:3])


# Hands


def fake_hand(x: float, y: float, score: float = 1.0) -> Hand:
    """An upright hand with its wrist at (x, y), 40 pixels high."""
    fingers = [[(x + 4 * (f - 2), y - 10 - 7 * j) for j in range(4)] for f in range(5)]
    points = np.array([(x, y), *(p for finger in fingers for p in finger)], np.float32)
    return Hand(points, np.zeros(21, np.float32), score, 1.0)


def test_anchors_cover_the_picture_evenly() -> None:
    anchors = palm_anchors()
    assert anchors.shape == (2016, 2)
    assert np.allclose(anchors.mean(axis=0), 0.5)
    assert anchors.min() == pytest.approx(0.5 / 24)


def test_the_region_of_a_hand_turns_with_it() -> None:
    hand = fake_hand(100, 100)
    region = region_of_hand(hand)
    assert region.turn == pytest.approx(0, abs=0.05)
    turn = Rotation.from_euler("z", 70, degrees=True).as_matrix()[:2, :2]
    turned = replace(hand, landmarks=(hand.landmarks @ turn.T).astype(np.float32))
    assert region_of_hand(turned).turn - region.turn == pytest.approx(math.radians(70), abs=1e-3)
    assert region_of_hand(turned).size == pytest.approx(region.size, rel=1e-3)
    place = Region(np.array([50.0, 40.0]), 112.0, 0.4, np.zeros(2)).matrix() @ [112, 112, 1]
    assert np.allclose(place, [50, 40])


def test_missing_networks_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODEL_VARIABLE, str(tmp_path))
    with pytest.raises(AfieldError, match="pip install --no-deps mediapipe==0.10.21"):
        hand_models()


class FakeDetector:
    """Says what it was told."""

    def __init__(self, found: list[list[Hand]]) -> None:
        self._found = found

    def detect(self, frames: np.ndarray, *, progress: bool = True) -> list[list[Hand]]:
        return self._found


def test_hands_are_joined_over_gaps_and_flickers_are_dropped() -> None:
    found: list[list[Hand]] = [[] for _ in range(40)]
    for frame in (*range(12, 20), *range(26, 34)):
        found[frame] = [fake_hand(40 + 2 * frame, 90)]
    found[5] = [fake_hand(20, 60)]  # a mistake of one frame
    assert sorted(len(chain) for chain in link(found)) == [1, 8, 8]
    frames = np.repeat(noise_picture(160, 120)[None], 40, axis=0)
    track = find_hands(frames, FakeDetector(found), progress=False)
    assert track.state.tolist() == [0] * 12 + [2] * 8 + [1] * 6 + [2] * 8 + [0] * 6
    assert track.landmarks[22, 0, 0] == pytest.approx(40 + 2 * 22, abs=0.1)
    assert track.free[:8].all() and not track.free[10:36].any()
    assert free_run(track.free)[-1] == 8
    with pytest.raises(AfieldError, match="no hand was found"):
        find_hands(frames, FakeDetector([[] for _ in range(40)]), progress=False)


def test_hand_masks_stand_in_for_a_detector(tmp_path: Path) -> None:
    masks = np.zeros((20, 60, 80), bool)
    masks[8:, 30:50, 20:] = True  # an arm that comes in from the right
    track = hands_from_masks(masks)
    assert track.state[7] == 0 and track.state[8] == 2
    assert np.abs(track.tips(10)[:, 0] - 20).max() < 4
    track.save(tmp_path / "h")
    assert np.array_equal(HandTrack.load(tmp_path / "h").masks, masks)
    with pytest.raises(AfieldError, match="all hand masks are empty"):
        hands_from_masks(np.zeros((20, 60, 80), bool))
    specks = np.zeros((20, 60, 80), bool)
    specks[8:, 30:33, 20:23] = True
    with pytest.raises(AfieldError, match="no hand mask has 30 white pixels"):
        hands_from_masks(specks)


def test_the_end_that_is_free_of_hands_tells_the_direction() -> None:
    def free(*runs: int) -> np.ndarray:
        return np.repeat(np.arange(len(runs)) % 2 == 0, runs)

    assert not begins_in_contact(free(8, 20, 8))
    assert not begins_in_contact(free(8, 20))
    assert begins_in_contact(free(0, 20, 8))
    assert begins_in_contact(free(2, 20, 8)), "the hand was found two frames late"
    assert not begins_in_contact(free(2, 20, 2))
    assert not begins_in_contact(free(0, 20))


def test_a_hand_from_the_first_frame_on_is_told() -> None:
    with pytest.raises(AfieldError, match="Stage depth: a hand is in the first frame"):
        free_run(np.array([False, False, True]))


def _still(count: int, *, static: bool, metric: bool) -> tuple[Video, CameraPath]:
    frames = np.stack(moving_frames(count))
    video = Video(frames, np.arange(count) / 15, "v", (96, 64), tuple(range(count)))
    none = torch.zeros(0, 3)
    return video, CameraPath(96, 64, 80.0, torch.eye(4).repeat(count, 1, 1), none, none[:, 0], static, metric)


def test_sensor_depth_needs_something_that_tells_how_long_the_camera_path_is(tmp_path: Path) -> None:
    for index in range(12):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((64, 96), 500 + index, np.uint16))
    video, path = _still(12, static=False, metric=False)
    with pytest.raises(AfieldError, match="only 0 known points have depth"):
        depth_from_files(video, path, DepthFiles(tmp_path), [0, 1, 2])
    _, path = _still(12, static=False, metric=True)
    maps, same = depth_from_files(video, path, DepthFiles(tmp_path), [0, 1, 2])
    assert same is path and maps.metric
    _, path = _still(12, static=True, metric=False)
    maps, _ = depth_from_files(video, path, DepthFiles(tmp_path), [0, 5, 11])
    assert maps.frames == (11,) and abs(float(maps.depth.mean()) - 0.511) < 1e-5


# Masks


def test_a_mask_follows_its_object_and_stays_behind_a_hand() -> None:
    ground, thing = noise_picture(160, 120) // 3, 120 + noise_picture(40, 40, seed=3) // 2
    frames, truth = [], []
    for frame in range(10):
        picture = ground.copy()
        picture[40:80, 30 + 4 * frame : 70 + 4 * frame] = thing
        mask = np.zeros((120, 160), bool)
        mask[40:80, 30 + 4 * frame : 70 + 4 * frame] = True
        frames.append(picture)
        truth.append(mask)
    hidden = np.zeros((10, 120, 160), bool)
    hidden[4:7, 55:65] = True
    masks = propagate_mask(np.stack(frames), truth[0], 0, hidden, progress=False)
    for frame, mask in enumerate(masks):
        wanted = truth[frame] & ~hidden[frame]
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9, frame


def test_small_holes_are_filled_and_large_ones_kept() -> None:
    mask = np.ones((100, 100), bool)
    mask[:5] = mask[-5:] = mask[:, :5] = mask[:, -5:] = False
    mask[20:24, 20:40] = False
    mask[50:80, 50:80] = False
    filled = without_holes(mask)
    assert filled[22, 30] and not filled[60, 60] and not filled[0, 0]


def standing_door() -> tuple[np.ndarray, np.ndarray, CameraPath]:
    """Mask, depth and camera of a board that stands on a table, and of a bar before it that the mask misses."""
    path = arc(1)
    camera = path.camera(0)
    rows, columns = np.mgrid[:240, :320]
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1).reshape(-1, 2)).float()
    ray = camera.backproject(pixels, torch.ones(len(pixels))) - camera.position
    to_table = -camera.position[2] / ray[:, 2]
    to_table = torch.where(to_table > 0, to_table, torch.tensor(9.0))
    to_board = -camera.position[1] / ray[:, 1]
    hit = camera.position + to_board[:, None] * ray
    board = (hit[:, 0].abs() < 0.2) & (hit[:, 2] > 0) & (hit[:, 2] < 0.25)
    depth = torch.where(board, to_board, to_table.clamp(max=9.0)).reshape(240, 320).numpy().astype(np.float32)
    return board.reshape(240, 320).numpy(), depth, path


def test_a_gap_in_the_outline_is_filled_where_something_stands_and_not_where_the_table_lies() -> None:
    board, depth, path = standing_door()
    middle = int(np.nonzero(board)[1].mean())
    broken = board.copy()
    broken[:, middle - 5 : middle + 5] = False  # a bar of another colour, from the upper to the lower edge
    mended = with_handles(broken, depth, path, 0)
    assert (mended & board).sum() > 0.98 * board.sum() > 1.05 * broken.sum()
    lower = board & ~np.roll(board, -4, axis=0)  # the lowest four rows, a centimetre above the table
    notched = board.copy()
    notched[:, middle - 5 : middle + 5] &= ~lower[:, middle - 5 : middle + 5]
    assert notched.sum() < board.sum()
    assert not (with_handles(notched, depth, path, 0) & ~notched).any()


def test_what_stands_in_the_box_is_told_from_the_table_and_from_the_wall() -> None:
    board, depth, path = standing_door()
    rows, columns = np.nonzero(board)
    box = (int(columns.min()) - 10, int(rows.min()) - 10, int(columns.max()) + 10, int(rows.max()) + 10)
    found = standing(depth, path, 0, box)
    assert (found & board).sum() == found.sum() > 0.4 * board.sum()


# Motion of a part, contact, flow


def hinge(amount: float) -> np.ndarray:
    """A door at the origin's left that turns about the vertical."""
    pose, pivot = np.eye(4), np.array([-0.15, 0.0, 0.0])
    pose[:3, :3] = Rotation.from_rotvec([0, 0, -amount]).as_matrix()
    pose[:3, 3] = pivot - pose[:3, :3] @ pivot
    return pose


def door_tracks(path: CameraPath, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels and places of points on a door that opens by 50 degrees after the tenth frame."""
    generator = np.random.default_rng(0)
    points = np.column_stack((generator.uniform(-0.14, 0.14, 60), np.zeros(60), generator.uniform(-0.1, 0.1, 60)))
    angle = np.radians(50) * np.clip((np.arange(len(path)) - 10) / (len(path) - 14), 0, 1)
    motion = np.stack([hinge(value) for value in angle])
    pixels = np.stack(
        [
            path.camera(i).project(torch.from_numpy(points @ m[:3, :3].T + m[:3, 3]).float())[0].numpy()
            for i, m in enumerate(motion)
        ]
    )
    return pixels + generator.normal(0, noise, pixels.shape), points, motion, angle


def test_a_hinge_is_found_and_followed_when_few_points_are_left() -> None:
    path = arc(26)
    pixels, points, motion, angle = door_tracks(path, 0.2)
    seen = np.ones(pixels.shape[:2], bool)
    seen[20:, 5:] = False  # five points are left
    generator = np.random.default_rng(1)
    rough = points * (1 + generator.normal(0, 0.004, (60, 1)))
    poses = motion.copy()
    poses[11:20, :3, 3] += generator.normal(0, 0.004, (9, 3))  # poses found frame by frame are noisy
    known = np.arange(26) < 20
    found = fit_screw(path, pixels, seen, rough, poses, known, 9, np.full((26, 2), np.nan))
    assert found is not None
    for frame in (15, 19, 22, 25):
        turn = Rotation.from_matrix(found[0].motion(frame)[:3, :3]).magnitude()
        assert math.degrees(abs(turn - angle[frame])) < 2.0, frame


def test_a_motion_of_several_kinds_is_no_screw() -> None:
    path = arc(26)
    _, points, motion, _ = door_tracks(path, 0.0)
    for frame in range(11, 26):  # up first, then the turn of the door
        motion[frame] = hinge(0.08 * max(0, frame - 17))
        motion[frame, 2, 3] += 0.03 * min(frame - 10, 7)
    moved = np.einsum("fij,qj->fqi", motion[:, :3, :3], points) + motion[:, None, :3, 3]
    pixels = np.stack(
        [path.camera(i).project(torch.from_numpy(place).float())[0].numpy() for i, place in enumerate(moved)]
    )
    seen = np.ones(pixels.shape[:2], bool)
    nowhere = np.full((26, 2), np.nan)
    assert fit_screw(path, pixels, seen, points, motion, np.ones(26, bool), 9, nowhere) is None


def scene_of_contact() -> tuple[CameraPath, HandTrack, ObjectTracks, np.ndarray, np.ndarray]:
    """A still camera, a plate that moves from frame 20 on, and a hand that arrives on it in frame 16."""
    path = arc(40, spread=0.0)
    camera = path.camera(0)
    columns, rows = np.meshgrid(np.arange(130, 190, 6), np.arange(90, 150, 6))
    pixel = np.stack((columns.ravel(), rows.ravel()), axis=-1).astype(np.float32)
    points = camera.backproject(torch.from_numpy(pixel), torch.ones(len(pixel))).double().numpy()
    motion = np.repeat(np.eye(4)[None], 40, axis=0)
    motion[:, 2, 3] = 0.1 * np.clip((np.arange(40) - 20) / 12, 0, 1)
    tracks = np.stack([camera.project(torch.from_numpy(points + m[:3, 3]).float())[0].numpy() for m in motion])
    landmarks, state = np.zeros((40, 21, 2), np.float32), np.zeros(40, np.int64)
    lift = tracks[:, 0] - tracks[0, 0]
    for frame in range(8, 36):
        away = 12.0 * max(0, 16 - frame) + 15.0 * max(0, frame - 34)
        landmarks[frame] = fake_hand(160 + away, 160).landmarks + lift[frame]
        state[frame] = 2
    mask = np.zeros((240, 320), bool)
    mask[85:155, 125:195] = True
    hands = HandTrack(landmarks, np.zeros((40, 21), np.float32), state, np.zeros((40, 240, 320), bool))
    seen, moving = np.ones((40, len(pixel)), bool), np.ones(len(pixel), bool)
    objects = ObjectTracks(
        tracks.astype(np.float32),
        seen,
        points.astype(np.float32),
        moving,
        motion.astype(np.float32),
        np.zeros(40, np.float32),
        4,
    )
    return path, hands, objects, mask, np.where(mask, 1.0, 0.0).astype(np.float32)


def test_contact_is_where_the_hand_comes_to_rest_before_the_motion() -> None:
    path, hands, tracks, mask, depth = scene_of_contact()
    contact = find_contact(path, hands, tracks, mask, depth)
    assert abs(contact.contact_frame - 16) <= 1
    assert 20 < contact.motion_frame <= 24
    assert abs(contact.release_frame - 34) <= 2
    rows, columns = np.nonzero(contact.region)
    assert 145 < columns.mean() < 175 and 110 < rows.mean() < 150
    still = replace(
        tracks, motion=np.repeat(np.eye(4, dtype=np.float32)[None], 40, axis=0), pixels=tracks.pixels[:1].repeat(40, 0)
    )
    with pytest.raises(AfieldError, match="Stage contact: the object does not begin to move"):
        find_contact(path, hands, still, mask, depth)


def test_points_that_slip_when_the_hand_comes_have_not_begun_to_move() -> None:
    path, _, tracks, _, _ = scene_of_contact()
    onset = motion_onset(path, tracks)
    slipped = tracks.pixels + 1.8 * (np.arange(40) >= 13)[:, None, None].astype(np.float32) * [1.0, 0.0]
    slipped = replace(tracks, pixels=slipped.astype(np.float32))
    assert onset - GOES_ON <= motion_onset(path, slipped) <= onset
    slow = 0.3 * np.clip(np.arange(40) - 15, 0, None)[:, None, None] * [0.0, 1.0]
    slow[36:] += 1.5  # what is faster later has begun to move before
    assert motion_onset(path, replace(tracks, pixels=(tracks.pixels[:1] + slow).astype(np.float32))) <= 21
    covered = tracks.seen & ~((np.arange(40) > onset) & (np.arange(40) < onset + 8))[:, None]
    assert abs(motion_onset(path, replace(tracks, seen=covered)) - onset) <= 1
    rest = tracks.pixels[:1].repeat(40, 0)  # what never goes farther has moved nevertheless
    little = replace(tracks, pixels=rest + 1.8 * (np.arange(40) >= 13)[:, None, None].astype(np.float32))
    assert motion_onset(path, little) == 13


def test_contact_is_found_where_a_resting_hand_jumps_and_is_lost_for_a_while() -> None:
    path, hands, tracks, _, _ = scene_of_contact()
    onset = motion_onset(path, tracks)
    jumps = hands.landmarks.copy()
    jumps[16::2] += 3.0  # 4 pixels from frame to frame: as fast as a hand that comes near
    lost = hands.state.copy()
    lost[18:21] = 1
    for changed in (hands, replace(hands, landmarks=jumps), replace(hands, state=lost)):
        assert abs(first_touch(path, changed, tracks, onset) - 16) <= 1
        assert abs(find_release(path, changed, tracks, onset) - 34) <= 1
    late = replace(
        tracks, motion=tracks.motion[np.maximum(np.arange(40) - 3, 0)]
    )  # the motion is noticed three frames late
    assert abs(first_touch(path, hands, late, onset + 3) - 16) <= 1
    unseen = np.where(np.arange(40) < onset + 6, 1, hands.state)
    assert first_touch(path, replace(hands, state=unseen), tracks, onset) == onset - 3
    away = hands.landmarks.copy()
    away[33:36, :, 0] += np.array([40.0, 60.0, 80.0], np.float32)[:, None]
    back = np.where((np.arange(40) > 29) & (np.arange(40) < 33), 1, hands.state)  # found again when it leaves
    assert abs(find_release(path, replace(hands, landmarks=away, state=back), tracks, onset) - 32) <= 1
    gone = np.where(np.arange(40) > 27, 0, hands.state)
    assert abs(find_release(path, replace(hands, state=gone), tracks, onset) - 27) <= 1


def test_flow_goes_from_contact_to_release_in_steps_of_equal_time() -> None:
    path, hands, tracks, mask, depth = scene_of_contact()
    contact = find_contact(path, hands, tracks, mask, depth)
    times = np.arange(40) / 15
    flow = object_flow(tracks, contact, 8, times)
    assert flow.displacement.shape == (len(tracks.points), 8, 3)
    assert torch.allclose(flow.displacement[:, -1, 2], torch.tensor(0.1), atol=1e-6)
    assert bool((flow.displacement[:, 1:, 2] >= flow.displacement[:, :-1, 2] - 1e-7).all())
    with pytest.raises(AfieldError, match="film the motion slower"):
        object_flow(tracks, replace(contact, release_frame=contact.contact_frame + 1), 8, times)
    # Frames that come twice as slowly in the first half: the same way, but later in steps of equal time.
    middle = (contact.contact_frame + contact.release_frame) // 2
    late = np.where(np.arange(40) < middle, 2 * times, times + times[middle])
    slow = object_flow(tracks, contact, 8, late)
    assert torch.allclose(slow.displacement[:, -1], flow.displacement[:, -1], atol=1e-6)
    assert bool((slow.displacement[:, 3, 2] < flow.displacement[:, 3, 2] - 1e-3).all())


# A joint found in the pictures themselves


DOOR_TURNS = np.radians(40.0) * np.clip((np.arange(18) - 4) / 9, 0, 1)
"""Of the door in `streaked_door`; its hinge is the vertical line through (-0.2, 0)."""


def streaked_door() -> tuple[np.ndarray, CameraPath, np.ndarray, np.ndarray]:
    """Frames, cameras, mask and depth of a door with vertical streaks, whose corners slide, beside a still panel."""
    path = arc(18, spread=0.25)
    streaks = np.repeat(noise_picture(160, 1, 3), 120, axis=0)
    streaks[80:86, 100:140] = 250  # a bar that breaks the streaks, as a handle does
    panel, wall = noise_picture(64, 120, 4), noise_picture(400, 300, 5) // 2 + 100
    upper_left = np.array([[-0.2, 0.0, 0.15], [0.2, 0.0, 0.15], [0.2, 0.0, -0.15], [-0.2, 0.0, -0.15]])
    still = upper_left * [0.4, 1, 1] + [0.28, 0, 0]
    back = np.array([[-1, 0.3, 0.8], [1, 0.3, 0.8], [1, 0.3, -0.8], [-1, 0.3, -0.8]])
    frames = []
    for index, turn in enumerate(DOOR_TURNS):
        hinge = motions(np.array([0.0, 0, 1, 0, 0.2, 0]), np.array(-turn))
        moved = upper_left @ hinge[:3, :3].T + hinge[:3, 3]
        picture = np.zeros((240, 320, 3), np.uint8)
        for corners, texture in ((back, wall), (still, panel), (moved, streaks)):
            height, width = texture.shape[:2]
            seen = path.camera(index).project(torch.from_numpy(corners).float())[0].numpy()
            flat = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float32)
            warp = cv2.getPerspectiveTransform(flat, seen.astype(np.float32))
            there = cv2.warpPerspective(np.ones((height, width), np.uint8), warp, (320, 240)) > 0
            picture[there] = cv2.warpPerspective(texture, warp, (320, 240))[there]
        frames.append(picture)
    mask = np.zeros((240, 320), bool)
    for corners in (upper_left, still):
        outline = path.camera(3).project(torch.from_numpy(corners).float())[0].numpy()
        mask |= cv2.fillConvexPoly(np.zeros((240, 320), np.uint8), np.round(outline).astype(np.int32), 1) > 0
    rows, columns = np.mgrid[:240, :320]
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1).reshape(-1, 2)).float()
    camera = path.camera(3)
    near = camera.backproject(pixels, torch.ones(len(pixels)))
    away = -camera.position[1] / (near[:, 1] - camera.position[1])  # where the ray meets the plane y = 0
    return np.stack(frames), path, mask, away.numpy().reshape(240, 320).astype(np.float32)


def test_a_unit_twist_moves_as_its_exponential() -> None:
    turn = np.array([1.0, 2.0, -2.0]) / 3
    for twist in (np.append(turn, [0.3, -0.1, 0.2]), np.array([0.0, 0, 0, 0.6, 0, 0.8])):
        matrix = np.zeros((4, 4))
        matrix[:3, :3] = np.cross(twist[:3], np.eye(3)).T
        matrix[:3, 3] = twist[3:]
        amounts = np.array([-0.7, 0.0, 1.9])
        assert np.allclose(motions(twist, amounts), [expm(a * matrix) for a in amounts], atol=1e-9)


def test_the_smoothest_path_is_the_best_of_all() -> None:
    generator = np.random.default_rng(2)
    score, amounts = generator.uniform(size=(4, 5)), np.linspace(-1.0, 1.0, 5)
    weight = 2.0 * score.max(axis=1).mean()

    def value(path: tuple[int, ...]) -> float:
        places = np.concatenate(([0.0], amounts[list(path)]))
        turned_back = (np.abs(places[1:]) < np.abs(places[:-1])) | (places[1:] * places[:-1] < 0)
        penalty = (np.diff(places) ** 2 * np.where(turned_back, BACK, 1.0)).sum()
        return float(score[np.arange(4), list(path)].sum() - weight * penalty)

    best = max(itertools.product(range(5), repeat=4), key=value)
    other = generator.uniform(size=(4, 5))
    paths, totals = smooth_paths(np.stack((other, score)), amounts, 2.0)
    assert tuple(paths[1]) == best
    assert totals[1] == pytest.approx(value(best))


def test_a_hinge_is_found_where_corners_slide_along_streaks() -> None:
    frames, path, mask, depth = streaked_door()
    nothing = np.zeros(frames.shape[:3], bool)
    surface = make_surface(frames, path, mask, depth, 3, nothing, count=800, scale=1.0)
    moments = np.array([6, 8, 10, 12, 15])
    axis = np.array([0.0, 0.0, 1.0])
    wrong = np.concatenate((axis, -np.cross(axis, [-0.17, 0.03, 0.0])))  # 4 cm beside the hinge
    amounts, gain, _ = score_joint(surface, wrong, moments, np.radians(np.arange(-60.0, 61.0, 5.0)))
    joint = Joint("hinge", wrong, axis, amounts)
    for _ in range(3):
        member = np.flatnonzero((gain > 0.1)[surface.block])
        joint = refine_joint(surface, replace(joint, amounts=amounts), moments, member)
        amounts, gain, _ = score_joint(surface, joint.twist, moments, np.radians(np.arange(-60.0, 61.0, 2.0)))
    found = moving_part(surface, joint, moments, joint.amounts)
    assert (found == (surface.points[:, 0] < 0.2)).mean() > 0.95
    every = follow_joint(surface, joint, np.flatnonzero(found), 3, len(frames))
    assert np.abs(np.degrees(every + DOOR_TURNS)).max() < 2.5
    assert np.linalg.norm(np.cross(joint.twist[:3], joint.twist[3:])[:2] - [-0.2, 0.0]) < 0.015


def test_a_refined_axis_does_not_depend_on_where_the_world_begins() -> None:
    frames, path, mask, depth = streaked_door()
    nothing, moments, axis = np.zeros(frames.shape[:3], bool), np.array([6, 8, 10, 12, 15]), np.array([0.0, 0.0, 1.0])
    found = []
    for origin in ([0.0, 0.0, 0.0], [2.0, 1.0, 1.0]):
        poses = path.T_world_camera.clone()
        poses[:, :3, 3] += torch.tensor(origin)
        moved = replace(path, T_world_camera=poses)
        surface = make_surface(frames, moved, mask, depth, 3, nothing, count=600, scale=1.0)
        place = np.array([-0.17, 0.03, 0.0]) + origin
        joint = Joint(
            "hinge", np.concatenate((axis, -np.cross(axis, place))), axis, -DOOR_TURNS[moments], 0.0, place, 0.03
        )
        joint = refine_joint(surface, joint, moments, np.flatnonzero(surface.points[:, 0] - origin[0] < 0.2))
        foot = np.cross(joint.twist[:3], joint.twist[3:]) - origin
        found.append(foot - joint.twist[:3] * foot[2] / joint.twist[2])  # where it passes the middle's height
    assert np.abs(found[0] - found[1]).max() < 0.002
    assert np.abs(found[0] - [-0.2, 0.0, 0.0]).max() < 0.02


def test_what_an_open_door_hid_at_first_is_not_judged(tmp_path: Path) -> None:
    camera = arc(1).camera(0)
    (tmp_path / "depth").mkdir()
    cv2.imwrite(str(tmp_path / "depth" / "00000.png"), np.full((240, 320), 1000, np.uint16))
    moving = np.zeros((240, 320), bool)
    moving[:, :160] = True
    truth = Truth((camera,), torch.eye(4)[None], moving, moving, 0, 0, tmp_path)
    points = camera.backproject(torch.tensor([[80.0, 120], [240, 120], [80, 120]]), torch.tensor([1.0, 1.0, 1.1]))
    moves, known = truly_moving(truth, points)
    assert moves.tolist()[:2] == [True, False] and known.tolist() == [True, True, False]


# The order of stages


def test_stages_are_kept_until_something_before_them_changes(tmp_path: Path) -> None:
    made: list[str] = []

    def go(start: str | None, settings: dict[str, object]) -> None:
        run = Runner(tmp_path / "out", start, settings)
        for name in ("hands", "cameras", "masks"):
            run.stage(
                name,
                lambda folder: None,
                lambda _, folder: folder.mkdir(parents=True),
                lambda name=name: made.append(name),
            )

    go(None, {"box": [1, 2, 3, 4], "focal": None})
    assert made == ["hands", "cameras", "masks"]
    go(None, {"box": [1, 2, 3, 4], "focal": None})
    assert len(made) == 3
    go(None, {"box": [5, 6, 7, 8], "focal": None})
    assert made[3:] == ["masks"]
    go("cameras", {"box": [5, 6, 7, 8], "focal": None})
    assert made[4:] == ["cameras", "masks"]
    with pytest.raises(AfieldError, match="no stage 'camera'; the stages are hands, cameras"):
        Runner(tmp_path / "out", "camera", {})


def test_runs_of_an_older_version_keep_what_has_not_changed_since(tmp_path: Path) -> None:
    made: list[str] = []
    older = {"version": VERSIONS["version"], "surface_version": VERSIONS["surface_version"]}
    for settings in (older, dict(VERSIONS), {**VERSIONS, "surface_version": 0}):
        run = Runner(tmp_path / "out", None, settings)
        for name in ("masks", "surface", "tracks", "contact", "views"):
            run.stage(name, lambda _: None, lambda _, folder: folder.mkdir(parents=True), lambda n=name: made.append(n))
    assert made[5:] == ["contact", "views", "surface", "tracks", "contact", "views"]


def test_a_fit_does_not_go_on_from_what_was_fitted_to_other_stages(tmp_path: Path) -> None:
    started = tmp_path / "out" / "stages" / ".fit"
    Runner(tmp_path / "out", None, {"seed": 0})
    started.mkdir(parents=True)
    Runner(tmp_path / "out", None, {"seed": 0})
    assert started.is_dir(), "nothing has changed, so it goes on"
    Runner(tmp_path / "out", None, {"seed": 1})
    assert not started.exists()


def test_files_that_change_under_their_name_are_noticed(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "0.png").write_bytes(b"one")
    before = fingerprint(tmp_path / "v.mp4", "open it", DistillConfig(object_masks=masks))
    assert before == fingerprint(tmp_path / "v.mp4", "open it", DistillConfig(object_masks=masks))
    (masks / "1.png").write_bytes(b"two")
    assert before != fingerprint(tmp_path / "v.mp4", "open it", DistillConfig(object_masks=masks))
    depth = fingerprint(tmp_path / "v.mp4", "open it", DistillConfig(depth=str(masks)))
    os.utime(masks / "0.png", (1e9, 4e9))
    assert depth != fingerprint(tmp_path / "v.mp4", "open it", DistillConfig(depth=str(masks)))


def test_foreign_folders_and_empty_narrations_are_refused(tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "v.mp4", moving_frames(14))
    with pytest.raises(AfieldError, match="holds other files"):
        distill_video(video, "open it", tmp_path, progress=False)
    with pytest.raises(AfieldError, match="narration is empty"):
        distill_video(tmp_path / "v.mp4", " ", tmp_path / "out")


def test_a_video_without_hands_stops_with_a_sentence(tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "v.mp4", moving_frames(14))
    masks = tmp_path / "masks"
    masks.mkdir()
    for index in range(14):
        cv2.imwrite(str(masks / f"{index:03d}.png"), np.zeros((64, 96), np.uint8))
    config = DistillConfig(hand_masks=masks, extractor=None)
    with pytest.raises(AfieldError, match="Stage hands: all hand masks are empty"):
        distill_video(video, "open it", tmp_path / "out", config, progress=False)
    with pytest.raises(AfieldError, match="14 masks, but the video has at least 15"):
        distill_video(
            write_mp4(tmp_path / "w.mp4", moving_frames(15)), "open it", tmp_path / "other", config, progress=False
        )
