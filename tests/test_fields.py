"""Every field against the slow reference, by invariance, by finite differences, and through one contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from afield.errors import AfieldError
from afield.fields import reference
from afield.fields.attention import AttentionConfig, AttentionField, Decoder, Preset
from afield.fields.baked import BakedField
from afield.fields.base import AttentiveField, Field, nearest, squared_distances
from afield.fields.geometric import REACH, SCALE, GeometryField, WithGeometry
from afield.fields.interpolated import InterpolatedField
from afield.fields.prepare import Projection, center_features, relevance
from afield.fields.refine import RefineConfig, Refiner, train_refiner
from afield.geometry import quat_wxyz_to_matrix
from afield.scene import FeatureSource, Scene, Views

CHANNELS = 12


def make_scene(count: int = 200, channels: int = CHANNELS, seed: int = 0, dtype: torch.dtype = torch.float32) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    features = torch.nn.functional.normalize(torch.randn(count, channels, generator=generator), dim=-1)
    points = 0.1 * unit + torch.tensor([0.4, -0.2, 0.7])
    return Scene(points.to(dtype), features.to(dtype), unit.abs(), unit, FeatureSource("test", 1, 14, 0.3))


def make_decoder(preset: str, sharpness: float = 0.8, channels: int = CHANNELS) -> Decoder:
    decoder = Decoder(
        channels, AttentionConfig(preset=cast(Preset, preset), width=16), torch.Generator().manual_seed(1)
    )
    decoder.requires_grad_(False)
    decoder.query.weight *= 10
    decoder.key.weight *= 10
    decoder.sharpness.fill_(sharpness)
    if decoder.block is not None:  # away from the start, where it is Eq. 2
        decoder.block.out.weight += 0.1
        decoder.block.shrink.weight += 0.1
    return decoder


def make_queries(scene: Scene, count: int = 40, off: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    start = scene.points[torch.randint(len(scene.points), (count,), generator=generator)]
    return start + off * torch.randn(count, 3, generator=generator).to(start)


def gradient(field: Callable[[Tensor], Tensor], points: Tensor, cotangent: Tensor) -> Tensor:
    points = points.detach().clone().requires_grad_()
    return torch.autograd.grad(field(points), points, cotangent)[0]


FIELDS: dict[str, Callable[[Scene], Field]] = {
    "dff": InterpolatedField,
    "attention": lambda scene: AttentionField(scene, make_decoder("default")),
    "faithful": lambda scene: AttentionField(scene, make_decoder("faithful")),
    "block": lambda scene: AttentionField(scene, make_decoder("block")),
    "geometry": GeometryField,
    "dff+geometry": lambda scene: WithGeometry(InterpolatedField(scene), scene),
    "baked": lambda scene: BakedField.around(InterpolatedField(scene), scene, spacing=0.03),
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3)])
def test_contract_of_every_field(name: str, batch: tuple[int, ...]) -> None:
    scene = make_scene()
    field = FIELDS[name](scene)
    points = torch.rand(*batch, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = field(points)
    assert isinstance(field, Field)
    assert found.shape == (*batch, field.channels)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    found.sum().backward()
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()
    if isinstance(field, AttentiveField):
        weights = field.weights(points.detach())
        assert weights.shape == (*batch, len(scene.points))
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(batch))


@pytest.mark.parametrize("name", FIELDS)
def test_at_scene_points_values_and_gradients_are_finite(name: str) -> None:
    scene = make_scene()
    points = scene.points[:7].clone().requires_grad_()
    found = FIELDS[name](scene)(points)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()


@pytest.mark.parametrize("name", ["dff", "attention", "faithful", "block", "geometry"])
def test_order_of_scene_points_does_not_matter(name: str) -> None:
    scene = make_scene()
    order = torch.randperm(len(scene.points), generator=torch.Generator().manual_seed(3))
    points = make_queries(scene)
    torch.testing.assert_close(
        FIELDS[name](scene)(points), FIELDS[name](scene.select(order))(points), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["dff", "geometry", "dff+geometry"])
def test_rigid_motion_of_scene_and_queries_changes_nothing(name: str) -> None:
    scene = make_scene()
    points = make_queries(scene)
    turn = quat_wxyz_to_matrix(torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.7, 0.1]), dim=0))
    shift = torch.tensor([0.5, -1.0, 0.2])
    moved = replace(scene, points=scene.points @ turn.T + shift)
    torch.testing.assert_close(
        FIELDS[name](moved)(points @ turn.T + shift), FIELDS[name](scene)(points), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("off", [0.0003, 0.02, 0.5])
@pytest.mark.parametrize("name", ["dff", "attention", "faithful"])
def test_fast_path_equals_the_reference(name: str, off: float) -> None:
    scene = make_scene()
    points = make_queries(scene, count=300, off=off)  # more than one block of queries
    cotangent = torch.randn(300, CHANNELS, generator=torch.Generator().manual_seed(4))

    def slow(queries: Tensor) -> Tensor:
        if name == "dff":
            return reference.interpolate(scene.points, scene.features, queries)
        preset = {"attention": "default"}.get(name, name)
        return reference.attend(make_decoder(preset), scene.points, scene.features, queries)

    field = FIELDS[name](scene)
    torch.testing.assert_close(field(points), slow(points), rtol=1e-4, atol=1e-4)
    expected = gradient(slow, points, cotangent)
    assert float((gradient(field, points, cotangent) - expected).abs().max() / expected.abs().max()) < 1e-3


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["dff", "attention"])
def test_hand_written_gradient_against_finite_differences(kind: str, sharpness: float) -> None:
    scene = make_scene(count=30, channels=5, dtype=torch.float64)
    decoder = make_decoder("default", sharpness, channels=5).double()
    field = InterpolatedField(scene) if kind == "dff" else AttentionField(scene, decoder)
    points = make_queries(scene, count=6).requires_grad_()
    assert torch.autograd.gradcheck(field, (points,), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_the_clamp_has_no_slope_in_the_fast_path_either() -> None:
    scene = make_scene(dtype=torch.float64)
    points = scene.points[:5] + 3e-5
    cotangent = torch.ones(5, CHANNELS, dtype=torch.float64)
    expected = gradient(lambda q: reference.interpolate(scene.points, scene.features, q), points, cotangent)
    torch.testing.assert_close(gradient(InterpolatedField(scene), points, cotangent), expected, rtol=1e-6, atol=1e-9)


def test_two_evaluations_may_be_open_at_once() -> None:
    """The buffers that the backward pass needs must not be overwritten by a second forward pass."""
    scene = make_scene()
    field = AttentionField(scene, make_decoder("default"))
    near, far = make_queries(scene), make_queries(scene, off=0.1)
    cotangent = torch.ones(len(near), CHANNELS)
    alone = gradient(field, near, cotangent)
    first = near.clone().requires_grad_()
    value = field(first)
    for _ in range(3):
        gradient(field, far, cotangent)
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(value, first, cotangent, retain_graph=True)[0], alone)


@pytest.mark.parametrize("preset", ["default", "block"])
def test_attention_starts_as_interpolation(preset: str) -> None:
    scene = make_scene()
    decoder = Decoder(
        CHANNELS, AttentionConfig(preset=cast(Preset, preset)), torch.Generator().manual_seed(0)
    ).requires_grad_(False)
    if preset == "default":
        decoder.query.weight *= 1e-3
    points = make_queries(scene)
    torch.testing.assert_close(
        AttentionField(scene, decoder)(points), InterpolatedField(scene)(points), rtol=1e-3, atol=1e-4
    )


def test_weights_are_those_the_field_uses() -> None:
    scene = make_scene()
    points = make_queries(scene, count=300)
    for name in ("dff", "attention", "faithful"):
        field = FIELDS[name](scene)
        assert isinstance(field, AttentiveField)
        torch.testing.assert_close(field.weights(points) @ scene.features, field(points), rtol=1e-4, atol=1e-5)


def test_squared_distances_hold_a_millimetre_off_a_far_away_scene() -> None:
    scene = make_scene()
    close = scene.points + torch.tensor([0.001, 0.0, 0.0])
    exact = (close.double()[:, None] - scene.points.double()[None]).square().sum(dim=-1)
    torch.testing.assert_close(squared_distances(close, scene.points), exact.float(), rtol=1e-5, atol=1e-12)
    assert torch.equal(nearest(scene.points, scene.points), torch.arange(len(scene.points)))


def test_geometry_is_the_capped_distance() -> None:
    scene = make_scene()
    points = torch.cat((make_queries(scene), scene.points[:1] + 5.0))
    distance = torch.cdist(points, scene.points, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=-1)
    torch.testing.assert_close(GeometryField(scene)(points)[:, 0], SCALE * distance.clamp_max(REACH))


def test_geometry_weighs_the_same_for_any_number_of_channels() -> None:
    energies = []
    for channels in (8, 64):
        scene = make_scene(channels=channels)
        scene = scene.with_features(torch.ones_like(scene.features) / channels**0.5)
        field = WithGeometry(InterpolatedField(scene), scene)
        outwards = scene.points.mean(dim=0) + 1.2 * (scene.points - scene.points.mean(dim=0))
        energies.append(float((field(outwards) - field(scene.points)).abs().mean()))
    assert energies[0] == pytest.approx(SCALE * 0.02 * 8 / 9, rel=0.05)
    assert energies[1] == pytest.approx(SCALE * 0.02 * 64 / 65, rel=0.05)


def test_baked_field_is_exact_on_its_grid_and_close_between() -> None:
    scene = make_scene()
    field = InterpolatedField(scene)
    baked = BakedField.around(field, scene, spacing=0.01, margin=0.05)
    node = baked.low + 0.01 * torch.tensor([[3.0, 7.0, 11.0], [0.0, 0.0, 0.0], [20.0, 2.0, 5.0]])
    torch.testing.assert_close(baked(node), field(node), rtol=1e-3, atol=1e-4)
    off = scene.points.mean(dim=0) + 1.3 * (scene.points - scene.points.mean(dim=0))
    assert float((baked(off) - field(off)).abs().mean()) < 0.01
    outside = baked.low - 1.0
    torch.testing.assert_close(baked(outside), baked(baked.low), rtol=1e-4, atol=1e-5)


def test_baked_field_looks_up_what_grid_sample_does() -> None:
    generator = torch.Generator().manual_seed(0)
    values, low, high = torch.randn(5, 6, 7, 3, generator=generator), torch.zeros(3), torch.tensor([0.6, 0.5, 0.4])
    points = torch.rand(200, 3, generator=generator) * 0.9 - 0.1
    assert bool((points < low).any()) and bool((points > high).any())
    slow, fast = points.clone().requires_grad_(), points.clone().requires_grad_()
    expected = reference.look_up(values, low, high, slow)
    found = BakedField(values, low, high)(fast)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(200, 3, generator=generator)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-3, atol=1e-3)


def test_baking_refuses_a_scene_that_does_not_fit() -> None:
    scene = make_scene()
    huge = replace(scene, points=scene.points * 100)
    with pytest.raises(AfieldError, match=r"grid of 0.01 m would have \d+ points"):
        BakedField.around(InterpolatedField(huge), huge)


def test_projection_keeps_cosines_and_names_both_dimensions() -> None:
    scene = make_scene()
    projection = Projection.fit([scene], CHANNELS)
    torch.testing.assert_close(projection.basis.T @ projection.basis, torch.eye(CHANNELS), rtol=1e-4, atol=1e-5)
    centered = torch.nn.functional.normalize(scene.features - projection.mean, dim=-1)
    projected = projection.apply(scene).features
    torch.testing.assert_close(projected @ projected.T, centered @ centered.T, rtol=1e-3, atol=1e-4)
    with pytest.raises(AfieldError, match=rf"{CHANNELS} channels, but 'scene' has 7"):
        projection.apply(make_scene(channels=7))


def test_centering_removes_what_all_points_share() -> None:
    scene = make_scene()
    shifted = scene.with_features(torch.nn.functional.normalize(scene.features + 5.0, dim=-1))
    centered = center_features(shifted).features
    torch.testing.assert_close(centered.norm(dim=-1), torch.ones(len(centered)))
    assert float(centered.mean(dim=0).norm()) < 0.1 < float(shifted.features.mean(dim=0).norm())


def test_relevance_is_highest_at_the_demonstrated_region() -> None:
    scene = make_scene()
    region = scene.points[:, 2] > scene.points[:, 2].median() + 0.05
    features = torch.where(region[:, None], torch.eye(CHANNELS)[0], torch.eye(CHANNELS)[1])
    scene = scene.with_features(features)
    scores = relevance(scene, features[region][:10])
    assert float(scores[region].min()) > float(scores[~region].median())


def make_views(noise: float = 0.8, count: int = 300) -> Scene:
    """A scene whose three views see smooth features, each with an offset of its own."""
    generator = torch.Generator().manual_seed(5)
    scene = make_scene(count)
    smooth = torch.sin(20 * scene.points @ torch.randn(3, CHANNELS, generator=generator))
    offset = noise * torch.randn(3, 1, CHANNELS, generator=generator)
    features = torch.nn.functional.normalize(smooth + offset, dim=-1)
    fused = torch.nn.functional.normalize(features.mean(dim=0), dim=-1)
    return replace(scene, features=fused, views=Views(features.half(), torch.full((3, count), 1 / 3)))


def same_point_accuracy(features: Tensor) -> float:
    return float((features[0] @ features[1].T).argmax(dim=-1).eq(torch.arange(features.shape[1])).float().mean())


def test_refinement_makes_views_agree() -> None:
    scene = make_views()
    assert scene.views is not None
    config = RefineConfig(channels=8, hidden=64, steps=120)
    trained = train_refiner([scene], config, torch.Generator().manual_seed(0), progress=False)
    assert trained is not None
    refiner, losses = trained
    raw = scene.views.features.float()
    assert losses[-1] < 0.7 * losses[0]
    assert same_point_accuracy(refiner(raw)) > 1.5 * same_point_accuracy(raw)
    refined = refiner.apply_to(scene)
    assert refined.features.shape == (240, 8)
    torch.testing.assert_close(refined.features.norm(dim=-1), torch.ones(240))


def test_points_whose_views_contradict_their_surroundings_are_pruned() -> None:
    scene = make_views(noise=0.0)
    assert scene.views is not None
    wrong = torch.arange(0, 300, 10)
    features = scene.views.features.float()
    noise = torch.randn(3, len(wrong), CHANNELS, generator=torch.Generator().manual_seed(6))
    features[:, wrong] = torch.nn.functional.normalize(noise, dim=-1)
    refiner = Refiner(CHANNELS, RefineConfig(keep=0.8))
    kept = refiner.survivors(scene.points, features, replace(scene.views, features=features.half()))
    assert len(kept) == 240
    assert len(set(kept.tolist()) & set(wrong.tolist())) <= 3


def test_refinement_without_views_keeps_points_and_checks_the_dimension() -> None:
    scene = make_scene()
    generator = torch.Generator().manual_seed(0)
    assert train_refiner([scene], RefineConfig(), generator, progress=False) is None
    refiner = Refiner(CHANNELS, RefineConfig(channels=8), generator).requires_grad_(False)
    assert refiner.apply_to(scene).features.shape == (200, 8)
    with pytest.raises(AfieldError, match=rf"{CHANNELS} channels, but 'scene' has 7"):
        refiner.apply_to(make_scene(channels=7))
