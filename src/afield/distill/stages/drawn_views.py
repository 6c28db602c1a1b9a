"""Views of the object that a network draws from one picture of it, for a camera that stands still: Zero123++ by `diffusers`.

The network answers with six pictures from known directions, on a plain background, of an object that fills them: neither how
large it is nor where the reference frame stands among them. The directions are told by the video, whose world is upright; the
rest by the masks, for all seven must be silhouettes of one body.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import binary_fill_holes
from scipy.optimize import minimize
from torch import Tensor

from afield.distill.hull import HullFront, canonical_frame
from afield.errors import AfieldError
from afield.geometry import look_at, pose_from, rotation_about_axis
from afield.observation import Camera, Observation, View

NAME = "zero123plus"
VARIABLE = "AFIELD_ZERO123PLUS"
"""Names the folder of the weights, if it is not `zero123plus` in the working directory."""
DOWNLOAD = (
    "pip install 'afield[views]' torchvision && hf download sudo-ai/zero123plus-v1.2 --local-dir zero123plus && "
    "hf download sudo-ai/zero123plus-pipeline pipeline.py --local-dir zero123plus"
)
AZIMUTHS = 30.0, 90.0, 150.0, 210.0, 270.0, 330.0
"""Degrees to the right of the given picture, counterclockwise from above (version 1.2)."""
ELEVATIONS = 20.0, -10.0, 20.0, -10.0, 20.0, -10.0
"""Degrees above the horizon."""
FIELD_OF_VIEW = 30.0
"""Degrees."""
AWAY = 4.0
"""Distance of the cameras; only its ratio to the size of what they show means anything."""
COLUMNS, ROWS = 2, 3
"""Of the sheet with the six pictures."""
SIDE, FILLED = 512, 0.8
"""Pixels of the square picture that is given, and how much of it the object takes."""
PLAIN = 16
"""Largest difference from the background, of 255, that still is background."""
FITS = 0.5
"""Every outline must overlap by so much with that of the body that fits all of them best."""
GRID, MOST_POINTS, SMALL = 64, 20_000, 64
"""Points along the hull, most of them that are used, and pixels of the outlines, by which the reference frame is placed."""
STEEP = 0.94
"""A camera that looks up or down more steeply, by the sine, is turned by its picture's upper edge."""


def is_generator(path: Path) -> bool:
    """Whether `--views` means a network instead of a capture: its name, or a folder that holds one."""
    return str(path) == NAME or (path / "model_index.json").is_file()


@dataclass(frozen=True)
class DrawnViews:
    """A `ViewSource`: what Zero123++, or a pipeline that answers alike, draws of the object."""

    model: Path
    """`zero123plus`, or a folder with `model_index.json` and the pipeline's own `pipeline.py`, which is run."""
    steps: int = 36
    """Of the diffusion."""
    seed: int = 0

    def views(self, reference: View) -> Observation:
        """The reference frame and six drawn views, in a world without a unit.

        Args:
            reference: with the object's mask, from a camera whose world is upright.

        Raises:
            AfieldError: the network is not there, or what it drew is no object of that outline.
        """
        drawn = cut_sheet(self._draw(given_picture(reference)))
        observation = Observation(drawn, name=NAME, extra={"metric": False})
        return replace(observation, views=(place_reference(observation, reference), *drawn))

    def _draw(self, picture: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "_h _w 3"]:
        """The sheet with all six pictures.

        Raises:
            AfieldError: the pipeline fails.
        """
        pipeline = _load(self.model)
        from PIL import Image

        with torch.random.fork_rng():  # the pipeline also draws without the generator that it is given
            torch.manual_seed(self.seed)
            generator = torch.Generator().manual_seed(self.seed)
            try:
                answer = pipeline(Image.fromarray(picture), num_inference_steps=self.steps, generator=generator)
                return np.asarray(answer.images[0].convert("RGB"))
            except Exception as error:  # the folder's own code
                raise AfieldError(f"Stage views: the pipeline in {self.model} failed: {error!r}") from error


def find_generator(model: Path) -> Path:
    """Its folder.

    Raises:
        AfieldError: diffusers or the files are not there; the sentence says how to get them.
    """
    folder = Path(os.environ.get(VARIABLE, NAME)) if str(model) == NAME else model
    if not (folder / "model_index.json").is_file() or not (folder / "pipeline.py").is_file():
        raise AfieldError(
            f"Stage views: there is no Zero123++ in {folder} (model_index.json and pipeline.py): {DOWNLOAD}, and name the folder "
            f"as --views or in {VARIABLE}. Its weights may not be used commercially."
        )
    if find_spec("diffusers") is None:
        raise AfieldError("Stage views: drawing views needs diffusers: pip install 'afield[views]'.")
    return folder


