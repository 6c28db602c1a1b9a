"""Signed distance to the collision shapes of a hand, batched and differentiable.

Spheres, capsules and boxes are one family, boxes with rounded edges, and share one formula; cylinders, ellipsoids and
convex meshes have their own. Distances to all shapes are needed only to know which shape is nearest, so that pass keeps
no graph; the gradient flows through the nearest shape alone, which is exactly the gradient of the minimum.
"""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import mujoco
import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import HalfspaceIntersection
from torch import Tensor

from afield.hand_model import HandModel, convex_hull, geom_pose, mesh_vertices

MOST_PLANES = 64
"""Facets kept of a convex mesh. A hull with more is circumscribed: its shape is then larger, never smaller."""
CLOSE_ENOUGH = 2e-4
"""Metres by which the corners of a circumscribed hull may stand out before another facet is added."""
_PASS_SIZE = 3_000_000
"""Numbers per buffer in the pass over all shapes; small enough to stay near the processor's caches."""
_TINY = 1e-18

_KINDS = {
    int(mujoco.mjtGeom.mjGEOM_SPHERE): 0,
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): 0,
    int(mujoco.mjtGeom.mjGEOM_BOX): 0,
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): 1,
    int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): 2,
    int(mujoco.mjtGeom.mjGEOM_MESH): 3,
}
_ROUNDED, _CYLINDER, _ELLIPSOID, _HULL = range(4)

T = TypeVar("T")


@dataclass(frozen=True)
class CollisionShapes:
    """All collision shapes of a hand, sorted by kind: rounded boxes, cylinders, ellipsoids, hulls."""

    link: Int[Tensor, "s"]
    """The link that carries each shape."""
    T_link_shape: Float[Tensor, "s 4 4"]
    size: Float[Tensor, "s 4"]
    """Half extents and rounding radius of boxes, in metres (a capsule is a box of extent (0, 0, l)); (radius, radius,
    half length, 0) of cylinders; half axes of ellipsoids; unused for hulls."""
    planes: Float[Tensor, "h p 4"]
    """Outward unit normals and offsets of the hulls' facets in the shape's frame; rows that pad have offset 1e3."""
    counts: tuple[int, int, int, int]
    """Number of shapes of each kind."""
    geoms: tuple[int, ...]
    """Id of each shape's geom in the compiled model."""

    def __len__(self) -> int:
        return sum(self.counts)


def moved(value: T, device: torch.device | str | None, dtype: torch.dtype | None) -> T:
    """A copy of a dataclass whose tensors, also nested ones, are on `device`, the floating ones in `dtype`."""

    def move(item: Any) -> Any:
        """A tensor, a tuple, or a dataclass that holds some; anything else as it is."""
        if isinstance(item, Tensor):
            return item.to(device=device, dtype=dtype if item.is_floating_point() else None)
        if isinstance(item, tuple):
            return tuple(move(part) for part in item)
        tensors = is_dataclass(item) and any(isinstance(getattr(item, f.name), Tensor) for f in fields(item))
        return moved(item, device, dtype) if tensors else item

    return replace(value, **{f.name: move(getattr(value, f.name)) for f in fields(value)})  # type: ignore[arg-type, type-var]


def collision_shapes(hand: HandModel) -> CollisionShapes:
    """Read the collision shapes of a compiled hand, in float64."""
    model = hand.model
    link_of_body = {int(model.body(name).id): index for index, name in enumerate(hand.body_names)}
    geoms = sorted(hand.collision_geoms(), key=lambda g: (_KINDS[int(model.geom_type[g])], g))
    kinds = [_KINDS[int(model.geom_type[g])] for g in geoms]
    hulls = [_facets(mesh_vertices(model, g)) for g, kind in zip(geoms, kinds, strict=True) if kind == _HULL]
    planes = np.zeros((len(hulls), max((len(h) for h in hulls), default=1), 4))
    planes[..., 3] = 1e3
    for row, hull in zip(planes, hulls, strict=True):
        row[: len(hull)] = hull
    poses = np.stack([geom_pose(model, g) for g in geoms]) if geoms else np.zeros((0, 4, 4))
    sizes = np.stack([_size(model, g) for g in geoms]) if geoms else np.zeros((0, 4))
    return CollisionShapes(
        link=torch.tensor([link_of_body[int(model.geom_bodyid[g])] for g in geoms], dtype=torch.int64),
        T_link_shape=torch.from_numpy(poses),
        size=torch.from_numpy(sizes),
        planes=torch.from_numpy(planes),
        counts=(kinds.count(0), kinds.count(1), kinds.count(2), kinds.count(3)),
        geoms=tuple(geoms),
    )


