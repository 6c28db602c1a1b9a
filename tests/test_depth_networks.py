"""Depth networks of `transformers`: tiny random models on disk, loaded and run by the real code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import noise_picture

from afield.errors import AfieldError
from afield.perception import depth
from afield.perception.depth import TransformersDepth


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_depth_models_of_transformers_load_from_a_folder(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    backbone = transformers.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        out_indices=[1, 2],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8],
        reassemble_factors=[2, 1],
        fusion_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path)
    transformers.DPTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    network = TransformersDepth(str(tmp_path))
    found = network.estimate(noise_picture(60, 40))
    assert found.shape == (40, 60) and (found > 0).all()
    assert network.metric == (kind == "metric"), "the metric Depth Anything models answer in metres"
    with pytest.raises(AfieldError, match="hf download some/model"):
        TransformersDepth("some/model")


def tiny_zoedepth(transformers: Any, folder: Path) -> None:
    """A random ZoeDepth, whose processor adds a border that has to be cut off again."""
    backbone = transformers.BeitConfig(
        image_size=32, patch_size=16, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, use_relative_position_bias=True,
    )  # fmt: skip
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, bottleneck_features=8,
        num_relative_features=8, bin_embedding_dim=8, num_patch_transformer_layers=1, patch_transformer_hidden_size=8,
        patch_transformer_intermediate_size=8, patch_transformer_num_attention_heads=2, num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "indoors"}],
    )  # fmt: skip
    transformers.ZoeDepthForDepthEstimation(config).save_pretrained(folder)
    transformers.ZoeDepthImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def tiny_depth_pro(transformers: Any, folder: Path) -> None:
    """A random DepthPro, which answers with 1/depth for a camera of another focal length."""
    encoder = {
        "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, "intermediate_size": 16,
    }  # fmt: skip
    config = transformers.DepthProConfig(
        patch_size=32, fusion_hidden_size=16, intermediate_hook_ids=[2, 1], intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0], scaled_images_overlap_ratios=[0.0, 0.25], scaled_images_feature_dims=[16, 16],
        use_batch_norm_in_fusion_residual=False, use_fov_model=True, num_fov_head_layers=2,
        image_model_config=encoder, patch_model_config=encoder, fov_model_config=encoder,
    )  # fmt: skip
    transformers.DepthProForDepthEstimation(config).save_pretrained(folder)
    transformers.DepthProImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.mark.parametrize("make", [tiny_zoedepth, tiny_depth_pro])
def test_metric_models_answer_in_metres_for_the_picture_itself(
    tmp_path: Path, make: Callable[[Any, Path], None]
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    make(transformers, tmp_path)
    network, picture = TransformersDepth(str(tmp_path)), noise_picture(60, 40)
    assert network.metric
    found = network.estimate(picture)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        answer = transformers.AutoModelForDepthEstimation.from_pretrained(tmp_path).eval()(
            **processor(images=picture, return_tensors="pt")
        )
    if make is tiny_zoedepth:  # by hand: the border is half the square root of half a side, reflected
        border = [int(np.sqrt(side / 2) * 3) for side in picture.shape[:2]]
        whole = torch.nn.functional.interpolate(
            answer.predicted_depth[None], [s + 2 * b for s, b in zip(picture.shape[:2], border, strict=True)],
            mode="bicubic", align_corners=False,
        )[0, 0].numpy()  # fmt: skip
        wanted = whole[border[0] : -border[0], border[1] : -border[1]]
    else:
        width = picture.shape[1]
        focal = 0.5 * width / np.tan(0.5 * np.radians(float(answer.field_of_view)))
        inverse = torch.nn.functional.interpolate(
            answer.predicted_depth[None] * width / focal, picture.shape[:2], mode="bilinear", align_corners=False
        )[0, 0].numpy()
        wanted = 1 / np.clip(inverse, 1e-4, 1e4)
    assert found.shape == (40, 60)
    assert np.median(np.abs(found / wanted - 1)) < 0.02


def test_a_model_that_needs_torchvision_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(depth, "find_spec", lambda _: None)
    (tmp_path / "config.json").write_text('{"model_type": "depth_pro"}')
    with pytest.raises(AfieldError, match="pip install torchvision"):
        TransformersDepth(str(tmp_path))
