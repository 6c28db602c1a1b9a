"""Affordance functions: look-ups, volume rendering, fitting, and the furniture they are tried on."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np
import pytest
import torch
from scene_samples import BALL_CENTER, BALL_RADIUS, ball_on_table

from afield.benchmark.fit_bench import chamfer, true_flow, zero_crossings
from afield.capture.furniture import (
    BODY,
    HANDLE,
    JOINT,
    Furniture,
    add_furniture,
    handle_box,
    joint_motion,
    photograph_furniture,
    ring_cameras,
    surface_points,
)
from afield.capture.opengl import draw_elsewhere, opengl_environment
from afield.distill import FitConfig, Flow, Labels, check_labels, fit_affordance
from afield.distill.fit import canonical_frame, hull_distance
from afield.errors import AfieldError
from afield.fields.affordance import AffordanceField
from afield.fields.affordance_grid import GridAffordance, GridConfig, look_up, trilinear_gradient
from afield.fields.rendering import Rays, RenderingConfig, box_interval, render, render_reference, sample_rays
from afield.geometry import nearest_to_lines
from afield.observation import Observation

SMALL = GridConfig(resolution=20, detail=12, channels=3, horizon=4, sharpness=40.0)


@pytest.fixture
def field() -> GridAffordance:
    torch.manual_seed(0)
    found = GridAffordance(SMALL)
    with torch.no_grad():
        found.looks += torch.randn(found.looks.shape)
        found.distance += 0.02 * torch.randn(found.distance.shape)
    return found


def _rays(count: int, seed: int = 0) -> Rays:
    generator = torch.Generator().manual_seed(seed)
    origin = 3.0 * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    goal = 0.6 * torch.rand(count, 3, generator=generator) - 0.3
    direction = torch.nn.functional.normalize(goal - origin, dim=-1)
    return Rays(origin, direction, *box_interval(origin, direction), torch.full((count,), 0.9))


def test_the_grid_is_an_affordance_field(field: GridAffordance) -> None:
    assert isinstance(field, AffordanceField)
    points = 2 * torch.rand(7, 3) - 1
    color, descriptor, contact = field.appearance(points)
    moved, visible = field.flow(points)
    assert (color.shape, descriptor.shape, contact.shape) == ((7, 3), (7, 3), (7,))
    assert (moved.shape, visible.shape) == ((7, 4, 3), (7, 4))
    far = torch.tensor([[3.0, 0.0, 0.0]])
    assert float(field.sdf(far)) == pytest.approx(float(field.sdf(torch.tensor([[1.0, 0.0, 0.0]]))) + 2.0, abs=1e-5)


def test_the_surface_is_sampled_evenly() -> None:
    ball = GridAffordance(replace(SMALL, resolution=64))
    points, normals = ball.surface(4000, torch.Generator().manual_seed(0))
    assert points.shape == normals.shape == (4000, 3)
    assert float((points.norm(dim=-1) - 0.5).abs().max()) < 2e-3
    assert float((torch.nn.functional.normalize(points, dim=-1) * normals).sum(-1).min()) > 0.97
    for axis in range(
        3
    ):  # by Archimedes, every coordinate of an even sphere is uniform; 4 deviations of 25 bins of 160
        bins = torch.histc(points[:, axis], 25, -0.5, 0.5)
        assert float((bins - 160).abs().max()) < 4 * 160**0.5
    again, _ = ball.surface(4000, torch.Generator().manual_seed(0))
    assert torch.equal(points, again)
    ball.distance.data += 2.0
    with pytest.raises(AfieldError, match="no surface"):
        ball.surface(10)


def test_look_ups_find_the_axes_in_the_right_order() -> None:
    axis = torch.linspace(-1, 1, 9)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = 2 * torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 1
    torch.testing.assert_close(look_up(torch.stack((x, y, z)), points), points, atol=1e-5, rtol=0)


def test_the_closed_form_gradient_is_that_of_autograd_and_of_differences(field: GridAffordance) -> None:
    points = (1.9 * torch.rand(60, 3, generator=torch.Generator().manual_seed(2)) - 0.95).requires_grad_(True)
    (automatic,) = torch.autograd.grad(field.sdf(points).sum(), points)
    exact = trilinear_gradient(field.distance, points.detach())
    torch.testing.assert_close(exact, automatic, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        eps = 1e-3
        for axis in range(3):
            step = eps * torch.eye(3)[axis]
            slope = (field.sdf(points + step) - field.sdf(points - step)) / (2 * eps)
            smooth = (slope - exact[:, axis]).abs() < 1e-2  # but for points beside a face of their cell
            assert float(smooth.float().mean()) > 0.9
    loss = (trilinear_gradient(field.distance, points.detach()).norm(dim=-1) - 1).square().mean()
    loss.backward()
    assert field.distance.grad is not None
    assert bool(torch.isfinite(field.distance.grad).all())


def test_rendering_equals_its_slow_reference(field: GridAffordance) -> None:
    rays, config = _rays(12), RenderingConfig(16, 9)
    along = sample_rays(field, rays, config)
    fast, slow = render(field, rays, config), render_reference(field, rays, along)
    for name in ("opacity", "depth", "color", "normal", "descriptor", "contact"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), atol=2e-5, rtol=1e-4)


def test_a_ball_is_rendered_where_it_is() -> None:
    ball = GridAffordance(replace(SMALL, resolution=64, sharpness=300.0))
    rays = _rays(200)
    found = render(ball, rays, RenderingConfig(96, 48))
    closest = rays.origin - (rays.origin * rays.direction).sum(-1, keepdim=True) * rays.direction
    gap = closest.norm(dim=-1)
    hit = gap < 0.45
    assert float(found.opacity[hit].min()) > 0.98
    assert float(found.opacity[gap > 0.55].sum()) < 0.1
    depth = (-(rays.origin * rays.direction).sum(-1) - (0.25 - gap.square()).clamp_min(0).sqrt()) * 0.9
    assert float((found.depth - depth)[gap < 0.4].abs().max()) < 0.02  # grazing rays find it less exactly
    point = rays.origin + (found.depth / 0.9)[:, None] * rays.direction
    normal = torch.nn.functional.normalize(point, dim=-1)
    assert float((found.normal * normal).sum(-1)[hit].min()) > 0.97


def test_rays_that_miss_the_cube_see_nothing(field: GridAffordance) -> None:
    origin, direction = torch.tensor([[3.0, 3.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    rays = Rays(origin, direction, *box_interval(origin, direction), torch.ones(1))
    assert not bool(rays.hits.any())
    assert float(render(field, rays).opacity) == 0.0


def test_the_point_nearest_to_lines() -> None:
    goal = torch.tensor([0.3, -0.2, 0.7])
    direction = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(nearest_to_lines(goal - 2 * direction, direction), goal, atol=1e-5, rtol=0)


def _ball() -> tuple[Observation, Labels]:
    observation, masks = ball_on_table()
    views = tuple(view.with_mask(mask) for view, mask in zip(observation.views, masks, strict=True))
    contact = []
    for view in views:
        assert view.mask is not None
        row, column = np.mgrid[0 : view.depth.shape[0], 0 : view.depth.shape[1]]
        pixels = torch.from_numpy(np.stack((column, row), -1)).reshape(-1, 2).float()
        points = (
            view.camera.backproject(pixels, torch.from_numpy(view.depth).reshape(-1)).numpy().reshape(*row.shape, 3)
        )
        contact.append(view.mask & (points[..., 2] > BALL_CENTER[2] + 0.03))
    start = torch.from_numpy(BALL_CENTER).float() + BALL_RADIUS * torch.nn.functional.normalize(
        torch.randn(80, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    rise = torch.linspace(0.25, 1, 4)[None, :, None] * torch.tensor([0.0, 0.0, 0.1])
    flow = Flow(start, rise.expand(80, 4, 3).contiguous(), torch.ones(80, 4))
    return Observation(views, name="ball"), Labels(tuple(contact), None, 0.0, flow)


def test_a_ball_is_fitted_with_its_contact_region_and_motion() -> None:
    observation, labels = _ball()
    config = FitConfig(grid=GridConfig(32, 32, 3, 4), coarse=32, steps=120, rays=256, flow_steps=200)
    fitted = fit_affordance(observation, labels, config, progress=False)
    found = zero_crossings(fitted)
    error = ((found - torch.from_numpy(BALL_CENTER).float()).norm(dim=-1) - BALL_RADIUS).abs()
    assert float(error.median()) < 0.003
    start = (hull_distance(observation, fitted.center, fitted.scale, 32, 0.0) < 0).float().mean()
    assert float((fitted.field.distance < 0).float().mean()) < float(start)  # three outlines are more than a ball
    top = torch.from_numpy(BALL_CENTER).float() + torch.tensor([[0.0, 0.0, BALL_RADIUS]])
    side = torch.from_numpy(BALL_CENTER).float() + torch.tensor([[BALL_RADIUS, 0.0, 0.0]])
    contact = fitted.field.appearance(fitted.to_canonical(torch.cat((top, side))))[2]
    assert float(contact[0]) > 0.5 > float(contact[1])
    assert labels.flow is not None
    moved, visible = fitted.field.flow(fitted.to_canonical(labels.flow.start))
    assert float((moved * fitted.scale - labels.flow.displacement).norm(dim=-1).mean()) < 0.01
    assert float(visible.mean()) > 0.9
    again = fit_affordance(observation, labels, config, progress=False)
    assert torch.equal(fitted.field.distance, again.field.distance)


def test_the_frame_holds_the_object_and_the_floor_cuts_the_hull() -> None:
    observation, _ = _ball()
    center, scale = canonical_frame(observation, 0.0)
    assert float((center - torch.from_numpy(BALL_CENTER).float()).norm()) < 0.02
    assert BALL_RADIUS < scale < 2 * BALL_RADIUS
    free = hull_distance(observation, center, scale, 40)
    cut = hull_distance(observation, center, scale, 40, 0.0)
    assert int((cut < 0).sum()) < int((free < 0).sum())


def test_what_cannot_be_fitted_is_explained() -> None:
    observation, labels = _ball()
    views = observation.views
    empty = np.zeros_like(views[0].depth, dtype=bool)
    assert labels.flow is not None
    still = replace(labels.flow, displacement=0 * labels.flow.displacement)
    outside = tuple(~view.mask if view.mask is not None else None for view in views)
    for seen, told, words in (
        (Observation(views[:1], name="ball"), Labels(labels.contact[:1], None), "one view"),
        (Observation((views[0].with_mask(empty), *views[1:]), name="ball"), labels, "camera0.*empty"),
        (Observation((replace(views[0], mask=None), *views[1:]), name="ball"), labels, "camera0.*no object mask"),
        (observation, replace(labels, contact=labels.contact[:2]), "3 views, but 2 contact"),
        (observation, replace(labels, contact=(None, empty, None)), "No view"),
        (observation, replace(labels, contact=outside), "outside of the object masks"),
        (observation, replace(labels, flow=still), "Nothing moves"),
        (observation, replace(labels, flow=replace(labels.flow, visible=0 * labels.flow.visible)), "no visible tracks"),
    ):
        with pytest.raises(AfieldError, match=words):
            check_labels(seen, told)


@pytest.mark.parametrize("item", [Furniture(), Furniture("cabinet", 0.2, 0.2, 0.3, "right"), Furniture("drawer")])
def test_furniture_moves_as_it_says(item: Furniture) -> None:
    spec = mujoco.MjSpec()
    add_furniture(spec, item)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    geom = model.geom(f"{BODY}_{HANDLE}").id
    before = data.geom_xpos[geom].copy()
    assert np.allclose(before, handle_box(item)[0], atol=1e-6)
    data.joint(f"{BODY}_{JOINT}").qpos[0] = item.travel
    mujoco.mj_kinematics(model, data)
    motion = joint_motion(item, item.travel)
    assert np.allclose(data.geom_xpos[geom], motion[:3, :3] @ before + motion[:3, 3], atol=1e-6)
    assert data.geom_xpos[geom][1] < before[1] - 0.03 or item.kind != "drawer"
    points, moves = surface_points(item, 2000)
    assert 0.05 < float(moves.float().mean()) < 0.6
    assert float(points[:, 2].min()) >= -1e-6
    flow = true_flow(item, 200, 0)
    assert float(flow.displacement[:, -1].norm(dim=-1).max()) > 0.1


def test_points_of_a_closed_door_lie_outside() -> None:
    item = Furniture()
    points, _ = surface_points(item, 4000)
    deep = (points[:, 0].abs() < item.width / 2 - 0.02) & (points[:, 1].abs() < item.depth / 2 - 0.02)
    inside = deep & (points[:, 2] > 0.02) & (points[:, 2] < item.height - 0.02)
    assert not bool(inside.any())


def test_chamfer_of_shifted_planes() -> None:
    plane = torch.cat((torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3000, 1)), dim=-1)
    shifted = plane + torch.tensor([0.0, 0.0, 0.1])
    assert chamfer(plane, shifted) == pytest.approx(0.1, rel=1e-3)
    assert chamfer(plane, plane) == 0.0


@pytest.mark.skipif(opengl_environment()[0] is None, reason="no OpenGL here")
def test_photographs_agree_with_the_known_geometry() -> None:
    item = Furniture()
    observation, handles = draw_elsewhere(photograph_furniture, item, ring_cameras(item, 3, 96))
    truth, _ = surface_points(item, 30_000)
    for view in observation.views:
        assert view.mask is not None
        row, column = np.nonzero(view.mask)
        pixels = torch.from_numpy(np.stack((column, row), axis=-1)).float()
        points = view.camera.backproject(pixels, torch.from_numpy(view.depth[row, column]))
        distance = torch.cdist(points, truth).amin(dim=-1)
        assert float(distance.median()) < 0.004
    assert handles[0].any()
    assert not (handles[0] & ~np.asarray(observation.views[0].mask)).any()
