"""The fast evaluation of Eq. 2 and Eq. 3 around one scene, with a gradient for the query points written out by hand.

`reference.py` says the same in a dozen readable lines; tests hold the two together. What makes this one faster:

- Everything that does not depend on the query is computed once: projected keys, and the features as they enter the
  queries (interpolating F and projecting the result equals interpolating the projected F, so 32 columns replace 384).
- Squared distances are one matrix product, not a [query, point, 3] tensor of differences.
- The gradient is written out: it needs four products of the size of those in the forward pass, and keeps two
  [query, point] matrices where autograd would keep a dozen.
- Blocks of query points stay in the cache, and all large buffers are used again: fresh ones cost page faults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from afield.fields.base import MIN_SQUARED, block_rows


@dataclass(frozen=True)
class Projections:
    """What a decoder leaves once the scene is known: logits = <q, keys> + sharpness log(1/dist^2)."""

    keys: Float[Tensor, "n d"]
    """Projected keys, divided by sqrt(d)."""
    folded: Float[Tensor, "n d"]
    """Projected features as the queries interpolate them."""
    position: Float[Tensor, "3 d"]
    """Maps a query relative to the scene's mean point to its share of q."""
    sharpness: float
    """a, the exponent of the inverse squared distance."""


class FieldKernel:
    """Evaluates Eq. 2 (no projections) or Eq. 3 with additive distance logits, forward and backward."""

    def __init__(
        self, points: Float[Tensor, "n 3"], features: Float[Tensor, "n c"], projections: Projections | None = None
    ) -> None:
        self.features, self.projections = features, projections
        self.center = points.mean(dim=0)
        centered = points - self.center
        exact = points.double() - self.center.double()
        # [x, 1, |x|^2] times this table is the squared distance; double precision because the terms cancel.
        self._table = torch.cat((-2 * exact.T, exact.square().sum(dim=-1)[None], torch.ones_like(exact.T[:1])))
        # Kept as [4, n] and used transposed: the product with so few columns is five times faster in this layout.
        self._moments = torch.cat((centered.T, torch.ones_like(centered.T[:1])))
        self._columns = features.T.contiguous()
        self._free: list[tuple[Tensor, ...]] = []
        self._scratch: tuple[Tensor, ...] = ()
        self._exact: Tensor | None = None

    def __call__(self, points: Float[Tensor, "q 3"]) -> Float[Tensor, "q c"]:
        """Features at world points, differentiable in the points."""
        if torch.is_grad_enabled() and points.requires_grad:
            return _Evaluate.apply(points, self)
        return self.forward(points, None)[0]

    @torch.no_grad()
    def weights(self, points: Float[Tensor, "q 3"]) -> Float[Tensor, "q n"]:
        """The weights of the scene points, without a gradient."""
        found = points.new_empty(len(points), len(self.features))
        for rows in self._blocks(len(points)):
            inverse = self._inverse(points[rows] - self.center, points.new_empty(len(points[rows]), len(self.features)))
            self._weigh(points[rows] - self.center, inverse, found[rows])
        return found

    def forward(self, points: Float[Tensor, "q 3"], keep: Lease | None) -> tuple[Float[Tensor, "q c"], list[Tensor]]:
        """Features; inverse squared distances and weights stay in `keep` for the backward pass.

        Returns:
            The features [q, c], and per block the interpolated part of q [rows, d] (for Eq. 3).
        """
        output = points.new_empty(len(points), self.features.shape[1])
        interpolated = []
        for rows in self._blocks(len(points)):
            x = points[rows] - self.center
            inverse, weights = (b[rows] for b in keep.buffers) if keep else (b[: len(x)] for b in self._space(points))
            self._inverse(x, inverse)
            interpolated.append(self._weigh(x, inverse, weights))
            torch.mm(weights, self.features, out=output[rows])
        return output, interpolated

    def backward(
        self,
        points: Float[Tensor, "q 3"],
        keep: Lease,
        interpolated: list[Tensor],
        output: Float[Tensor, "q c"],
        gradient: Float[Tensor, "q c"],
    ) -> Float[Tensor, "q 3"]:
        """The gradient for the points, given the gradient for the features.

        With w = softmax(l): dE/dl = w (G F^T - <G, f>). The logits depend on the point through q (its position, and the
        interpolated features) and through the bias; all of it ends in one factor dE/d(dist^2) per pair.
        """
        result = torch.empty_like(points)
        for rows, part in zip(self._blocks(len(points)), interpolated, strict=True):
            x, inverse, weights = points[rows] - self.center, *(buffer[rows] for buffer in keep.buffers)
            pairs, spare = (buffer[: len(x)] for buffer in self._space(points))
            torch.mm(gradient[rows], self._columns, out=pairs)
            pairs.sub_((gradient[rows] * output[rows]).sum(dim=-1, keepdim=True)).mul_(weights)
            direct, slope = torch.zeros_like(x), 1.0
            if self.projections is not None:
                p = self.projections
                query_gradient = pairs @ p.keys
                direct = query_gradient @ p.position.T
                # Both parts are divided by the sharpness, which the moments get back: one pass over the pairs less.
                slope = math.copysign(max(abs(p.sharpness), 1e-6), p.sharpness)
                query_gradient /= inverse.sum(dim=-1, keepdim=True) * slope
                torch.mm(query_gradient, p.folded.T, out=spare)
                spare.sub_((query_gradient * part).sum(dim=-1, keepdim=True))
                pairs.addcmul_(spare, inverse)
            pairs.mul_(inverse)
            if bool(inverse.amax() >= (1 - 1e-6) / MIN_SQUARED):  # the clamp has no slope
                pairs.masked_fill_(inverse >= (1 - 1e-6) / MIN_SQUARED, 0.0)
            moments = slope * (pairs @ self._moments.T)
            result[rows] = 2 * (moments[:, :3] - x * moments[:, 3:]) + direct
        return result

    def lease(self, points: Float[Tensor, "q 3"]) -> Lease:
        """Two [q, n] buffers that return to the kernel when the lease is dropped."""
        shape = (len(points), len(self.features))
        buffers = self._free.pop() if self._free else ()
        if not buffers or buffers[0].shape != shape or buffers[0].dtype != points.dtype:
            buffers = (points.new_empty(shape), points.new_empty(shape))
        return Lease(buffers, self._free)

    def _blocks(self, count: int) -> list[slice]:
        rows = block_rows(self.features.device)
        return [slice(first, min(first + rows, count)) for first in range(0, count, rows)]

    def _inverse(self, x: Float[Tensor, "r 3"], out: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
        """1 / dist^2 of centred points."""
        exact = x.double()
        rows = torch.cat((exact, torch.ones_like(exact[:, :1]), exact.square().sum(dim=-1, keepdim=True)), dim=-1)
        if self._exact is None:
            self._exact = exact.new_empty(block_rows(x.device), len(self.features))
        squared = torch.mm(rows, self._table, out=self._exact[: len(x)])
        return out.copy_(squared).clamp_min_(MIN_SQUARED).reciprocal_()

    def _weigh(self, x: Float[Tensor, "r 3"], inverse: Float[Tensor, "r n"], out: Float[Tensor, "r n"]) -> Tensor:
        """Write the weights into `out`; returns the interpolated part of q (empty for Eq. 2)."""
        total = inverse.sum(dim=-1, keepdim=True)
        if self.projections is None:
            torch.div(inverse, total, out=out)
            return inverse.new_empty(len(x), 0)
        p = self.projections
        interpolated = (inverse @ p.folded).div_(total)
        torch.log(inverse, out=out)
        out.addmm_(torch.addmm(interpolated, x, p.position), p.keys.T, beta=p.sharpness)
        torch.softmax(out, dim=-1, out=out)
        return interpolated

    def _space(self, points: Float[Tensor, "q 3"]) -> tuple[Tensor, ...]:
        """Two [block, n] buffers that live as long as the kernel."""
        if not self._scratch or self._scratch[0].dtype != points.dtype:
            shape = (block_rows(points.device), len(self.features))
            self._scratch = (points.new_empty(shape), points.new_empty(shape))
        return self._scratch


class Lease:
    """Buffers lent to one forward pass; its backward pass, or the garbage collector, gives them back."""

    def __init__(self, buffers: tuple[Tensor, ...], home: list[tuple[Tensor, ...]]) -> None:
        self.buffers, self._home = buffers, home

    def __del__(self) -> None:
        if len(self._home) < 2:
            self._home.append(self.buffers)


class _Evaluate(torch.autograd.Function):
    """Connects `FieldKernel` to autograd."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, kernel: FieldKernel) -> Tensor:
        """The field at the points [q, 3]; what its gradient needs stays in lent buffers."""
        ctx.kernel, ctx.lease = kernel, kernel.lease(points)
        output, ctx.interpolated = kernel.forward(points, ctx.lease)
        ctx.save_for_backward(points, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient by the points [q, 3]; the kernel itself has none."""
        points, output = ctx.saved_tensors
        return ctx.kernel.backward(points, ctx.lease, ctx.interpolated, output, gradients[0]), None


def scaled_keys(keys: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Keys divided by sqrt(d), so that a product with q is a logit."""
    return (keys / math.sqrt(keys.shape[1])).contiguous()
