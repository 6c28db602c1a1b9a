"""Recipes of the sample objects: which model of Debian's `sweethome3d-furniture` becomes which toy, and how."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from sample_meshes import (
    TexturedMesh,
    bake_texture,
    decimate,
    jpeg_bytes,
    read_archive_model,
    write_plain,
    write_textured,
)
from sample_tools import base_plate, make_tool

CC0 = "CC0-1.0"
CC_BY = "CC-BY-3.0"
CC_BY_US = "CC-BY-3.0-US"
LICENSE_URLS = {
    CC0: "https://creativecommons.org/publicdomain/zero/1.0/",
    CC_BY: "https://creativecommons.org/licenses/by/3.0/",
    CC_BY_US: "https://creativecommons.org/licenses/by/3.0/us/",
}
SCOPIA = "Scopia Visual Interfaces Systems, s.l. (http://www.scopia.es) and Emmanuel PUYBARET / eTeks"
GENERATED = "generated"
"""Instead of an archive: the model is made by `sample_tools`."""
MAX_PIECES = 12
COLLISION_THRESHOLD = 0.05

Box = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Recipe:
    """How one model becomes one sample object."""

    name: str
    """Folder name of the object."""
    archive: str
    """Archive of the package, without `.sh3f`."""
    model: str
    """Path of the OBJ file inside the archive."""
    family: str
    """What it is grasped like: quadruped, bear, hammer, mug, bottle, ..."""
    size: tuple[int, float]
    """Axis of the object frame (0, 1, 2) and its extent in meters; the other axes scale along."""
    mass: float
    """Kilograms."""
    license: str
    creator: str
    title: str
    """What the creator called the model."""
    turn: tuple[tuple[str, float], ...] = ()
    """Rotations in degrees about object axes after z is up, so that animals look along +x and tools lie flat."""
    parts: dict[str, Box] = field(default_factory=dict)
    """Named regions as (low, high) corners, in fractions of the bounding box."""
    faces: int = 5000
    texture: int = 512
    recolor: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    base: bool = False
    """A plate under its feet, for figurines that do not stand on them."""
    ballast: dict[str, Any] = field(default_factory=dict)
    """A weight inside (`position` in meters, `mass` in kilograms before scaling), for toys that must sit upright."""
    source: str = ""
    """Where the creator published it, where that is known."""


LOOK_ALONG_X = (("z", 90.0),)
"""The animals of these archives look along -y once z is up."""

RECIPES = (
    Recipe(
        "horse",
        "BlendSwap-CC-BY",
        "blendswap-cc-by/horse/horse.obj",
        "quadruped",
        (2, 0.15),
        0.09,
        CC_BY,
        "B2przemo",
        "Horse",
        LOOK_ALONG_X,
        {"back": ((0.15, 0.0, 0.5), (0.55, 1.0, 0.8))},
    ),
    Recipe(
        "deer",
        "BlendSwap-CC-0",
        "blendswap-cc-0/deer/deer.obj",
        "quadruped",
        (2, 0.18),
        0.07,
        CC0,
        "Sizzler",
        "Reindeer Figurine",
        LOOK_ALONG_X,
        {"back": ((0.05, 0.05, 0.35), (0.55, 0.95, 0.7))},
        faces=6500,
    ),
    Recipe(
        "bulldog",
        "BlendSwap-CC-BY",
        "blendswap-cc-by/bulldog/bulldog.obj",
        "quadruped",
        (2, 0.12),
        0.09,
        CC_BY,
        "Priide",
        "Bulldog",
        LOOK_ALONG_X,
        {"back": ((0.1, 0.13, 0.45), (0.45, 0.78, 0.85))},
    ),
    Recipe(
        "cat",
        "BlendSwap-CC-BY",
        "blendswap-cc-by/siameseCat/siameseCat.obj",
        "quadruped",
        (2, 0.14),
        0.08,
        CC_BY,
        "Gwinna",
        "Siamese cat",
        LOOK_ALONG_X,
        {"back": ((0.35, 0.0, 0.45), (0.65, 1.0, 0.82))},
    ),
    Recipe(
        "teddy",
        "BlendSwap-CC-0",
        "blendswap-cc-0/teddyBear/teddyBear.obj",
        "bear",
        (2, 0.13),
        0.06,
        CC0,
        "Manitislate",
        "Teddy bear",
        LOOK_ALONG_X,
        {
            "head": ((0.0, 0.15, 0.55), (0.7, 0.85, 1.0)),
            "back": ((0.0, 0.25, 0.15), (0.55, 0.75, 0.6)),
            "right_arm": ((0.15, 0.0, 0.22), (0.85, 0.3, 0.6)),
        },
    ),
    Recipe(
        "hammer",
        "Scopia",
        "scopia/marteau/marteau.obj",
        "hammer",
        (0, 0.26),
        0.07,  # as if 3D-printed, like the tools of the paper
        CC_BY,
        SCOPIA,
        "Hammer",
        (),
        {"handle": ((0.2, 0.3, 0.0), (1.0, 0.65, 1.0)), "head": ((0.0, 0.0, 0.0), (0.2, 1.0, 1.0))},
    ),
    Recipe(
        "mug",
        "KatorLegaz",
        "katorlegaz/coffee-mug/coffee-mug.obj",
        "mug",
        (2, 0.095),
        0.10,
        CC_BY_US,
        "Andrew Kator & Jennifer Legaz",
        "Coffee mug",
        (),
        {"handle": ((0.3, 0.0, 0.1), (0.7, 0.3, 0.9))},
    ),
    Recipe(
        "wine_bottle",
        "Scopia",
        "scopia/wine_bottle/wine_bottle.obj",
        "bottle",
        (2, 0.20),
        0.12,
        CC_BY,
        SCOPIA,
        "Wine bottle",
        (),
        {"neck": ((0.25, 0.25, 0.65), (0.75, 0.75, 1.0))},
        faces=7000,
    ),
    Recipe(
        "medicine_bottle",
        "Scopia",
        "scopia/medicoscopia_bottle/medicoscopia_bottle.obj",
        "bottle",
        (2, 0.09),
        0.08,
        CC_BY,
        SCOPIA,
        "Medicine bottle",
        (),
        {"cap": ((0.2, 0.2, 0.75), (0.8, 0.8, 1.0))},
    ),
    Recipe(
        "milk",
        "BlendSwap-CC-0",
        "blendswap-cc-0/tetrapak/tetrapak.obj",
        "box",
        (2, 0.16),
        0.12,
        CC0,
        "Tastykle3d & eTeks",
        "Milk",
        faces=5500,
    ),
    Recipe(
        "chicken",
        "BlendSwap-CC-0",
        "blendswap-cc-0/chicken/chicken.obj",
        "bird",
        (2, 0.12),
        0.06,
        CC0,
        "CDmir230",
        "Chicken",
        LOOK_ALONG_X,
        {"back": ((0.15, 0.1, 0.35), (0.65, 0.9, 0.75))},
    ),
    Recipe(
        "cupcake",
        "BlendSwap-CC-0",
        "blendswap-cc-0/cupcake/cupcake.obj",
        "cake",
        (2, 0.075),
        0.06,
        CC0,
        "Dvachib",
        "Cup cake",
    ),
    Recipe(
        "mare",
        "BlendSwap-CC-0",
        "blendswap-cc-0/horse2/horse2.obj",
        "quadruped",
        (2, 0.15),
        0.09,
        CC0,
        "Twin97",
        "Horse",
        LOOK_ALONG_X,
        {"back": ((0.2, 0.0, 0.5), (0.58, 1.0, 0.85))},
        base=True,
    ),
    Recipe(
        "dog",
        "Scopia",
        "scopia/dog/dog.obj",
        "quadruped",
        (2, 0.15),
        0.09,
        CC_BY,
        SCOPIA,
        "Dog",
        LOOK_ALONG_X,
        {"back": ((0.1, 0.05, 0.35), (0.6, 0.95, 0.72))},
    ),
    Recipe(
        "rabbit",
        "Scopia",
        "scopia/rabbit/rabbit.obj",
        "quadruped",
        (2, 0.16),
        0.08,
        CC_BY,
        SCOPIA,
        "Rabbit",
        LOOK_ALONG_X,
        {"back": ((0.1, 0.05, 0.28), (0.6, 0.95, 0.68))},
    ),
    Recipe(
        "tomcat",
        "Scopia",
        "scopia/cat/cat.obj",
        "quadruped",
        (2, 0.15),
        0.08,
        CC_BY,
        SCOPIA,
        "Cat",
        LOOK_ALONG_X,
        {"back": ((0.1, 0.05, 0.35), (0.65, 0.95, 0.75))},
    ),
    Recipe(
        "doll",
        "Scopia",
        "scopia/doll/doll.obj",
        "bear",
        (2, 0.16),
        0.07,
        CC_BY,
        SCOPIA,
        "Doll",
        LOOK_ALONG_X,
        {
            "head": ((0.0, 0.2, 0.65), (0.6, 0.8, 1.0)),
            "back": ((0.0, 0.25, 0.1), (0.5, 0.75, 0.62)),
            "right_arm": ((0.1, 0.0, 0.2), (0.85, 0.3, 0.65)),
        },
        ballast={"position": [0.01, 0.0, 0.015], "mass": 0.1},
    ),
    Recipe(
        "screwdriver",
        "Scopia",
        "scopia/tournevis/tournevis.obj",
        "hammer",
        (0, 0.24),
        0.05,  # as if 3D-printed, like the tools of the paper
        CC_BY,
        SCOPIA,
        "Screwdriver",
        (),
        {"handle": ((0.55, 0.0, 0.0), (1.0, 1.0, 1.0))},
    ),
    Recipe(
        "bat",
        "BlendSwap-CC-BY",
        "blendswap-cc-by/tableTennisBat/tableTennisBat.obj",
        "hammer",
        (0, 0.26),
        0.06,  # as if 3D-printed, like the tools of the paper
        CC_BY,
        "BrunoMatheus",
        "Table tennis bat",
        (("z", 90.0),),
        {"handle": ((0.58, 0.2, 0.0), (1.0, 0.8, 1.0))},
    ),
    Recipe(
        "mallet",
        GENERATED,
        "mallet",
        "hammer",
        (0, 0.25),
        0.07,  # as if 3D-printed, like the tools of the paper
        CC0,
        "the Afield authors",
        "Mallet",
        (),
        {"handle": ((0.3, 0.0, 0.0), (1.0, 1.0, 1.0))},
    ),
    Recipe(
        "sledge",
        GENERATED,
        "sledge",
        "hammer",
        (0, 0.235),
        0.08,  # as if 3D-printed, like the tools of the paper
        CC0,
        "the Afield authors",
        "Sledge hammer",
        (),
        {"handle": ((0.32, 0.0, 0.0), (1.0, 1.0, 1.0))},
    ),
    Recipe(
        "axe",
        GENERATED,
        "axe",
        "hammer",
        (0, 0.26),
        0.07,  # as if 3D-printed, like the tools of the paper
        CC0,
        "the Afield authors",
        "Axe",
        (),
        {"handle": ((0.35, 0.0, 0.0), (1.0, 1.0, 1.0))},
    ),
)


def build_object(recipe: Recipe, archives: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Write the object folder of one recipe (see `docs/captures.md` for its files) and return its description."""
    if recipe.archive == GENERATED:
        parts = make_tool(recipe.model)
    else:
        parts = read_archive_model(archives / f"{recipe.archive}.sh3f", recipe.model)
    if recipe.base:
        parts.append(base_plate(parts))
    mesh = decimate(bake_texture(parts, recipe.texture, recipe.recolor), recipe.faces, seed)
    mesh.vertices = _upright(mesh.vertices, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    write_textured(mesh, folder / "visual.obj")
    (folder / "texture.jpg").write_bytes(jpeg_bytes(mesh.texture, quality=88))
    pieces = _write_collision(mesh, folder, seed)
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    description = {
        "name": recipe.name,
        "visual": "visual.obj",
        "texture": "texture.jpg",
        "collision": pieces,
        "mass": recipe.mass,
        "friction": 1.0,
        "family": recipe.family,
        "size": np.round(high - low, 4).tolist(),
        "parts": {name: _part(box, low, high) for name, box in recipe.parts.items()},
        **({"ballast": recipe.ballast} if recipe.ballast else {}),
        "license": recipe.license,
        "attribution": f"'{recipe.title}' by {recipe.creator}",
        "source": _source(recipe),
        "changes": "scaled to a toy, turned upright, materials joined into one texture"
        + (", fewer triangles" if len(mesh.faces) < sum(len(part.faces) for part in parts) else "")
        + "; convex collision pieces added",
    }
    (folder / "object.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description


def _source(recipe: Recipe) -> str:
    if recipe.archive == GENERATED:
        return "scripts/sample_tools.py"
    published = f"; published at {recipe.source}" if recipe.source else ""
    return f"Debian package sweethome3d-furniture, {recipe.archive}.sh3f: {recipe.model}{published}"


def _upright(vertices: Float[np.ndarray, "v 3"], recipe: Recipe) -> Float[np.ndarray, "v 3"]:
    """Object frame: meters, z up, origin at the center of the bottom of the bounding box."""
    turned = np.stack((vertices[:, 0], -vertices[:, 2], vertices[:, 1]), axis=1)
    for axis, degrees in recipe.turn:
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        rotation = np.eye(3)
        rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = cosine, -sine, sine, cosine
        turned = turned @ rotation.T
    axis_index, extent = recipe.size
    turned = turned * (extent / np.ptp(turned[:, axis_index]))
    low, high = turned.min(axis=0), turned.max(axis=0)
    return turned - np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])


