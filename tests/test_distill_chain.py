"""All stages of `afield distill` in a row, on small drawn videos of a door: still camera, foreign cameras, backwards in time."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from distill_samples import FREE, OPENED, DoorVideo, door_video
from test_drawn_views import generator, sheet

from afield.capture import read_capture, write_capture
from afield.distill.fit import FitConfig
from afield.distill.from_video import DistillConfig, Distilled, Parts, distill_video
from afield.distill.hull import canonical_frame, hull_distance, seen_box
from afield.distill.labels import Flow, check_labels
from afield.distill.stages import drawn_views
from afield.distill.stages.given_views import CaptureViews, GivenViews, ViewSource, tie_views
from afield.distill.stages.rewind import rewound
from afield.distill.stages.tracks import track_object
from afield.distill.stages.views import contact_in_views, posed_views, small_region
from afield.errors import AfieldError
from afield.fields.affordance_grid import GridConfig
from afield.geometry import transform_points
from afield.observation import Observation, View
from afield.perception.given_tracks import GivenTracks
from afield.perception.tracks import PointTracks, tracker_by_name
from afield.pipeline import distill_from_files
from afield.skills import Skill
from afield.view.distill_page import _sections

TINY = FitConfig(grid=GridConfig(32, 24, 3, 4, 8), coarse=24, steps=60, rays=160, flow_steps=120)
WAY = 2 * 0.2 * np.sin(OPENED / 2)
"""Metres that the free edge of the door goes."""


def settings(video: DoorVideo, **changes: object) -> DistillConfig:
    shared = {"box": video.box, "hand_masks": video.folder / "hands", "depth": str(video.folder / "depth")}
    return DistillConfig(**{**shared, "extractor": None, "points": 150, "horizon": 8, "fit": TINY, **changes})


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> tuple[DoorVideo, Distilled, Path]:
    """A tripod and a depth camera."""
    video = door_video(tmp_path_factory.mktemp("still"), arc=0.0)
    out = video.folder / "out"
    return video, distill_video(video.frames, "open the door", out, settings(video, focal=250.0), progress=False), out


def test_a_still_camera_with_depth_ends_in_a_skill(still: tuple[DoorVideo, Distilled, Path]) -> None:
    _, found, out = still
    assert found.cameras.static and found.depth.metric
    assert len(found.observation.views) == 1
    skill = Skill.load(out)  # what `afield act --skill OUT` reads
    assert skill.metric and skill.narration == "open the door"
    surface = skill.field.surface(1500, torch.Generator().manual_seed(0))[0] * skill.scale + skill.center
    axes, low, high = seen_box(found.observation.views[0], found.labels.floor)
    assert torch.allclose(high[:1] - low[:1], torch.tensor(0.4), atol=0.03) and abs(float(high[2]) - 0.24) < 0.02
    front = (surface @ axes.T)[:, 1] < float(low[1]) + 0.02
    assert float(front.float().mean()) > 0.25, "the front is seen and lies where it was measured"
    contact = skill.contact_points(1500) * skill.scale + skill.center
    assert float((contact @ axes.T)[:, 1].median()) < float(low[1]) + 0.03


def test_the_page_shows_every_stage(still: tuple[DoorVideo, Distilled, Path], tmp_path: Path) -> None:
    video, _, out = still
    shutil.copytree(out, tmp_path / "out")
    given = vars(settings(video, focal=250.0))
    _, page = distill_from_files(video.frames, "open the door", tmp_path / "out", **given)
    text = page.read_text(encoding="utf-8")
    titles = ["Hands", "Cameras", "Depth", "Object masks", "Tracks", "Contact", "Views", "Fit"]
    assert re.findall("<h2>(.*?)</h2>", text) == titles
    for section in text.split("<h2>")[1:]:
        assert "data:image/jpeg" in section, section[:20]
    assert "class='stopped'" not in text


def test_the_page_shows_the_surface_where_one_was_looked_at(still: tuple[DoorVideo, Distilled, Path]) -> None:
    _, found, _ = still
    parts = Parts(depth=found.depth, masks=found.masks)
    assert re.findall("<h2>(.*?)</h2>", "".join(_sections(found.video, parts))) == ["Depth", "Object masks"]
    page = "".join(_sections(found.video, Parts(**parts, surface=found.surface)))
    assert re.findall("<h2>(.*?)</h2>", page) == ["Depth", "Object masks", "Surface"]
    assert "data:image/jpeg" in page.split("<h2>Surface")[1]


def test_the_contact_region_has_depth_wherever_the_surface_was_looked_at(
    still: tuple[DoorVideo, Distilled, Path],
) -> None:
    """The sweep may know nothing there; elsewhere what it does not know stays unknown."""
    _, found, _ = still
    blind = replace(found.depth, depth=np.zeros_like(found.depth.depth))
    surface = np.full(found.contact.region.shape, 0.7, np.float32)
    given = (found.video, found.cameras, blind, found.masks.masks, "")
    reference = posed_views(*given, surface, found.contact).views[-1]
    region = small_region(found.contact, reference)
    inside = region & reference.mask
    assert inside.sum() > 20 and (reference.depth[inside] == np.float32(0.7)).all()
    assert (reference.depth[~inside] == 0).all()
    assert contact_in_views(Observation((reference,), name="one"), region)[-1].any()
    with pytest.raises(AfieldError, match="the contact region has no depth"):
        contact_in_views(Observation(posed_views(*given, surface).views[-1:], name="one"), region)


@pytest.mark.parametrize("tracker", ["lucas-kanade", "given"])
def test_an_object_too_small_to_be_followed_is_told(still: tuple[DoorVideo, Distilled, Path], tracker: str) -> None:
    _, found, _ = still
    mask = np.zeros(found.surface.shape, bool)
    mask[100:108, 100:108] = True
    follower = GivenTracks(PointTracks(found.tracks.pixels, found.tracks.seen), Path("tracks.npz"))
    own = follower if tracker == "given" else tracker_by_name(tracker)
    with pytest.raises(AfieldError, match="Stage tracks: the object is too small in the picture"):
        track_object(found.video, found.cameras, mask, found.surface, 3, found.hands, own, progress=False)


def test_the_page_of_a_video_that_stops_shows_how_far_the_stages_came(
    still: tuple[DoorVideo, Distilled, Path], tmp_path: Path
) -> None:
    video, _, _ = still
    given = vars(settings(video, focal=250.0, depth="plane-sweep"))
    with pytest.raises(AfieldError, match=r"the camera stands still.*--depth FOLDER.*report\.html"):
        distill_from_files(video.frames, "open the door", tmp_path / "out", **given)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", text) == ["Hands", "Cameras"]
    assert "<p class='stopped'>Stage depth: the camera stands still" in text


def test_a_still_camera_is_turned_until_the_table_is_level(still: tuple[DoorVideo, Distilled, Path]) -> None:
    video, found, _ = still
    up, true = found.cameras.T_world_camera[0, 2, :3], video.cameras[0].T_world_camera[2, :3]
    assert float(up @ true) > np.cos(np.radians(0.5))
    assert found.cameras.T_world_camera[0, 2, 3] == pytest.approx(0.42, abs=0.005)
    assert found.labels.floor == 0.0


def test_the_door_opens_as_far_as_it_did(still: tuple[DoorVideo, Distilled, Path]) -> None:
    _, found, _ = still
    flow = found.labels.flow
    assert flow is not None
    assert float(flow.displacement[:, -1].norm(dim=-1).max()) == pytest.approx(WAY, rel=0.1)
    still_ones = flow.displacement[~torch.from_numpy(found.tracks.moving)]
    assert float(still_ones.abs().max()) < 1e-6


@pytest.mark.slow
def test_a_video_that_begins_in_contact_is_the_same_one_backwards(
    still: tuple[DoorVideo, Distilled, Path], tmp_path: Path
) -> None:
    _, forwards, _ = still
    video = door_video(tmp_path / "v", arc=0.0, reverse=True)
    config = settings(video, focal=250.0)
    found = distill_video(video.frames, "close the door", tmp_path / "out", config, stop="views", progress=False)
    last = len(forwards.video.read) - 1
    assert found.backwards and not forwards.backwards
    assert found.held == (last - forwards.held[1], last - forwards.held[0])
    flow, other = found.labels.flow, forwards.labels.flow
    assert flow is not None
    assert other is not None
    assert torch.allclose(flow.start, other.start + other.displacement[:, -1], atol=1e-5)
    assert torch.allclose(flow.start + flow.displacement[:, -1], other.start, atol=1e-5)
    # The pictures show the door as it was when the hand held it: open, and nearer.
    view, closed = found.observation.views[0], forwards.observation.views[0]
    opened = flow.start[torch.from_numpy(found.tracks.moving)]
    pixels, away = view.camera.project(opened)
    column, row = pixels.round().long().T.numpy()
    there = view.depth[row.clip(0, 179), column.clip(0, 239)]
    assert np.median(np.abs(there - away.numpy())[there > 0]) < 0.012
    assert view.mask is not None
    assert closed.mask is not None
    assert (view.mask & ~closed.mask).sum() > 200, "the open door covers what lay beside it"
    assert (closed.mask & ~view.mask).mean() < 0.15 * closed.mask.mean(), (
        "behind the open door is the inside of the thing"
    )


@pytest.mark.slow
def test_foreign_cameras_without_points_and_without_scale(tmp_path: Path) -> None:
    video = door_video(tmp_path / "v", arc=0.3)
    cameras = video.write_cameras("cameras.json", metric=False, scale=2.7)
    out = tmp_path / "out"
    first = cv2.imread(str(video.folder / "object" / "000.png"), cv2.IMREAD_GRAYSCALE) > 0
    rows, columns = np.nonzero(first)
    box = (int(columns.min()) - 2, int(rows.min()) - 2, int(columns.max()) + 2, int(rows.max()) + 2)
    assert box != video.box  # the camera goes on until the hand comes
    config = settings(video, cameras=cameras, box=box, prompt_frame=0)
    found = distill_video(video.frames, "open the door", out, config, stop="views", progress=False)
    assert found.cameras.metric and found.depth.metric and not found.cameras.static
    free = found.tracks.reference
    truth = cv2.imread(str(video.folder / "object" / f"{free:03d}.png"), cv2.IMREAD_GRAYSCALE) > 0
    assert (found.masks.masks[free] & truth).sum() / (found.masks.masks[free] | truth).sum() > 0.93
    late = replace(config, prompt_frame=FREE + 4)
    with pytest.raises(AfieldError, match=f"one of the frames 0 to {free}, in which the object is seen without a hand"):
        distill_video(video.frames, "open the door", out, late, stop="views", progress=False)
    true = torch.stack([camera.T_world_camera for camera in video.cameras])
    assert float((found.cameras.T_world_camera - true).norm(dim=(1, 2)).max()) < 0.02
    assert len(found.observation.views) == 4
    flow = found.labels.flow
    assert flow is not None
    assert float(flow.displacement[:, -1].norm(dim=-1).max()) == pytest.approx(WAY, rel=0.1)


def other_views(folder: Path, still: DoorVideo, turn: float, scale: float) -> Path:
    """A capture of the closed door from several sides in another world; its first view is cropped out of the video's frame."""
    around = door_video(folder / "around", arc=1.2)
    motion = torch.eye(4)
    motion[:2, :2] = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).float()
    motion[:3, 3] = torch.tensor([0.3, -0.2, 0.0])
    views = []
    for name, source, index in (("first", still, FREE - 1), *((f"side{i}", around, i) for i in (0, 4, 8, 11))):
        camera = source.cameras[index]
        pose = motion @ camera.T_world_camera
        pose[:3, 3] = scale * motion[:3, :3] @ camera.position + motion[:3, 3]
        color = cv2.imread(str(source.frames / f"{index:03d}.png"))[..., ::-1].copy()
        depth = cv2.imread(str(source.folder / "depth" / f"{index:03d}.png"), cv2.IMREAD_UNCHANGED) * scale / 1000.0
        mask = cv2.imread(str(source.folder / "object" / f"{index:03d}.png"), cv2.IMREAD_GRAYSCALE) > 127
        camera = replace(camera, T_world_camera=pose)
        if name == "first":
            camera = replace(camera, width=200, height=150, cx=camera.cx - 20, cy=camera.cy - 10)
            color, depth, mask = (image[10:160, 20:220].copy() for image in (color, depth, mask))
        views.append(View(name, camera, color, depth.astype(np.float32), mask))
    write_capture(Observation(tuple(views), name="around"), folder / "capture", jpeg_quality=None)
    return folder / "capture"


