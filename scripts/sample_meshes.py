"""Mesh work behind the sample objects: read an archive, bake one texture, decimate, write compact OBJ files."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Float, Int
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

PADDING_PIXELS = 4
"""Border around each cell of the atlas, so that texture filtering and JPEG blocks do not bleed into the neighbor."""


@dataclass
class TexturedMesh:
    """A triangle mesh with one texture: geometry is shared, texture coordinates belong to face corners."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    corner_uv: Float[np.ndarray, "f 3 2"]
    texture: Image.Image

    def geometry(self) -> trimesh.Trimesh:
        """The same triangles without texture."""
        return trimesh.Trimesh(self.vertices, self.faces, process=False)


def read_archive_model(archive: Path, model: str) -> list[trimesh.Trimesh]:
    """One mesh per material of the OBJ `model` inside the .sh3f (zip) `archive`, as authored: Y up, any unit."""
    with zipfile.ZipFile(archive) as opened:
        folder = model.rsplit("/", 1)[0]
        files = {
            name.removeprefix(folder + "/"): trimesh.util.wrap_as_stream(opened.read(name))
            for name in opened.namelist()
            if name.startswith(folder + "/") and not name.endswith("/")
        }
    source = files[model.rsplit("/", 1)[1]]
    resolver = trimesh.resolvers.ZipResolver(files)
    loaded = trimesh.load_scene(source, file_type="obj", resolver=resolver, process=False, split_object=False)
    return [mesh for mesh in loaded.geometry.values() if isinstance(mesh, trimesh.Trimesh)]


