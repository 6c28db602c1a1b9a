"""Image features: the protocol, the extractors behind it, and their cache on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from afield.errors import AfieldError
from afield.perception.cache import cache_folder, read_cached, write_cached
from afield.perception.dinov2 import DEPTH, IMAGENET_MEAN, IMAGENET_STD, PATCH, WIDTH, embedded_model

CACHE_VERSION = 1
"""Raised when crops or tokens change their meaning, so that old entries are not taken for new ones."""


@runtime_checkable
class FeatureExtractor(Protocol):
    """Turns square pictures into maps of feature tokens."""

    name: str
    """What `extractor_by_name` knows it by."""
    layer: int
    """Which block's output it returns."""
    resolution: int
    """Side of the square pictures it wants, in pixels."""
    channels: int
    """Length of one token."""

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b rows columns c"]:
        """Token maps, on the CPU, not normalized; `h` and `w` equal `resolution`."""
        ...


class EmbeddedDinoV2:
    """`dinov2-s-embedded`: DINOv2 ViT-S/14 from the weights inside a package; see `perception/dinov2.py`."""

    def __init__(self, layer: int = 10, resolution: int = 448, device: torch.device | str = "cpu") -> None:
        _check_request("dinov2-s-embedded", layer, DEPTH, resolution, PATCH)
        self.name, self.layer, self.resolution, self.channels = "dinov2-s-embedded", layer, resolution, WIDTH
        self._device = torch.device(device)
        self._model: Any = None

    @torch.inference_mode()
    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b rows columns c"]:
        """Token maps of shape [b, resolution / 14, resolution / 14, 384]."""
        if self._model is None:
            self._model = embedded_model().to(self._device)
        return self._model(normalize_images(images, IMAGENET_MEAN, IMAGENET_STD).to(self._device), self.layer).cpu()


class TransformersBackbone:
    """Any vision transformer of the `transformers` library, by model name or local folder."""

    def __init__(
        self, model: str, layer: int | None = None, resolution: int = 448, device: torch.device | str = "cpu"
    ) -> None:
        network, mean, std = _load_transformers(model)
        config = network.config
        depth = int(config.num_hidden_layers)
        self.name = f"transformers:{model}"
        self.layer = depth - 1 if layer is None else layer
        self._patch = int(config.patch_size)
        _check_request(self.name, self.layer, depth, resolution, self._patch)
        self.resolution, self.channels = resolution, int(config.hidden_size)
        self._skip = 1 + int(getattr(config, "num_register_tokens", 0) or 0)
        self.fingerprint = _fingerprint(network)
        self._network, self._mean, self._std = network.to(device), mean, std
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b rows columns c"]:
        """Token maps of the chosen block, without class and register tokens."""
        pixels = normalize_images(images, self._mean, self._std).to(self._device)
        hidden = self._network(pixel_values=pixels, output_hidden_states=True).hidden_states[self.layer]
        side = self.resolution // self._patch
        return hidden[:, self._skip :].reshape(len(images), side, side, self.channels).float().cpu()


class ColorExtractor:
    """`color`: mean colour and contrast of 8 x 8 pixels. Needs no weights; for tests and as a control."""

    def __init__(self, layer: int = 1, resolution: int = 224) -> None:
        _check_request("color", layer, 1, resolution, 8)
        self.name, self.layer, self.resolution, self.channels = "color", layer, resolution, 6

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b rows columns c"]:
        """Token maps of shape [b, resolution / 8, resolution / 8, 6]."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        mean = functional.avg_pool2d(pixels, 8)
        spread = (functional.avg_pool2d(pixels.square(), 8) - mean.square()).clamp_min(0).sqrt()
        return torch.cat((mean, spread), dim=1).permute(0, 2, 3, 1).contiguous()


def extractor_by_name(
    name: str, layer: int | None = None, resolution: int | None = None, device: torch.device | str | None = None
) -> FeatureExtractor:
    """The feature extractor of a name.

    Args:
        name: `dinov2-s-embedded`, `color`, or `transformers:` followed by a model name or a local folder.
        layer: which block's output; the extractor's own default if None.
        resolution: side of the crops in pixels; the extractor's own default if None.
        device: where it computes; CUDA when there is one if None.

    Raises:
        AfieldError: no extractor of that name, or its weights are not there.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    resolution = (224 if name == "color" else 448) if resolution is None else resolution
    if name == "dinov2-s-embedded":
        return EmbeddedDinoV2(10 if layer is None else layer, resolution, device)
    if name == "color":
        return ColorExtractor(1 if layer is None else layer, resolution)
    if name.startswith("transformers:"):
        return TransformersBackbone(name.removeprefix("transformers:"), layer, resolution, device)
    raise AfieldError(
        f"There is no feature extractor '{name}'; choose dinov2-s-embedded, color, or transformers:MODEL with a model "
        "name or a local folder."
    )


