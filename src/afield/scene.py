"""`Scene`: what an observation becomes, a set of points with features; and what can be said about points alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from afield.artifacts import load_artifact, write_artifact_files, write_folder
from afield.errors import AfieldError


@dataclass(frozen=True)
class FeatureSource:
    """Where features come from. Features of different sources cannot be compared."""

    extractor: str
    """Name of the feature extractor."""
    layer: int
    """The block whose output was taken."""
    resolution: int
    """Side of the crops in pixels."""
    span: float
    """Side of the crops in metres at the scene's distance; one image scale for all scenes."""

    @classmethod
    def from_header(cls, header: Mapping[str, Any], where: str) -> FeatureSource:
        """Read it from an artifact's header."""
        try:
            return cls(**{f.name: header["source"][f.name] for f in fields(cls)})
        except (KeyError, TypeError) as error:
            raise AfieldError(f"{where} does not say where its features come from (lacks {error}).") from error

    def __str__(self) -> str:
        return f"{self.extractor}, layer {self.layer}, {self.resolution} px, {self.span:g} m"


@dataclass(frozen=True)
class Plane:
    """A plane: all points x with normal . x = offset."""

    normal: Float[Tensor, "3"]
    """Unit vector; of a table it points up."""
    offset: float
    """Metres along the normal."""

    def height(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """Signed distance of points from the plane in metres, positive above it."""
        return points @ self.normal.to(points) - self.offset


@dataclass(frozen=True)
class Views:
    """What every camera alone said about a scene's points, before the fusion; SparseDFF's refinement learns from it."""

    features: Float[Tensor, "v n c"]
    """Unit vectors, in half precision."""
    weight: Float[Tensor, "v n"]
    """How much a view's word counts; sums to one over the views, next to zero where a view does not see the point."""

    def select(self, keep: Bool[Tensor, "n"] | Int[Tensor, "k"]) -> Views:
        """The same for only some of the points."""
        return Views(self.features[:, keep], self.weight[:, keep])


@dataclass(frozen=True)
class Scene:
    """Points with features, in the world frame."""

    points: Float[Tensor, "n 3"]
    """Metres, world frame."""
    features: Float[Tensor, "n c"]
    """Unit vectors."""
    colors: Float[Tensor, "n 3"]
    """RGB, 0 to 1."""
    normals: Float[Tensor, "n 3"]
    """Unit vectors that point out of the surface, towards the cameras."""
    source: FeatureSource
    """Where the features come from."""
    table: Plane | None = None
    """The supporting plane, where one was seen."""
    name: str = "scene"
    views: Views | None = None
    """The features before fusion, where they are known."""

    def select(self, keep: Bool[Tensor, "n"] | Int[Tensor, "k"]) -> Scene:
        """The scene with only some of its points."""
        return replace(
            self,
            points=self.points[keep],
            features=self.features[keep],
            colors=self.colors[keep],
            normals=self.normals[keep],
            views=self.views and self.views.select(keep),
        )

    def with_features(self, features: Float[Tensor, "n d"]) -> Scene:
        """The same points with other features."""
        return replace(self, features=features)

    def to(self, device: torch.device | str) -> Scene:
        """The scene on another device."""
        table = self.table and Plane(self.table.normal.to(device), self.table.offset)
        return replace(
            self,
            points=self.points.to(device),
            features=self.features.to(device),
            colors=self.colors.to(device),
            normals=self.normals.to(device),
            table=table,
            views=self.views and Views(self.views.features.to(device), self.views.weight.to(device)),
        )

    def save(self, folder: Path) -> None:
        """Write the scene as an artifact folder."""
        write_folder(folder, self.write_files)

    def write_files(self, folder: Path) -> None:
        """Write the files into an existing folder; for use inside `write_folder`."""
        tensors = {"points": self.points, "features": self.features, "colors": self.colors, "normals": self.normals}
        if self.views is not None:
            tensors |= {"view_features": self.views.features, "view_weight": self.views.weight}
        table = self.table and {"normal": self.table.normal.tolist(), "offset": self.table.offset}
        header = {"name": self.name, "frame": "world, +Z up", "source": asdict(self.source), "table": table}
        write_artifact_files(folder, "scene", tensors, header)

    @classmethod
    def load(cls, folder: Path) -> Scene:
        """Read a scene back."""
        tensors, header = load_artifact(folder, "scene", ("points", "features", "colors", "normals"))
        count = len(tensors["points"])
        views = _views_of(tensors, folder)
        for name, tensor in tensors.items():
            if tensor.ndim != 2 or len(tensor) != count:
                raise AfieldError(f"{folder}: '{name}' has shape {tuple(tensor.shape)}, but there are {count} points.")
        table = header.get("table")
        return cls(
            **{name: tensors[name] for name in ("points", "features", "colors", "normals")},
            source=FeatureSource.from_header(header, str(folder)),
            table=Plane(torch.tensor(table["normal"]), table["offset"]) if table else None,
            name=header.get("name", "scene"),
            views=views,
        )


def _views_of(tensors: dict[str, Tensor], folder: Path) -> Views | None:
    """Take the views out of a scene's tensors, if it has any."""
    features, weight = tensors.pop("view_features", None), tensors.pop("view_weight", None)
    if features is None or weight is None:
        return None
    if features.ndim != 3 or features.shape[:2] != weight.shape or weight.shape[1] != len(tensors["points"]):
        raise AfieldError(
            f"{folder}: 'view_features' {tuple(features.shape)} and 'view_weight' {tuple(weight.shape)} do not fit "
            f"{len(tensors['points'])} points."
        )
    return Views(features, weight)


def check_same_source(first: Scene, second: Scene) -> None:
    """Refuse to compare scenes whose features come from different extractors, layers or scales."""
    if first.source != second.source:
        raise AfieldError(
            f"The features of '{first.name}' ({first.source}) and '{second.name}' ({second.source}) cannot be "
            "compared; describe both scenes with the same extractor, layer, resolution and span."
        )


def check_one_source(scenes: Sequence[Scene]) -> None:
    """Refuse a set of scenes with features of different sources."""
    for scene in scenes[1:]:
        check_same_source(scenes[0], scene)


def farthest_points(points: Float[Tensor, "n 3"], count: int, seed: int = 0) -> Int[Tensor, "k"]:
    """Indices of `count` well-spread points: each next one is the farthest from those chosen before.

    Args:
        points: in metres.
        count: how many; at most n are returned.
        seed: chooses the first point.
    """
    count = min(count, len(points))
    chosen = torch.empty(count, dtype=torch.long, device=points.device)
    first = torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(seed))
    distance = torch.full((len(points),), torch.inf, device=points.device, dtype=points.dtype)
    latest = first.to(points.device)[0]
    for index in range(count):
        chosen[index] = latest
        distance = torch.minimum(distance, (points - points[latest]).square().sum(dim=-1))
        latest = distance.argmax()
    return chosen


