"""Tools made of plain solids, as one would print them: no model of somebody else is needed, so they are free of rights."""

from __future__ import annotations

import numpy as np
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import SimpleMaterial

WOOD, RUBBER, STEEL, LEATHER = (196, 150, 96), (44, 44, 48), (150, 156, 164), (110, 66, 40)


def make_tool(name: str) -> list[trimesh.Trimesh]:
    """One mesh per material, Y up, the handle along +x, the head at -x; millimetres."""
    return {"mallet": _mallet, "sledge": _sledge, "axe": _axe}[name]()


def _mallet() -> list[trimesh.Trimesh]:
    return [_rod(14, 210, (20, 0, 0), WOOD), _rod(28, 84, (-100, 0, 0), RUBBER, along=(0, 0, 1))]


def _sledge() -> list[trimesh.Trimesh]:
    head = _block((62, 56, 96), (-80, 0, 0), STEEL)
    return [head, _rod(15, 170, (30, 0, 0), LEATHER), _rod(19, 12, (118, 0, 0), STEEL)]


def _axe() -> list[trimesh.Trimesh]:
    """With two edges, so that it lies level on its handle."""
    corner = np.array([[-125, -11, 18], [-75, -11, 18], [-125, 11, 18], [-75, 11, 18], [-142, 0, 66], [-58, 0, 66]])
    edges = [trimesh.convex.convex_hull(corner * (1, 1, side)) for side in (1, -1)]
    blade = _block((50, 24, 40), (-100, 0, 0), STEEL)
    grip = _rod(15, 80, (84, 0, 0), RUBBER)
    return [blade, *(_colored(edge, STEEL) for edge in edges), _rod(13, 230, (5, 0, 0), WOOD), grip]


def _rod(
    radius: float, length: float, center: tuple[float, float, float], color: tuple[int, int, int], along=(1, 0, 0)
) -> trimesh.Trimesh:
    mesh = trimesh.creation.cylinder(radius, length, sections=32)
    mesh.apply_transform(trimesh.geometry.align_vectors((0, 0, 1), along))
    mesh.apply_translation(center)
    return _colored(mesh, color)


def _block(
    size: tuple[float, float, float], center: tuple[float, float, float], color: tuple[int, int, int]
) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(size)
    mesh.apply_translation(center)
    return _colored(mesh, color)


def _colored(mesh: trimesh.Trimesh, color: tuple[int, int, int]) -> trimesh.Trimesh:
    mesh.visual = TextureVisuals(material=SimpleMaterial(diffuse=(*color, 255)))
    return mesh


def base_plate(parts: list[trimesh.Trimesh], color: tuple[int, int, int] = (70, 92, 60)) -> trimesh.Trimesh:
    """A plate under a figurine that would not stand on its feet."""
    low = np.min([part.bounds[0] for part in parts], axis=0)
    high = np.max([part.bounds[1] for part in parts], axis=0)
    size = (high - low) * (1.4, 0.04, 0.8)
    middle = (low + high) / 2
    mesh = trimesh.creation.box(size)
    mesh.apply_translation((middle[0], low[1] - 0.3 * size[1], middle[2]))
    return _colored(mesh, color)
