"""What `afield distill` takes instead of its defaults: clicks, models by name, and files from other tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distill_samples import moving_frames, noise_picture, save_tiny_sam2, write_mp4

from afield.distill.from_video import DistillConfig, distill_video
from afield.errors import AfieldError
from afield.perception.masks import mask_from_click
from afield.perception.propagation import GrabCutFlow, MaskPropagator, Prompt, Sam2Video, mask_propagator_by_name

# Which object is meant


def ball_frames(count: int = 6, width: int = 160, height: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball that goes to the right over a dark ground: frames and true masks."""
    ground, thing = noise_picture(width, height) // 3, 140 + noise_picture(width, height, seed=3) // 3
    rows, columns = np.mgrid[:height, :width]
    masks = np.stack([np.hypot(columns - 60 - 3 * i, rows - 55) < 22 for i in range(count)])
    return np.stack([np.where(mask[..., None], thing, ground) for mask in masks]), masks


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("click", [(60, 55), (70, 48), (50.5, 66.0)])
def test_a_click_finds_what_it_is_on(click: tuple[float, float]) -> None:
    frames, masks = ball_frames(1)
    assert overlap(mask_from_click(frames[0], click), masks[0]) > 0.93


def test_a_click_on_the_ground_is_not_the_ball() -> None:
    frames, masks = ball_frames(1)
    assert overlap(mask_from_click(frames[0], (130, 100)), masks[0]) < 0.05


def test_clicks_that_mean_nothing_are_told() -> None:
    with pytest.raises(AfieldError, match=r"click \(160, 3\) lies outside of the 160x120 picture"):
        mask_from_click(ball_frames(1)[0][0], (160, 3))
    with pytest.raises(AfieldError, match="Nothing around the click"):
        mask_from_click(np.full((120, 160, 3), 90, np.uint8), (80, 60))


@pytest.mark.parametrize("prompt", [Prompt(box=(34, 29, 86, 81)), Prompt(click=(60, 55))])
def test_a_prompt_is_carried_through_the_video(prompt: Prompt) -> None:
    frames, truth = ball_frames()
    found = GrabCutFlow().masks(frames, prompt, 0, np.zeros_like(truth), progress=False)
    assert min(overlap(a, b) for a, b in zip(found, truth, strict=True)) > 0.9


@pytest.fixture(scope="module")
def tiny_sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return save_tiny_sam2(tmp_path_factory.mktemp("sam2"))


def test_a_sam2_model_is_loaded_from_a_folder_and_follows_its_prompt(tiny_sam2: Path) -> None:
    model = mask_propagator_by_name(str(tiny_sam2))
    assert isinstance(model, Sam2Video) and isinstance(model, MaskPropagator)
    frames, truth = ball_frames(5)
    hidden = np.zeros_like(truth)
    hidden[2:, 50:] = True
    by_box = model.masks(frames, Prompt(box=(34, 29, 86, 81)), 2, hidden, progress=False)
    assert by_box.shape == truth.shape and not (by_box & hidden).any()
    assert by_box[[0, 1, 3, 4]].any(axis=(1, 2)).all(), "both directions in time have an answer"
    again = model.masks(frames, Prompt(box=(34, 29, 86, 81)), 2, hidden, progress=False)
    by_click = model.masks(frames, Prompt(click=(60, 55)), 2, hidden, progress=False)
    assert np.array_equal(by_box, again) and not np.array_equal(by_box, by_click)
    corners = model._said(Prompt(box=(0, 30, 160, 90)), 160, 120)["point_coords"]
    assert corners.flatten().tolist() == pytest.approx([0, 16, 64, 48]), (
        "pixels of the square picture that the network sees"
    )


def test_missing_and_other_models_are_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(AfieldError, match="hf download facebook/sam2.1-hiera-small"):
        mask_propagator_by_name("facebook/sam2.1-hiera-none")
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(AfieldError, match="a model of the kind vit, not a SAM 2 video model"):
        mask_propagator_by_name(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"box": (1, 2, 30, 40), "click": (5, 5)}, "--box and --click both say which object"),
        ({"click": (5, 5), "object_masks": Path("masks")}, "--click and --object-masks both say which object"),
        ({"click": (96, 5)}, r"click \(96, 5\) lies outside of the 96x64 picture"),
        ({"box": (120, 0, 140, 30)}, "lies outside of the 96x64 picture"),
        ({"box": (40, 0, 10, 30)}, "right must exceed left"),
    ],
)
def test_contradicting_prompts_stop_before_anything_is_written(
    tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    video = write_mp4(tmp_path / "v.mp4", moving_frames(14))
    with pytest.raises(AfieldError, match=sentence):
        distill_video(video, "open it", tmp_path / "out", DistillConfig(**settings), progress=False)
    assert not (tmp_path / "out").exists()