def find_plane(
    points: Float[Tensor, "n 3"], *, seed: int = 0, tolerance: float = 0.006, trials: int = 512
) -> tuple[Plane, Bool[Tensor, "n"]] | None:
    """The horizontal plane with most points, by RANSAC.

    Args:
        points: metres, world frame with +Z up.
        seed: of the trials.
        tolerance: distance in metres up to which a point belongs to a plane.
        trials: number of random triples of points.

    Returns:
        The plane, with its normal up, and which points belong to it; None if no plane within 30 degrees of the
        horizontal holds a tenth of the points.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = points[torch.randint(len(points), (min(len(points), 8192),), generator=generator)]
    triple = sample[torch.randint(len(sample), (trials, 3), generator=generator)]
    normal = torch.linalg.cross(triple[:, 1] - triple[:, 0], triple[:, 2] - triple[:, 0])
    normal = functional.normalize(normal, dim=-1)
    normal = normal * torch.where(normal[:, 2:] < 0, -1.0, 1.0)
    offset = (normal * triple[:, 0]).sum(dim=-1)
    count = ((sample @ normal.T - offset).abs() < tolerance).sum(dim=0)
    count = torch.where(normal[:, 2] > 0.866, count, 0)
    best = int(count.argmax())
    if int(count[best]) < 0.1 * len(sample):
        return None
    plane = Plane(normal[best], float(offset[best]))
    for _ in range(3):  # least squares over the plane's own points
        member = plane.height(points).abs() < tolerance
        center = points[member].mean(dim=0)
        offsets = (points[member] - center)[:: max(1, int(member.sum()) // 20_000)]
        _, _, axes = torch.linalg.svd(offsets, full_matrices=False)
        up = axes[2] * torch.sign(axes[2, 2])
        plane = Plane(up, float(up @ center))
    return plane, plane.height(points).abs() < tolerance


def inliers(points: Float[Tensor, "n 3"], neighbours: int, limit: float) -> Bool[Tensor, "n"]:
    """Points whose mean distance to their neighbours is not unusually large."""
    distance, _ = KDTree(points.numpy()).query(points.numpy(), k=neighbours + 1, workers=-1)
    mean = torch.from_numpy(distance[:, 1:].mean(axis=1))
    median = mean.median()
    deviation = 1.4826 * (mean - median).abs().median() + 1e-9
    return mean < median + limit * torch.maximum(deviation, 0.3 * median)


def estimate_normals(
    points: Float[Tensor, "n 3"], centers: Float[Tensor, "n 3"], neighbours: int = 16
) -> Float[Tensor, "n 3"]:
    """Unit normals from the points' neighbours, turned towards the camera centres that saw them."""
    _, index = KDTree(points.numpy()).query(points.numpy(), k=min(neighbours, len(points)), workers=-1)
    around = points[torch.from_numpy(index)]
    around = around - around.mean(dim=1, keepdim=True)
    _, axes = torch.linalg.eigh(around.transpose(1, 2) @ around)
    normal = axes[:, :, 0]
    return normal * torch.where(((centers - points) * normal).sum(dim=-1, keepdim=True) < 0, -1.0, 1.0)