def test_views_from_elsewhere_take_the_place_of_the_frames(
    still: tuple[DoorVideo, Distilled, Path], tmp_path: Path
) -> None:
    video, own, out = still
    capture = other_views(tmp_path, video, 0.7, 1.5)
    assert isinstance(CaptureViews(capture), ViewSource)
    shutil.copytree(out, tmp_path / "out")
    config = settings(video, focal=250.0, views=capture)
    found = distill_video(video.frames, "open the door", tmp_path / "out", config, stop="views", progress=False)
    views = found.observation.views
    assert [view.name for view in views] == ["side0", "side4", "side8", "side11", "first"]
    flow, before = found.labels.flow, own.labels.flow
    assert flow is not None
    assert before is not None
    # The same surface points, 1.5 times as large, and still on the surface that the given views show.
    grown = flow.displacement[:, -1].norm(dim=-1) / before.displacement[:, -1].norm(dim=-1).clamp_min(1e-9)
    moving = torch.from_numpy(found.tracks.moving)
    assert torch.allclose(grown[moving], torch.tensor(1.5), atol=0.02)
    for view in views:
        pixels, away = view.camera.project(flow.start)
        column, row = pixels.round().long().T.numpy()
        height, width = view.depth.shape
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        there = view.depth[row[inside], column[inside]]
        assert np.median(np.abs(there - away.numpy()[inside])) < 0.012, view.name
    assert all(mask is not None and mask.any() for mask in found.labels.contact)
    assert found.labels.floor == pytest.approx(0.0, abs=0.02)


