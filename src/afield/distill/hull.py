"""Where an object is, and how large, by its masks, and by depth where they see it from one side: its visual hull."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional

from afield.errors import AfieldError
from afield.geometry import nearest_to_lines
from afield.observation import Camera, Observation, View

EDGE, PIECE = 0.04, 0.1
"""A jump of depth by this share is an edge; what edges cut off of a mask counts if it is this share of it at least."""
LIES = 0.01
"""What is less than this share of its distance above the floor belongs to the floor."""
THIN = 0.1
"""Least depth of an object that was seen from one side, as a share of its size."""
ONE_SIDE = math.radians(30.0)
"""Views whose lines of sight to the object differ by less see it from one side: their hull reaches far behind it."""
KNOWN, MOSTLY = 0.3, 0.75
"""Share of the object of which the depth is known in a view that tells how far away it reaches; and how wide and high it is."""


def canonical_frame(
    observation: Observation, floor: float | None = None, *, depth: bool = False
) -> tuple[Float[Tensor, "3"], float]:
    """Middle and size of the object: those of its visual hull, above the floor if there is one, see `hull_distance`.

    A single view has no hull; there it is the box around what is seen (see `seen_box`).
    """
    if len(observation.views) == 1:
        axes, low, high = seen_box(observation.views[0], floor)
        return (low + high) / 2 @ axes, 1.12 * float((high - low).max()) / 2
    origins, directions, spans = [], [], []
    for view in observation.views:
        assert view.mask is not None, "checked before"
        rows, columns = np.nonzero(view.mask)
        origins.append(view.camera.position)
        directions.append(_sight(view))
        spans.append(
            max((columns.max() - columns.min()) / view.camera.fx, (rows.max() - rows.min()) / view.camera.fy) / 2
        )
    center = nearest_to_lines(torch.stack(origins), torch.stack(directions))
    center = torch.round(center, decimals=5)  # to 10 um: the last bits of a linear solver differ between processes
    reach = [float((origin - center).norm()) * span for origin, span in zip(origins, spans, strict=True)]
    scale = round(1.5 * max(reach), 5)
    if not math.isfinite(scale) or scale <= 0:
        raise AfieldError(f"The views of '{observation.name}' do not look at one object; check cameras and masks.")
    solid = (hull_distance(observation, center, scale, 64, floor, depth=depth) < 0).nonzero().flip(-1) / 63 * 2.0 - 1.0
    low, high = solid.amin(dim=0) * scale + center, solid.amax(dim=0) * scale + center
    return (low + high) / 2, 1.12 * float((high - low).max()) / 2


def only_side(observation: Observation) -> View | None:
    """The view that knows most of the depth of an object that is seen from one side only; None if there are more sides.

    Also None where no view knows enough of it: then the hull has to do.
    """
    views = observation.views
    if len(views) == 1:
        return views[0]
    sights = torch.stack([_sight(view) for view in views])
    if float((sights @ sights.T).min()) < math.cos(ONE_SIDE):
        return None
    best = max(views, key=lambda view: (not _cropped(view), _known(view)))
    return best if _known(best) >= KNOWN else None


def _sight(view: View) -> Float[Tensor, "3"]:
    """Direction from the camera to the middle of the mask."""
    assert view.mask is not None, "checked before"
    rows, columns = np.nonzero(view.mask)
    middle = torch.tensor([[(columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2]]).float()
    return functional.normalize(view.camera.backproject(middle, torch.ones(1)) - view.camera.position, dim=-1)[0]


def _cropped(view: View) -> bool:
    """Whether the object reaches the border of the picture."""
    assert view.mask is not None, "checked before"
    return bool(view.mask[[0, -1]].any() or view.mask[:, [0, -1]].any())


def _known(view: View) -> float:
    """Share of the mask in which the depth is known."""
    assert view.mask is not None, "checked before"
    return float((view.mask & (view.depth > 0)).sum() / view.mask.sum())


def hull_distance(
    observation: Observation,
    center: Float[Tensor, "3"],
    scale: float,
    size: int,
    floor: float | None = None,
    *,
    depth: bool = False,
) -> Float[Tensor, "z y x"]:
    """Signed distance to the visual hull on a grid, in canonical units: where the fit begins.

    Args:
        observation: views with masks, or a single one with depth.
        center: of the grid.
        scale: half of its side.
        size: points a side.
        floor: what is below is empty.
        depth: what lies in front of a measured surface is empty too; and, if the views look from one side, so that the hull
            of their masks reaches far behind the object, what is farther away than anything that is seen of it.
    """
    axis = torch.linspace(-1.0, 1.0, size)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack((x, y, z), dim=-1).reshape(-1, 3) * scale + center
    step = 2.0 / (size - 1)
    inside = torch.ones(len(points), dtype=torch.bool)
    for view in observation.views:
        assert view.mask is not None, "checked before"
        pixel, away = view.camera.project(points)
        column, row = pixel[:, 0].round().long(), pixel[:, 1].round().long()
        seen = (column >= 0) & (column < view.camera.width) & (row >= 0) & (row < view.camera.height) & (away > 0)
        hit = (
            seen
            & torch.from_numpy(view.mask)[row.clamp(0, view.camera.height - 1), column.clamp(0, view.camera.width - 1)]
        )
        if depth:  # what lies in front of a measured surface is empty
            measured = torch.from_numpy(view.depth)[
                row.clamp(0, view.camera.height - 1), column.clamp(0, view.camera.width - 1)
            ]
            inside &= ~seen | (measured <= 0) | (away > measured - 0.25 * step * scale)
        inside &= hit | ~seen if _cropped(view) else hit  # an object that is wholly in the picture is nowhere else
    side = observation.views[0] if len(observation.views) == 1 else only_side(observation) if depth else None
    if side is not None:
        axes, low, high = seen_box(side, floor)
        turned = points @ axes.T
        box = (turned >= low) & (turned <= high)
        if len(observation.views) > 1 and (_cropped(side) or _known(side) < MOSTLY):
            box = box[:, 1:2]  # across the picture and upwards the masks know better
        if len(observation.views) == 1 or (inside & box.all(dim=-1)).any():
            inside &= box.all(dim=-1)
    if floor is not None:
        inside &= points[:, 2] >= floor
    solid = inside.reshape(size, size, size).numpy()
    if not solid.any():
        raise AfieldError(f"The masks of '{observation.name}' have no common hull; check cameras and masks.")
    outside, inner = (np.asarray(distance_transform_edt(where)) for where in (~solid, solid))
    return torch.from_numpy((outside - inner) * step).float()


@dataclass(frozen=True)
class HullFront:
    """The visual hull as a cloud of grid points, to be seen from any side."""

    points: Float[Tensor, "n 3"]
    step: float
    """Distance of neighbours, in the unit of the cameras."""
    size: float
    """Half of the grid's side, in the same unit."""

    @classmethod
    def of(cls, observation: Observation, size: int = 96) -> HullFront:
        """On a grid of so many points a side."""
        center, scale = canonical_frame(observation)
        solid = hull_distance(observation, center, scale, size) < 0
        return cls((solid.nonzero().flip(-1) / (size - 1) * 2.0 - 1.0) * scale + center, 2 * scale / (size - 1), scale)

    def depth(self, camera: Camera, *, filled: bool = True) -> Float[np.ndarray, "h w"]:
        """Of its front, as the camera sees it; 0 beside it. Unless it is filled, points show through gaps between others."""
        pixel, away = camera.project(self.points)
        column, row = pixel.round().long().T.numpy()
        inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height) & (away.numpy() > 0)
        front = np.full((camera.height, camera.width), np.inf, np.float32)
        np.minimum.at(front, (row[inside], column[inside]), away.numpy()[inside])
        if filled:  # where points are farther apart than pixels, each stands for those around it
            wide = math.ceil(self.step * camera.fx / max(float(away.median()), self.step)) | 1
            front = cv2.erode(front, np.ones((wide, wide), np.uint8), borderValue=np.inf)
        return np.where(np.isfinite(front), front, 0).astype(np.float32)


