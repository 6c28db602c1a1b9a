"""What an affordance function is fitted to, besides the posed pictures: contact masks, descriptors and point flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from afield.errors import AfieldError
from afield.observation import Observation
from afield.perception.crops import object_square
from afield.perception.features import FeatureExtractor, extract_with_progress

FEWEST = 100
"""Pixels of the object with depth that make a surface of a single view."""


@dataclass(frozen=True)
class Flow:
    """Tracks of points on the object from first contact to release."""

    start: Float[Tensor, "q 3"]
    """Where the points are at first, in metres, in the frame of the pictures' cameras."""
    displacement: Float[Tensor, "q h 3"]
    """How far each has moved after every step of the horizon H, in metres."""
    visible: Float[Tensor, "q h"]
    """1 where a track is seen, 0 where not."""

    @classmethod
    def of_joint(
        cls,
        start: Float[Tensor, "q 3"],
        moves: Bool[Tensor, "q"],
        motion: Callable[[float], Float[np.ndarray, "4 4"]],
        horizon: int,
    ) -> Flow:
        """Of a part whose motion is known; all points are visible.

        Args:
            start: where the points are at first.
            moves: which of them lie on the part.
            motion: how the part has moved after a share of the way, 0 to 1.
            horizon: H.
        """
        steps = []
        for step in range(1, horizon + 1):
            pose = torch.from_numpy(motion(step / horizon)).float()
            steps.append(torch.where(moves[:, None], start @ pose[:3, :3].T + pose[:3, 3] - start, 0.0))
        return cls(start, torch.stack(steps, dim=1), torch.ones(len(start), horizon))


@dataclass(frozen=True)
class Labels:
    """Labels of an observation whose views have masks."""

    contact: tuple[Bool[np.ndarray, "_h _w"] | None, ...]
    """For every view: where hand and object touch; None for views without that label."""
    descriptors: Float[Tensor, "v d rows columns"] | None
    """For every view: a map of descriptors of its `object_square`, in channels shared by all views."""
    floor: float | None = None
    """Height of what the object stands on, in metres, where it is known: nothing is below, though no camera looked there."""
    flow: Flow | None = None
    """None fits the static phase only."""


def describe_views(
    observation: Observation,
    extractor: FeatureExtractor,
    channels: int = 16,
    *,
    cache: Path | None = None,
    progress: bool = True,
) -> tuple[Float[Tensor, "v d rows columns"], Float[Tensor, "c"], Float[Tensor, "c d"]]:
    """Image features of the squares around the object, projected onto their principal components inside the masks.

    Returns:
        Descriptor maps, and mean and basis of the projection, with which a new picture is described alike.
    """
    squares = [object_square(view) for view in observation.views]
    images = np.stack(
        [square.cut(view.color, extractor.resolution) for square, view in zip(squares, observation.views, strict=True)]
    )
    tokens = extract_with_progress(images, extractor, observation.name, cache=cache, progress=progress)
    unit = functional.normalize(tokens, dim=-1)
    rows = unit.shape[1]
    masks = [np.ones(view.depth.shape, dtype=bool) if view.mask is None else view.mask for view in observation.views]
    areas = [square.shares(mask, rows) for square, mask in zip(squares, masks, strict=True)]
    seen = unit[torch.stack(areas) > 0.5]
    if len(seen) < 2:
        raise AfieldError(
            f"The masks of '{observation.name}' are too small for descriptors; take larger pictures of it."
        )
    mean = seen.mean(dim=0)
    _, _, axes = torch.linalg.svd(seen - mean, full_matrices=False)
    axes = axes[:channels]
    axes = axes * torch.where(axes.sum(dim=-1, keepdim=True) < 0, -1.0, 1.0)
    return ((unit - mean) @ axes.T).permute(0, 3, 1, 2).contiguous(), mean, axes.T.contiguous()


def check_labels(observation: Observation, labels: Labels, *, one_view: bool = False) -> None:
    """Refuse what no function can be fitted to.

    Args:
        observation: posed views with masks.
        labels: of them.
        one_view: accept a single view if it has depth.

    Raises:
        AfieldError: a single view, no or an empty mask, contact masks or maps of descriptors of another
            size or number, contact outside of all masks, no flow.
    """
    name, views = observation.name, observation.views
    missing = [view.name for view in views if view.mask is None]
    if missing:
        raise AfieldError(f"The views {', '.join(missing)} of '{name}' have no object mask.")
    empty = [view.name for view in views if view.mask is not None and not view.mask.any()]
    if empty:
        raise AfieldError(f"The object mask of the views {', '.join(empty)} of '{name}' is empty.")
    if len(views) == 1 and not one_view:
        raise AfieldError(f"'{name}' has one view; a surface needs at least two from different sides.")
    if len(views) == 1 and views[0].mask is not None and (views[0].depth[views[0].mask] > 0).sum() < FEWEST:
        raise AfieldError(
            f"'{name}' has one view without depth; a surface needs depth, or at least two views from different sides."
        )
    if len(labels.contact) != len(views):
        raise AfieldError(f"'{name}' has {len(views)} views, but {len(labels.contact)} contact masks.")
    for view, mask in zip(views, labels.contact, strict=True):
        if mask is not None and mask.shape != view.depth.shape:
            size, needed = "x".join(map(str, mask.shape[::-1])), f"{view.camera.width}x{view.camera.height}"
            raise AfieldError(
                f"The contact mask of the view {view.name} of '{name}' is {size}; its picture is {needed}."
            )
    if labels.descriptors is not None and len(labels.descriptors) != len(views):
        raise AfieldError(f"'{name}' has {len(views)} views, but {len(labels.descriptors)} maps of descriptors.")
    if labels.descriptors is not None and labels.descriptors.shape[2] != labels.descriptors.shape[3]:
        rows, columns = labels.descriptors.shape[2:]
        raise AfieldError(f"The maps of descriptors of '{name}' are {columns}x{rows}, but must be square.")
    marked = [(view, mask) for view, mask in zip(views, labels.contact, strict=True) if mask is not None and mask.any()]
    if not marked:
        raise AfieldError(f"No view of '{name}' shows where the object is touched.")
    if not any((mask & view.mask).any() for view, mask in marked if view.mask is not None):
        raise AfieldError(f"The contact region of '{name}' lies outside of the object masks.")
    if labels.flow is not None and (len(labels.flow.start) < 3 or not bool((labels.flow.visible > 0.5).any())):
        raise AfieldError(f"The flow of '{name}' has no visible tracks of at least three points.")
    if labels.flow is not None and float(labels.flow.displacement.norm(dim=-1).max()) < 1e-3:
        raise AfieldError(f"Nothing moves in the flow of '{name}'.")
