"""Points on a hand: query points on its surface, and a few keypoints per link for self-penetration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from afield.errors import AfieldError
from afield.hand_model import HandModel, geom_mesh
from afield.hand_shapes import CollisionShapes, all_distances

KEYPOINT_SPACING = 0.02
"""Metres of a shape's length per keypoint; also the distance at which E_spen (Eq. 8) begins to push."""
_BURIED = -3e-4
"""Signed distance in metres below which a surface point counts as inside another shape."""


@dataclass(frozen=True)
class HandPoints:
    """Points fixed to the links of a hand, each in its link's frame."""

    link: Int[Tensor, "q"]
    points_link: Float[Tensor, "q 3"]
    """In metres."""
    normals_link: Float[Tensor, "q 3"]
    """Unit outward normals of the hand's surface; zero for points inside the hand."""

    def on(self, links: Float[Tensor, "*b l 4 4"]) -> Float[Tensor, "*b q 3"]:
        """The points in the frame in which the poses of all links are given."""
        pose = links[..., self.link, :3, :]
        return (pose[..., :3] * self.points_link[:, None]).sum(dim=-1) + pose[..., 3]


def sample_surface(
    hand: HandModel,
    shapes: CollisionShapes,
    T_base_link: Float[Tensor, "l 4 4"],
    count: int,
    *,
    seed: int,
    finger_density: float,
    palmar_density: float,
) -> HandPoints:
    """Spread points over the outer surface of the palm and the fingers, in float64.

    The surface is that of the collision shapes, less what lies inside another shape in the pose `T_base_link`. Each
    link's gripping and back side get their share of points by area and density, spread by farthest-point sampling.

    Args:
        hand: the hand.
        shapes: its collision shapes.
        T_base_link: link poses of the canonical pose.
        count: how many points.
        seed: of the sampling.
        finger_density: points per area on fingers, relative to the palm.
        palmar_density: points per area on gripping sides, relative to back sides.
    """
    generator = torch.Generator().manual_seed(seed)
    links = _query_links(hand)
    points, normals, link, geom = _candidates(hand, links, max(20_000, 40 * count), generator)
    open_air = _outside_others(hand, shapes, T_base_link, points, link, geom)
    points, normals, link = points[open_air], normals[open_air], link[open_air]
    if len(points) < count:
        raise AfieldError(f"The hand '{hand.description.name}' has no outer surface to sample {count} points from.")
    palmar = (normals * _pads(hand, T_base_link)[link]).sum(dim=-1) > 0.0
    fingers = torch.tensor([links.get(index) == "finger" for index in range(len(hand.body_names))])
    weight = torch.where(fingers[link], finger_density, 1.0) * torch.where(palmar, palmar_density, 1.0)
    stratum = 2 * link + palmar
    total = torch.bincount(stratum, weights=weight.double())
    chosen = []
    for index, amount in enumerate(_apportion(total / total.sum() * count, count)):
        members = (stratum == index).nonzero()[:, 0]
        chosen.append(members[_farthest(points[members], amount)])
    index = torch.cat(chosen)
    return HandPoints(link[index], points[index], normals[index])


def keypoints(
    hand: HandModel, shapes: CollisionShapes, T_base_link: Float[Tensor, "l 4 4"], link_node: Int[Tensor, "l"]
) -> tuple[HandPoints, Int[Tensor, "p 2"]]:
    """One to three points along the axis of every shape, and the pairs of them that must stay apart (E_spen, Eq. 8).

    Links above the base, such as a forearm, instead get points on their surface, which keep them off the table.
    Pairs on one link, on adjacent links, or close already in the canonical pose are left out.
    """
    link, places = [], []
    below = _below_base(hand)
    for row, geom in enumerate(shapes.geoms):
        owner = int(shapes.link[row])
        mesh = geom_mesh(hand.model, geom, hull=True)
        if below[owner]:
            pose = shapes.T_link_shape[row].numpy()
            local = (mesh.vertices - pose[:3, 3]) @ pose[:3, :3]
            middle, extent = (local.max(axis=0) + local.min(axis=0)) / 2, np.ptp(local, axis=0)
            axis = int(extent.argmax())
            number = int(np.clip(round(extent[axis] / KEYPOINT_SPACING), 1, 3))
            along = np.tile(middle, (number, 1))
            along[:, axis] += ((np.arange(number) + 0.5) / number - 0.5) * extent[axis]
            found = along @ pose[:3, :3].T + pose[:3, 3]
        else:
            vertices = torch.from_numpy(np.array(mesh.vertices))
            found = vertices[_farthest(vertices, min(8, len(vertices)))].numpy()
        places.append(torch.from_numpy(found))
        link.extend([owner] * len(found))
    points = torch.cat(places) if places else torch.zeros(0, 3).double()
    index = torch.tensor(link, dtype=torch.int64)
    apart = _apart(hand, shapes, link_node)
    base = (T_base_link[index, :3, :3] @ points[..., None])[..., 0] + T_base_link[index, :3, 3]
    allowed = apart[index[:, None], index[None]] & (torch.cdist(base, base) > KEYPOINT_SPACING)
    moving = torch.tensor(below)[index]
    allowed &= moving[:, None] & moving[None]
    pairs = torch.triu(allowed, diagonal=1).nonzero()
    return HandPoints(index, points, torch.zeros_like(points)), pairs


