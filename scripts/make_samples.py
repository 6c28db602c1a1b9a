"""Make the sample objects and captures that ship with Afield.

Needs Debian's package `sweethome3d-furniture` and the extra `samples` (`pip install 'afield[samples]'`); then

    python scripts/make_samples.py

rewrites `src/afield/samples`. The same seed gives the same objects; pictures differ between graphics drivers by a few
gray levels. Users do not need this script: its results are part of the package.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

os.environ.setdefault("MUJOCO_GL", "egl")

from sample_objects import LICENSE_URLS, RECIPES, build_object

from afield.capture.folder import write_capture
from afield.capture.objects import PlacedObject
from afield.capture.rendered import render_capture
from afield.capture.room import RenderConfig
from afield.errors import AfieldError
from afield.observation import Observation

SAMPLES = Path(__file__).resolve().parents[1] / "src" / "afield" / "samples"
JPEG_QUALITY = 92

Placement = tuple[str, float, float, float]
"""Object, x and y in meters, yaw in degrees."""


@dataclass(frozen=True)
class Layout:
    """One sample capture."""

    name: str
    objects: tuple[Placement, ...]
    """The first one is the target."""
    table: str = "wood"


SINGLES = tuple(
    Layout(name, ((name, x, y, yaw),), table)
    for name, x, y, yaw, table in (
        ("horse", 0.01, -0.02, 25.0, "cloth"),
        ("deer", 0.0, 0.02, -40.0, "wood"),
        ("bulldog", -0.02, 0.0, 10.0, "cloth"),
        ("cat", 0.02, 0.01, -15.0, "wood"),
        ("teddy", 0.0, 0.0, 60.0, "cloth"),
        ("hammer", 0.0, 0.0, 30.0, "wood"),
    )
)
CLUTTERED = (
    Layout(
        "horse_in_clutter",
        (
            ("horse", 0.0, 0.03, -70.0),
            ("mug", 0.2, 0.06, 140.0),
            ("hammer", -0.2, -0.02, 80.0),
            ("teddy", 0.08, -0.2, -60.0),
            ("milk", -0.1, 0.24, 20.0),
        ),
        "cloth",
    ),
    Layout(
        "deer_in_clutter",
        (
            ("deer", 0.02, 0.0, 120.0),
            ("wine_bottle", -0.19, 0.1, 0.0),
            ("mug", 0.17, -0.14, 30.0),
            ("cupcake", 0.14, 0.18, 0.0),
            ("hammer", -0.06, -0.22, 5.0),
        ),
    ),
    Layout(
        "bulldog_in_clutter",
        (
            ("bulldog", 0.0, 0.0, 100.0),
            ("medicine_bottle", 0.18, 0.05, 60.0),
            ("milk", -0.19, 0.08, -30.0),
            ("cupcake", -0.12, -0.18, 0.0),
            ("mug", 0.12, -0.2, -100.0),
        ),
        "cloth",
    ),
    Layout(
        "cat_in_clutter",
        (
            ("cat", 0.0, 0.0, 160.0),
            ("chicken", 0.1, -0.2, 45.0),
            ("wine_bottle", 0.1, 0.2, 0.0),
            ("medicine_bottle", -0.14, 0.17, 200.0),
            ("teddy", -0.16, -0.19, 30.0),
        ),
    ),
)


@dataclass(frozen=True)
class Options:
    """What to make, and from what."""

    archives: Path = Path("/usr/share/sweethome3d/furniture")
    """Folder with the .sh3f archives of the package `sweethome3d-furniture`."""
    out: Path = SAMPLES
    """Folder to write `objects`, `captures` and `ATTRIBUTION.md` to."""
    only: tuple[str, ...] = ()
    """Names of the objects and captures to make; all of them by default."""
    skip_objects: bool = False
    """Render captures of the objects that are already there."""
    seed: int = 0
    """Seed of the decimation, the convex pieces and the pictures."""


def main(options: Options) -> None:
    """Make the objects, then the captures, then the attribution file."""
    wanted = [recipe for recipe in RECIPES if not options.only or recipe.name in options.only]
    for recipe in tqdm([] if options.skip_objects else wanted, desc="objects"):
        build_object(recipe, options.archives, options.out / "objects" / recipe.name, options.seed)
    layouts = [layout for layout in SINGLES + CLUTTERED if not options.only or layout.name in options.only]
    for layout in tqdm(layouts, desc="captures"):
        folder = options.out / "captures" / layout.name
        write_capture(_render(layout, options.out, options.seed), folder, jpeg_quality=JPEG_QUALITY)
    _write_attribution(options.out)


def _render(layout: Layout, out: Path, seed: int) -> Observation:
    objects = [PlacedObject(out / "objects" / name, (x, y), math.radians(yaw)) for name, x, y, yaw in layout.objects]
    observation = render_capture(
        layout.name,
        objects,
        RenderConfig(seed=seed, table=layout.table),
        masks=len(objects) == 1,
        relative_to=out / "captures" / layout.name,
    )
    descriptions = [_description(placed.folder) for placed in objects]
    credit = "; ".join(f"{entry['name']}: {entry['attribution']}, {entry['license']}" for entry in descriptions)
    return Observation(
        observation.views,
        name=layout.name,
        extra={"attribution": f"Rendered from {credit}", "license": _strictest(descriptions), **observation.extra},
    )


def _description(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "object.json").read_text(encoding="utf-8"))


def _strictest(descriptions: Sequence[dict[str, Any]]) -> str:
    """CC0 if every object is CC0, else CC-BY: the pictures inherit the duty to attribute."""
    return "CC0-1.0" if all(entry["license"] == "CC0-1.0" for entry in descriptions) else "CC-BY-3.0"


def _write_attribution(out: Path) -> None:
    lines = [
        "# Where the sample objects come from",
        "",
        "The objects were made by `scripts/make_samples.py` from models of the Debian package",
        "`sweethome3d-furniture`; the captures are pictures of them, rendered by the same script,",
        "under the licenses of the objects they show",
        "(`attribution` and `license` in each `capture.json`). The table tops are generated and free of rights (CC0).",
        "Every object was changed: scaled to a toy, turned upright, its materials joined into one texture,",
        "heavy meshes reduced to fewer triangles, and convex pieces for physics added. The creators do not",
        "endorse this project.",
        "",
        "| object | model | creator | license | archive and file |",
        "|---|---|---|---|---|",
    ]
    for recipe in RECIPES:
        lines.append(
            f"| `{recipe.name}` | {recipe.title} | {recipe.creator} "
            f"| [{recipe.license}]({LICENSE_URLS[recipe.license]}) | `{recipe.archive}.sh3f`: `{recipe.model}` |"
        )
    (out / "ATTRIBUTION.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.getLogger("trimesh").setLevel(logging.ERROR)
    try:
        main(tyro.cli(Options))
    except AfieldError as error:
        sys.exit(f"make_samples: {error}")