def normalize_images(
    images: UInt8[np.ndarray, "b h w 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b 3 h w"]:
    """8-bit RGB pictures as normalized network input."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def extract_tokens(
    images: UInt8[np.ndarray, "b h w 3"],
    extractor: FeatureExtractor,
    *,
    cache: Path | None = None,
    batch: int = 4,
    on_image: Callable[[int], object] = lambda count: None,
) -> Float[Tensor, "b rows columns c"]:
    """Token maps of many pictures, each kept on disk under the hash of its content.

    Args:
        images: square pictures of the extractor's resolution.
        extractor: what computes the tokens.
        cache: folder of the cache; the user's cache folder if None.
        batch: pictures per call of the extractor.
        on_image: called with the number of finished pictures, for progress bars.
    """
    folder = (cache or cache_folder()) / "features"
    # A local model can be trained on under the same name, so the weights count too where the extractor knows them.
    weights = getattr(extractor, "fingerprint", "")
    stamp = f"{extractor.name}|{extractor.layer}|{extractor.resolution}|{weights}|{CACHE_VERSION}".encode()
    files = [folder / f"{hashlib.sha256(stamp + image.tobytes()).hexdigest()[:32]}.safetensors" for image in images]
    tokens: list[Tensor | None] = [_read_tokens(file) for file in files]
    missing = [index for index, found in enumerate(tokens) if found is None]
    on_image(len(images) - len(missing))
    for first in range(0, len(missing), batch):
        chosen = missing[first : first + batch]
        # Half precision on disk and in memory alike, so that a cached run gives the same numbers as a fresh one.
        for index, result in zip(chosen, extractor(images[chosen]).half(), strict=True):
            tokens[index] = result
            write_cached(files[index], {"tokens": result})
        on_image(len(chosen))
    return torch.stack([found for found in tokens if found is not None]).float()


def extract_with_progress(
    images: UInt8[np.ndarray, "b h w 3"], extractor: FeatureExtractor, what: str, *, cache: Path | None, progress: bool
) -> Float[Tensor, "b rows columns c"]:
    """`extract_tokens` with a progress bar."""
    with tqdm(total=len(images), desc=f"features of {what}", unit="crop", disable=not progress) as bar:
        return extract_tokens(images, extractor, cache=cache, on_image=bar.update)


def _read_tokens(file: Path) -> Tensor | None:
    entry = read_cached(file)
    return entry.get("tokens") if entry else None


def _check_request(name: str, layer: int, depth: int, resolution: int, patch: int) -> None:
    if not 1 <= layer <= depth:
        raise AfieldError(f"The extractor '{name}' has layers 1 to {depth}, but layer {layer} was asked for.")
    if resolution <= 0 or resolution % patch:
        raise AfieldError(
            f"The resolution {resolution} px is not a positive multiple of the patch size {patch} px of '{name}'."
        )


def _fingerprint(network: torch.nn.Module) -> str:
    """A short hash of a network's weights; the first kilobyte of each tensor tells trainings apart and is quick."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _load_transformers(model: str) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """The network and its color statistics, from a folder, the local hub cache, or the hub."""
    try:
        from transformers import AutoModel
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError as error:
        raise AfieldError(
            f"The extractor 'transformers:{model}' needs transformers; run: pip install 'afield[transformers]'"
        ) from error
    try:
        network = AutoModel.from_pretrained(model).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        raise AfieldError(
            f"The weights of '{model}' are not there and cannot be downloaded; run: hf download {model}, or give the "
            "path of a local folder."
        ) from error
    for needed in ("patch_size", "hidden_size", "num_hidden_layers"):
        if not isinstance(getattr(network.config, needed, None), int):
            raise AfieldError(
                f"The model '{model}' is no plain vision transformer: its config has no integer {needed}; "
                "DINOv2 and DINOv3 models do."
            )
    try:
        # The dictionary alone: the processor itself would need torchvision or Pillow for steps that are not used here.
        processor, _ = ImageProcessingMixin.get_image_processor_dict(model)
        return network, tuple(processor["image_mean"]), tuple(processor["image_std"])
    except (OSError, ValueError, KeyError):
        return network, IMAGENET_MEAN, IMAGENET_STD
