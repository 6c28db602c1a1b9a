"""The physics test's conditions as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """One thing the grasp had to do."""

    name: str
    """What was asked, in words."""
    measured: str
    """What was measured, with its unit."""
    limit: str
    """What would have been good enough."""
    passed: bool | None
    """Whether it was; None where a condition before it failed, so that it says nothing."""


def conditions(test: Mapping[str, Any]) -> list[Condition]:
    """The rows of a grasp test's `to_json()`, in the order of the test: overlap, lift, six pushes."""
    limits = test["limits"]
    overlap, lift = test["initial_penetration"], test["lift_height"]
    rows = [
        Condition(
            "overlap before closing",
            f"{100 * overlap:.2f} cm",
            f"≤ {100 * limits['penetration']:.0f} cm",
            overlap <= limits["penetration"],
        ),
        Condition("object lifted", f"{100 * lift:.1f} cm", f"≥ {100 * limits['lift']:.0f} cm", lift >= limits["lift"]),
    ]
    lifted = lift >= limits["lift"]
    most = f"≤ {100 * limits['displacement']:.0f} cm, {math.degrees(limits['rotation']):.0f}°"
    for direction, push in test["pushes"].items():
        measured = f"{100 * push['displacement']:.1f} cm, {math.degrees(push['rotation']):.1f}°"
        rows.append(
            Condition(f"push along {direction.replace('-', '−')}", measured, most, bool(push["ok"]) if lifted else None)
        )
    return rows
