"""The benchmark of the distillation: what its figures mean, and one video through it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from afield.benchmark.distill_bench import FIGURES, DistillBenchConfig, compare_cameras, markdown, median_of, run
from afield.errors import AfieldError
from afield.geometry import pose_from, rotation_about_axis
from afield.observation import Camera
from afield.perception.cameras import CameraPath


def shaky_path() -> list[Camera]:
    """Nine cameras that go sideways and turn a little."""
    turn = rotation_about_axis(torch.tensor([[0.0, 1.0, 0.2]]).expand(9, 3), torch.linspace(-0.1, 0.1, 9))
    level = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    places = torch.stack((torch.linspace(-0.2, 0.2, 9), torch.zeros(9), 0.5 + 0.01 * torch.arange(9).cos()), dim=-1)
    poses = pose_from(level @ turn, places)
    return [Camera(320, 240, 300.0, 300.0, 159.5, 119.5, pose) for pose in poses]


def estimated(cameras: list[Camera], turn: float, scale: float) -> CameraPath:
    """The same path in a world that is turned about the vertical, moved, and has another unit."""
    motion = pose_from(
        rotation_about_axis(torch.tensor([[0.0, 0, 1]]), torch.tensor([turn]))[0], torch.tensor([0.4, -2.0, 0.1])
    )
    poses = motion @ torch.stack([camera.T_world_camera for camera in cameras])
    poses[:, :3, 3] /= scale
    return CameraPath(320, 240, 300.0, poses, torch.zeros(0, 3), torch.zeros(0), static=False, metric=False)


def test_a_camera_path_is_judged_up_to_where_it_lies_and_how_long_it_is() -> None:
    cameras = shaky_path()
    right = compare_cameras(estimated(cameras, 0.7, 2.5), cameras, 4, 2.5, 0.8)
    assert max(right.values()) < 0.05
    moved = [cameras[4], *(replace(c, T_world_camera=shifted(c, 0.008)) for i, c in enumerate(cameras) if i != 4)]
    moved = [*moved[1:5], moved[0], *moved[5:]]
    off = compare_cameras(estimated(moved, 0.7, 2.5), cameras, 4, 2.5, 0.8)
    assert off["camera_position_percent"] == pytest.approx(1.0, abs=0.05), "8 mm of 80 cm"
    assert off["camera_rotation_deg"] < 0.05
    long = compare_cameras(estimated(cameras, 0.7, 2.5), cameras, 4, 5.0, 0.8)
    assert long["camera_position_percent"] > 5


def shifted(camera: Camera, metres: float) -> torch.Tensor:
    """The camera's pose, further right in its own picture."""
    pose = camera.T_world_camera.clone()
    pose[:3, 3] += metres * pose[:3, 0]
    return pose


def test_a_stopped_video_counts_as_the_worst() -> None:
    assert median_of([0.5, None, 0.7], "contact_iou") == 0.5
    assert median_of([1.0, None, 3.0], "contact_frame_error") == 3.0
    finished = dict.fromkeys(FIGURES, 1.0)
    result = {
        "videos": {"one": finished, "two": {"error": "Stage depth: no."}},
        "median": finished,
        "median_of_finished": finished,
    }
    lines = markdown(result).splitlines()
    assert len(lines) == 6 and lines[3] == "| two | Stage depth: no. |"
    assert all(len(line.split("|")) == len(FIGURES) + 3 for line in (*lines[:3], *lines[4:]))


@pytest.mark.parametrize("wrong", [{"tasks": 0}, {"tasks": 99}, {"seeds": 0}])
def test_wrong_numbers_are_refused_before_anything_is_drawn(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(AfieldError, match="must be"):
        run(DistillBenchConfig(out=tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_rendered_video_is_distilled_within_what_the_documents_say(tmp_path: Path) -> None:
    result = run(DistillBenchConfig(names=("open_drawer",), out=tmp_path), progress=False)
    video = result["videos"]["open_drawer"]
    assert set(FIGURES) <= set(video) and all(math.isfinite(value) for value in video.values())
    assert video["contact_frame_error"] <= 3
    assert video["track_error_percent"] <= 5
    assert video["camera_rotation_deg"] < 0.5 and video["camera_position_percent"] < 2
    assert np.isclose(result["median"]["contact_iou"], video["contact_iou"])