def bake_texture(parts: list[trimesh.Trimesh], size: int, recolor: dict[str, tuple[int, int, int]]) -> TexturedMesh:
    """Join the materials of a model into one mesh with one square texture of `size` pixels.

    Args:
        parts: one mesh per material.
        size: side of the baked texture, in pixels.
        recolor: material name to RGB, where the material's own color is missing or unusable.
    """
    textured = [part for part in parts if _image(part) is not None]
    cells = math.ceil(math.sqrt(len(parts)))
    if len(textured) == 1 and len(parts) > 1:
        # One picture and some plain colors: the picture gets the whole width and the colors a thin strip below it.
        strip = max(16, size // 16)
        boxes = {id(textured[0]): (0, 0, size, size - strip)}
        plain = [part for part in parts if part is not textured[0]]
        width = size // len(plain)
        boxes |= {id(part): (i * width, size - strip, (i + 1) * width, size) for i, part in enumerate(plain)}
    else:
        step = size // cells
        boxes = {
            id(part): (i % cells * step, i // cells * step, (i % cells + 1) * step, (i // cells + 1) * step)
            for i, part in enumerate(parts)
        }
    atlas = Image.new("RGB", (size, size))
    vertices, faces, corners, count = [], [], [], 0
    for part in parts:
        corners.append(_paste(part, atlas, boxes[id(part)], recolor))
        vertices.append(part.vertices)
        faces.append(part.faces + count)
        count += len(part.vertices)
    welded = trimesh.Trimesh(np.concatenate(vertices), np.concatenate(faces), process=False)
    unique, inverse = np.unique(np.round(welded.vertices / (1e-6 * welded.scale)), axis=0, return_inverse=True)
    positions = np.zeros((len(unique), 3))
    positions[inverse.ravel()] = welded.vertices
    joined = inverse.ravel()[welded.faces]
    uv = np.concatenate(corners)
    solid = (joined[:, 0] != joined[:, 1]) & (joined[:, 1] != joined[:, 2]) & (joined[:, 0] != joined[:, 2])
    return TexturedMesh(positions, joined[solid], uv[solid], atlas)


def _image(part: trimesh.Trimesh) -> Image.Image | None:
    material = getattr(part.visual, "material", None)
    image = getattr(material, "image", None)
    return image if getattr(part.visual, "uv", None) is not None else None


def _paste(
    part: trimesh.Trimesh,
    atlas: Image.Image,
    box: tuple[int, int, int, int],
    recolor: dict[str, tuple[int, int, int]],
) -> Float[np.ndarray, "f 3 2"]:
    """Draw one material into its box of the atlas; returns the corner coordinates in the atlas (v upwards)."""
    left, top, right, bottom = box
    material = part.visual.material  # pyright: ignore[reportAttributeAccessIssue]
    image = _image(part)
    name = getattr(material, "name", "")
    if image is None or name in recolor:
        color = recolor.get(name) or tuple(int(value) for value in material.main_color[:3])
        atlas.paste(color, box)
        center = np.array([(left + right) / 2 / atlas.width, 1 - (top + bottom) / 2 / atlas.height])
        return np.broadcast_to(center, (len(part.faces), 3, 2)).copy()
    uv = np.asarray(part.visual.uv)[part.faces]  # pyright: ignore[reportAttributeAccessIssue]
    # A repeating texture is drawn as often as the faces use it; each face moves by whole tiles first.
    uv = uv - np.floor(uv.mean(axis=1, keepdims=True))
    low = np.floor(uv.reshape(-1, 2).min(axis=0) + 1e-4)
    high = np.ceil(uv.reshape(-1, 2).max(axis=0) - 1e-4)
    if (high - low).max() > 6:
        raise SystemExit(f"The texture of '{name}' repeats {(high - low).astype(int)} times; bake it another way.")
    tiles = np.maximum(high - low, 1).astype(int)
    tile = np.asarray(image.convert("RGB"))
    width, height = right - left - 2 * PADDING_PIXELS, bottom - top - 2 * PADDING_PIXELS
    drawn = Image.fromarray(np.tile(tile, (tiles[1], tiles[0], 1))).resize((width, height), Image.Resampling.LANCZOS)
    padded = np.pad(np.asarray(drawn), ((PADDING_PIXELS,) * 2, (PADDING_PIXELS,) * 2, (0, 0)), mode="edge")
    atlas.paste(Image.fromarray(padded), (left, top))
    inside = (uv - low) / tiles
    pixels_x = left + PADDING_PIXELS + inside[..., 0] * width
    pixels_y = top + PADDING_PIXELS + (1 - inside[..., 1]) * height
    return np.stack((pixels_x / atlas.width, 1 - pixels_y / atlas.height), axis=-1)


def decimate(mesh: TexturedMesh, face_count: int, seed: int) -> TexturedMesh:
    """Reduce the triangles to about `face_count`, keeping the texture where it was on the surface.

    Texture coordinates jump at the borders of the texture's charts. Every new face therefore takes the chart of the
    original surface nearest to its center, and its three corners look up the nearest point of that chart.
    """
    if len(mesh.faces) <= face_count:
        return mesh
    import fast_simplification

    ratio = 1 - face_count / len(mesh.faces)
    vertices, faces = fast_simplification.simplify(mesh.vertices.astype(np.float32), mesh.faces, ratio)
    corners = vertices[faces].astype(np.float64)
    generator = np.random.default_rng(seed)
    sampled_faces, weights = _sample(mesh, 40 * len(mesh.faces), generator)
    points = np.einsum("nk,nkd->nd", weights, mesh.vertices[mesh.faces[sampled_faces]])
    uv = np.einsum("nk,nkd->nd", weights, mesh.corner_uv[sampled_faces])
    chart = _charts(mesh)[sampled_faces]
    centers = corners.mean(axis=1)
    face_chart = chart[cKDTree(points).query(centers)[1]]
    corner_uv = np.zeros((len(faces), 3, 2))
    for label in np.unique(face_chart):
        mine, members = face_chart == label, chart == label
        # Corners are pulled a little towards the center: a corner on a border must not read beyond it.
        wanted = 0.98 * corners[mine] + 0.02 * centers[mine][:, None]
        nearest = cKDTree(points[members]).query(wanted.reshape(-1, 3))[1]
        corner_uv[mine] = uv[members][nearest].reshape(-1, 3, 2)
    return TexturedMesh(vertices.astype(np.float64), np.asarray(faces), corner_uv, mesh.texture)


def _sample(
    mesh: TexturedMesh, count: int, generator: np.random.Generator
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 3"]]:
    """Faces and barycentric weights of points spread evenly over the surface, at least one per face."""
    area = mesh.geometry().area_faces
    drawn = generator.choice(len(area), size=count, p=area / area.sum())
    faces = np.concatenate((np.arange(len(area)), drawn))
    return faces, generator.dirichlet(np.ones(3), size=len(faces))


def _charts(mesh: TexturedMesh) -> Int[np.ndarray, " f"]:
    """Label of the texture chart of every face: faces that share a vertex with the same texture coordinate."""
    keys = np.concatenate((mesh.faces.reshape(-1, 1), np.round(mesh.corner_uv.reshape(-1, 2) * 1e5)), axis=1)
    corner = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1, 3)
    rows = np.concatenate((corner[:, 0], corner[:, 1]))
    columns = np.concatenate((corner[:, 1], corner[:, 2]))
    count = int(corner.max()) + 1
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1][corner[:, 0]]


def write_textured(mesh: TexturedMesh, obj: Path) -> None:
    """Write vertices (to 10 micrometers), texture coordinates and faces as an OBJ file without materials."""
    uv, index = np.unique(np.round(mesh.corner_uv.reshape(-1, 2), 4), axis=0, return_inverse=True)
    index = index.reshape(-1, 3)
    used, faces = np.unique(mesh.faces, return_inverse=True)
    faces = faces.reshape(-1, 3)
    lines = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in mesh.vertices[used]]
    lines += [f"vt {u:.4f} {v:.4f}" for u, v in uv]
    lines += [
        "f " + " ".join(f"{v + 1}/{t + 1}" for v, t in zip(face, texture, strict=True))
        for face, texture in zip(faces, index, strict=True)
    ]
    obj.write_text("\n".join(lines) + "\n", encoding="ascii")


def write_plain(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], obj: Path) -> None:
    """Write a collision piece as an OBJ file."""
    lines = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in vertices]
    lines += ["f " + " ".join(str(v + 1) for v in face) for face in faces]
    obj.write_text("\n".join(lines) + "\n", encoding="ascii")


def jpeg_bytes(image: Image.Image, quality: int) -> bytes:
    """A JPEG without color subsampling, which would smear the small color cells of an atlas."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
