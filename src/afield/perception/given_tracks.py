"""Tracks from elsewhere: a file that another program has written, and CoTracker3."""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.spatial import KDTree

from afield.errors import AfieldError
from afield.perception.tracks import PointTracks

TRACK_FILES = (".npz", ".safetensors")
FEWEST = 20
"""Tracks on the object without which there is nothing to do."""
COTRACKER_VARIABLE = "AFIELD_COTRACKER"
"""Environment variable with the weights of CoTracker3 (scaled_offline.pth)."""
COTRACKER_INSTALL = "pip install git+https://github.com/facebookresearch/co-tracker"
COTRACKER_WEIGHTS = "curl -LO https://huggingface.co/facebook/cotracker3/resolve/main/scaled_offline.pth"


@dataclass(frozen=True)
class GivenTracks:
    """Tracks that are known already; which points are tracked is not asked any more."""

    tracks: PointTracks
    file: Path

    def inside(self, mask: Bool[np.ndarray, "h w"], frame: int, count: int) -> Float[np.ndarray, "n 2"]:
        """Pixels of at most `count` tracks that are seen in a mask of a frame, evenly among them.

        Raises:
            AfieldError: there are hardly any.
        """
        pixels, seen = self.tracks.pixels[frame], self.tracks.seen[frame]
        column, row = np.round(np.where(seen[:, None], pixels, -1)).astype(int).T
        height, width = mask.shape
        within = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        within[within] = mask[row[within], column[within]]
        chosen = np.flatnonzero(within)
        if len(chosen) < FEWEST:
            raise AfieldError(
                f"Stage tracks: of the {len(seen)} tracks in {self.file} only {len(chosen)} are seen on the object in the "
                f"hands-free frame; at least {FEWEST} are needed. Track points of that frame, forwards and backwards."
            )
        return pixels[chosen[np.unique(np.linspace(0, len(chosen) - 1, count).round().astype(int))]]

    def track(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        points: Float[np.ndarray, "n 2"],
        start: int,
        *,
        progress: bool = True,
    ) -> PointTracks:
        """The known tracks that pass through some points of a frame."""
        own = np.where(self.tracks.seen[start][:, None], self.tracks.pixels[start], np.inf)
        known = np.flatnonzero(self.tracks.seen[start])
        chosen = known[KDTree(own[known]).query(points)[1]]
        return PointTracks(self.tracks.pixels[:, chosen], self.tracks.seen[:, chosen])


def read_tracks(file: Path, read: tuple[int, ...], size: tuple[int, int], full_size: tuple[int, int]) -> GivenTracks:
    """Tracks of a file (.npz or .safetensors): `pixels` [t n 2] (x, y in the original video) and `visible` [t n].

    Args:
        file: with tracks through all frames of the video.
        read: which of its frames the stages use.
        size: width and height of their frames.
        full_size: of the original video.

    Raises:
        AfieldError: the file is damaged, lacks an entry, or does not fit the video.
    """
    try:
        content = dict(np.load(file, allow_pickle=False)) if file.suffix == ".npz" else load_file(file)
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError, EOFError) as error:
        raise AfieldError(f"Stage tracks: {file} cannot be read ({error}).") from error
    missing = [name for name in ("pixels", "visible") if name not in content]
    if missing:
        raise AfieldError(
            f"Stage tracks: {file} lacks {' and '.join(missing)} (it has {', '.join(sorted(content)) or 'nothing'}); it needs "
            "pixels [frames, points, 2] and visible [frames, points]."
        )
    pixels, visible = np.asarray(content["pixels"]), np.asarray(content["visible"])
    if pixels.ndim != 3 or pixels.shape[2] != 2 or visible.shape != pixels.shape[:2]:
        raise AfieldError(
            f"Stage tracks: in {file} pixels is {list(pixels.shape)} and visible is {list(visible.shape)}; they must be "
            "[frames, points, 2] and [frames, points]."
        )
    if len(pixels) <= max(read):
        raise AfieldError(
            f"Stage tracks: {file} has {len(pixels)} frames, but the video has at least {max(read) + 1}; track all of them."
        )
    pixels, seen = pixels[list(read)].astype(np.float32), visible[list(read)] > 0.5
    if not np.isfinite(pixels[seen]).all():
        raise AfieldError(f"Stage tracks: {file} has pixels that are no numbers where visible says that they are seen.")
    # Pixels count from the middle of the first one.
    scaled = (pixels + 0.5) * (np.array(size) / np.array(full_size)) - 0.5
    return GivenTracks(PointTracks(np.where(seen[..., None], scaled, 0).astype(np.float32), seen), file)


class CoTracker:
    """CoTracker3, offline: follows all points at once, through occlusions too."""

    def __init__(self, weights: Path | None = None) -> None:
        """Load it.

        Args:
            weights: `scaled_offline.pth`; from `AFIELD_COTRACKER` or the cache of torch.hub if left out.

        Raises:
            AfieldError: the package or the weights are not there; the sentence says how to get them.
        """
        try:
            from cotracker.predictor import CoTrackerPredictor  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise AfieldError(f"CoTracker3 is not installed: {COTRACKER_INSTALL} && {COTRACKER_WEIGHTS}.") from error
        if weights is None:
            cached = Path(torch.hub.get_dir()) / "checkpoints" / "scaled_offline.pth"
            weights = Path(os.environ.get(COTRACKER_VARIABLE, cached))
        if not weights.is_file():
            raise AfieldError(
                f"The weights of CoTracker3 are not at {weights}: {COTRACKER_WEIGHTS}, and name the file as the tracker or in "
                f"{COTRACKER_VARIABLE}."
            )
        try:
            self._model: Any = CoTrackerPredictor(checkpoint=str(weights), offline=True, window_len=60)
        except (RuntimeError, OSError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise AfieldError(f"{weights} does not hold the weights of CoTracker3 (scaled_offline.pth).") from error

    def track(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        points: Float[np.ndarray, "n 2"],
        start: int,
        *,
        progress: bool = True,
    ) -> PointTracks:
        """Tracks of the points, which are pixels (x, y) of frame `start`, forwards and backwards in time."""
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float()
        queries = torch.cat((torch.full((len(points), 1), float(start)), torch.from_numpy(points).float()), dim=1)
        pixels, seen = self._model(video, queries=queries[None], backward_tracking=True)
        return PointTracks(pixels[0].numpy().astype(np.float32), seen[0].numpy() > 0.5)