def signed_distance(
    shapes: CollisionShapes, T_base_link: Float[Tensor, "b l 4 4"], points: Float[Tensor, "b n 3"]
) -> Float[Tensor, "b n"]:
    """Distance in metres of points to the union of the shapes, negative inside.

    Exact for spheres, capsules, boxes and cylinders, and inside hulls to `CLOSE_ENOUGH`, unless they need more than
    `MOST_PLANES` facets (then they are a little larger). Outside a hull it is the distance to the farthest violated
    plane, a lower bound; for ellipsoids it is a first-order approximation. Inside the union it is the depth in the
    shape that contains the point most deeply.

    Args:
        shapes: the shapes.
        T_base_link: link poses in the frame of `points`.
        points: where, in metres.
    """
    pose = T_base_link[:, shapes.link] @ shapes.T_link_shape
    nearest, plane = _nearest(shapes, pose.detach(), points.detach())
    rows = pose.flatten(-2)[..., :12].gather(1, nearest[..., None].expand(-1, -1, 12))
    local = _local(rows, points)
    facet = shapes.planes[_hull_index(shapes, nearest), plane] if shapes.counts[_HULL] else None
    return _distance(shapes, local, nearest, facet)


def total_depth(
    shapes: CollisionShapes, T_base_link: Float[Tensor, "b l 4 4"], points: Float[Tensor, "b n 3"]
) -> Float[Tensor, "b"]:
    """Summed depth in metres of the points that lie inside the shapes: what `signed_distance` says below zero.

    Few points are inside a hand. Only for these it is asked which shape and facet decide, and only they are differentiated,
    which takes a third of the time.

    Args:
        shapes: the shapes.
        T_base_link: link poses in the frame of `points`.
        points: where, in metres.
    """
    pose = T_base_link[:, shapes.link] @ shapes.T_link_shape
    chunk, found = _chunk(shapes, points), []
    with torch.no_grad():
        for first in range(0, len(points), chunk):
            within = slice(first, first + chunk)
            distance, _ = all_distances(shapes, pose[within], points[within], facets=False)
            row, column = (distance.amin(dim=1) < 0).nonzero(as_tuple=True)
            found.append((row + first, column, distance[row, :, column].argmin(dim=1)))
        row, column, nearest = (torch.cat(index) for index in zip(*found, strict=True))
    local = _local(pose.flatten(-2)[row, nearest, :12], points[row, column])
    facet = None
    if shapes.counts[_HULL]:
        planes = shapes.planes[_hull_index(shapes, nearest)]
        height = (planes[..., :3] @ local.detach()[..., None])[..., 0] - planes[..., 3]
        facet = planes[torch.arange(len(row)), height.argmax(dim=1)]
    depth = -_distance(shapes, local, nearest, facet)
    return torch.zeros_like(points[:, 0, 0]).index_add(0, row, depth.clamp_min(0.0))


def _local(rows: Float[Tensor, "*k 12"], points: Float[Tensor, "*k 3"]) -> Float[Tensor, "*k 3"]:
    """Points in the frames of shapes, of whose poses the upper three rows are given."""
    offset = points - rows[..., 3::4]
    # Column i of the rotation is every fourth number of its flattened rows, from i on.
    return torch.stack([(rows[..., i : i + 9 : 4] * offset).sum(dim=-1) for i in range(3)], dim=-1)


