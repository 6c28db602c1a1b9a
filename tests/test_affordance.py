"""Affordance functions: look-ups, volume rendering, fitting, and the furniture they are tried on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import mujoco
import numpy as np
import pytest
import torch
from scene_samples import BALL_CENTER, BALL_RADIUS, ball_on_table

from afield.artifacts import read_json
from afield.benchmark.fit_bench import axis_error, chamfer, true_flow
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
from afield.distill.hull import canonical_frame, hull_distance, only_side
from afield.distill.labels import describe_views
from afield.distill.losses import static_losses
from afield.distill.pixels import Pixels
from afield.errors import AfieldError
from afield.fields.affordance import AffordanceField
from afield.fields.affordance_grid import GridAffordance, GridConfig, look_up, trilinear_gradient
from afield.fields.affordance_neus import PRIMES, HashEncoding, NeusAffordance, NeusConfig
from afield.fields.rendering import (
    Rays,
    RenderingConfig,
    box_interval,
    render,
    render_reference,
    render_view,
    sample_rays,
)
from afield.geometry import look_at, nearest_to_lines
from afield.observation import Camera, Observation, View
from afield.perception.crops import object_square

SMALL = GridConfig(resolution=20, detail=12, channels=3, horizon=4, sharpness=40.0)


@pytest.fixture
def field() -> GridAffordance:
    torch.manual_seed(0)
    found = GridAffordance(SMALL)
    with torch.no_grad():
        found.looks += torch.randn(found.looks.shape)
        found.descriptors += torch.randn(found.descriptors.shape)
        found.distance += 0.02 * torch.randn(found.distance.shape)
    return found


@pytest.fixture
def networks() -> NeusAffordance:
    torch.manual_seed(0)
    return NeusAffordance(NeusConfig(channels=3, horizon=4, latent=64, hash_size=1 << 10))


def _rays(count: int, seed: int = 0) -> Rays:
    generator = torch.Generator().manual_seed(seed)
    origin = 3.0 * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    goal = 0.6 * torch.rand(count, 3, generator=generator) - 0.3
    direction = torch.nn.functional.normalize(goal - origin, dim=-1)
    return Rays(origin, direction, *box_interval(origin, direction), torch.full((count,), 0.9))


@pytest.mark.parametrize("backend", ["field", "networks"])
def test_every_backend_is_an_affordance_field(backend: str, request: pytest.FixtureRequest) -> None:
    field = request.getfixturevalue(backend).requires_grad_(False)
    assert isinstance(field, AffordanceField)
    points = 1.8 * torch.rand(7, 3, generator=torch.Generator().manual_seed(3)) - 0.9
    color, descriptor, contact = field.appearance(points)
    moved, visible = field.flow(points)
    assert (color.shape, descriptor.shape, contact.shape) == ((7, 3), (7, 3), (7,))
    assert (moved.shape, visible.shape) == ((7, 4, 3), (7, 4))
    for share in (color, contact, visible):
        assert 0.0 <= float(share.min()) <= float(share.max()) <= 1.0
    slope, eps = field.normal(points), 1e-3
    with torch.no_grad():
        shifted = [field.sdf(points + eps * e) - field.sdf(points - eps * e) for e in torch.eye(3)]
    differences = torch.stack(shifted, dim=-1) / (2 * eps)
    assert float(((slope - differences).abs().amax(dim=-1) < 2e-2).float().mean()) > 0.8  # but beside faces of cells
    on, normal = field.surface(50, torch.Generator().manual_seed(0))
    assert float(field.sdf(on).abs().max()) < 1e-3
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones(50))
    assert float(((field.sdf(on + 0.02 * normal) > field.sdf(on - 0.02 * normal)).float()).mean()) > 0.95
    found, slow_along = (
        render(field, _rays(3), RenderingConfig(8, 5)),
        sample_rays(field, _rays(3), RenderingConfig(8, 5)),
    )
    slow = render_reference(field, _rays(3), slow_along)
    for name in ("opacity", "depth", "color", "normal", "descriptor", "contact"):
        torch.testing.assert_close(getattr(found, name), getattr(slow, name), atol=5e-5, rtol=1e-3)


def test_beyond_its_cube_a_grid_adds_the_distance_to_the_cube(field: GridAffordance) -> None:
    far = torch.tensor([[3.0, 0.0, 0.0]])
    with torch.no_grad():
        assert float(field.sdf(far)) == pytest.approx(float(field.sdf(far / 3)) + 2.0, abs=1e-5)


def test_the_networks_begin_as_a_ball() -> None:
    points = 1.6 * torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) - 0.8
    ball = points.norm(dim=-1) - 0.5
    found = []
    for seed in range(6):
        torch.manual_seed(seed)
        field = NeusAffordance().requires_grad_(False)
        found.append(field.sdf(points))
        slope = torch.nn.functional.cosine_similarity(field.normal(points), points)
        assert float(slope.median()) > 0.9
    mean = torch.stack(found).mean(dim=0)  # a random width scales each of them
    assert float((mean - ball).abs().mean()) < 0.06
    assert float(torch.stack((mean, ball)).corrcoef()[0, 1]) > 0.95


def test_the_hash_grid_equals_its_slow_reference() -> None:
    torch.manual_seed(0)
    encoding = HashEncoding(levels=4, size=1 << 9, low=4, high=40)
    assert encoding.resolutions == [4, 8, 18, 40]  # 125 and 729 vertices: the first fits, the others are hashed
    encoding.table.data = torch.randn(encoding.table.shape)
    points = torch.cat((2 * torch.rand(6, 3) - 1, torch.tensor([[1.0, -1.0, 1.0]])))
    rows = []
    for point in points.tolist():
        row = []
        for level, resolution in enumerate(encoding.resolutions):
            place = [(value + 1) / 2 * resolution for value in point]
            low = [min(int(value), resolution - 1) for value in place]
            total = torch.zeros(2)
            for corner in range(8):
                step = [corner >> 2 & 1, corner >> 1 & 1, corner & 1]
                x, y, z = (a + b for a, b in zip(low, step, strict=True))
                weight = 1.0
                for value, base, one in zip(place, low, step, strict=True):
                    weight *= value - base if one else 1 - (value - base)
                if (resolution + 1) ** 3 <= encoding.size:
                    index = (z * (resolution + 1) + y) * (resolution + 1) + x
                else:
                    index = (x ^ y * PRIMES[1] ^ z * PRIMES[2]) % encoding.size
                total = total + weight * encoding.table[level, index].detach()
            row.append(total)
        rows.append(torch.cat(row))
    torch.testing.assert_close(encoding(points).detach(), torch.stack(rows), atol=1e-5, rtol=1e-5)


def test_the_surface_is_sampled_evenly() -> None:
    box = GridAffordance(replace(SMALL, resolution=64))
    half = torch.tensor([0.5, 0.31, 0.2])
    axis = torch.linspace(-1, 1, 64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    away = torch.stack((x, y, z), dim=-1).abs() - half
    box.distance.data = away.clamp_min(0).norm(dim=-1) + away.amax(dim=-1).clamp_max(0)
    points, normals = box.surface(4000, torch.Generator().manual_seed(0))
    assert points.shape == normals.shape == (4000, 3)
    assert float(box.sdf(points).abs().max()) < 1e-3
    side = normals.abs().argmax(dim=-1)
    area = torch.tensor([half[1] * half[2], half[0] * half[2], half[0] * half[1]])
    expected = 4000 * area / area.sum()
    for face in range(3):  # within four deviations, and even on the faces themselves
        assert float((side == face).sum() - expected[face]) == pytest.approx(0.0, abs=4 * float(expected[face]) ** 0.5)
    top = points[side == 2, 0]
    bins = torch.histc(top, 10, -0.45, 0.45)
    assert float((bins - bins.mean()).abs().max()) < 4 * float(bins.mean()) ** 0.5
    again, _ = box.surface(4000, torch.Generator().manual_seed(0))
    assert torch.equal(points, again)
    box.distance.data += 2.0
    with pytest.raises(AfieldError, match="no surface"):
        box.surface(10)


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
    found = fitted.from_canonical(fitted.field.surface(2000, torch.Generator().manual_seed(0))[0])
    error = ((found - torch.from_numpy(BALL_CENTER).float()).norm(dim=-1) - BALL_RADIUS).abs()
    assert float(error.median()) < 0.003
    assert isinstance(fitted.field, GridAffordance)
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
    before = torch.random.get_rng_state()
    again = fit_affordance(observation, labels, config, progress=False)
    assert isinstance(again.field, GridAffordance)
    assert torch.equal(fitted.field.distance, again.field.distance)
    assert torch.equal(torch.random.get_rng_state(), before)  # a fit leaves the caller's random numbers alone


BOX = np.array([[-0.2, -0.1, 0.0], [0.2, 0.2, 0.25]])


def box_view(degrees: float, *, depth: bool = True) -> View:
    """A block on the floor, seen from 1.2 m away and above, from so many degrees beside its front."""
    turn = np.radians(degrees)
    place = torch.tensor([1.1 * np.sin(turn), -1.1 * np.cos(turn), 0.6]).float()
    pose = look_at(place, torch.tensor([0.0, 0.0, 0.1]), torch.tensor([0.0, 0.0, 1.0]))
    camera = Camera(160, 120, 180.0, 180.0, 79.5, 59.5, pose)
    rows, columns = np.mgrid[:120, :160]
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1).reshape(-1, 2)).float()
    ray = (camera.backproject(pixels, torch.ones(len(pixels))) - camera.position).double().numpy()
    first, second = (BOX - place.double().numpy())[:, None] / ray
    near, far = np.minimum(first, second).max(axis=1), np.maximum(first, second).min(axis=1)
    mask = (near < far).reshape(120, 160)
    away = np.where(mask, near.reshape(120, 160), 0).astype(np.float32) * (1.0 if depth else 0.0)
    return View(f"{degrees:.0f}", camera, np.full((120, 160, 3), 90, np.uint8), away.astype(np.float32), mask)


def test_views_from_one_side_end_where_what_they_see_ends() -> None:
    """A camera that walks by hardly sees around: the hull of its masks reaches far behind the object."""
    true = 1.12 * 0.2
    few = Observation(tuple(box_view(degrees) for degrees in (-8, -3, 2, 7)), name="few")
    blind = Observation(tuple(box_view(degrees, depth=False) for degrees in (-8, -3, 2, 7)), name="blind")
    around = Observation(tuple(box_view(degrees) for degrees in (-60, -20, 20, 60, 180)), name="around")
    assert only_side(few) is not None and only_side(blind) is None and only_side(around) is None
    center, scale = canonical_frame(few, 0.0, depth=True)
    assert scale == pytest.approx(true, rel=0.08)
    half = tuple(replace(view, depth=view.depth * (np.arange(160) < 76)) for view in few.views)
    known = canonical_frame(Observation(half, name="half"), 0.0, depth=True)
    assert known[1] == pytest.approx(true, rel=0.08) and (known[0] - center).abs().max() < 0.05
    near = replace(few.views[0], depth=0.5 * few.views[0].depth)  # nothing is left of it before the others
    assert canonical_frame(Observation((near, *few.views[1:]), name="near"), 0.0, depth=True)[1] > 0
    assert canonical_frame(few, 0.0)[1] > 1.4 * true  # by masks alone
    assert (center - torch.from_numpy(BOX.mean(axis=0)).float()).abs().max() < 0.04
    assert canonical_frame(blind, 0.0)[1] > 1.4 * true
    solid = (hull_distance(few, center, scale, 48, 0.0, depth=True) < 0).nonzero().flip(-1) / 47 * 2.0 - 1.0
    extent = (solid.amax(dim=0) - solid.amin(dim=0)) * scale
    assert torch.allclose(extent, torch.from_numpy(BOX[1] - BOX[0]).float(), atol=0.07)


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
        (
            observation,
            replace(labels, contact=(None, empty[1:], None)),
            "contact mask of the view camera1.*its picture is",
        ),
        (observation, replace(labels, descriptors=torch.zeros(2, 3, 4, 4)), "3 views, but 2 maps"),
        (observation, replace(labels, descriptors=torch.zeros(3, 3, 4, 5)), "5x4, but must be square"),
        (observation, replace(labels, contact=outside), "outside of the object masks"),
        (observation, replace(labels, flow=still), "Nothing moves"),
        (observation, replace(labels, flow=replace(labels.flow, visible=0 * labels.flow.visible)), "no visible tracks"),
    ):
        with pytest.raises(AfieldError, match=words):
            check_labels(seen, told)


TINY = FitConfig(
    grid=GridConfig(24, 16, 3, 4, 8), coarse=16, steps=12, rays=64, flow_steps=12, checkpoint_every=3, seed=3
)

KILLED = """
import os, signal, sys
from pathlib import Path
from test_affordance import TINY, _ball
from afield.distill import fit_affordance
from afield.distill.checkpoint import Checkpoint
save, count = Checkpoint.save, 0
def save_and_die(self, standing, *rest):
    save(self, standing, *rest)
    if (standing.phase, standing.step) == (sys.argv[2], int(sys.argv[3])):
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoint.save = save_and_die
fit_affordance(*_ball(), TINY, checkpoint=Path(sys.argv[1]), progress=False)
"""


@pytest.mark.parametrize(("phase", "step"), [("static", 8), ("dynamic", 7)])
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(tmp_path: Path, phase: str, step: int) -> None:
    observation, labels = _ball()
    folder = tmp_path / "standing"
    paths = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), phase, str(step)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    header = read_json(folder / "afield.json")
    assert (header["phase"], header["step"]) == (phase, step - step % 3)
    with pytest.raises(AfieldError, match=r"other settings \(rays\)"):
        fit_affordance(observation, labels, replace(TINY, rays=65), checkpoint=folder, progress=False)
    with pytest.raises(AfieldError, match="other pictures or labels"):
        fit_affordance(observation, replace(labels, floor=-0.01), TINY, checkpoint=folder, progress=False)
    resumed = fit_affordance(observation, labels, TINY, checkpoint=folder, progress=False)
    whole = fit_affordance(observation, labels, TINY, progress=False)
    assert not folder.exists()
    assert resumed.summary["losses"] == whole.summary["losses"]
    expected = whole.field.state_dict()
    for name, value in resumed.field.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_withheld_views_judge_the_fit() -> None:
    observation, labels = _ball()
    fitted = fit_affordance(observation, labels, replace(TINY, withhold=3, steps=60), progress=False)
    figures = fitted.summary["held_out"]
    assert figures["views"] == 1
    view = observation.views[2]
    assert view.mask is not None
    seen = render_view(fitted.field, view.camera, fitted.center, fitted.scale)
    color = torch.from_numpy(view.color).reshape(-1, 3).float() / 255
    mask = torch.from_numpy(view.mask).reshape(-1)
    assert figures["psnr"] == pytest.approx(float(-10 * (seen.color - color)[mask].square().mean().log10()), abs=0.01)
    assert 0.0 < figures["depth_error"] < 0.02
    assert 0.0 <= figures["contact_iou"] <= 1.0
    without = fit_affordance(
        Observation(observation.views[:2], name="ball"),
        replace(labels, contact=labels.contact[:2]),
        replace(TINY, steps=60),
        progress=False,
    )
    assert isinstance(fitted.field, GridAffordance) and isinstance(without.field, GridAffordance)
    assert torch.equal(fitted.field.distance, without.field.distance)  # the withheld view had no say
    blind = tuple(replace(view, depth=np.zeros_like(view.depth)) for view in observation.views[:2])
    for bad, words in (
        (replace(TINY, withhold=1), "withhold is 1"),
        (replace(TINY, withhold=2), "one view"),
    ):
        with pytest.raises(AfieldError, match=words):
            fit_affordance(
                Observation(blind, name="ball"),
                replace(labels, contact=labels.contact[:2]),
                bad,
                progress=False,
            )


def test_the_paper_s_networks_learn() -> None:
    observation, labels = _ball()
    small = NeusConfig(channels=3, horizon=4, latent=64, hash_size=1 << 10)
    config = FitConfig.published(neus=small, steps=3, rays=48, rendering=RenderingConfig(24, 16), flow_steps=3)
    assert (config.learning_rate, config.flow_rate, config.depth) == (5e-4, 1e-3, False)
    fitted = fit_affordance(observation, labels, config, progress=False)
    assert isinstance(fitted.field, NeusAffordance)
    begin = fit_affordance(observation, labels, replace(config, steps=0, flow_steps=0), progress=False)
    losses = []
    for found in (begin, fitted):
        pixels = Pixels.of(observation, labels, found.center, found.scale)
        index = torch.arange(0, len(pixels.mask), max(1, len(pixels.mask) // 200))
        terms = static_losses(
            found.field, pixels, index, config.weights, config.rendering, torch.Generator().manual_seed(0)
        )
        losses.append(float(torch.stack([terms[name] for name in ("color", "mask", "eikonal", "contact")]).sum()))
    assert losses[1] < losses[0]
    history = fitted.summary["losses"]
    assert set(history) == {"mask", "color", "contact", "eikonal", "flow"}
    assert history["flow"][2] < history["flow"][0]
    moved = {
        name
        for name, value in fitted.field.named_parameters()
        if not torch.equal(value, begin.field.state_dict()[name])
    }
    for part in ("encoder", "variance", "color", "contact", "action"):
        assert any(name.startswith(part) for name in moved), part


class _Colours:
    """An extractor whose tokens are the colours of the picture."""

    name, layer, resolution, channels = "colours", 0, 48, 3

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images.astype(np.float32) / 255)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (41, 60)])
def test_descriptors_lie_where_the_picture_shows_them(shape: tuple[int, int]) -> None:
    observation, labels = _ball()
    views, contact = [], []
    for view, touched in zip(observation.views, labels.contact, strict=True):
        assert view.mask is not None and touched is not None
        column, row = (view.camera.width - shape[1]) // 2, (view.camera.height - shape[0]) // 2
        part = (slice(row, row + shape[0]), slice(column, column + shape[1]))
        camera = replace(
            view.camera, width=shape[1], height=shape[0], cx=view.camera.cx - column, cy=view.camera.cy - row
        )
        y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
        color = np.stack((40 + 3 * x, 40 + 3 * y, np.full_like(x, 128)), axis=-1).astype(np.uint8)
        views.append(View(view.name, camera, color, view.depth[part], view.mask[part]))
        contact.append(touched[part])
    cropped = Observation(tuple(views), name="ball")
    maps, mean, basis = describe_views(cropped, _Colours(), 2, progress=False)  # pyright: ignore[reportArgumentType]
    assert maps.shape == (3, 2, 48, 48)
    pixels = Pixels.of(cropped, Labels(tuple(contact), maps), torch.from_numpy(BALL_CENTER).float(), BALL_RADIUS)
    expected = (torch.nn.functional.normalize(pixels.color, dim=-1) - mean) @ basis
    inner = pixels.mask
    assert float((pixels.descriptor - expected)[inner].norm(dim=-1).mean()) < 0.15 * float(
        expected[inner].norm(dim=-1).mean()
    )


def test_the_square_in_which_an_object_is_described() -> None:
    camera = Camera(60, 40, 30.0, 30.0, 29.5, 19.5, torch.eye(4))
    mask = np.zeros((40, 60), dtype=bool)
    view = View("v", camera, np.zeros((40, 60, 3), np.uint8), np.ones((40, 60), np.float32), mask)
    whole = object_square(view)
    assert (whole.left, whole.top, whole.side) == (-0.5, -10.5, 60.0), "an empty mask says nothing: the whole picture"
    mask[5:15, 30:50] = True
    square = object_square(view)
    assert square.side == pytest.approx(1.3 * 20)
    assert (square.left + square.side / 2, square.top + square.side / 2) == (39.5, 9.5)
    shares = square.shares(mask, 13)
    assert float(shares.sum()) == pytest.approx(200 / (square.side / 13) ** 2, rel=0.1)
    assert float(shares[6, 6]) == 1.0 and float(shares[0].sum()) == 0.0


@pytest.mark.parametrize("kind", ["microwave", "drawer"])
def test_the_axis_of_a_true_flow_is_the_true_axis(kind: Literal["microwave", "drawer"]) -> None:
    item = Furniture(kind)
    flow = true_flow(item, 200, 0)
    assert axis_error(item, flow.start, flow.displacement, flow.visible) < 0.5
    assert axis_error(item, flow.start, flow.displacement[..., [1, 2, 0]], flow.visible) > 20


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