def test_a_network_draws_what_a_still_camera_has_not_seen(
    still: tuple[DoorVideo, Distilled, Path], tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    video, own, out = still
    box = trimesh.sample.sample_surface(trimesh.creation.box((0.4, 0.12, 0.24)), 400_000, seed=0)[0]
    colors = np.full((len(box), 3), 90, np.uint8)
    drawer = generator(tmp_path / "drawer", sheet(torch.from_numpy(box).float(), colors, -np.pi / 2))
    shutil.copytree(out, tmp_path / "out")
    config = settings(video, focal=250.0, views=drawer)
    found = distill_video(video.frames, "open the door", tmp_path / "out", config, stop="views", progress=False)
    views, flow = found.observation.views, found.labels.flow
    assert [view.name for view in views] == [*(f"drawn{i}" for i in range(6)), own.observation.views[-1].name]
    assert flow is not None
    before = own.labels.flow
    assert before is not None
    # The drawn box takes its size from the depth of the video: the door is 20 cm wide, half of the box.
    width = float(np.ptp(np.nonzero(views[2].mask)[1]) / views[2].camera.fx * drawn_views.AWAY)
    grown = flow.displacement[:, -1].norm(dim=-1) / before.displacement[:, -1].norm(dim=-1).clamp_min(1e-9)
    assert float(grown[torch.from_numpy(found.tracks.moving)].median()) == pytest.approx(width / 0.4, rel=0.15)
    marked = [0 if region is None else int(region.sum()) for region in found.labels.contact]
    assert marked[6] > 0 and marked[0] + marked[5] > 0, "touched in front, also 30 degrees beside it ..."
    assert marked[2] == 0 and marked[3] == 0, "... and not on the back"


def test_the_hull_tells_the_scale_of_views_without_depth(
    still: tuple[DoorVideo, Distilled, Path], tmp_path: Path
) -> None:
    video, own, _ = still
    capture = other_views(tmp_path, video, -0.4, 1.5)
    observation = read_capture(capture)
    blind = replace(
        observation, views=tuple(replace(view, depth=np.zeros_like(view.depth)) for view in observation.views)
    )
    reference = own.observation.views[-1]
    assert tie_views(observation, reference, 11).scale == pytest.approx(1.5, rel=0.01)
    tied = tie_views(blind, reference, 11)
    assert tied.scale == pytest.approx(1.5, rel=0.15)
    assert (tied.observation.views[-1].depth > 0).any(), "contact is carried by the video's depth"


def test_views_that_do_not_begin_with_the_reference_frame_are_refused(
    still: tuple[DoorVideo, Distilled, Path], tmp_path: Path
) -> None:
    video, own, _ = still
    observation = read_capture(other_views(tmp_path, video, 0.0, 1.0))
    reference = own.observation.views[-1]
    turned = replace(
        observation, views=(replace(observation.views[0], mask=~observation.views[0].mask), *observation.views[1:])
    )
    with pytest.raises(AfieldError, match="first view 'first' of 'around' must show the object from where frame 11"):
        tie_views(turned, reference, 11)
    bare = replace(observation, views=(*observation.views[:-1], replace(observation.views[-1], mask=None)))
    with pytest.raises(AfieldError, match="the views side11 of 'around' have no object mask"):
        tie_views(bare, reference, 11)


def test_one_view_needs_depth(still: tuple[DoorVideo, Distilled, Path]) -> None:
    _, found, _ = still
    check_labels(found.observation, found.labels, one_view=True)
    with pytest.raises(AfieldError, match="has one view; a surface needs at least two"):
        check_labels(found.observation, found.labels)
    view = found.observation.views[0]
    blind = replace(found.observation, views=(replace(view, depth=np.zeros_like(view.depth)),))
    with pytest.raises(AfieldError, match="one view without depth; a surface needs depth, or at least two views"):
        check_labels(blind, found.labels, one_view=True)


def test_what_one_view_does_not_see_ends_where_what_it_sees_ends(still: tuple[DoorVideo, Distilled, Path]) -> None:
    _, found, _ = still
    center, scale = canonical_frame(found.observation, 0.0)
    solid = (hull_distance(found.observation, center, scale, 40, 0.0, depth=True) < 0).nonzero().flip(-1)
    points = (solid / 39 * 2.0 - 1.0) * scale + center
    axes, low, high = seen_box(found.observation.views[0], 0.0)
    turned = points @ axes.T
    assert bool((turned >= low - 1e-5).all()) and bool((turned <= high + 1e-5).all())
    assert float(high[1] - low[1]) < 0.2 * float(high[0] - low[0]), "a flat thing stays flat"


def test_a_mask_that_takes_some_of_the_wall_along_does_not_make_the_thing_deep(
    still: tuple[DoorVideo, Distilled, Path],
) -> None:
    _, found, _ = still
    view = found.observation.views[0]
    assert view.mask is not None
    mask = cv2.dilate(view.mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0  # a rim of four pixels
    for side, other in zip(seen_box(view, 0.0)[1:], seen_box(replace(view, mask=mask), 0.0)[1:], strict=True):
        assert torch.allclose(side, other, atol=0.03)


def test_a_thing_that_goes_as_a_whole_leaves_background(still: tuple[DoorVideo, Distilled, Path]) -> None:
    _, found, _ = still
    whole = replace(found.tracks, moving=np.ones_like(found.tracks.moving), motion=found.tracks.motion.copy())
    whole.motion[5] = np.eye(4)
    whole.motion[5, 0, 3] = 0.1
    mask = found.observation.views[0].mask
    assert mask is not None
    moved, _ = rewound(found.observation, (mask,), whole, 5)
    after = moved.views[0].mask
    assert after is not None
    shifted = np.flatnonzero(after.any(axis=0)).min() - np.flatnonzero(mask.any(axis=0)).min()
    assert 15 < shifted < 45
    assert abs(int(after.sum()) / int(mask.sum()) - 1) < 0.1


def test_a_part_that_goes_into_its_thing_leaves_background(still: tuple[DoorVideo, Distilled, Path]) -> None:
    _, found, _ = still
    aside = replace(found.tracks, motion=found.tracks.motion.copy(), moving=found.tracks.points[:, 0] < 0.005)
    aside.motion[5] = np.eye(4)
    aside.motion[5, :3, 3] = (0.2, -0.01, 0.0)  # the door slides in front of the panel beside it
    view = found.observation.views[0]
    assert view.mask is not None
    moved, _ = rewound(found.observation, (view.mask,), aside, 5)
    after = moved.views[0].mask
    assert after is not None
    assert 0.4 < after.sum() / view.mask.sum() < 0.75, "half of the thing is background now"


def test_flow_is_carried_by_a_similarity(still: tuple[DoorVideo, Distilled, Path]) -> None:
    generator = torch.Generator().manual_seed(0)
    start, step = torch.rand(5, 3, generator=generator), torch.rand(5, 2, 3, generator=generator)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    turn = turn * torch.det(turn)
    shift = torch.rand(3, generator=generator)
    tied = GivenViews(still[1].observation, turn, shift, 1.7)
    found = tied.flow(Flow(start, step, torch.ones(5, 2)))
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, shift
    assert torch.allclose(found.start, transform_points(pose, 1.7 * start), atol=1e-6)
    ends = transform_points(pose, 1.7 * (start + step[:, 1]))
    assert torch.allclose(found.start + found.displacement[:, 1], ends, atol=1e-6)
