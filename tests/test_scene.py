"""From observations to scenes: geometry against the known truth, invariance, and what is said about bad input."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scene_samples import BALL_CENTER, BALL_RADIUS, ball_on_table

from afield.errors import AfieldError
from afield.fusion import SceneConfig, build_scene, build_view_features, fuse_cloud
from afield.geometry import pose_from, rotation_about_axis, transform_points
from afield.observation import Observation
from afield.perception.features import ColorExtractor
from afield.scene import (
    FeatureSource,
    Plane,
    Scene,
    check_one_source,
    check_same_source,
    estimate_normals,
    farthest_points,
    find_plane,
    inliers,
)

CONFIG = SceneConfig(points=300, span=0.3)
CENTER = torch.tensor(BALL_CENTER, dtype=torch.float32)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return build_scene(ball_on_table()[0], ColorExtractor(), CONFIG, cache=tmp_path, progress=False)


def with_masks(observation: Observation, masks: list[np.ndarray]) -> Observation:
    views = [view.with_mask(mask) for view, mask in zip(observation.views, masks, strict=True)]
    return replace(observation, views=tuple(views))


def test_scene_lies_on_the_ball_and_the_table_is_removed(scene: Scene) -> None:
    distance = (scene.points - CENTER).norm(dim=-1)
    assert (distance - BALL_RADIUS).abs().max() < 0.003
    assert scene.points[:, 2].min() > CONFIG.table_clearance - 1e-4
    assert scene.table is not None and scene.table.normal[2] > 0.9999 and abs(scene.table.offset) < 1e-3
    outward = (scene.points - CENTER) / distance[:, None]
    cosine = (scene.normals * outward).sum(dim=-1)
    assert cosine.min() > 0 and cosine.median() > 0.98, "normals point towards the cameras"
    assert len(scene.points) == 300
    spread = torch.cdist(scene.points, scene.points).fill_diagonal_(1).amin(dim=1)
    assert spread.min() > 0.003, "points are well spread"


def test_fused_features_say_what_the_surface_looks_like(scene: Scene) -> None:
    torch.testing.assert_close(scene.features.norm(dim=-1), torch.ones(300))
    red, blue = scene.features[:, 0], scene.features[:, 2]
    away = (scene.points[:, 2] - CENTER[2]).abs() > 0.015  # a token covers about a centimeter
    upper = scene.points[:, 2] > CENTER[2]
    assert ((red > blue) == upper)[away].float().mean() > 0.97
    assert (scene.colors[:, 0] > scene.colors[:, 2])[upper & away].all()


def test_same_seed_same_bytes_other_seed_other_points(tmp_path: Path, scene: Scene) -> None:
    again = build_scene(ball_on_table()[0], ColorExtractor(), CONFIG, cache=tmp_path / "empty", progress=False)
    assert torch.equal(again.points, scene.points) and torch.equal(again.features, scene.features)
    other = build_scene(ball_on_table()[0], ColorExtractor(), CONFIG, seed=1, cache=tmp_path, progress=False)
    assert not torch.equal(other.points, scene.points)


def test_a_turned_world_gives_the_turned_scene(tmp_path: Path) -> None:
    observation, masks = ball_on_table()
    observation = with_masks(observation, masks)
    pose = pose_from(
        rotation_about_axis(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(0.7)), torch.tensor([0.3, -0.2, 0.1])
    )
    moved = replace(
        observation,
        views=tuple(
            replace(view, camera=replace(view.camera, T_world_camera=pose @ view.camera.T_world_camera))
            for view in observation.views
        ),
    )
    config = replace(CONFIG, voxel=1e-4)  # voxels are fixed in the world, so a coarse grid would move the points
    first = fuse_cloud(observation, config)
    second = fuse_cloud(moved, config)
    expected = transform_points(pose, first.points)
    assert torch.cdist(expected, second.points).amin(dim=1).max() < 0.002
    assert second.table is not None and abs(second.table.offset - 0.1) < 1e-3


def test_masks_choose_one_of_two_balls(tmp_path: Path) -> None:
    observation, masks = ball_on_table(second=True)
    both = fuse_cloud(observation, CONFIG).points
    assert ((both - CENTER).norm(dim=-1) > 0.15).any()
    one = fuse_cloud(with_masks(observation, masks), CONFIG).points
    assert (one - CENTER).norm(dim=-1).max() < BALL_RADIUS + 0.003
    unmasked = fuse_cloud(with_masks(observation, masks), replace(CONFIG, mask="never")).points
    assert len(unmasked) == len(both)
    box = ((-0.1, -0.2, -0.1), (0.2, 0.2, 0.3))
    cropped = fuse_cloud(observation, replace(CONFIG, workspace=box)).points
    assert (cropped - CENTER).norm(dim=-1).max() < BALL_RADIUS + 0.003


def test_a_masked_object_without_surroundings_keeps_its_top() -> None:
    """Where depth exists on the object alone, no plane on the object may pass for the table."""
    observation, masks = ball_on_table()
    views = [replace(view, depth=view.depth * mask) for view, mask in zip(observation.views, masks, strict=True)]
    cut = with_masks(replace(observation, views=tuple(views)), masks)
    cloud = fuse_cloud(cut, CONFIG)
    assert cloud.table is None
    assert float(cloud.points[:, 2].max()) > BALL_CENTER[2] + 0.8 * BALL_RADIUS
    whole = fuse_cloud(with_masks(observation, masks), CONFIG)
    assert whole.table is not None
    assert whole.table.offset == pytest.approx(0.0, abs=0.003)


def test_flying_pixels_are_removed() -> None:
    observation, _ = ball_on_table()
    patch = torch.tensor([[0.05, -0.15, 0.1]])  # hangs over the table; the other cameras see through it
    pixel, distance = observation.views[0].camera.project(patch)
    column, row = pixel[0].round().int().tolist()
    depth = observation.views[0].depth.copy()
    depth[row - 3 : row + 4, column - 3 : column + 4] = float(distance)
    views = (replace(observation.views[0], depth=depth), *observation.views[1:])
    points = fuse_cloud(replace(observation, views=views), CONFIG).points
    assert (points - CENTER).norm(dim=-1).max() < BALL_RADIUS + 0.003


def test_noisy_depth_still_gives_the_ball() -> None:
    points = fuse_cloud(ball_on_table(noise=0.001)[0], CONFIG).points
    error = ((points - CENTER).norm(dim=-1) - BALL_RADIUS).abs()
    assert error.median() < 0.002 and error.max() < 0.02


def test_view_features_differ_only_where_a_view_does_not_see(tmp_path: Path, scene: Scene) -> None:
    observation = ball_on_table()[0]
    features, seen = build_view_features(observation, scene, ColorExtractor(), CONFIG, cache=tmp_path, progress=False)
    assert features.shape == (3, 300, 6) and seen.shape == (3, 300)
    assert seen.any(dim=0).all(), "every point is seen by the view that measured it"
    away = torch.stack([view.camera.position for view in observation.views]) - CENTER
    behind = ((scene.points - CENTER) @ away.T).T < -0.02
    assert not seen[behind].any(), "the far side of the ball is hidden"
    alone = seen.sum(dim=0) == 1
    assert alone.any()
    view = seen.long().argmax(dim=0)[alone]
    cosine = (features[view, alone.nonzero()[:, 0]] * scene.features[alone]).sum(dim=-1)
    assert cosine.min() > 0.999, "a point of one view has that view's feature"


def test_scene_survives_the_disk(tmp_path: Path, scene: Scene) -> None:
    scene.save(tmp_path / "scene")
    loaded = Scene.load(tmp_path / "scene")
    for name in ("points", "features", "colors", "normals"):
        assert torch.equal(getattr(loaded, name), getattr(scene, name))
    assert loaded.views is not None
    assert scene.views is not None
    assert torch.equal(loaded.views.features, scene.views.features)
    torch.testing.assert_close(loaded.views.weight.sum(dim=0), torch.ones(300))
    assert loaded.source == scene.source and loaded.name == "ball"
    assert loaded.table is not None and scene.table is not None
    assert torch.allclose(loaded.table.normal, scene.table.normal) and loaded.table.offset == scene.table.offset
    half = scene.select(scene.points[:, 2] > CENTER[2])
    assert 0 < len(half.points) < 300 and half.features.shape[0] == len(half.points)


def test_mixed_sources_name_both(scene: Scene) -> None:
    other = replace(scene, name="other", source=FeatureSource("dinov2-s-embedded", 10, 448, 0.45))
    with pytest.raises(AfieldError, match=r"'ball' \(color, layer 1.*'other' \(dinov2-s-embedded, layer 10, 448 px"):
        check_same_source(scene, other)
    with pytest.raises(AfieldError, match="cannot be compared"):
        check_one_source([scene, scene, other])
    check_one_source([scene, scene])


def test_bad_input_is_explained(tmp_path: Path) -> None:
    observation, masks = ball_on_table()
    with pytest.raises(AfieldError, match="All masks of 'ball' are empty"):
        fuse_cloud(with_masks(observation, [np.zeros_like(mask) for mask in masks]), CONFIG)
    with pytest.raises(AfieldError, match=r"views \['camera0', 'camera1', 'camera2'\] have no mask"):
        fuse_cloud(observation, replace(CONFIG, mask="always"))
    with pytest.raises(AfieldError, match="at least 100 are needed"):
        fuse_cloud(ball_on_table(ball=False)[0], CONFIG)
    with pytest.raises(AfieldError, match="only 0 usable depth pixels"):
        fuse_cloud(observation, replace(CONFIG, workspace=((5.0, 5.0, 5.0), (6.0, 6.0, 6.0))))
    view = observation.views[0]
    with pytest.raises(AfieldError, match="NaN"):
        replace(view, depth=np.where(view.depth > 0.7, np.nan, view.depth))
    up = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # the world lies on its side
    views = [
        replace(v, camera=replace(v.camera, T_world_camera=up @ v.camera.T_world_camera)) for v in observation.views
    ]
    with pytest.raises(AfieldError, match=r"No horizontal plane holds a tenth of the points of 'ball'.*give masks"):
        fuse_cloud(replace(observation, views=tuple(views)), CONFIG)


def test_cameras_that_contradict_each_other_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    observation, _ = ball_on_table()

    def zoomed(factor: float) -> Observation:
        cameras = [replace(v.camera, fx=v.camera.fx * factor, fy=v.camera.fy * factor) for v in observation.views]
        pairs = zip(observation.views, cameras, strict=True)
        return replace(observation, views=tuple(replace(view, camera=camera) for view, camera in pairs))

    with caplog.at_level(logging.WARNING):
        fuse_cloud(observation, CONFIG)
    assert not caplog.records
    with pytest.raises(AfieldError, match=r"'ball': \d+% of the points of view 'camera\d' .*intrinsics"):
        fuse_cloud(zoomed(1.4), CONFIG)


def test_find_plane_ignores_walls_and_smaller_planes(generator: torch.Generator) -> None:
    def patch(count: int, scale: list[float], offset: list[float]) -> torch.Tensor:
        return (torch.rand(count, 3, generator=generator) - 0.5) * torch.tensor(scale) + torch.tensor(offset)

    table = patch(3000, [1.0, 1.0, 0.004], [0, 0, 0.7])
    wall = patch(4000, [2.0, 0.002, 2.0], [0, 0.8, 1.0])
    shelf = patch(600, [0.3, 0.3, 0.002], [0, 0, 1.1])
    points = torch.cat((wall, shelf, table))
    found = find_plane(points)
    assert found is not None
    plane, member = found
    assert abs(plane.offset - 0.7) < 0.002 and plane.normal[2] > 0.9999
    assert member[4600:].all() and not member[4000:4600].any()
    assert find_plane(wall) is None
    assert torch.allclose(Plane(torch.tensor([0.0, 0.0, 1.0]), 0.7).height(shelf), shelf[:, 2] - 0.7)


def test_farthest_points_against_the_slow_reference(generator: torch.Generator) -> None:
    points = torch.rand(80, 3, generator=generator)
    chosen = farthest_points(points, 20, seed=3)
    expected = [int(chosen[0])]
    for _ in range(19):
        expected.append(int(torch.cdist(points, points[expected]).amin(dim=1).argmax()))
    assert chosen.tolist() == expected
    assert sorted(farthest_points(points, 500).tolist()) == list(range(80))


def test_outliers_and_normals_of_a_plane(generator: torch.Generator) -> None:
    points = torch.rand(800, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.0])
    stray = torch.tensor([[0.5, 0.5, 0.4], [2.0, 2.0, 0.0]])
    keep = inliers(torch.cat((points, stray)), 12, 3.0)
    assert not keep[-2:].any() and keep[:-2].float().mean() > 0.97
    below = torch.tensor([0.5, 0.5, -1.0]).expand(800, 3)
    normals = estimate_normals(points, below)
    torch.testing.assert_close(normals, torch.tensor([0.0, 0.0, -1.0]).expand(800, 3), atol=1e-3, rtol=0)
