"""How fast is one step of the attention field? The figures of `afield bench field` come from here.

Three ways to do the same step, forward and backward, of the feature energy (Eq. 7): the fast attention field, the
literal evaluation of Eq. 3 (`fields/reference.py`), and SparseDFF's interpolation (Eq. 2 with one dense tensor of
differences between all query and all scene points, as in its released code). And two ways to look a baked field up
instead: `BakedField`, and `grid_sample`. They take turns in one process on one thread. The least time of each counts, in
seconds of the processor: on a quiet machine these are the seconds of the clock, and on a busy one the other programs do
not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from afield.fields import reference
from afield.fields.attention import AttentionConfig, AttentionField, Decoder
from afield.fields.baked import BakedField
from afield.scene import FeatureSource, Scene

Step = Callable[[Float[Tensor, "s q 3"]], Float[Tensor, "s q c"]]


def run(
    points: int = 4096,
    channels: int = 384,
    queries: int = 512,
    starts: int = 8,
    threads: int = 1,
    repeats: int = 4,
    seed: int = 0,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Time one energy step of every way.

    Args:
        points: of the scene.
        channels: of its features; no projection to fewer channels takes place.
        queries: query points of a hand.
        starts: hands that are optimized at once.
        threads: of torch, on the CPU.
        repeats: how often each way is timed; the least time counts.
        seed: of scene, features, decoder and queries.
        progress: show a progress bar.

    Returns:
        `speedup_over_naive`, `speedup_over_sparsedff`, `speedup_of_lookup_over_grid_sample`; `max_relative_difference` to
        the naive evaluation, of energies, features and gradients, each relative to its largest value; seconds per step, and
        what was counted.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measure(points, channels, queries, starts, repeats, seed, progress) | {"threads": threads}
    finally:
        torch.set_num_threads(before)


def _measure(
    points: int, channels: int, queries: int, starts: int, repeats: int, seed: int, progress: bool
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    scene, decoder = synthetic_scene(points, channels, generator), _decoder(channels, generator)
    place = scene.points[torch.randint(points, (starts, queries), generator=generator)]
    place = place + 0.03 * torch.randn(place.shape, generator=generator)
    goal = torch.nn.functional.normalize(torch.randn(queries, channels, generator=generator), dim=-1)
    ways: dict[str, Step] = {
        "attention": AttentionField(scene, decoder),
        "naive": lambda x: _flat(lambda q: reference.attend(decoder, scene.points, scene.features, q), x),
        "sparsedff": lambda x: _flat(lambda q: dense_interpolation(scene, q), x),
    }
    low, high = scene.points.amin(dim=0) - 0.1, scene.points.amax(dim=0) + 0.1
    values = torch.randn(*((high - low) / 0.01).ceil().long().flip(0).tolist(), channels, generator=generator)
    ways["baked"] = BakedField(values, low, high)
    ways["grid_sample"] = lambda x: _flat(lambda q: reference.look_up(values, low, high, q), x)
    seconds = dict.fromkeys(ways, float("inf"))
    # The first round warms up: libraries initialize, and the field allocates its buffers.
    for turn in tqdm(range(repeats + 1), desc="bench field", unit="round", disable=not progress):
        for name, way in ways.items():
            begin = time.process_time()
            _step(way, place, goal)
            if turn:
                seconds[name] = min(seconds[name], time.process_time() - begin)
    differences = _differences(ways["attention"], ways["naive"], place, goal)
    return {
        "speedup_over_naive": round(seconds["naive"] / seconds["attention"], 2),
        "speedup_over_sparsedff": round(seconds["sparsedff"] / seconds["attention"], 2),
        "speedup_of_lookup_over_grid_sample": round(seconds["grid_sample"] / seconds["baked"], 2),
        "max_relative_difference": max(differences.values()),
        "relative_difference": differences,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "matrix_gflop": round(matrix_flops(points, channels, queries * starts, decoder.config.width) / 1e9, 1),
        "points": points,
        "channels": channels,
        "queries": queries,
        "starts": starts,
    }


def synthetic_scene(points: int, channels: int, generator: torch.Generator) -> Scene:
    """A lumpy closed surface of 20 cm with smooth unit features; speed does not depend on what it shows."""
    direction = torch.nn.functional.normalize(torch.randn(points, 3, generator=generator), dim=-1)
    radius = 0.1 + 0.02 * torch.sin(direction @ torch.tensor([[5.0], [3.0], [4.0]]))
    features = torch.sin(direction @ torch.randn(3, channels, generator=generator) * 2)
    features = features + 0.3 * torch.randn(points, channels, generator=generator)
    source = FeatureSource("synthetic", 0, 0, 0.0)
    unit = torch.nn.functional.normalize(features, dim=-1)
    return Scene(radius * direction, unit, torch.full((points, 3), 0.5), direction, source, name="synthetic")


def dense_interpolation(scene: Scene, queries: Float[Tensor, "q 3"]) -> Float[Tensor, "q c"]:
    """Eq. 2 in the manner of SparseDFF's released code: distances from one dense [query, point, 3] tensor."""
    distance = torch.linalg.vector_norm(scene.points[None] - queries[:, None], dim=-1)
    weight = (distance + 1e-10).square().reciprocal()
    return (weight @ scene.features) / weight.sum(dim=-1, keepdim=True)


def matrix_flops(points: int, channels: int, queries: int, width: int) -> int:
    """Floating point operations of the fast step's matrix products: the floor that no rearrangement gets under.

    Per pair of query and point, forward and backward: values (c each way), then interpolated query, logits and their
    two gradients (d each), and squared distances and moments (5 and 4).
    """
    return 2 * points * queries * (2 * channels + 4 * width + 9)


def _decoder(channels: int, generator: torch.Generator) -> Decoder:
    """A decoder with weights large enough for semantics to count, as after long training."""
    decoder = Decoder(channels, AttentionConfig(), generator).requires_grad_(False)
    decoder.query.weight *= 20
    decoder.key.weight *= 20
    decoder.sharpness.fill_(0.9)
    return decoder


def _flat(way: Callable[[Tensor], Tensor], points: Float[Tensor, "s q 3"]) -> Float[Tensor, "s q c"]:
    return way(points.reshape(-1, 3)).reshape(*points.shape[:-1], -1)


def _step(way: Step, place: Float[Tensor, "s q 3"], goal: Float[Tensor, "q c"]) -> None:
    """One step of the optimization: energies of all starts and their gradient."""
    place = place.detach().clone().requires_grad_()
    (way(place) - goal).abs().mean(dim=(-1, -2)).sum().backward()


def _differences(fast: Step, slow: Step, place: Float[Tensor, "s q 3"], goal: Float[Tensor, "q c"]) -> dict[str, float]:
    """Largest differences of features, energies and gradients, relative to the largest value of each.

    Both gradients are taken with the signs that Eq. 7 has in the slow evaluation: where a channel meets its goal to
    the last digits, rounding decides the sign, and the gradient of an L1 distance jumps.
    """
    place = place.detach().clone().requires_grad_()
    expected = slow(place)
    signs = (expected - goal).sign().detach() / goal.numel()
    (gradient,) = torch.autograd.grad(expected, place, signs)
    found = fast(place)
    (found_gradient,) = torch.autograd.grad(found, place, signs)
    energies = [(features - goal).abs().mean(dim=(-1, -2)) for features in (found, expected)]
    return {
        "features": _difference(found, expected),
        "energy": _difference(*energies),
        "gradient": _difference(found_gradient, gradient),
    }


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())
