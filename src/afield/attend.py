"""What to look at: the demonstrated scene and the target scene, made comparable and reduced to what the task is about.

The paper expects a learnt attention to leave irrelevant objects aside. With the features that can be shipped this does not
happen by itself (docs/fields.md shows the measurements), so the three steps here say it explicitly; each is a switch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from afield.demonstration import Demonstration
from afield.fields.prepare import best_instance, center_features, relevance
from afield.fields.registration import RegistrationConfig, register
from afield.hand import Hand
from afield.pretrain import FieldModel
from afield.scene import Scene, check_same_source

GLANCE = RegistrationConfig(rotations=200, kept=6)
"""How objects are aligned to see whether they are alike; enough for the cost, if not for the hand."""
RESIZED = 0.15
"""Objects e times as large or as small as each other are so much more unlike."""


@dataclass(frozen=True)
class Attended:
    """A scene as the field shall see it."""

    scene: Scene
    """The points that are left, with the features in the field's own space."""
    relevance: Float[Tensor, "n"]
    """Similarity of every point of the whole scene to the demonstrated region, -1 to 1."""
    similarity: float
    """The same of the most similar instance: the mean of its better half."""


def attend(
    demonstration: Demonstration,
    scene: Scene,
    model: FieldModel,
    hand: Hand,
    *,
    use_gate: bool,
    center: bool,
) -> tuple[Attended, Attended]:
    """Prepare the demonstrated scene and the target scene for one field.

    Args:
        demonstration: what was shown.
        scene: the target scene, with raw features.
        model: the field; it brings the projection of its features.
        hand: the demonstrated hand, which says where the demonstrated region is.
        use_gate: keep only points that resemble the demonstrated region.
        center: subtract each scene's own mean feature, so that what all points share no longer counts.

    Returns:
        The demonstrated scene and the target scene.

    Raises:
        AfieldError: the two scenes or the field come from different extractors, layers or resolutions.
    """
    check_same_source(demonstration.scene, scene)
    model.check_source(scene)
    wanted = demonstration.scene.features[demonstration.region(hand)]
    return (
        _attended(demonstration.scene, wanted, model, use_gate=use_gate, center=center),
        _attended(scene, wanted, model, use_gate=use_gate, center=center),
    )


def _attended(
    scene: Scene, wanted: Float[Tensor, "r c"], model: FieldModel, *, use_gate: bool, center: bool
) -> Attended:
    scores = relevance(scene, wanted)
    instance, similarity = best_instance(scene, scores)
    kept = scene.select(instance) if use_gate else scene
    projected = model.project(kept)
    return Attended(center_features(projected) if center else projected, scores, similarity)


def unlikeness(demonstration: Demonstration, scene: Scene, hand: Hand) -> float:
    """How unlike the demonstrated object the most similar thing in a scene is.

    What is left of distances and unlike features when both are laid upon each other as wholes (`Registration.cost`), and
    how much one had to be resized for it. It needs no field.

    Args:
        demonstration: what was shown.
        scene: the target scene, with raw features.
        hand: the demonstrated hand, which says where the demonstrated region is.

    Returns:
        0 for the same points; of the order of 0.5 for another thing of the same kind.

    Raises:
        AfieldError: the two scenes come from different extractors, layers or resolutions.
    """
    check_same_source(demonstration.scene, scene)
    wanted = demonstration.scene.features[demonstration.region(hand)]
    shown, here = (
        center_features(either.select(best_instance(either, relevance(either, wanted))[0]))
        for either in (demonstration.scene, scene)
    )
    found = register(shown, here, GLANCE)
    return found.cost + RESIZED * abs(math.log(found.scale))
