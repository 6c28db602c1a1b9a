"""The hand as one light triangle mesh that can be posed anywhere, also inside a browser."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from afield.hand import Hand


@dataclass(frozen=True)
class HandMesh:
    """All links of a hand in one mesh; each vertex belongs to one link and is given in that link's frame."""

    vertices_link: Float[Tensor, "v 3"]
    """Vertices in their link's frame, in metres."""
    link: Int[Tensor, "v"]
    """Link of each vertex, an index into `Hand.link_names`."""
    faces: Int[Tensor, "f 3"]
    """Triangles of the hand proper."""
    arm_faces: Int[Tensor, "g 3"]
    """Triangles of links that reach far beyond the palm, such as a forearm; drawn faintly or not at all."""

    def pose(self, poses: Float[Tensor, "*batch l 4 4"]) -> Float[Tensor, "*batch v 3"]:
        """Vertices in the world, for the link poses of `Hand.link_poses`."""
        chosen = poses[..., self.link, :, :]
        return (chosen[..., :3, :3] @ self.vertices_link[:, :, None])[..., 0] + chosen[..., :3, 3]


def hand_mesh(hand: Hand, cell: float = 0.003) -> HandMesh:
    """The visual meshes of a hand, simplified so that details below `cell` metres vanish.

    Vertices of a link that share a cubic cell become one vertex, their mean. Cruder than edge collapse, but it needs no
    further package and cannot fail; it keeps a Shadow hand below 10 000 triangles.
    """
    with torch.no_grad():
        poses = hand.link_poses(hand.join(torch.eye(4).to(hand.palm_center), hand.neutral())).cpu().double().numpy()
    vertices, links, faces, reach, count = [], [], [], [], 0
    for link, mesh in enumerate(hand.meshes()):
        kept, triangles = _cluster(np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces), cell)
        vertices.append(kept)
        links.append(np.full(len(kept), link))
        faces.append(triangles + count)
        away = kept @ poses[link, :3, :3].T + poses[link, :3, 3] - hand.palm_center.cpu().numpy()
        reach.append(float(np.linalg.norm(away, axis=1).max(initial=0.0)))
        count += len(kept)
    arm = _arm_links(hand, reach)
    return HandMesh(
        torch.from_numpy(np.concatenate(vertices)).float(),
        torch.from_numpy(np.concatenate(links)).long(),
        _gather([part for link, part in enumerate(faces) if link not in arm]),
        _gather([part for link, part in enumerate(faces) if link in arm]),
    )


def _arm_links(hand: Hand, reach: list[float]) -> set[int]:
    """Links that are no finger's and reach a third farther from the palm than the longest finger."""
    fingers = {body for bodies in hand.description.fingers.values() for body in bodies}
    longest = max((r for r, name in zip(reach, hand.link_names, strict=True) if name in fingers), default=np.inf)
    return {link for link, name in enumerate(hand.link_names) if name not in fingers and reach[link] > 1.33 * longest}


def _gather(parts: list[Int[np.ndarray, "_ 3"]]) -> Int[Tensor, "f 3"]:
    return torch.from_numpy(np.concatenate([np.zeros((0, 3), dtype=np.int64), *parts])).long()


def _cluster(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], cell: float
) -> tuple[Float[np.ndarray, "w 3"], Int[np.ndarray, "g 3"]]:
    """Merge the vertices of each cell; drop triangles that lose their area, and doubles."""
    if not len(vertices):
        return vertices.reshape(0, 3), faces.reshape(0, 3)
    _, owner, size = np.unique(
        np.floor(vertices / cell).astype(np.int64), axis=0, return_inverse=True, return_counts=True
    )
    owner = owner.reshape(-1)
    merged = np.stack([np.bincount(owner, weights=vertices[:, axis]) for axis in range(3)], axis=1) / size[:, None]
    triangles = owner[faces]
    a, b, c = triangles.T
    triangles = triangles[(a != b) & (b != c) & (a != c)]
    _, first = np.unique(np.sort(triangles, axis=1), axis=0, return_index=True)
    return merged, triangles[np.sort(first)]