def _distance(
    shapes: CollisionShapes,
    local: Float[Tensor, "*k 3"],
    nearest: Int[Tensor, "*k"],
    facet: Float[Tensor, "*k 4"] | None,
) -> Float[Tensor, "*k"]:
    """Distance of every point, in its shape's frame, to that shape; `facet` decides where the shape is a hull."""
    x, y, z = local.unbind(dim=-1)
    a, b, c, r = shapes.size[nearest].unbind(dim=-1)
    distance = _rounded_box(x, y, z, a, b, c, r)
    kind = _kind_of(shapes, nearest)
    if shapes.counts[_CYLINDER]:
        distance = torch.where(kind == _CYLINDER, _cylinder(x, y, z, a, c), distance)
    if shapes.counts[_ELLIPSOID]:
        distance = torch.where(kind == _ELLIPSOID, _ellipsoid(x, y, z, a, b, c), distance)
    if facet is not None:
        height = x * facet[..., 0] + y * facet[..., 1] + z * facet[..., 2] - facet[..., 3]
        distance = torch.where(kind == _HULL, height, distance)
    return distance


@torch.no_grad()
def all_distances(
    shapes: CollisionShapes, pose: Float[Tensor, "b s 4 4"], points: Float[Tensor, "b n 3"], *, facets: bool = True
) -> tuple[Float[Tensor, "b s n"], Int[Tensor, "b h n"]]:
    """Distance of every point to every shape, and the facet that decides for each hull; no gradient.

    Args:
        shapes: the shapes.
        pose: poses of the shapes in the frame of `points`.
        points: where, in metres.
        facets: look for the facet; without, zeros are returned for it, and sooner.
    """
    batch, count = points.shape[:2]
    inverse = pose[..., :3, :3].transpose(-1, -2)
    shift = (inverse @ pose[..., :3, 3:]).reshape(batch, -1, 1)
    local = torch.baddbmm(shift, inverse.reshape(batch, -1, 3), points.transpose(1, 2), beta=-1)
    local = local.view(batch, len(shapes), 3, count)
    ends = np.cumsum((0, *shapes.counts))
    facet = torch.zeros((batch, shapes.counts[_HULL], count), dtype=torch.int64, device=points.device)
    distances = []
    for kind in (_ROUNDED, _CYLINDER, _ELLIPSOID, _HULL):
        begin, end = int(ends[kind]), int(ends[kind + 1])
        if begin == end:
            continue
        x, y, z = local[:, begin:end].unbind(dim=2)
        a, b, c, r = shapes.size[begin:end, :, None].unbind(dim=1)
        if kind == _ROUNDED:
            distances.append(_rounded_box(x, y, z, a, b, c, r))
        elif kind == _CYLINDER:
            distances.append(_cylinder(x, y, z, a, c))
        elif kind == _ELLIPSOID:
            distances.append(_ellipsoid(x, y, z, a, b, c))
        else:
            heights = shapes.planes[..., :3] @ local[:, begin:end] - shapes.planes[..., 3:]
            height, facet = heights.max(dim=2) if facets else (heights.amax(dim=2), facet)
            distances.append(height)
    return torch.cat(distances, dim=1), facet


