"""A skinned human hand with a sleeve, bent into a few shapes: whoever demonstrates in the rendered videos.

The mesh is the right `generic-hand` of the npm package `@webxr-input-profiles/assets` (MIT, see samples/hand). It lies with the
fingers along -y, the palm towards -x and the thumb towards -z; the origin is near the middle of the palm. Metres.
"""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import functools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation

from afield.errors import AfieldError

HAND_FILE = Path(__file__).parents[1] / "samples" / "hand" / "right.glb"
FINGERS = ("index", "middle", "ring", "pinky")
PALM = np.array([-1.0, 0.0, 0.0])
"""Direction into which the palm looks."""


@dataclass(frozen=True)
class HandShape:
    """How far the joints are bent from the flat hand, in degrees."""

    knuckle: float = 0.0
    """Between palm and fingers."""
    middle: float = 0.0
    """The second joints; the last ones bend by two thirds of it."""
    thumb: float = 0.0
    """How far the thumb turns across the palm."""
    thumb_bend: float = 0.0
    """The thumb's own joints."""


OPEN = HandShape(8.0, 12.0, 5.0, 5.0)
GRIP = HandShape(22.0, 72.0, 30.0, 22.0)
"""Fingers hooked behind a bar, the thumb before it."""
PUSH = HandShape(14.0, 22.0, 22.0, 20.0)
"""Slightly bent fingers that push with their tips."""
CUP = HandShape(30.0, 34.0, 22.0, 14.0)
"""Around something as thick as a cup."""


def blend(first: HandShape, second: HandShape, share: float) -> HandShape:
    """A shape between two; `share` 0 is the first."""
    names = ("knuckle", "middle", "thumb", "thumb_bend")
    return HandShape(*((1 - share) * getattr(first, n) + share * getattr(second, n) for n in names))


@dataclass(frozen=True)
class HandMesh:
    """Triangles of the bent hand, and its joints, in the hand's frame in metres."""

    vertices: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    touching: Bool[np.ndarray, "v"]
    """The palmar side of fingers and thumb: with what a hand touches."""
    joints: dict[str, Float[np.ndarray, "3"]]
    """Position of every joint and fingertip by its WebXR name, e.g. `index-finger-tip`."""

    @property
    def pads(self) -> Float[np.ndarray, "5 3"]:
        """The five fingertips, thumb first."""
        return np.stack([self.joints["thumb-tip"], *(self.joints[f"{name}-finger-tip"] for name in FINGERS)])

    @property
    def grip(self) -> Float[np.ndarray, "3"]:
        """The middle of what the hand closes around: between the thumb's tip and those of index and middle finger."""
        return (self.pads[0] + self.pads[1:3].mean(axis=0)) / 2


def bend_hand(shape: HandShape) -> HandMesh:
    """The hand in a shape, by linear blend skinning."""
    rest = _rest()
    moved = {name: np.eye(4) for name in rest.names}
    places = dict(zip(rest.names, rest.places, strict=True))
    for finger in FINGERS:
        chain = [f"{finger}-finger-{part}" for part in ("phalanx-proximal", "phalanx-intermediate", "phalanx-distal")]
        tip = f"{finger}-finger-tip"
        along = places[tip] - places[chain[0]]
        axis = np.cross(along / np.linalg.norm(along), PALM)
        _bend(moved, places, [*chain, tip], axis, (shape.knuckle, shape.middle, shape.middle * 2 / 3))
    thumb = ["thumb-metacarpal", "thumb-phalanx-proximal", "thumb-phalanx-distal", "thumb-tip"]
    # The thumb turns about the length of the hand until it faces the fingers, and bends towards their tips.
    _bend(moved, places, thumb, np.array([0.0, 1.0, 0.0]), (shape.thumb, 0.0, 0.0))
    inwards = np.cross(places["thumb-tip"] - places["thumb-metacarpal"], np.array([-0.25, 0.0, 1.0]))
    turned = moved["thumb-metacarpal"][:3, :3] @ inwards / np.linalg.norm(inwards)
    _bend(moved, places, thumb, turned, (0.0, shape.thumb_bend, shape.thumb_bend))
    matrices = np.stack([moved[name] for name in rest.names])
    blended = np.einsum("vk,vkij->vij", rest.weights, matrices[rest.joints])
    vertices = np.einsum("vij,vj->vi", blended[:, :3, :3], rest.vertices) + blended[:, :3, 3]
    normals = np.einsum("vij,vj->vi", blended[:, :3, :3], rest.normals)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    joints = {name: moved[name][:3, :3] @ places[name] + moved[name][:3, 3] for name in rest.names}
    return HandMesh(vertices, normals, rest.faces, _palmar(rest), joints)


