"""How well an affordance function shows what a camera saw that took no part in the fit."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afield.fields.affordance import AffordanceField
from afield.fields.rendering import render_view
from afield.observation import View

CONTACT = 0.5
"""Rendered contact above this counts as contact."""


def judge_views(
    field: AffordanceField,
    center: Float[Tensor, "3"],
    scale: float,
    views: tuple[View, ...],
    contact: tuple[Bool[np.ndarray, "_h _w"] | None, ...],
) -> dict[str, float]:
    """Colour, depth and contact on some views with masks.

    Returns:
        `psnr` in dB inside the masks; `depth_error` in metres, where there is depth and something is rendered;
        `contact_iou` over all pixels of the views that have contact masks.
    """
    error, depth_error, both, either, labelled = [], [], 0, 0, False
    for view, touched in zip(views, contact, strict=True):
        assert view.mask is not None, "checked before"
        found, mask = render_view(field, view.camera, center, scale), torch.from_numpy(view.mask).reshape(-1)
        color = torch.from_numpy(view.color).reshape(-1, 3).float() / 255
        error.append((found.color - color)[mask].square().mean())
        depth = torch.from_numpy(view.depth).reshape(-1)
        solid = mask & (found.opacity > 0.5) & (depth > 0)
        if bool(solid.any()):
            depth_error.append((found.depth / found.opacity.clamp_min(1e-6) - depth)[solid].abs().mean())
        if touched is not None:
            truth = torch.from_numpy(touched).reshape(-1)
            both += int(((found.contact > CONTACT) & truth).sum())
            either += int(((found.contact > CONTACT) | truth).sum())
            labelled = True
    figures = {"views": float(len(views)), "psnr": round(float(-10 * torch.stack(error).mean().log10()), 2)}
    if depth_error:
        figures["depth_error"] = round(float(torch.stack(depth_error).mean()), 6)
    if labelled:
        figures["contact_iou"] = round(both / max(1, either), 3)
    return figures