def _write_collision(mesh: TexturedMesh, folder: Path, seed: int) -> list[str]:
    """Decompose the surface into at most `MAX_PIECES` convex pieces (CoACD) and write each beside the visual mesh."""
    import coacd

    coacd.set_log_level("error")
    used, faces = np.unique(mesh.faces, return_inverse=True)
    vertices = mesh.vertices[used]
    pieces = coacd.run_coacd(
        coacd.Mesh(vertices, faces.reshape(-1, 3)),
        threshold=COLLISION_THRESHOLD,
        max_convex_hull=MAX_PIECES,
        preprocess_mode="on",
        preprocess_resolution=40,
        decimate=True,
        max_ch_vertex=48,
        mcts_iterations=40,
        mcts_nodes=12,
        seed=seed,
    )
    for old in folder.glob("collision_*.obj"):
        old.unlink()
    names = [f"collision_{index:02d}.obj" for index in range(len(pieces))]
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    for name, (piece_vertices, piece_faces) in zip(names, pieces, strict=True):
        # The remeshing before the decomposition swells the surface a little; the feet must stand where they are seen.
        write_plain(np.clip(piece_vertices, low, high), piece_faces, folder / name)
    return names


def _part(box: Box, low: Float[np.ndarray, 3], high: Float[np.ndarray, 3]) -> dict[str, list[float]]:
    corners = low + np.array(box) * (high - low)
    center, size = corners.mean(axis=0), np.ptp(corners, axis=0)
    return {"center": np.round(center, 4).tolist(), "size": np.round(size, 4).tolist()}
