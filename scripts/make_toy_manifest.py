"""A manifest of four toys that took part in no choice, with the benchmark's dev animals: grasps on backs of one shown on another.

    python scripts/make_toy_manifest.py --objects FOLDER --out runs/toys
    afield bench grasp --objects runs/toys/manifest.json --split dev --trials 2 --methods attention "geometry + alignment"

The folder holds `object_sim` (vikashplus/object_sim, Apache-2.0). The toys have no texture, so each gets one colour.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
import tyro
from PIL import Image
from trimesh.visual import TextureVisuals

from afield.benchmark.grasp.run import SHIPPED


@dataclass(frozen=True)
class Toy:
    """How a mesh becomes a toy that looks along +x and that a hand can hold."""

    turned: bool
    """Whether the mesh looks along -x."""
    scale: float
    color: tuple[int, int, int]
    back: tuple[tuple[float, float], tuple[float, float, float]]
    """Middle (x, z) and size of its back's box, as shares of the toy's extents; x from its middle, z from its foot."""


TOYS = {
    "elephant": Toy(True, 1.0, (120, 125, 140), ((-0.15, 0.78), (0.5, 0.8, 0.5))),
    "duck": Toy(False, 0.9, (240, 200, 40), ((-0.2, 0.4), (0.5, 0.9, 0.3))),
    "stanfordbunny": Toy(True, 0.7, (150, 110, 80), ((-0.12, 0.48), (0.5, 0.8, 0.36))),
    "piggybank": Toy(False, 0.5, (235, 160, 170), ((-0.05, 0.78), (0.6, 0.9, 0.5))),
}
DEV = ("horse", "deer", "bulldog", "cat")
PAIRS = (
    ("elephant", "horse"),
    ("duck", "bulldog"),
    ("stanfordbunny", "cat"),
    ("horse", "stanfordbunny"),
    ("bulldog", "elephant"),
    ("cat", "duck"),
    ("deer", "piggybank"),
)
"""Shown on the first, repeated on the second. No grasp is found on the piggy bank's back, so nothing is shown on it."""


def main(objects: Path, out: Path = Path("runs/toys")) -> None:
    """Write meshes and manifest.

    Args:
        objects: folder that holds `object_sim`.
        out: where they go.
    """
    out.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = [
        _entry(name, toy, objects / "object_sim" / name, out) for name, toy in TOYS.items()
    ]
    entries += [{"folder": str(SHIPPED.parent / "objects" / name)} for name in DEV]
    rows = [{"table": 2, "pretrain": [a, a], "demo": [a, "back"], "test": [b, "back"]} for a, b in PAIRS]
    content = {"objects": entries, "rows": {"dev": rows, "test": rows}}
    (out / "manifest.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _entry(name: str, toy: Toy, source: Path, out: Path) -> dict[str, Any]:
    """Write one toy's files; its entry in the manifest."""
    mesh = _load(source / f"{name}.stl", toy)
    foot = np.array([*mesh.bounds.mean(axis=0)[:2], mesh.bounds[0, 2]])

    def write(piece: trimesh.Trimesh, file: str) -> str:
        """In metres, on its foot."""
        piece.apply_translation(-foot)
        piece.apply_scale(toy.scale)
        piece.export(out / file)
        return file

    Image.new("RGB", (8, 8), toy.color).save(out / f"{name}.png")
    pieces = [
        write(_load(file, toy), f"{name}_{index}.obj") for index, file in enumerate(sorted(source.glob("contact*.stl")))
    ]
    mesh.visual = TextureVisuals(uv=np.full((len(mesh.vertices), 2), 0.5))
    visual = write(mesh, f"{name}.obj")
    extents, ((x, z), size) = mesh.extents, toy.back
    box = {"center": [x * extents[0], 0.0, z * extents[2]], "size": [s * e for s, e in zip(size, extents, strict=True)]}
    return {
        "name": name,
        "family": "quadruped",
        "mesh": visual,
        "texture": f"{name}.png",
        "collision": pieces,
        "mass": 0.15,
        "parts": {"back": box},
    }


def _load(file: Path, toy: Toy) -> trimesh.Trimesh:
    mesh = trimesh.load(file, force="mesh")
    assert isinstance(mesh, trimesh.Trimesh)
    if toy.turned:
        mesh.apply_transform(np.diag([-1.0, -1.0, 1.0, 1.0]))
    return mesh


if __name__ == "__main__":
    tyro.cli(main)
