"""Views that a network draws from one picture: a pipeline of diffusers that answers with true pictures stands for a good one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh

from afield.distill.stages import drawn_views
from afield.distill.stages.drawn_views import (
    DrawnViews,
    cut_sheet,
    direction,
    given_picture,
    is_generator,
    outline,
    place_reference,
)
from afield.distill.stages.given_views import ViewSource, tie_views
from afield.distill.stages.views import contact_in_views
from afield.errors import AfieldError
from afield.geometry import look_at, rotation_about_axis
from afield.observation import Camera, Observation, View

UP = torch.tensor([0.0, 0.0, 1.0])
PIPELINE = """
import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image


class Drawer(DiffusionPipeline):
    def __init__(self, sheet=None):
        super().__init__()
        self.register_to_config(sheet=sheet)

    def __call__(self, image, num_inference_steps, generator):
        assert image.mode == "RGBA" and image.size == (512, 512), image
        sheet = np.asarray(Image.open(self.config.sheet))
        noise = torch.randint(0, 3, sheet.shape).numpy()  # without the generator, as Zero123++ does
        return ImagePipelineOutput(images=[Image.fromarray((sheet + noise).astype(np.uint8))])
"""


def cupboard() -> tuple[torch.Tensor, np.ndarray]:
    """Points all over a body without symmetry, about its middle, and their colors."""
    body = trimesh.util.concatenate(
        [
            trimesh.creation.box((0.4, 0.3, 0.5), trimesh.transformations.translation_matrix((0, 0, 0.0))),
            trimesh.creation.box((0.3, 0.2, 0.15), trimesh.transformations.translation_matrix((0.3, 0.05, -0.17))),
            trimesh.creation.box((0.1, 0.25, 0.2), trimesh.transformations.translation_matrix((-0.1, -0.25, 0.1))),
        ]
    )
    points = trimesh.sample.sample_surface(body, 400_000, seed=0)[0]
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    colors = (255 * (points - points.min(axis=0)) / np.ptp(points, axis=0) * 0.6).astype(np.uint8)
    return torch.from_numpy(points).float(), colors


def picture(points: torch.Tensor, colors: np.ndarray, camera: Camera, background: int = 200) -> View:
    """Color, depth and mask of a cloud so dense that it has no gaps."""
    pixel, away = camera.project(points)
    column, row = pixel.round().long().numpy().T
    inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
    order = np.argsort(-away.numpy()[inside], kind="stable")
    row, column = row[inside][order], column[inside][order]
    color = np.full((camera.height, camera.width, 3), background, np.uint8)
    depth = np.zeros((camera.height, camera.width), np.float32)
    color[row, column], depth[row, column] = colors[inside][order], away.numpy()[inside][order]
    return View("frame", camera, color, depth, depth > 0)


def sheet(points: torch.Tensor, colors: np.ndarray, azimuth: float) -> np.ndarray:
    """What Zero123++ 1.2 would answer, if it knew the body: it sees it turned so that the given picture is at azimuth 0."""
    turned = points @ rotation_about_axis(UP, torch.tensor(-azimuth)).T
    size = float((turned.amax(dim=0) - turned.amin(dim=0)).max())
    focal = 160 / math.tan(math.radians(15))
    pictures = []
    for side, height in zip((30, 90, 150, 210, 270, 330), (20, -10) * 3, strict=True):
        pose = look_at(2.6 * size * direction(math.radians(side), math.radians(height)), torch.zeros(3), UP)
        pictures.append(picture(turned, colors, Camera(320, 320, focal, focal, 159.5, 159.5, pose)).color)
    return np.concatenate([np.concatenate(pictures[i : i + 2], axis=1) for i in (0, 2, 4)])


def generator(folder: Path, answer: np.ndarray) -> Path:
    """A folder that `diffusers` loads as a pipeline; its own code answers with the sheet."""
    folder.mkdir()
    cv2.imwrite(str(folder / "sheet.png"), answer[..., ::-1])
    content = {"_class_name": "Drawer", "_diffusers_version": "0.30.0", "sheet": str(folder / "sheet.png")}
    (folder / "model_index.json").write_text(json.dumps(content))
    (folder / "pipeline.py").write_text(PIPELINE)
    return folder


def reference_frame(
    points: torch.Tensor, colors: np.ndarray, azimuth: float, elevation: float, beside: float = 1.0
) -> View:
    """The body elsewhere and of another size, before a camera that does not aim at it, but beside it."""
    place = torch.tensor([0.7, -0.4, 0.9])
    position = place + 1.9 * direction(azimuth, elevation)
    pose = look_at(position, place + beside * torch.tensor([0.1, -0.05, 0.12]), UP)
    return picture(0.8 * points + place, colors, Camera(400, 300, 380.0, 380.0, 199.5, 149.5, pose), 90)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.4, 0.25), (2.2, 0.6)])
def test_drawn_views_come_to_lie_around_the_object_of_the_video(
    tmp_path: Path, azimuth: float, elevation: float
) -> None:
    pytest.importorskip("diffusers")
    points, colors = cupboard()
    reference = reference_frame(points, colors, azimuth, elevation)
    source = DrawnViews(generator(tmp_path / "drawer", sheet(points, colors, azimuth)))
    assert isinstance(source, ViewSource)
    observation = source.views(reference)
    assert [view.name for view in observation.views] == ["frame", *(f"drawn{i}" for i in range(6))]
    tied = tie_views(observation, reference, 7)
    # Points of the body, carried from the video's world to that of the views, are where the network saw them ...
    there = tied.scale * (0.8 * points + torch.tensor([0.7, -0.4, 0.9])) @ tied.rotation.T + tied.shift
    turned = points @ rotation_about_axis(UP, torch.tensor(-azimuth)).T
    size = float((turned.amax(dim=0) - turned.amin(dim=0)).max())
    seen = turned * drawn_views.AWAY / (2.6 * size)
    assert float((there - seen).norm(dim=-1).mean()) < 0.05 * drawn_views.AWAY / 2.6
    # ... and its pictures show them there.
    for view in tied.observation.views[:6]:
        shown = picture(there, colors, view.camera).mask
        assert shown is not None and view.mask is not None
        assert (shown & view.mask).sum() > 0.88 * (shown | view.mask).sum(), view.name
        both = shown & view.mask
        unlike = np.abs(picture(there, colors, view.camera).color[both].astype(int) - view.color[both]).mean()
        assert unlike < 15, "the same side of the body"


def test_from_straight_above_the_upper_edge_says_where_ahead_is() -> None:
    points, colors = cupboard()
    reference = reference_frame(points, colors, 2.2, 1.56, beside=0.0)
    drawn = Observation(cut_sheet(sheet(points, colors, 2.2)), name="drawn")
    pose = place_reference(drawn, reference).camera.T_world_camera
    assert float(pose[0, 1]) > 0.99, "the lower edge is on the side of azimuth 0"


def test_what_is_touched_in_front_is_not_marked_on_the_back() -> None:
    points, colors = cupboard()
    reference = reference_frame(points, colors, 0.4, 0.25)
    drawn = Observation(cut_sheet(sheet(points, colors, 0.4)), name="drawn")
    first = place_reference(drawn, reference)
    tied = tie_views(replace(drawn, views=(first, *drawn.views)), reference, 7).observation
    rows, columns = np.nonzero(reference.mask)
    region = np.zeros_like(reference.mask)
    row, column = int(np.median(rows)), int(np.median(columns))
    region[row - 6 : row + 7, column - 6 : column + 7] = True
    marked = [int(found.sum()) for found in contact_in_views(tied, region & reference.mask)]
    assert marked[0] > 30 and marked[5] > 30, "30 degrees to either side"
    assert marked[2] == 0 and marked[3] == 0, "150 and 210 degrees"


def test_a_drawn_body_of_another_outline_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    points, colors = cupboard()
    reference = reference_frame(points, colors, 0.4, 0.25)
    stick = points * torch.tensor([0.05, 0.05, 1.0])
    with pytest.raises(AfieldError, match="is no body with the object's outline in 'frame'"):
        DrawnViews(generator(tmp_path / "drawer", sheet(stick, colors, 0.4))).views(reference)
    with pytest.raises(AfieldError, match="picture 1 of the network shows no object on a plain background"):
        cut_sheet(np.full((960, 640, 3), 127, np.uint8))
    with pytest.raises(AfieldError, match="answered with 640x640 pixels instead of a sheet of 2 by 3 square pictures"):
        cut_sheet(np.full((640, 640, 3), 127, np.uint8))


def test_the_same_seed_draws_the_same_and_leaves_other_draws_alone(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    points, colors = cupboard()
    source = DrawnViews(generator(tmp_path / "drawer", sheet(points, colors, 0.4)))
    reference = reference_frame(points, colors, 0.4, 0.25)
    state = torch.random.get_rng_state()
    first, second = source.views(reference), source.views(reference)
    assert all((a.color == b.color).all() for a, b in zip(first.views, second.views, strict=True))
    assert bool((torch.random.get_rng_state() == state).all())
    (tmp_path / "drawer" / "sheet.png").unlink()
    with pytest.raises(AfieldError, match="the pipeline in .*drawer failed: FileNotFoundError"):
        source.views(reference)


def test_the_given_picture_holds_the_object_alone_in_its_middle() -> None:
    points, colors = cupboard()
    reference = reference_frame(points, colors, 0.4, 0.25)
    given = given_picture(reference)
    rows, columns = np.nonzero(given[..., 3] > 127)
    assert given.shape == (512, 512, 4)
    assert abs(rows.min() + rows.max() - 511) < 4 and abs(columns.min() + columns.max() - 511) < 4
    assert max(np.ptp(rows), np.ptp(columns)) == pytest.approx(0.8 * 512, abs=6)
    with pytest.raises(AfieldError, match="nothing is marked as the object in 'frame'"):
        given_picture(replace(reference, mask=np.zeros_like(reference.mask)))


def test_the_outline_is_the_largest_piece_without_holes() -> None:
    color = np.full((60, 80, 3), 127, np.uint8)
    color[20:40, 30:60] = 200
    color[25:30, 40:45] = 127
    color[5:8, 5:8] = 10
    found = outline(color)
    assert found[20:40, 30:60].all() and found.sum() == 20 * 30


def test_what_is_missing_is_said_with_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_generator(Path("zero123plus")) and not is_generator(tmp_path)
    monkeypatch.chdir(tmp_path)
    points, colors = cupboard()
    reference = reference_frame(points, colors, 0.4, 0.25)
    with pytest.raises(AfieldError, match=r"hf download sudo-ai/zero123plus-v1\.2 --local-dir zero123plus"):
        DrawnViews(Path("zero123plus")).views(reference)
    broken = generator(tmp_path / "broken", np.zeros((960, 640, 3), np.uint8))
    (broken / "pipeline.py").write_text("not python")
    monkeypatch.setenv(drawn_views.VARIABLE, str(broken))
    pytest.importorskip("diffusers")
    with pytest.raises(AfieldError, match="broken cannot be loaded as a pipeline of diffusers"):
        DrawnViews(Path("zero123plus")).views(reference)
