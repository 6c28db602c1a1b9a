"""Extractors, crops, the feature cache, and masks from boxes."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scene_samples import ball_on_table

from afield.errors import AfieldError
from afield.observation import Camera, Observation, View
from afield.perception.crops import Crop, cover, view_features
from afield.perception.dinov2 import embedded_graph_path, embedded_model
from afield.perception.features import ColorExtractor, extract_tokens, extractor_by_name
from afield.perception.masks import mask_from_box, mask_observation


@pytest.fixture
def tiny_dinov2(tmp_path: Path) -> Path:
    """A randomly initialized DINOv2 with two blocks and four registers, saved to disk."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    config = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, **sizes)
    transformers.Dinov2WithRegistersModel(config).save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "BitImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}'
    )
    return tmp_path / "tiny"


def pictures(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("layer", [3, 10])
def test_embedded_dinov2_equals_its_own_onnx_graph(layer: int) -> None:
    import onnx
    import onnxruntime

    graph = onnx.load(str(embedded_graph_path()))
    sums = [n.output[0] for n in graph.graph.node if n.name.startswith(f"/backbone/encoder/layer.{layer - 1}/Add")]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(sums[-1], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = session.run([sums[-1]], {session.get_inputs()[0].name: images.numpy()})[0][:, 1:]
    with torch.inference_mode():
        found = embedded_model()(images, layer).reshape(1, 256, 384)
    assert np.abs(found.numpy() - expected).max() < 1e-4


def test_embedded_weights_come_from_the_cache_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from afield.perception import dinov2

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = embedded_model().state_dict()
    file = next((tmp_path / "afield").glob("dinov2-s-embedded-*.safetensors"))
    monkeypatch.setattr(dinov2, "read_graph_weights", lambda path: pytest.fail("the graph was parsed again"))
    second = embedded_model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file.write_bytes(file.read_bytes()[:1000])
    assert torch.equal(embedded_model().state_dict()["cls"], first["cls"]), "a truncated entry must be made again"


@pytest.mark.parametrize("name", ["color", "dinov2-s-embedded", "transformers"])
def test_every_extractor_keeps_the_contract(name: str, tiny_dinov2: Path) -> None:
    name = f"transformers:{tiny_dinov2}" if name == "transformers" else name
    extractor = extractor_by_name(name, resolution=112, device="cpu")
    images = pictures(2, 112)
    tokens = extractor(images)
    assert tokens.shape[0] == 2 and tokens.shape[1] == tokens.shape[2] and tokens.shape[3] == extractor.channels
    assert tokens.dtype == torch.float32 and torch.isfinite(tokens).all()
    torch.testing.assert_close(tokens[1:], extractor(images[1:]), atol=1e-4, rtol=1e-4)
    assert (extractor.name, extractor.resolution) == (name, 112)
    for wrong in ({"layer": 0}, {"layer": 99}, {"resolution": 113}, {"resolution": 0}):
        with pytest.raises(AfieldError, match=str(next(iter(wrong.values())))):
            extractor_by_name(name, device="cpu", **wrong)


def test_transformers_backbone_skips_class_and_registers_and_uses_the_models_colors(tiny_dinov2: Path) -> None:
    import transformers

    images = pictures(1, 56)
    found = extractor_by_name(f"transformers:{tiny_dinov2}", layer=1, resolution=56, device="cpu")(images)
    network = transformers.AutoModel.from_pretrained(tiny_dinov2).eval()
    pixels = (torch.from_numpy(images).float() / 255 - torch.tensor([0.1, 0.2, 0.3])) / 0.5
    with torch.inference_mode():
        hidden = network(pixel_values=pixels.permute(0, 3, 1, 2), output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(found.reshape(16, 32), hidden[0, 5:])


def test_missing_weights_and_names_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(AfieldError, match="choose dinov2-s-embedded, color, or transformers:"):
        extractor_by_name("dino")
    with pytest.raises(AfieldError, match=r"run: hf download .*nowhere"):
        extractor_by_name(f"transformers:{tmp_path / 'nowhere'}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(AfieldError, match=r"pip install 'afield\[transformers\]'"):
        extractor_by_name("transformers:facebook/dinov2-base")

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(AfieldError, match=r"pip install 'afield\[dinov2\]'"):
        embedded_graph_path()


def test_tokens_are_cached_by_content_and_damage_is_repaired(tmp_path: Path) -> None:
    class Counting(ColorExtractor):
        calls = 0

        def __call__(self, images: np.ndarray) -> torch.Tensor:
            self.calls += len(images)
            return super().__call__(images)

    extractor, images = Counting(resolution=64), pictures(3, 64)
    first = extract_tokens(images, extractor, cache=tmp_path)
    again = extract_tokens(images[[2, 0]], extractor, cache=tmp_path)
    assert extractor.calls == 3 and torch.equal(again, first[[2, 0]])
    changed = images.copy()
    changed[1, 5, 5] ^= 1
    extract_tokens(changed, extractor, cache=tmp_path)
    assert extractor.calls == 4, "only the changed picture is computed"
    file = sorted((tmp_path / "features").iterdir())[0]
    file.write_bytes(b"short")
    assert torch.equal(extract_tokens(images, extractor, cache=tmp_path), first)
    other = Counting(resolution=64)
    other.layer = 2
    extract_tokens(images, other, cache=tmp_path)
    assert other.calls == 3, "another layer is another entry"


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "features").write_text("a file where the folder should be")
    assert extract_tokens(pictures(1, 64), ColorExtractor(resolution=64), cache=tmp_path).shape == (1, 8, 8, 6)


@pytest.mark.parametrize(("extent", "count"), [(50, 1), (90, 1), (120, 2), (260, 4)])
def test_crops_cover_every_pixel_with_the_fewest_rows(extent: float, count: int) -> None:
    pixels = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([extent, 40.0]) + 7
    pixels[:2] = torch.tensor([[7.0, 20.0], [7.0 + extent, 20.0]])
    crops = cover(pixels, 100.0)
    assert len(crops) == count
    assert torch.stack([crop.contains(pixels) for crop in crops]).any(dim=0).all()


def test_a_feature_is_what_the_picture_shows_at_its_pixel(tmp_path: Path) -> None:
    """Crops, token maps and bilinear sampling agree on where a pixel is: linear pictures have linear features."""
    rows, columns = np.mgrid[0:240, 0:320]
    color = np.stack((columns * 0.6 + 20, rows * 0.8 + 20, np.full_like(rows, 120)), axis=-1).astype(np.uint8)
    camera = Camera(320, 240, 300.0, 300.0, 159.5, 119.5, torch.eye(4))
    view = View("only", camera, color, np.ones((240, 320), np.float32))
    pixel = torch.tensor([[100.0, 90.0], [161.3, 118.2], [230.0, 160.0]])
    points = camera.backproject(pixel, torch.ones(3))
    observation = Observation((view,))
    found = view_features(
        observation, [pixel], points, ColorExtractor(resolution=112), 0.25, cache=tmp_path, progress=False
    )[0]
    expected = torch.stack((pixel[:, 0] * 0.6 + 20, pixel[:, 1] * 0.8 + 20, torch.full((3,), 120.0)), dim=-1)
    torch.testing.assert_close(
        torch.nn.functional.normalize(found[:, :3], dim=-1),
        torch.nn.functional.normalize(expected, dim=-1),
        atol=0.006,
        rtol=0,
    )


@pytest.mark.parametrize("side", [14.0, 28.0, 84.0])
def test_crop_pixels_are_means_over_the_area_they_cover(side: float) -> None:
    ramp = np.repeat(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, axis=0), 3, axis=2)
    crop = Crop(50.5, 60.5, side).cut(ramp, 28)
    expected = 50.5 + (np.arange(28) + 0.5) * side / 28
    assert np.abs(crop[14, 2:-2, 0] - expected[2:-2]).max() <= 0.51, "8-bit rounding is all that may differ"


def test_crop_outside_the_picture_is_background() -> None:
    crop = Crop(-20.0, -20.0, 28.0).cut(np.full((30, 30, 3), 255, np.uint8), 28)
    assert tuple(crop[0, 0]) == (124, 116, 104) and tuple(crop[-1, -1]) == (255, 255, 255)


def test_one_box_masks_the_object_in_every_view() -> None:
    observation, truth = ball_on_table(width=320, height=240)
    rows, columns = np.nonzero(truth[0])
    box = (int(columns.min()) - 3, int(rows.min()) - 3, int(columns.max()) + 3, int(rows.max()) + 3)
    masked = mask_observation(observation, {"camera0": box})
    for view, mask in zip(masked.views, truth, strict=True):
        assert view.mask is not None
        assert (view.mask & mask).sum() / (view.mask | mask).sum() > 0.85
    again = mask_observation(observation, {"camera0": box})
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(masked.views, again.views, strict=True))


def test_bad_boxes_are_explained() -> None:
    observation, _ = ball_on_table()
    color = observation.views[0].color
    height, width = color.shape[:2]
    with pytest.raises(AfieldError, match="views of 'ball' are camera0, camera1, camera2"):
        mask_observation(observation, {"left": (0, 0, 10, 10)})
    with pytest.raises(AfieldError, match="less than 4x4 pixels"):
        mask_from_box(color, (width + 10, 0, width + 50, 40))
    with pytest.raises(AfieldError, match="leave some background"):
        mask_from_box(color, (0, 0, width, height))
    with pytest.raises(AfieldError, match=r"View 'camera0': .*closer to the object"):
        mask_observation(observation, {"camera0": (2, 2, 30, 20)})