def _palmar(rest: _Rest) -> Bool[np.ndarray, "v"]:
    """Vertices that hang on a finger's bones beyond the palm and do not look backwards."""
    fingers = np.array([("phalanx" in name or "tip" in name) for name in rest.names])
    share = (rest.weights * fingers[rest.joints]).sum(axis=1)
    thumb = np.array([name.startswith("thumb") for name in rest.names])
    of_thumb = (rest.weights * thumb[rest.joints]).sum(axis=1) > 0.5
    palmar = np.where(of_thumb, rest.normals @ np.array([-0.6, 0.0, 0.8]), rest.normals @ PALM)
    return (share > 0.6) & (palmar > -0.2)


def sleeve() -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], float]:
    """Both ends and the radius of the forearm, which begins at the wrist."""
    wrist = dict(zip(_rest().names, _rest().places, strict=True))["wrist"]
    return wrist + np.array([-0.008, 0.035, 0.0]), wrist + np.array([0.06, 0.75, 0.0]), 0.034


def _bend(
    moved: dict[str, np.ndarray],
    places: dict[str, np.ndarray],
    chain: list[str],
    axis: np.ndarray,
    degrees: tuple[float, float, float],
) -> None:
    """Turn each joint of a chain, with all that follows it, about an axis that the joints before have turned as well."""
    for index, angle in enumerate(degrees):
        if angle == 0.0:
            continue
        before = moved[chain[index]]
        pivot = before[:3, :3] @ places[chain[index]] + before[:3, 3]
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_rotvec(math.radians(angle) * axis).as_matrix()
        turn[:3, 3] = pivot - turn[:3, :3] @ pivot
        for name in chain[index:]:
            moved[name] = turn @ moved[name]


@dataclass(frozen=True)
class _Rest:
    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    joints: np.ndarray
    weights: np.ndarray
    names: list[str]
    places: np.ndarray


@functools.cache
def _rest() -> _Rest:
    """The mesh as it lies in the file; its joints' transforms are those of the bind pose."""
    try:
        raw = HAND_FILE.read_bytes()
    except OSError as error:
        raise AfieldError(f"Cannot read the hand {HAND_FILE}: {error.strerror}; reinstall afield.") from error
    length = struct.unpack("<I", raw[12:16])[0]
    description, data = json.loads(raw[20 : 20 + length]), raw[28 + length :]

    def array(index: int) -> np.ndarray:
        """An accessor of the glTF file as rows."""
        accessor = description["accessors"][index]
        view = description["bufferViews"][accessor["bufferView"]]
        kind = {5126: np.float32, 5121: np.uint8, 5123: np.uint16}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
        found = np.frombuffer(data, kind, accessor["count"] * width, view.get("byteOffset", 0))
        return found.reshape(-1, width)

    parts = description["meshes"][0]["primitives"][0]
    names = [description["nodes"][node]["name"] for node in description["skins"][0]["joints"]]
    places = np.array([description["nodes"][node]["translation"] for node in description["skins"][0]["joints"]])
    weights = array(parts["attributes"]["WEIGHTS_0"]).astype(float)
    return _Rest(
        array(parts["attributes"]["POSITION"]).astype(float),
        array(parts["attributes"]["NORMAL"]).astype(float),
        array(parts["indices"]).reshape(-1, 3).astype(int),
        array(parts["attributes"]["JOINTS_0"]).astype(int),
        weights / weights.sum(axis=1, keepdims=True),
        names,
        places,
    )