def seen_box(
    view: View, floor: float | None = None
) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3"], Float[Tensor, "3"]]:
    """An upright box around what one view with depth sees of the object: nobody knows more of its other side.

    An object that shows its front alone is taken to be a tenth as deep as it is large. The box reaches down to the floor.

    Returns:
        Rows: the box's axes in the world (across the picture, away from the camera, up); its lowest and highest corner in them.
    """
    rows, columns = np.nonzero(_pieces(view, floor))
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    points = view.camera.backproject(pixels, torch.from_numpy(view.depth[rows, columns]).float())
    up = torch.tensor([0.0, 0.0, 1.0])
    ahead = view.camera.T_world_camera[:3, 2] - view.camera.T_world_camera[2, 2] * up
    if float(ahead.norm()) < 0.1:  # it looks straight down
        ahead = -view.camera.T_world_camera[:3, 1] + view.camera.T_world_camera[2, 1] * up
    ahead = functional.normalize(ahead, dim=0)
    axes = torch.stack((torch.linalg.cross(ahead, up), ahead, up))
    turned = points @ axes.T
    some = turned[:: max(1, len(turned) // 100_000)]
    low, high = torch.quantile(some, 0.005, dim=0), torch.quantile(some, 0.995, dim=0)
    margin = 0.02 * float((high - low).max())
    low, high = low - margin, high + margin
    high[1] = torch.maximum(high[1], low[1] + THIN * (high - low).max())
    if floor is not None and floor < float(high[2]):
        low[2] = floor
    return axes, low, high


def _pieces(view: View, floor: float | None) -> Bool[np.ndarray, "h w"]:
    """Pixels of the object with depth, without slivers of the floor and of what lies behind it that the mask took along."""
    assert view.mask is not None, "checked before"
    inner = cv2.erode(view.mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    known = inner & (view.depth > 0)
    if floor is not None:
        rows, columns = np.nonzero(known)
        pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
        away = torch.from_numpy(view.depth[rows, columns]).float()
        high = view.camera.backproject(pixels, away)[:, 2] - floor > LIES * away
        known[rows, columns] = high.numpy()
    far = np.log(np.maximum(view.depth, 1e-6))
    jump = np.zeros(known.shape, bool)
    jump[:-1] |= np.abs(np.diff(far, axis=0)) > EDGE
    jump[:, :-1] |= np.abs(np.diff(far, axis=1)) > EDGE
    count, labels, stats, _ = cv2.connectedComponentsWithStats((known & ~jump).astype(np.uint8), connectivity=4)
    large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= PIECE * known.sum()]
    return np.isin(labels, large) if large else view.mask & (view.depth > 0)
