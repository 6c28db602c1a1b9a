"""A stranger's mesh becomes an object that can be rendered and simulated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from tqdm import tqdm

from afield.artifacts import write_folder
from afield.errors import AfieldError

MAX_PIECES = 16
COLLISION_THRESHOLD = 0.05
SMALLEST, LARGEST = 0.01, 1.0
"""Metres that an object's longest side may have."""


def prepare_object(entry: Mapping[str, Any], base: Path, folder: Path) -> Path:
    """Write the object folder of a manifest entry, unless it is there already.

    Args:
        entry: name, family, mesh, and optionally texture, collision (a list of files), scale, mass, friction, parts.
        base: folder that the entry's paths are relative to.
        folder: where to write.

    Returns:
        `folder`, with `visual.obj`, the texture, convex pieces and `object.json`.

    Raises:
        AfieldError: a mesh cannot be read, or is too small or too large for a hand; coacd is missing where it is needed.
    """
    wanted = json.dumps(entry, sort_keys=True)
    if (folder / "source.json").is_file() and (folder / "source.json").read_text(encoding="utf-8") == wanted:
        return folder
    scale = float(entry.get("scale", 1.0))
    mesh = _load(base / entry["mesh"])
    mesh.apply_scale(scale)
    longest = float(mesh.extents.max())
    if not SMALLEST <= longest <= LARGEST:
        raise AfieldError(
            f"The mesh {base / entry['mesh']} is {longest:.3g} m long with the scale {scale:g}, but things for a hand are "
            f"{SMALLEST:g} to {LARGEST:g} m long. 'scale' takes the mesh's unit to metres: 0.001 for millimetres."
        )
    pieces = [_load(base / file) for file in entry.get("collision", ())]
    for piece in pieces:
        piece.apply_scale(scale)
    if not pieces:
        with tqdm(total=1, desc=f"convex pieces of {entry['name']}", unit="mesh") as bar:
            pieces = _convex_pieces(mesh)
            bar.update()

    def fill(temporary: Path) -> None:
        """Write everything into the folder that will take the place of `folder`."""
        (temporary / "visual.obj").write_text(_obj(mesh), encoding="ascii")
        texture = entry.get("texture")
        if texture:
            shutil.copyfile(base / texture, temporary / f"texture{Path(texture).suffix}")
        names = [f"collision_{index:02d}.obj" for index in range(len(pieces))]
        for name, piece in zip(names, pieces, strict=True):
            (temporary / name).write_text(_obj(piece, texture=False), encoding="ascii")
        description = {
            "name": entry["name"],
            "visual": "visual.obj",
            "texture": f"texture{Path(texture).suffix}" if texture else None,
            "collision": names,
            "mass": float(entry["mass"]),
            "friction": float(entry.get("friction", 1.0)),
            "family": entry["family"],
            "parts": entry.get("parts", {}),
        }
        (temporary / "object.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        (temporary / "source.json").write_text(wanted, encoding="utf-8")
        (temporary / "summary.json").write_text("{}\n", encoding="utf-8")

    write_folder(folder, fill)
    return folder


def _load(path: Path) -> trimesh.Trimesh:
    try:
        mesh = trimesh.load(path, force="mesh", process=False)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise AfieldError(f"Cannot read the mesh {path}: {error}.") from error
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise AfieldError(f"The mesh {path} has no triangles.")
    return mesh


def _convex_pieces(mesh: trimesh.Trimesh) -> list[trimesh.Trimesh]:
    try:
        import coacd
    except ImportError as error:
        raise AfieldError("Convex pieces are made by coacd: pip install 'afield[bench]'.") from error
    coacd.set_log_level("error")
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces)
    found = coacd.run_coacd(
        coacd.Mesh(welded.vertices, welded.faces),
        threshold=COLLISION_THRESHOLD,
        max_convex_hull=MAX_PIECES,
        max_ch_vertex=48,
        decimate=True,
        preprocess_resolution=40,
        seed=0,
    )
    return [trimesh.Trimesh(vertices, faces) for vertices, faces in found]


def _obj(mesh: trimesh.Trimesh, *, texture: bool = True) -> str:
    """The mesh as OBJ text in metres, with texture coordinates where it has them, without materials."""
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in mesh.vertices]
    uv = getattr(mesh.visual, "uv", None) if texture else None
    if uv is None:
        return "\n".join([*lines, *(f"f {a + 1} {b + 1} {c + 1}" for a, b, c in mesh.faces)]) + "\n"
    lines += [f"vt {u:.5f} {v:.5f}" for u, v in np.asarray(uv)]
    return "\n".join([*lines, *(f"f {a + 1}/{a + 1} {b + 1}/{b + 1} {c + 1}/{c + 1}" for a, b, c in mesh.faces)]) + "\n"