def _nearest(
    shapes: CollisionShapes, pose: Float[Tensor, "b s 4 4"], points: Float[Tensor, "b n 3"]
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Index of the nearest shape of each point, and of the facet that decides where that shape is a hull."""
    chunk = _chunk(shapes, points)
    nearest, facets = [], []
    for poses, some in zip(pose.split(chunk), points.split(chunk), strict=True):
        distance, facet = all_distances(shapes, poses, some)
        nearest.append(distance.argmin(dim=1))
        if shapes.counts[_HULL]:
            facets.append(facet.gather(1, _hull_index(shapes, nearest[-1])[:, None])[:, 0])
        else:
            facets.append(torch.zeros_like(nearest[-1]))
    return torch.cat(nearest), torch.cat(facets)


def _chunk(shapes: CollisionShapes, points: Float[Tensor, "b n 3"]) -> int:
    """How many configurations are looked at in one pass."""
    widest = max(3 * len(shapes), shapes.planes.shape[0] * shapes.planes.shape[1]) * points.shape[1]
    return max(1, _PASS_SIZE // max(widest, 1))


def _hull_index(shapes: CollisionShapes, index: Int[Tensor, "*k"]) -> Int[Tensor, "*k"]:
    """Row of `planes` of a shape; 0 for shapes that are no hulls."""
    return (index - (len(shapes) - shapes.counts[_HULL])).clamp_min(0)


def _kind_of(shapes: CollisionShapes, index: Int[Tensor, "*k"]) -> Int[Tensor, "*k"]:
    ends = np.cumsum(shapes.counts)[:-1]
    return torch.stack([index >= int(end) for end in ends]).sum(dim=0)


def _rounded_box(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor, c: Tensor, radius: Tensor) -> Tensor:
    """Distance to a box with half extents (a, b, c), grown by `radius`."""
    u, v, w = x.abs() - a, y.abs() - b, z.abs() - c
    outside = u.clamp_min(0).square() + v.clamp_min(0).square() + w.clamp_min(0).square()
    inside = torch.maximum(torch.maximum(u, v), w).clamp_max(0)
    # The clamp keeps the root's gradient finite on the axis of a capsule and inside a box.
    return outside.clamp_min(_TINY).sqrt() + inside - radius


def _cylinder(x: Tensor, y: Tensor, z: Tensor, radius: Tensor, half: Tensor) -> Tensor:
    """Distance to a cylinder along z."""
    across = (x.square() + y.square()).clamp_min(_TINY).sqrt() - radius
    along = z.abs() - half
    outside = across.clamp_min(0).square() + along.clamp_min(0).square()
    return outside.clamp_min(_TINY).sqrt() + torch.maximum(across, along).clamp_max(0)


def _ellipsoid(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Distance to an ellipsoid, to first order: the level set's value over its slope."""
    a, b, c = (half.clamp_min(1e-6) for half in (a, b, c))
    level = ((x / a).square() + (y / b).square() + (z / c).square()).clamp_min(_TINY).sqrt()
    slope = ((x / a.square()).square() + (y / b.square()).square() + (z / c.square()).square()).clamp_min(_TINY).sqrt()
    deepest = -torch.minimum(torch.minimum(a, b), c)
    return torch.maximum((level - 1) * level / slope, deepest)


def _size(model: mujoco.MjModel, geom: int) -> Float[np.ndarray, "4"]:
    """The row of `CollisionShapes.size` of a geom."""
    kinds = mujoco.mjtGeom
    a, b, c = (float(value) for value in model.geom_size[geom])
    rows = {
        int(kinds.mjGEOM_SPHERE): (0.0, 0.0, 0.0, a),
        int(kinds.mjGEOM_CAPSULE): (0.0, 0.0, b, a),
        int(kinds.mjGEOM_BOX): (a, b, c, 0.0),
        int(kinds.mjGEOM_CYLINDER): (a, a, b, 0.0),
        int(kinds.mjGEOM_ELLIPSOID): (a, b, c, 0.0),
    }
    return np.array(rows.get(int(model.geom_type[geom]), (0.0, 0.0, 0.0, 0.0)))


def _facets(vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "p 4"]:
    """Planes around a point set: its bounding box, cut by the hull facet that cuts most until the rest cuts nothing.

    Returns:
        Unit normals and offsets; at most `MOST_PLANES`, less than `CLOSE_ENOUGH` outside the hull where these suffice.
    """
    hull = convex_hull(vertices)
    candidates = np.column_stack((hull.equations[:, :3], (vertices @ hull.equations[:, :3].T).max(axis=0)))
    box = np.concatenate((np.eye(3), -np.eye(3)))
    planes = np.column_stack((box, (vertices @ box.T).max(axis=0)))
    inside = vertices[hull.vertices].mean(axis=0)
    while len(planes) < MOST_PLANES:
        # A box around a flat mesh has no inside; thickening it by a micrometre lets the intersection exist.
        slack = np.column_stack((planes[:, :3], -planes[:, 3] - 1e-6))
        corners = HalfspaceIntersection(slack, inside).intersections
        excess = (corners @ candidates[:, :3].T).max(axis=0) - candidates[:, 3]
        if excess.max() < CLOSE_ENOUGH:
            break
        planes = np.vstack((planes, candidates[excess.argmax()]))
    return planes
