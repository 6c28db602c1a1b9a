"""The very same object seen again: where it lies exactly, and what of it is hidden from the cameras here.

The alignment of two objects (`fields/registration.py`) allows for other proportions, and features that blur; of one and the
same object more can be said. It is not resized, so its surface tells the pose to a few millimetres, and the demonstration has
seen sides of it that are hidden in the target scene, which the hand must keep out of there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from afield.fields.registration import Registration, RegistrationConfig, register
from afield.geometry import rigid_registration
from afield.scene import Scene

SHAPE = RegistrationConfig(features=0.0, upright=0.0)
"""How the objects are aligned where features have misled."""
ROUNDS = 30
"""Of matching and registration."""
NEAR = 0.02, 0.004
"""Matches this many metres apart count 1/e, in the first and in the last round; what one side does not show is matched too."""
SAME = 1.0
"""Half of what is seen lies nearer to the shown points than so many times their spacing, if it is the same object;
`scripts/measure_repetition.py` prints it for the same objects and for others."""
HIDDEN = 0.008
"""A shown point farther than this from all that is seen, in metres, is hidden; or than twice the spacing of what is seen."""
FEWEST = 20
"""Points of either side that it takes to know an object again."""


@dataclass(frozen=True)
class Recognized:
    """The shown object, where it lies now."""

    alignment: Registration
    """Of scale 1."""
    seen: Float[Tensor, "n 3"]
    """Which points of the scene are it, metres, world."""
    points: Float[Tensor, "h 3"]
    """What is hidden of it, metres, world."""
    normals: Float[Tensor, "h 3"]
    """Unit vectors out of the surface there."""

    def completed(self, here: Scene) -> Scene:
        """The object's points with those that are hidden, which have no features."""
        count = len(self.points)
        features, colors = here.features.new_zeros(count, here.features.shape[-1]), here.colors.new_zeros(count, 3)
        return replace(
            here,
            points=torch.cat((here.points, self.points)),
            features=torch.cat((here.features, features)),
            colors=torch.cat((here.colors, colors)),
            normals=torch.cat((here.normals, self.normals)),
            views=None,
        )


def recognize(found: Registration, shown: Scene, here: Scene, scene: Scene) -> Recognized | None:
    """Whether what was shown and what is here are the very same object; if so, its pose by shape alone.

    Args:
        found: their alignment with features, which is tried first, for shape may not tell one end from the other.
        shown: points of the shown object.
        here: points of the other one ...
        scene: ... among all that is seen.

    Returns:
        None if it is another object, or seen too badly to tell.
    """
    if min(len(shown.points), len(here.points)) < FEWEST:
        return None
    alignment, apart = settle(found, shown, here)
    if apart > SAME:
        alignment, apart = settle(register(shown, here, SHAPE), shown, here)
    if apart > SAME:
        return None
    moved = alignment.carry(shown.points)
    hidden = torch.cdist(moved, scene.points).amin(dim=1) > max(HIDDEN, 2 * _spacing(here.points))
    if scene.table is not None:
        hidden &= scene.table.height(moved) > 0
    return Recognized(alignment, here.points, moved[hidden], shown.normals[hidden] @ alignment.rotation.T)


def settle(found: Registration, shown: Scene, here: Scene) -> tuple[Registration, float]:
    """Lay one object upon another by shape alone and without resizing, from an alignment right to a few centimetres.

    Returns:
        The alignment; and the distance, in spacings of the shown points, within which half of what is here lies from them:
        infinite if nothing was near anything.
    """
    source, target = shown.points, here.points
    rotation, shift = found.rotation, found.carry(source).mean(dim=0) - found.rotation @ source.mean(dim=0)
    for near in np.geomspace(*NEAR, ROUNDS):
        distance = torch.cdist(source @ rotation.T + shift, target)
        onto, back = distance.argmin(dim=1), distance.argmin(dim=0)
        weight = (-(torch.cat((distance.amin(dim=1), distance.amin(dim=0))) / float(near)).square()).exp()
        rotation, shift = rigid_registration(
            torch.cat((source, source[back])), torch.cat((target[onto], target)), weight
        )
    apart = float(torch.cdist(target, source @ rotation.T + shift).amin(dim=1).median() / _spacing(source))
    return Registration(rotation, 1.0, shift, found.cost), apart if math.isfinite(apart) else math.inf


def _spacing(points: Float[Tensor, "n 3"]) -> float:
    """Median distance of points from their nearest neighbours, in metres."""
    return float(torch.cdist(points, points).fill_diagonal_(torch.inf).amin(dim=1).median())