def _load(model: Path) -> Callable[..., Any]:
    """The pipeline, on a GPU if there is one.

    Raises:
        AfieldError: something is missing, or the files do not belong together.
    """
    folder = find_generator(model)
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(
            str(folder), custom_pipeline=str(folder), trust_remote_code=True, local_files_only=True
        )
    except Exception as error:  # the folder's own code is run, and may raise anything
        raise AfieldError(f"Stage views: {folder} cannot be loaded as a pipeline of diffusers: {error}") from error
    if hasattr(pipeline, "scheduler"):  # as the model's authors recommend
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, timestep_spacing="trailing"
        )
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def given_picture(reference: View) -> UInt8[np.ndarray, "s s 4"]:
    """The object alone in the middle of a square, with its outline as the fourth channel.

    Raises:
        AfieldError: there is nothing in the mask.
    """
    rows, columns = np.nonzero(_mask(reference))
    if len(rows) == 0:
        raise AfieldError(f"Stage views: nothing is marked as the object in '{reference.name}'.")
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    zoom = FILLED * SIDE / side
    middle = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    motion = np.array([[zoom, 0, (SIDE - 1) / 2 - zoom * middle[0]], [0, zoom, (SIDE - 1) / 2 - zoom * middle[1]]])
    color = cv2.warpAffine(
        reference.color, motion, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    outline = cv2.warpAffine(_mask(reference).astype(np.uint8) * 255, motion, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    return np.dstack((color, outline))


def cut_sheet(sheet: UInt8[np.ndarray, "h w 3"]) -> tuple[View, ...]:
    """The six pictures with cameras and masks; they have no depth.

    Raises:
        AfieldError: it is no such sheet, one of them is empty, or there is no background around the object.
    """
    height, width = sheet.shape[0] // ROWS, sheet.shape[1] // COLUMNS
    if height != width:
        raise AfieldError(
            f"Stage views: the network answered with {sheet.shape[1]}x{sheet.shape[0]} pixels instead of a sheet of {COLUMNS} by "
            f"{ROWS} square pictures, as Zero123++ 1.2 draws it."
        )
    focal = height / 2 / math.tan(math.radians(FIELD_OF_VIEW) / 2)
    views = []
    for index, (azimuth, elevation) in enumerate(zip(AZIMUTHS, ELEVATIONS, strict=True)):
        row, column = divmod(index, COLUMNS)
        color = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width].copy()
        mask = outline(color)
        if not mask.any() or mask.mean() > 0.9:
            raise AfieldError(
                f"Stage views: picture {index + 1} of the network shows no object on a plain background; give a sharper frame, a "
                "tighter mask, or a capture as --views."
            )
        place = AWAY * direction(math.radians(azimuth), math.radians(elevation))
        pose = look_at(place, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
        camera = Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2, pose)
        views.append(View(f"drawn{index}", camera, color, np.zeros((height, width), np.float32), mask))
    return tuple(views)


def outline(color: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """What differs from the color of the picture's border: the largest piece, without holes."""
    border = np.concatenate((color[0], color[-1], color[:, 0], color[:, -1])).astype(float)
    unlike = np.abs(color - np.median(border, axis=0)).max(axis=-1) > PLAIN
    unlike = cv2.morphologyEx(unlike.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, label, stats, _ = cv2.connectedComponentsWithStats(unlike)
    if count < 2:
        return np.zeros(color.shape[:2], bool)
    return np.asarray(binary_fill_holes(label == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())))


def place_reference(drawn: Observation, reference: View) -> View:
    """The reference frame in the world of the drawn views.

    Its camera keeps its tilt and is turned around the vertical until it looks at the object from azimuth 0. Distance and
    sideways shift are those with which the object's outline and the six drawn ones fit best on one body: the hull of the six,
    cut by the seventh, still fills all outlines.

    Raises:
        AfieldError: the outlines are of no common body.
    """
    camera, mask = reference.camera, _mask(reference)
    rows, columns = np.nonzero(mask)
    aim = torch.tensor([[(columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2]]).float()
    ray = torch.nn.functional.normalize(camera.backproject(aim, torch.ones(1))[0] - camera.position, dim=0)
    # From straight above or below, the picture's upper edge says where ahead is.
    ahead = ray if abs(float(ray[2])) < STEEP else camera.T_world_camera[:3, 1] * torch.sign(ray[2])
    turn = rotation_about_axis(torch.tensor([0.0, 0.0, 1.0]), -torch.atan2(-ahead[1], -ahead[0]))
    rotation, ray = turn @ camera.T_world_camera[:3, :3], turn @ ray
    try:
        center, size = canonical_frame(drawn)
        body = HullFront.of(drawn, GRID).points
    except AfieldError as error:
        raise AfieldError(
            "Stage views: the pictures that the network drew are of no common body (very thin things are lost); try another "
            "seed, or a capture as --views."
        ) from error
    body = body[torch.randperm(len(body), generator=torch.Generator().manual_seed(0))[:MOST_POINTS]]
    outlines = [Outline.of(view.camera, _mask(view)) for view in drawn.views]

    def moved(x: Float[np.ndarray, "3"]) -> Camera:
        """The camera for a distance (log, about the first guess) and shifts to the right and down (shares of the size)."""
        aside = size * (float(x[1]) * rotation[:, 0] + float(x[2]) * rotation[:, 1])
        return replace(camera, T_world_camera=pose_from(rotation, center + aside - first * math.exp(float(x[0])) * ray))

    def overlaps(x: Float[np.ndarray, "3"]) -> list[float]:
        """How well the cut hull fills each outline."""
        own = Outline.of(moved(x), mask)
        left = body[own.holds(body)]
        return [each.overlap(left) for each in (own, *outlines)]

    wide = max(np.ptp(columns) / camera.fx, np.ptp(rows) / camera.fy)
    first = float((body.amax(dim=0) - body.amin(dim=0)).max()) / max(wide, 1e-6)
    simplex = np.array([[0, 0, 0], [0.2, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], float)
    best = minimize(
        lambda x: -float(np.mean(overlaps(x))),
        np.zeros(3),
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxiter": 150},
    ).x
    worst = min(overlaps(best))
    if worst < FITS:
        raise AfieldError(
            f"Stage views: what the network drew is no body with the object's outline in '{reference.name}' (the worst of seven "
            f"outlines overlaps by {100 * worst:.0f}%; very thin things are lost); try another seed, a tighter mask, or a "
            "capture as --views."
        )
    return replace(reference, camera=moved(best), depth=np.zeros_like(reference.depth))


@dataclass(frozen=True)
class Outline:
    """A small picture of an object's mask around it, and which of its pixels a point falls upon."""

    camera: Camera
    mask: Bool[np.ndarray, "s s"]
    corner: tuple[float, float]
    """Column and row of the full picture where it begins."""
    step: float
    """Pixels of the full picture per pixel."""

    @classmethod
    def of(cls, camera: Camera, mask: Bool[np.ndarray, "h w"]) -> Outline:
        """With a margin of a quarter of the object's size, so that what sticks out is seen."""
        rows, columns = np.nonzero(mask)
        side = 1.5 * (max(np.ptp(rows), np.ptp(columns)) + 1)
        corner = (columns.min() + columns.max() - side) / 2, (rows.min() + rows.max() - side) / 2
        step = side / SMALL
        motion = np.array([[1 / step, 0, -corner[0] / step], [0, 1 / step, -corner[1] / step]])
        wide = max(1, round(step)) | 1  # each small pixel is the mean of those that it stands for
        soft = cv2.blur(mask.astype(np.float32), (wide, wide), borderType=cv2.BORDER_CONSTANT)
        small = cv2.warpAffine(soft, motion, (SMALL, SMALL), flags=cv2.INTER_LINEAR)
        return cls(camera, small > 0.5, corner, step)

    def cells(self, points: Float[Tensor, "n 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row and column of every point, and whether it is in the picture."""
        pixel, away = self.camera.project(points)
        column, row = ((pixel - torch.tensor(self.corner)) / self.step).round().long().numpy().T
        inside = (column >= 0) & (row >= 0) & (column < SMALL) & (row < SMALL) & (away.numpy() > 0)
        return np.clip(row, 0, SMALL - 1), np.clip(column, 0, SMALL - 1), inside

    def holds(self, points: Float[Tensor, "n 3"]) -> Bool[Tensor, "n"]:
        """Which points fall into the outline."""
        row, column, inside = self.cells(points)
        return torch.from_numpy(inside & self.mask[row, column])

    def overlap(self, points: Float[Tensor, "n 3"]) -> float:
        """Intersection over union of the outline and that of a grid's points."""
        row, column, inside = self.cells(points)
        drawn = np.zeros((SMALL, SMALL), np.uint8)
        drawn[row[inside], column[inside]] = 1
        filled = cv2.morphologyEx(drawn, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0
        return float((filled & self.mask).sum() / max(1, (filled | self.mask).sum()))


def direction(azimuth: float, elevation: float) -> Float[Tensor, "3"]:
    """Unit vector, z up."""
    flat = math.cos(elevation)
    return torch.tensor([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])


def _mask(view: View) -> Bool[np.ndarray, "h w"]:
    assert view.mask is not None, "views of the video have masks"
    return view.mask
