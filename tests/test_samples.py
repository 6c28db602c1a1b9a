"""The sample objects and captures that ship with the package: complete, licensed, and true to physics."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

import afield
from afield.capture import check_capture, read_capture
from afield.capture.furniture import world_from_extra
from afield.capture.opengl import opengl_environment
from afield.distill.label_files import read_shown
from afield.errors import AfieldError

SAMPLES = Path(afield.__file__).parent / "samples"
OBJECTS = sorted(path.parent for path in SAMPLES.glob("objects/*/object.json"))
CAPTURES = sorted(
    path.parent for path in SAMPLES.glob("captures/*/capture.json") if not path.parent.name.startswith("microwave")
)
SKILL_CAPTURES = sorted(path for path in SAMPLES.glob("captures/microwave*"))


@pytest.mark.parametrize("folder", SKILL_CAPTURES, ids=lambda path: path.name)
def test_captures_of_skills_have_masks_depth_and_what_they_need(folder: Path) -> None:
    observation = read_capture(folder)
    for view in observation.views:
        assert view.mask is not None
        assert view.mask.any()
        assert (view.depth[view.mask] > 0).mean() > 0.99
    if folder.name == "microwave_shown":
        shown = read_shown(folder, observation)
        assert shown.narration == "open the microwave"
        assert shown.labels.flow is not None
        seen = [mask for mask in shown.labels.contact if mask is not None and mask.any()]
        assert len(seen) >= 4
    else:
        placed = world_from_extra(observation.extra)
        middle = placed.T_world_furniture[:3, 3]
        pixel, _ = observation.views[0].camera.project(torch.tensor([[*middle[:2], placed.item.height / 2]]).float())
        x, y = (round(v) for v in pixel[0].tolist())
        assert observation.views[0].mask is not None
        assert observation.views[0].mask[y, x], "the picture shows it where physics will have it"


def description(folder: Path) -> dict[str, object]:
    return json.loads((folder / "object.json").read_text())


def test_what_ships() -> None:
    assert {"horse", "deer", "bulldog", "cat", "teddy", "hammer"} <= {path.name for path in OBJECTS}
    assert {"horse", "deer", "bulldog", "hammer", "horse_in_clutter", "deer_in_clutter", "bulldog_in_clutter"} <= {
        path.name for path in CAPTURES
    }
    size = sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file())
    assert size < 14e6


@pytest.mark.parametrize("folder", OBJECTS, ids=lambda path: path.name)
def test_object(folder: Path) -> None:
    content = description(folder)
    assert content["name"] == folder.name
    assert (folder / str(content["visual"])).stat().st_size < 400_000
    assert content["license"] in ("CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US")
    assert content["attribution"]
    assert str(content["name"]) in (SAMPLES / "ATTRIBUTION.md").read_text()
    visual = trimesh.load_mesh(folder / str(content["visual"]), process=False)
    low, high = visual.bounds
    # The object frame: z up, origin at the center of the bottom.
    np.testing.assert_allclose(low[2], 0, atol=2e-5)
    np.testing.assert_allclose((low + high)[:2], 0, atol=4e-5)
    np.testing.assert_allclose(high - low, content["size"], atol=2e-4)
    pieces = [trimesh.load_mesh(folder / name) for name in content["collision"]]  # type: ignore[union-attr]
    assert 1 <= len(pieces) <= 12
    corners = np.concatenate([piece.vertices for piece in pieces])
    assert (corners >= low - 1e-4).all()
    assert (corners <= high + 1e-4).all()
    np.testing.assert_allclose(np.ptp(corners, axis=0), high - low, atol=0.006)
    for part in content["parts"].values():  # type: ignore[union-attr]
        center, half = np.array(part["center"]), np.array(part["size"]) / 2
        surface = trimesh.sample.sample_surface(visual, 2000, seed=0)[0]
        assert (np.abs(surface - center) < half).all(axis=1).sum() > 8, "a part holds some of the surface"


@pytest.mark.parametrize("folder", CAPTURES, ids=lambda path: path.name)
def test_capture_passes_its_own_check(folder: Path) -> None:
    observation = read_capture(folder)
    assert len(observation.views) == 4
    assert observation.extra["attribution"]
    assert check_capture(observation).warnings == ()
    truth = observation.extra["simulation"]
    assert truth["target"] in [entry["name"] for entry in truth["objects"]]
    for entry in truth["objects"]:
        assert (folder / entry["object"] / "object.json").is_file()
        pose = np.array(entry["T_world_object"])
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-4)
        assert math.degrees(math.acos(min(1, pose[2, 2]))) < 8
    assert all((view.mask is not None) == (len(truth["objects"]) == 1) for view in observation.views)


@pytest.mark.parametrize("folder", [p for p in CAPTURES if "clutter" not in p.name], ids=lambda path: path.name)
def test_pictures_show_the_object_where_the_truth_says(folder: Path) -> None:
    """Masked depth, back-projected, lies on the visual mesh put at its true pose."""
    observation = read_capture(folder)
    entry = observation.extra["simulation"]["objects"][0]
    visual = trimesh.load_mesh(folder / entry["object"] / "visual.obj", process=True)
    visual.apply_transform(np.array(entry["T_world_object"]))
    surface = torch.from_numpy(visual.sample(20000, seed=0)).float()
    for view in observation.views:
        assert view.mask is not None
        rows, columns = np.nonzero(view.mask & (view.depth > 0))
        chosen = np.random.default_rng(0).permutation(len(rows))[:300]
        pixels = torch.from_numpy(np.stack((columns[chosen], rows[chosen]), axis=1)).float()
        points = view.camera.backproject(pixels, torch.from_numpy(view.depth[rows[chosen], columns[chosen]]))
        distance = torch.cdist(points, surface).min(dim=1).values
        assert float(distance.quantile(0.95)) < 0.003


def test_settling_is_upright_and_deterministic() -> None:
    from afield.capture.objects import PlacedObject
    from afield.capture.room import RenderConfig, settle

    placed = [PlacedObject(SAMPLES / "objects" / "horse", (0.05, -0.02), 0.7)]
    config = RenderConfig(settle_time=0.5)
    room = settle(placed, config)
    model, first, names = room.model, room.data, room.names
    second = settle(placed, config).data
    np.testing.assert_array_equal(first.qpos, second.qpos)
    assert names == ["horse"]
    assert float(model.body("horse").mass[0]) == pytest.approx(0.09)
    np.testing.assert_allclose(first.body("horse").xpos, [0.05, -0.02, 0], atol=0.004)


def test_any_orientation_comes_to_rest_above_the_table() -> None:
    from afield.capture.objects import PlacedObject
    from afield.capture.room import RenderConfig, settle

    placed = [PlacedObject(SAMPLES / "objects" / "teddy", quat_wxyz=(0.5, 0.5, -0.5, 0.5))]
    room = settle(placed, RenderConfig(settle_time=3.0))
    assert float(room.data.body("teddy").xmat[8]) < 0.9  # it lies
    assert 0.01 < float(room.data.body("teddy").xipos[2]) < 0.1


def test_a_post_carries_a_tool() -> None:
    from afield.capture.objects import PlacedObject
    from afield.capture.room import RenderConfig, settle

    room = settle([PlacedObject(SAMPLES / "objects" / "hammer", (0.02, 0.0), 0.6, stand=0.07)], RenderConfig())
    assert float(room.data.body("hammer").xpos[2]) == pytest.approx(0.07, abs=0.02)
    assert len(room.stands) == 1


def test_an_object_that_falls_is_an_error() -> None:
    from afield.capture.objects import PlacedObject
    from afield.capture.room import RenderConfig, settle

    crowded = [
        PlacedObject(SAMPLES / "objects" / "wine_bottle"),
        PlacedObject(SAMPLES / "objects" / "teddy", (0.0, 0.0)),
    ]
    with pytest.raises(AfieldError, match="leans by|come to rest"):
        settle(crowded, RenderConfig(settle_time=1.0, max_tilt=3.0))


def test_unknown_table_names_the_valid_ones() -> None:
    from afield.capture.room import table_texture

    with pytest.raises(AfieldError, match="'wood' and 'cloth'"):
        table_texture("marble", 0)


RENDER = """
import sys
from pathlib import Path
from afield.capture.objects import PlacedObject
from afield.capture.rendered import render_capture
from afield.capture.room import RenderConfig

config = RenderConfig(width=160, height=90, shadow_samples=1, settle_time=0.2)
placed = [PlacedObject(Path(sys.argv[1]) / "objects" / "hammer")]
for view in render_capture("hammer", placed, config, masks=True).views:
    assert 20 < view.mask.sum() < 2000
    assert abs(view.depth[45, 80] - 1.19) < 0.05
    assert view.color.std() > 5
print("rendered")
"""


@pytest.mark.slow
def test_rendering() -> None:
    """In its own process: MuJoCo chooses its OpenGL on its first import. Machines without headless OpenGL skip it."""
    variables, reason = opengl_environment()
    if variables is None:
        pytest.skip(reason)
    command = [sys.executable, "-c", RENDER, str(SAMPLES)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "rendered", done.stderr