def _below_base(hand: HandModel) -> list[bool]:
    """For every link, whether it is the base or hangs on it."""
    base = hand.body_names.index(hand.description.base)
    below: list[bool] = []
    for index, name in enumerate(hand.body_names):
        above = hand.model.body(int(hand.model.body(name).parentid[0])).name
        below.append(index == base or (above in hand.body_names[:index] and below[hand.body_names.index(above)]))
    return below


def _query_links(hand: HandModel) -> Mapping[int, str]:
    """Links that get query points, with what they are: "palm" or "finger"."""
    description = hand.description
    fingers = {body for finger in description.fingers.values() for body in finger}
    kinds = {}
    for index, (name, below) in enumerate(zip(hand.body_names, _below_base(hand), strict=True)):
        if below and name not in description.ignore:
            finger = name in fingers if fingers else name != description.base
            kinds[index] = "finger" if finger else "palm"
    return kinds


def _candidates(
    hand: HandModel, links: Mapping[int, str], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m 3"], Int[Tensor, "m"], Int[Tensor, "m"]]:
    """Points uniform over the area of the shapes of some links: places, normals, links and geoms."""
    triangles, normals, link, geom = [], [], [], []
    for g in hand.collision_geoms():
        owner = hand.body_names.index(hand.model.body(int(hand.model.geom_bodyid[g])).name)
        if owner in links:
            mesh = geom_mesh(hand.model, g, hull=True)
            triangles.append(np.asarray(mesh.triangles))
            normals.append(np.asarray(mesh.face_normals))
            link += [owner] * len(mesh.faces)
            geom += [g] * len(mesh.faces)
    if not triangles:
        raise AfieldError(f"The hand '{hand.description.name}' has no shapes on or below '{hand.description.base}'.")
    corners, normal = torch.from_numpy(np.concatenate(triangles)), torch.from_numpy(np.concatenate(normals))
    edges = corners[:, 1:] - corners[:, :1]
    area = torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=-1)
    face = torch.multinomial(area, count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, 1, generator=generator, dtype=torch.float64)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    points = corners[face, 0] + u * edges[face, 0] + v * edges[face, 1]
    return points, normal[face], torch.tensor(link)[face], torch.tensor(geom)[face]


def _outside_others(
    hand: HandModel,
    shapes: CollisionShapes,
    T_base_link: Float[Tensor, "l 4 4"],
    points: Float[Tensor, "m 3"],
    link: Int[Tensor, "m"],
    geom: Int[Tensor, "m"],
) -> Bool[Tensor, "m"]:
    """Which candidates are on the surface of the union of all shapes."""
    pose = T_base_link[link]
    base = (pose[:, :3, :3] @ points[..., None])[..., 0] + pose[:, :3, 3]
    pose = T_base_link[shapes.link] @ shapes.T_link_shape
    distance = all_distances(shapes, pose[None], base[None])[0][0]
    distance[torch.tensor(shapes.geoms)[:, None] == geom] = torch.inf
    return distance.amin(dim=0) > _BURIED


def _pads(hand: HandModel, T_base_link: Float[Tensor, "l 4 4"]) -> Float[Tensor, "l 3"]:
    """The direction each link grips in, in its own frame."""
    normal = torch.tensor(hand.description.palm_normal, dtype=torch.float64)
    pads = (T_base_link[:, :3, :3].transpose(-1, -2) @ normal[:, None])[..., 0]
    for body, direction in hand.description.pads.items():
        pads[hand.body_names.index(body)] = torch.tensor(direction, dtype=torch.float64)
    return pads


def _apportion(shares: Float[Tensor, "k"], count: int) -> list[int]:
    """Round shares to whole numbers that add up to `count`, largest remainders first."""
    whole = shares.floor()
    order = torch.argsort(shares - whole, descending=True, stable=True)
    whole[order[: count - int(whole.sum())]] += 1
    return [int(value) for value in whole]


def _farthest(points: Float[Tensor, "m 3"], count: int) -> Int[Tensor, "count"]:
    """Indices of well-spread points: each next one is the farthest from those before it."""
    chosen = torch.zeros(count, dtype=torch.int64)
    if not count:
        return chosen
    distance = torch.full((len(points),), torch.inf, dtype=points.dtype)
    for step in range(1, count):
        distance = torch.minimum(distance, (points - points[chosen[step - 1]]).square().sum(dim=-1))
        chosen[step] = distance.argmax()
    return chosen


def _apart(hand: HandModel, shapes: CollisionShapes, link_node: Int[Tensor, "l"]) -> Bool[Tensor, "l l"]:
    """Which pairs of links are neither one rigid piece nor neighbours; pieces without a shape are skipped."""
    node: list[int] = [int(index) for index in link_node]
    shaped = {node[int(link)] for link in shapes.link}
    above: dict[int, int] = {}
    for index, name in enumerate(hand.body_names):
        parent = hand.model.body(int(hand.model.body(name).parentid[0])).name
        if parent in hand.body_names[:index]:
            up = node[hand.body_names.index(parent)]
            if up != node[index]:
                above[node[index]] = up if up in shaped else above.get(up, up)
    apart = torch.ones(len(node), len(node), dtype=torch.bool)
    for i, a in enumerate(node):
        for k, b in enumerate(node):
            if a == b or above.get(a) == b or above.get(b) == a:
                apart[i, k] = False
    return apart
