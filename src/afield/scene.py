"""`Scene`: what an observation becomes, a set of points with features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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

    def select(self, keep: Bool[Tensor, "n"] | Int[Tensor, "k"]) -> Scene:
        """The scene with only some of its points."""
        return replace(
            self,
            points=self.points[keep],
            features=self.features[keep],
            colors=self.colors[keep],
            normals=self.normals[keep],
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
        )

    def save(self, folder: Path) -> None:
        """Write the scene as an artifact folder."""
        write_folder(folder, self.write_files)

    def write_files(self, folder: Path) -> None:
        """Write the files into an existing folder; for use inside `write_folder`."""
        tensors = {"points": self.points, "features": self.features, "colors": self.colors, "normals": self.normals}
        table = self.table and {"normal": self.table.normal.tolist(), "offset": self.table.offset}
        header = {"name": self.name, "frame": "world, +Z up", "source": asdict(self.source), "table": table}
        write_artifact_files(folder, "scene", tensors, header)

    @classmethod
    def load(cls, folder: Path) -> Scene:
        """Read a scene back."""
        tensors, header = load_artifact(folder, "scene", ("points", "features", "colors", "normals"))
        count = len(tensors["points"])
        for name, tensor in tensors.items():
            if tensor.ndim != 2 or len(tensor) != count:
                raise AfieldError(f"{folder}: '{name}' has shape {tuple(tensor.shape)}, but there are {count} points.")
        table = header.get("table")
        return cls(
            **{name: tensors[name] for name in ("points", "features", "colors", "normals")},
            source=FeatureSource.from_header(header, str(folder)),
            table=Plane(torch.tensor(table["normal"]), table["offset"]) if table else None,
            name=header.get("name", "scene"),
        )


def check_same_source(first: Scene, second: Scene) -> None:
    """Refuse to compare scenes whose features come from different extractors, layers or scales."""
    if first.source != second.source:
        raise AfieldError(
            f"The features of '{first.name}' ({first.source}) and '{second.name}' ({second.source}) cannot be compared; "
            "describe both scenes with the same extractor, layer, resolution and span."
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
