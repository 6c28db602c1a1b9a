"""Joints of a hand that holds a moving part, the closer look at depth, and the contact region made from both."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from afield.capture.human_hand import FINGERS, GRIP, bend_hand
from afield.distill.stages.hands import HandTrack
from afield.distill.stages.surface import object_surface
from afield.distill.stages.touched import (
    BESIDE,
    LEAST_TOUCH,
    SMALLEST,
    Found,
    Reach,
    believed,
    far_from_located,
    far_in_frame,
    hand_views,
    pixels_per_meter,
    pushed,
    touched,
)
from afield.distill.stages.tracks import ObjectTracks
from afield.errors import AfieldError
from afield.geometry import look_at
from afield.observation import Camera
from afield.perception.cameras import CameraPath
from afield.perception.closer import closer_depth, guided_filter
from afield.perception.depth import plane_sweep
from afield.perception.held_hand import HandViews, HeldHand, locate_hand
from afield.perception.video import Video

COUNT, WIDTH, HEIGHT, FOCAL = 12, 640, 480, 515.0
JOINTS = (
    "wrist",
    *(f"thumb-{part}" for part in ("metacarpal", "phalanx-proximal", "phalanx-distal", "tip")),
    *(
        f"{finger}-finger-{part}"
        for finger in FINGERS
        for part in ("phalanx-proximal", "phalanx-intermediate", "phalanx-distal", "tip")
    ),
)


def joints_at(place: tuple[float, float, float]) -> np.ndarray:
    """The 21 joints of a gripping hand, in metres, with the middle of its fingertips at a place."""
    joints = bend_hand(GRIP).joints
    found = np.stack([joints[name] for name in JOINTS]) @ Rotation.from_euler("xyz", (-70, 25, 40), True).as_matrix().T
    return found - found[[4, 8, 12, 16, 20]].mean(axis=0) + place


def held_scene(door_degrees: float, turn_degrees: float = 0.0) -> tuple[CameraPath, np.ndarray, np.ndarray]:
    """A camera that walks a little, a door that opens about the world's z axis, and where the joints are in every frame.

    The hand turns back within its grip while the door opens.
    """
    poses = [
        look_at(torch.tensor([0.3 + 0.01 * i, -1.0, 0.5]), torch.tensor([0.3, 0.0, 0.1]), torch.tensor([0.0, 0, 1]))
        for i in range(COUNT)
    ]
    path = CameraPath(
        WIDTH, HEIGHT, FOCAL, torch.stack(poses), torch.zeros(0, 3), torch.zeros(0), static=False, metric=True
    )
    share = np.clip((np.arange(COUNT) - 3) / (COUNT - 4), 0, 1)
    motion = np.repeat(np.eye(4)[None], COUNT, axis=0)
    motion[:, :3, :3] = Rotation.from_euler("z", -door_degrees * share[:, None], True).as_matrix()
    joints, pivot = joints_at((0.32, -0.02, 0.1)), np.array([0.32, -0.02, 0.1])
    own = Rotation.from_euler("z", turn_degrees * share[:, None], True).as_matrix()
    in_part = (joints - pivot) @ own.transpose(0, 2, 1) + pivot
    return path, motion, in_part @ motion[:, :3, :3].transpose(0, 2, 1)


def views_of(
    path: CameraPath, motion: np.ndarray, places: np.ndarray, scale: float = 1.0, told: float = 1.0
) -> HandViews:
    """What a detector without error would say in a world `scale` times as large, but for a share of the relative depth only."""
    found = [path.camera(i).project(torch.from_numpy(places[i]).float()) for i in range(COUNT)]
    seen, away = (np.stack([one[k].numpy() for one in found]) for k in (0, 1))
    poses = path.T_world_camera.double().numpy().copy()
    poses[:, :3, 3] *= scale
    angle = Rotation.from_matrix(motion[:, :3, :3]).magnitude()
    return HandViews(
        landmarks=seen - [(WIDTH - 1) / 2, (HEIGHT - 1) / 2],
        depth=told * (away - away[:, :1]) / away[:, 9:10] * FOCAL,
        camera_part=np.linalg.inv(poses) @ motion,
        turned=angle / max(float(angle.max()), 1e-9),
        focal=FOCAL,
        away=1.08 * scale,
        metre=0.85 * scale,
    )


def off(found: HeldHand, true: np.ndarray) -> float:
    """Median distance of the joints in metres."""
    return float(np.median(np.linalg.norm(found.joints - true, axis=1)))


@pytest.mark.parametrize(("told", "most"), [(1.0, 0.005), (0.0, 0.015)])
def test_joints_are_found_to_millimetres(told: float, most: float) -> None:
    """The start has 85% of the size and is 3 cm too far away; the detector says all or nothing about depth."""
    path, motion, places = held_scene(65.0, 40.0)
    found = locate_hand(views_of(path, motion, places, told=told))
    assert off(found, places[0]) < most
    assert abs(found.metre - 1) < 0.15
    assert found.error < 1.5
    if told == 1.0:
        assert np.degrees(found.turn) == pytest.approx([0, 0, 40], abs=8)


def test_a_landmark_that_jumps_in_some_frames_does_little_harm() -> None:
    path, motion, places = held_scene(65.0, 40.0)
    views = views_of(path, motion, places)
    views.landmarks[3:5, 8] += 40.0
    found = locate_hand(views)
    assert off(found, places[0]) < 0.006
    assert np.linalg.norm(found.joints[8] - places[0][8]) < 0.015


def test_joints_scale_with_the_camera_path() -> None:
    path, motion, places = held_scene(50.0, 20.0)
    one = locate_hand(views_of(path, motion, places))
    large = locate_hand(views_of(path, motion, places, scale=7.0))
    assert np.allclose(large.joints / 7, one.joints, atol=1e-3)
    assert large.metre / 7 == pytest.approx(one.metre, rel=1e-2)


def test_two_frames_without_parallax_give_a_hand_of_human_size_at_the_object() -> None:
    path, motion, places = held_scene(0.0)
    views = views_of(path, motion, places)
    few = replace(
        views,
        **{name: getattr(views, name)[[0, 0]] for name in ("landmarks", "depth", "camera_part", "turned")},
        away=1.05,
        metre=1.0,
    )
    found = locate_hand(few)
    assert np.isfinite(found.joints).all() and 0.6 < found.metre < 1.6
    assert off(found, places[0]) < 0.06


HELD = (3, COUNT - 1)
"""First contact and release in `plate_scene`."""


def plate_scene(door_degrees: float) -> tuple[Found, np.ndarray]:
    """The hand of `held_scene` before a door at y = 0, of which mask, depth and motion are known; and its joints."""
    path, motion, places = held_scene(door_degrees, 0.5 * door_degrees)
    views = views_of(path, motion, places, told=0.01)
    landmarks = (views.landmarks + [(WIDTH - 1) / 2, (HEIGHT - 1) / 2]).astype(np.float32)
    camera = path.camera(0)
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    pixels = torch.from_numpy(np.stack((columns.ravel(), rows.ravel()), axis=-1)).float()
    unit = camera.backproject(pixels, torch.ones(len(pixels))) - camera.position
    depth = (-camera.position[1] / unit[:, 1]).numpy()
    points = (camera.position + unit * torch.from_numpy(depth)[:, None]).numpy()
    mask = ((points[:, 0] > 0.1) & (points[:, 0] < 0.45) & (np.abs(points[:, 2] - 0.1) < 0.15)).reshape(HEIGHT, WIDTH)
    some = np.flatnonzero(mask.ravel())[::97]
    hands = HandTrack(
        landmarks, views.depth.astype(np.float32), np.full(COUNT, 2), np.zeros((COUNT, HEIGHT, WIDTH), bool)
    )
    tracks = ObjectTracks(
        np.repeat(pixels.numpy()[some][None], COUNT, axis=0),
        np.ones((COUNT, len(some)), bool),
        points[some].astype(np.float32),
        np.ones(len(some), bool),
        motion.astype(np.float32),
        np.zeros(COUNT, np.float32),
        0,
    )
    known = np.where(mask, depth.reshape(HEIGHT, WIDTH), 0).astype(np.float32)
    return Found(path, hands, tracks, mask, known), places[0]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_the_region_is_what_lies_near_the_true_fingers() -> None:
    found, joints = plate_scene(65.0)
    bones = np.concatenate(
        [np.linspace(joints[a], joints[a + 1], 20) for k in (1, 5, 9, 13, 17) for a in (k + 1, k + 2)]
    )
    true = np.zeros_like(found.mask)
    true[found.pixels()] = KDTree(bones).query(found.surface())[0] < 0.033
    views = hand_views(found, HELD)
    assert views is not None and off(locate_hand(views), joints) < 0.02
    assert overlap(touched(found, HELD), true) > 0.6


def within(found: Found, reach: float) -> np.ndarray:
    """What lies so near the hand as the frame of first contact shows it."""
    return found.region(far_in_frame(found, HELD[0]) < reach)


def test_what_is_grasped_is_near_the_hand_as_it_is_located_and_as_one_frame_shows_it() -> None:
    found, _ = plate_scene(65.0)
    in_frame, located = far_in_frame(found, 3), far_from_located(found, HELD)
    assert located is not None and np.abs(located - in_frame).max() > 0.005
    both = found.region((in_frame + located) / 2 < 0.03)
    assert both.any() and (touched(found, HELD, Reach(grasped=0.03)) == both).all()


def test_a_hand_that_tells_nothing_of_its_depth_is_taken_from_one_frame() -> None:
    found, _ = plate_scene(65.0)
    assert hand_views(found, HELD) is not None
    assert hand_views(plate_scene(10.0)[0], HELD) is None
    assert hand_views(replace(found, hands=replace(found.hands, depth=0 * found.hands.depth)), HELD) is None
    seldom = np.where(np.isin(np.arange(COUNT), (3, 7, 11)), 2, 1)
    lost = replace(found, hands=replace(found.hands, state=seldom))
    assert hand_views(lost, HELD) is None
    assert (touched(lost, HELD) == within(lost, Reach().grasped)).all()


def slid(found: Found, way: tuple[float, float, float]) -> Found:
    """The same plate when it is slid while it is held; the camera looks along y."""
    motion = np.repeat(np.eye(4, dtype=np.float32)[None], COUNT, axis=0)
    motion[HELD[0] :, :3, 3] = np.linspace(0.0, 1.0, COUNT - HELD[0])[:, None] * way
    return replace(found, tracks=replace(found.tracks, motion=motion))


def test_a_hand_that_pushes_touches_less_than_one_that_pulls() -> None:
    found, _ = plate_scene(65.0)
    away, near = slid(found, (0.0, 0.2, 0.0)), slid(found, (0.0, -0.2, 0.0))
    assert pushed(away, HELD) and not pushed(near, HELD)
    for aside in (0.01, -0.01):
        assert not pushed(slid(found, (0.2, aside, 0.0)), HELD)
    assert (touched(near, HELD) == within(found, Reach().grasped)).all()
    assert (touched(away, HELD) == within(found, Reach().pushed)).all()
    less, more = touched(away, HELD), touched(near, HELD)
    assert less.any() and not (less & ~more).any() and less.sum() < 0.8 * more.sum()


def test_what_was_pulled_seems_pushed_in_a_video_seen_from_its_end() -> None:
    found, _ = plate_scene(65.0)
    near = slid(found, (0.0, 0.2, 0.0))
    assert pushed(near, HELD) and not pushed(replace(near, backwards=True), HELD)
    assert pushed(replace(slid(found, (0.0, -0.2, 0.0)), backwards=True), HELD)


def test_so_does_a_located_hand() -> None:
    found, _ = plate_scene(-65.0)
    views = hand_views(found, HELD)
    assert views is not None and pushed(found, HELD) and not pushed(plate_scene(65.0)[0], HELD)
    far = far_from_located(found, HELD)
    assert far is not None
    region = touched(found, HELD)
    assert region.any() and (region == found.region(far < Reach().pushed_located)).all()
    assert region.sum() < 0.8 * touched(replace(found, backwards=True), HELD).sum()


def test_fingers_that_hide_behind_a_rim_touch_what_lies_beside_the_hand() -> None:
    found, _ = plate_scene(65.0)
    rows, columns = np.nonzero(found.mask)
    masks = np.zeros((COUNT, HEIGHT, WIDTH), bool)
    masks[:, rows.min() - 30 : rows.min() - 2, int(columns.mean()) - 15 : int(columns.mean()) + 15] = True
    above = found.hands.landmarks - [0.0, float(found.hands.landmarks[3, :, 1].max() - rows.min() + 40)]
    hidden = replace(found, hands=replace(found.hands, landmarks=above.astype(np.float32), masks=masks))
    region = touched(hidden, HELD)
    assert far_in_frame(hidden, 3).min() > Reach().grasped
    assert region.any() and (region == hidden.region(hidden.outside_hand(3) < BESIDE)).all()
    assert not (region & ~found.mask).any()
    assert (touched(slid(hidden, (0.0, 0.2, 0.0)), HELD) == region).all()
    away = replace(hidden, hands=replace(hidden.hands, masks=np.roll(masks, -60, axis=1)))
    with pytest.raises(AfieldError, match="the fingers do not meet the object in frame 3"):
        touched(away, HELD)


def test_a_hand_that_turns_farther_than_a_wrist_can_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = plate_scene(65.0)
    assert far_from_located(found, HELD) is not None
    monkeypatch.setattr("afield.distill.stages.touched.MOST_TURN", 0.1)  # it turns by 32 degrees
    assert far_from_located(found, HELD) is None
    assert (touched(found, HELD) == within(found, Reach().grasped)).all()


def test_a_hand_that_is_larger_than_it_looks_is_not_believed() -> None:
    found, _ = plate_scene(65.0)
    views = hand_views(found, HELD)
    assert views is not None
    hand = locate_hand(views)
    assert hand is not None and believed(hand, views)
    assert not believed(replace(hand, metre=1.05 * views.metre), views)
    assert not believed(replace(hand, turn=np.array([0.0, 0.0, 1.3])), views)


@pytest.mark.parametrize(
    ("door_degrees", "most"), [(-65.0, BESIDE), (65.0, Reach().grasped / Reach().outside)], ids=["pushed", "grasped"]
)
def test_what_is_touched_is_seen_beside_the_hand(door_degrees: float, most: float) -> None:
    """A mask that ends in the middle of the fingers cuts the region off a little farther."""
    found, _ = plate_scene(door_degrees)
    masks = found.hands.masks.copy()
    end = int(np.median(found.hands.landmarks[3, 8:, 0]))
    masks[3, :, :end] = True
    masked = replace(found, hands=replace(found.hands, masks=masks))
    columns = found.seen_in(3)[0][:, 0]
    reach = most * pixels_per_meter(found.hands, 3)
    assert reach > 5
    whole, part = touched(found, HELD), touched(masked, HELD)
    kept = part[found.pixels()]
    assert (part & ~whole).sum() == 0 and 0 < part.sum() < whole.sum()
    assert columns[kept].max() < end + reach + 1
    assert columns[kept].max() > end + (reach - 2 if pushed(found, HELD) else reach / 3)
    left = columns < end - 3
    assert (kept[left] == whole[found.pixels()][left]).all()


def test_a_located_hand_that_touches_little_is_believed_and_a_push_known_by_its_outline_stays_one() -> None:
    """An arm before the object must not count as touched because the fingers touch a little of it."""
    found, _ = plate_scene(-65.0)
    arm = replace(found.hands, masks=np.ones_like(found.hands.masks))
    far = far_from_located(found, HELD)
    assert far is not None
    outline = replace(found, hands=replace(arm, depth=np.zeros_like(arm.depth)))
    seen = replace(found, hands=arm)
    for scene, near, name in ((seen, far, "pushed_located"), (outline, far_in_frame(outline, 3), "pushed")):
        least = LEAST_TOUCH * pixels_per_meter(scene.hands, 3) ** 2
        little = next(r for r in np.sort(near) if scene.region(near < r).sum() >= SMALLEST)
        region = touched(scene, HELD, Reach(**{name: float(little)}))
        assert SMALLEST <= region.sum() < least
        assert (region == scene.region(near < little)).all()


def test_pieces_much_smaller_than_the_largest_are_dropped() -> None:
    found, _ = plate_scene(65.0)
    rows, columns = found.pixels()
    top, left = rows.min() + 20, columns.min() + 20  # the plate is seen aslant
    sizes = ((0, 20), (30, 15), (50, 12))  # a piece of 20 x 20 pixels, one of 56% of it and one of 36%
    chosen = np.zeros(len(rows), bool)
    for start, size in sizes:
        chosen |= (rows >= top) & (rows < top + size) & (columns >= left + start) & (columns < left + start + size)
    assert chosen.sum() == 400 + 225 + 144
    region = found.region(chosen)
    assert region.sum() == 400 + 225 and not region[:, left + 50 :].any()
    assert not found.region(np.zeros(len(rows), bool)).any()


@pytest.mark.parametrize("turn", [(-70, 25, 40), (0, 0, 0), (60, 0, 20), (20, 70, -30), (90, 0, 0), (0, 90, 0)])
def test_the_size_of_a_hand_is_told_from_every_side(turn: tuple[int, int, int]) -> None:
    """Also where the palm is seen aslant, as by `(60, 0, 20)`; this hand is 8% larger than the average one."""
    joints = bend_hand(GRIP).joints
    places = np.stack([joints[name] for name in JOINTS]) @ Rotation.from_euler("xyz", turn, True).as_matrix().T
    landmarks = np.repeat((places[None, :, :2] * 600 + 300).astype(np.float32), 3, axis=0)
    depth = np.repeat((0.4 * 600 * (places[:, 2] - places[0, 2]))[None].astype(np.float32), 3, axis=0)
    hands = HandTrack(landmarks, depth, np.full(3, 2), np.zeros((3, 8, 8), bool))
    assert pixels_per_meter(hands, 1) == pytest.approx(600, rel=0.15)


def bar_views() -> tuple[list[np.ndarray], list[Camera], np.ndarray]:
    """A light bar, 3 cm before a dark wall at 1 m, drawn from nine places; and the depth of the last picture."""
    generator = np.random.default_rng(0)
    noise = cv2.GaussianBlur(generator.normal(size=(600, 800)), (0, 0), 2)
    noise /= noise.std()
    pictures, cameras = [], []
    columns, rows = np.meshgrid(np.arange(160), np.arange(120))
    depth = np.ones((120, 160))
    for x in np.linspace(-0.2, 0.0, 9):
        pose = torch.eye(4)
        pose[0, 3] = float(x)
        cameras.append(Camera(160, 120, 200.0, 200.0, 79.5, 59.5, pose))
        gray, depth = np.zeros((120, 160)), np.ones((120, 160))
        for away, base in ((1.0, 60.0), (0.97, 170.0)):
            place_x, place_y = (columns - 79.5) / 200 * away + x, (rows - 59.5) / 200 * away
            shown = np.ones_like(depth, bool) if away == 1.0 else np.abs(place_x) < 0.012
            texture = cv2.remap(
                noise.astype(np.float32),
                (400 + 700 * place_x).astype(np.float32),
                (300 + 700 * place_y).astype(np.float32),
                cv2.INTER_LINEAR,
            )
            gray[shown], depth[shown] = (base + 12 * texture)[shown], away
        pictures.append(np.repeat(gray.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1))
    return pictures, cameras, depth


def test_a_closer_look_keeps_a_thin_bar_before_its_wall() -> None:
    pictures, cameras, true = bar_views()
    others = list(zip(pictures[:-1], cameras[:-1], strict=True))
    window = (50, 20, 110, 100)
    found = closer_depth(pictures[-1], cameras[-1], others, window, 0.9, 1.1, progress=False)
    real = true[20:100, 50:110]
    assert found.shape == real.shape
    error = np.abs(found - real)
    assert np.median(error[real < 1]) < 0.005 and np.median(error[real == 1]) < 0.005
    assert (error < 0.01).mean() > 0.93
    coarse = plane_sweep(pictures[-1], cameras[-1], others, 0.9, 1.1)[0][20:100, 50:110]
    assert (error < 0.01).mean() > (np.abs(coarse - real) < 0.01).mean()


def test_a_closer_look_is_taken_of_the_object_only() -> None:
    pictures, cameras, true = bar_views()
    poses = torch.stack([camera.T_world_camera for camera in cameras])
    path = CameraPath(160, 120, 200.0, poses, torch.zeros(0, 3), torch.zeros(0), static=False, metric=True)
    count = len(pictures)
    video = Video(np.stack(pictures), np.arange(count) / 30, "bar", (160, 120), tuple(range(count)))
    others = list(zip(pictures[:-1], cameras[:-1], strict=True))
    coarse = plane_sweep(pictures[-1], cameras[-1], others, 0.9, 1.1)[0]
    mask = np.zeros((120, 160), bool)
    mask[20:100, 50:110] = True
    mask[40:45, 86:92] = False
    finer = object_surface(video, path, mask, coarse, count - 1, progress=False)
    assert (finer[~mask] == coarse[~mask]).all() and (finer[mask] > 0).all()
    known = mask & (coarse > 0)
    assert np.abs(finer - true)[known].mean() < 0.7 * np.abs(coarse - true)[known].mean()
    assert object_surface(video, path, mask, coarse, 1, progress=False) is coarse  # one other frame says too little
    assert object_surface(video, path, mask, np.zeros_like(coarse), count - 1, progress=False).sum() == 0


def test_a_located_hand_that_touches_nothing_gives_way_to_one_frame() -> None:
    found, _ = plate_scene(-65.0)
    single = within(found, Reach().pushed)
    assert (touched(found, HELD) != single).any()
    assert (touched(found, HELD, Reach(pushed_located=0.0)) == single).all()
    nothing = touched(found, HELD, Reach(pushed_located=0.0, pushed=0.0))
    assert nothing.any() and (nothing == within(found, Reach().grasped)).all()


def test_landmarks_in_one_place_and_objects_behind_the_camera_locate_no_hand() -> None:
    found, _ = plate_scene(65.0)
    hands, poses = found.hands, found.path.T_world_camera
    point = replace(hands, landmarks=np.repeat(hands.landmarks[:, :1], 21, axis=1))
    assert hand_views(replace(found, hands=point), HELD) is None
    unknown = replace(hands, depth=np.full_like(hands.depth, np.nan))
    assert hand_views(replace(found, hands=unknown), HELD) is None
    averted = torch.cat((poses[:3], poses[3:] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))))
    assert hand_views(replace(found, path=replace(found.path, T_world_camera=averted)), HELD) is None


def test_the_guided_filter_smooths_within_colours_and_keeps_constants() -> None:
    generator = np.random.default_rng(1)
    guide = np.zeros((40, 40, 3), np.float32)
    guide[:, 20:] = (0.9, 0.2, 0.1)
    step = (guide[..., 0] > 0.5).astype(np.float32)
    noisy = step + generator.normal(scale=0.2, size=step.shape).astype(np.float32)
    smooth = guided_filter(guide, 6, 1e-3)
    assert np.abs(smooth(noisy) - step).mean() < 0.25 * np.abs(noisy - step).mean()
    assert np.allclose(smooth(np.full((40, 40), 0.7, np.float32)), 0.7, atol=1e-4)
