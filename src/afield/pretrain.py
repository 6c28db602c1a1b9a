"""Few-shot self-supervised training of the attention field (section 3.3), and `FieldModel`, a field on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from afield.artifacts import load_artifact, write_artifact_files, write_folder
from afield.errors import AfieldError
from afield.fields.attention import AttentionConfig, AttentionField, Decoder
from afield.fields.base import Field
from afield.fields.geometric import GeometryField, WithGeometry
from afield.fields.interpolated import InterpolatedField
from afield.fields.prepare import Projection, center_features
from afield.geometry import quat_wxyz_to_matrix
from afield.scene import FeatureSource, Scene, check_one_source, farthest_points

KINDS = ("dff", "sparsedff", "attention", "geometry")


@dataclass(frozen=True)
class PretrainConfig:
    """Self-supervised training."""

    steps: int = 100
    """Adam steps."""
    learning_rate: float = 1e-3
    """Of Adam."""
    temperature: float = 0.07
    """tau of Eq. 6."""
    neighbours: tuple[int, ...] = (1, 2, 5, 10, 20)
    """Sizes k of the neighbourhoods that are tried for cyclic matches, smallest first."""
    enough: int = 128
    """The first k with this many keypoints is taken."""
    fewest: int = 32
    """Fewer keypoints than this are an error."""
    most: int = 512
    """More keypoints than this are thinned to well-spread ones."""
    jitter: tuple[float, float] = (0.01, 0.03)
    """Keypoint queries are moved by a random distance between these, in metres."""


@dataclass(frozen=True)
class FieldModel:
    """A field that is not yet tied to a scene: its kind, its projection, and for `attention` its trained decoder."""

    kind: str
    """dff, sparsedff, attention or geometry."""
    projection: Projection
    """From raw features to the field's own."""
    source: FeatureSource
    """The features it was made for."""
    decoder: Decoder | None = None
    """D_theta of Eq. 3."""
    losses: tuple[float, ...] = ()
    """Loss of every training step."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Scenes, configuration, keypoints, seed."""

    def project(self, scene: Scene) -> Scene:
        """The scene with features in the field's own space."""
        return self.projection.apply(scene)

    def build(self, scene: Scene, *, geometry: bool = False) -> Field:
        """The field around a projected scene, with the geometry channel if asked for."""
        if self.kind == "geometry":
            return GeometryField(scene)
        if self.kind == "attention":
            if self.decoder is None:
                raise AfieldError("This attention field has no decoder; train it first.")
            inner: Field = AttentionField(scene, self.decoder)
        else:
            inner = InterpolatedField(scene)
        return WithGeometry(inner, scene) if geometry else inner

    def check_source(self, scene: Scene) -> None:
        """Refuse scenes whose features are not those the field was made for."""
        if scene.source != self.source:
            raise AfieldError(
                f"The field was made for features of {self.source}, but '{scene.name}' has features of {scene.source}."
            )

    def describe(self) -> str:
        """One line for a person."""
        loss = f", loss {self.losses[0]:.2f} -> {self.losses[-1]:.2f}" if self.losses else ""
        return f"{self.kind} field of {self.projection.basis.shape[1]} channels on {self.source}{loss}"

    def to(self, device: torch.device | str) -> FieldModel:
        """The field on another device."""
        projection = Projection(self.projection.mean.to(device), self.projection.basis.to(device))
        decoder = None
        if self.decoder is not None:
            decoder = Decoder(self.decoder.channels, self.decoder.config)
            decoder.load_state_dict(self.decoder.state_dict())
            decoder = decoder.to(device).requires_grad_(False)
        return replace(self, projection=projection, decoder=decoder)

    def save(self, folder: Path) -> None:
        """Write the field as an artifact folder."""
        write_folder(folder, self.write_files)

    def write_files(self, folder: Path) -> None:
        """Write the files into an existing folder; for use inside `write_folder`."""
        tensors = {"mean": self.projection.mean, "basis": self.projection.basis, "losses": torch.tensor(self.losses)}
        header: dict[str, Any] = {"kind": self.kind, "source": asdict(self.source), "provenance": self.provenance}
        if self.decoder is not None:
            tensors |= {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
            header["decoder"] = asdict(self.decoder.config)
        write_artifact_files(folder, "field", tensors, header)

    @classmethod
    def load(cls, folder: Path) -> FieldModel:
        """Read a field back."""
        tensors, header = load_artifact(folder, "field", ("mean", "basis"))
        if header.get("kind") not in KINDS:
            raise AfieldError(f"{folder}: unknown kind of field '{header.get('kind')}'; known are {', '.join(KINDS)}.")
        mean, basis = tensors["mean"], tensors["basis"]
        if basis.ndim != 2 or mean.shape != basis.shape[:1]:
            raise AfieldError(f"{folder}: mean {tuple(mean.shape)} and basis {tuple(basis.shape)} do not fit together.")
        decoder = None
        if "decoder" in header:
            decoder = Decoder(basis.shape[1], AttentionConfig(**header["decoder"]))
            state = {name.removeprefix("decoder."): t for name, t in tensors.items() if name.startswith("decoder.")}
            expected = {name: tuple(t.shape) for name, t in decoder.state_dict().items()}
            found = {name: tuple(t.shape) for name, t in state.items()}
            if expected != found:
                raise AfieldError(f"{folder}: the decoder has tensors {found}, but {basis.shape[1]} channels need {expected}.")
            decoder.load_state_dict(state)
            decoder.requires_grad_(False)
        losses = tuple(tensors["losses"].tolist()) if "losses" in tensors else ()
        source = FeatureSource.from_header(header, str(folder))
        return cls(header["kind"], Projection(mean, basis), source, decoder, losses, header.get("provenance", {}))


def train_field(
    scenes: Sequence[Scene],
    *,
    kind: str = "attention",
    preset: str = "default",
    channels: int = 64,
    steps: int | None = None,
    config: PretrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FieldModel:
    """Make a field from a few scenes without demonstrations.

    Args:
        scenes: with raw features. `attention` needs two to four; the other kinds only fit their projection to them.
        kind: dff, sparsedff, attention or geometry.
        preset: of the attention field, default or faithful.
        channels: length of the projected features.
        steps: Adam steps, if not the configured ones.
        config: see `PretrainConfig`.
        seed: of everything random; the same seed gives the same bytes on the CPU.
        progress: show a progress bar.

    Raises:
        AfieldError: too few scenes or keypoints, mixed extractors, or an unknown kind.
    """
    if kind not in KINDS:
        raise AfieldError(f"There is no field of kind '{kind}'; choose one of {', '.join(KINDS)}.")
    if preset not in ("default", "faithful"):
        raise AfieldError(f"There is no preset '{preset}' of the attention field; choose default or faithful.")
    if not scenes:
        raise AfieldError("A field needs at least one scene.")
    config = config or PretrainConfig()
    config = replace(config, steps=config.steps if steps is None else steps)
    check_one_source(scenes)
    projection = Projection.fit(scenes, channels)
    provenance: dict[str, Any] = {"scenes": [scene.name for scene in scenes], "seed": seed}
    if kind != "attention":
        return FieldModel(kind, projection, scenes[0].source, provenance=provenance)
    if len(scenes) < 2:
        raise AfieldError("The attention field is trained on correspondences between scenes; give at least two captures.")
    generator = torch.Generator().manual_seed(seed)
    keypoints, neighbours = cyclic_keypoints(scenes, config, generator)
    prepared = [center_features(projection.apply(scene)) for scene in scenes]
    architecture = AttentionConfig(preset=cast(Literal["default", "faithful"], preset))
    decoder = Decoder(prepared[0].features.shape[-1], architecture, generator)
    losses = _train(decoder, prepared, keypoints, config, generator, progress)
    provenance |= {"keypoints": len(keypoints[0]), "neighbours": neighbours, "config": asdict(config)}
    return FieldModel(kind, projection, scenes[0].source, decoder.requires_grad_(False), tuple(losses), provenance)


def cyclic_keypoints(
    scenes: Sequence[Scene], config: PretrainConfig, generator: torch.Generator
) -> tuple[list[Int[Tensor, "k"]], int]:
    """Points that correspond to each other around a cycle of scenes (Fig. 2, left).

    Neighbouring scenes of a random cycle are linked where two points are among each other's k nearest neighbours in feature
    space; a chain of links that closes after all scenes is a keypoint. The smallest k with enough keypoints is taken.

    Returns:
        For every scene the indices of its keypoints, in corresponding order; and k.

    Raises:
        AfieldError: too few keypoints; it names the two scenes that agree least.
    """
    order = torch.randperm(len(scenes), generator=generator).tolist()
    ring = [scenes[i] for i in order]
    similar = [a.features @ b.features.T for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]
    chains = torch.empty(0, len(ring), dtype=torch.long)
    links: list[Bool[Tensor, "n m"]] = []
    neighbours = 0
    for neighbours in config.neighbours:
        links = [mutual_neighbours(s, neighbours) for s in similar]
        chains = _close_chains(links, similar)
        if len(chains) >= config.enough:
            break
    if len(chains) < config.fewest:
        counts = [int(link.any(dim=1).sum()) for link in links]
        worst = min(range(len(counts)), key=counts.__getitem__)
        pair = f"'{ring[worst].name}' and '{ring[(worst + 1) % len(ring)].name}'"
        raise AfieldError(
            f"Only {len(chains)} keypoints correspond across the {len(ring)} scenes (at least {config.fewest} are needed); "
            f"{pair} agree least, on {counts[worst]} points. Replace one of them by a more similar scene, or leave it out."
        )
    if len(chains) > config.most:
        chains = chains[farthest_points(ring[0].points[chains[:, 0]], config.most)]
    keypoints: list[Tensor] = [torch.empty(0)] * len(ring)
    for place, index in enumerate(order):
        keypoints[index] = chains[:, place]
    return keypoints, neighbours


def mutual_neighbours(similar: Float[Tensor, "n m"], k: int) -> Bool[Tensor, "n m"]:
    """Which pairs are among each other's k most similar."""
    forward = torch.zeros_like(similar, dtype=torch.bool).scatter_(1, similar.topk(k, dim=1).indices, True)
    backward = torch.zeros_like(similar, dtype=torch.bool).scatter_(0, similar.topk(k, dim=0).indices, True)
    return forward & backward


def _close_chains(links: list[Bool[Tensor, "n m"]], similar: list[Float[Tensor, "n m"]]) -> Int[Tensor, "k i"]:
    """One chain per point of the first scene: the most similar link at each step, kept if the last link leads back."""
    chain = [torch.arange(len(links[0]))]
    alive = torch.ones(len(links[0]), dtype=torch.bool)
    for link, score in zip(links[:-1], similar[:-1], strict=True):
        row = link[chain[-1]]
        alive &= row.any(dim=1)
        chain.append(torch.where(row, score[chain[-1]], -torch.inf).argmax(dim=1))
    alive &= links[-1][chain[-1], chain[0]]
    return torch.stack(chain, dim=1)[alive]


def info_nce(features: Float[Tensor, "i k c"], temperature: float) -> Float[Tensor, ""]:
    """Eq. 6: every keypoint's feature must resemble its counterpart in every other scene more than other keypoints.

    As printed, the denominator runs over k' != k. The sums over keypoints and pairs of scenes are means here, which
    changes the gradient's size only, and Adam does not see that.
    """
    unit = torch.nn.functional.normalize(features, dim=-1)
    scenes, count, _ = unit.shape
    similar = torch.einsum("ikc,jlc->ijkl", unit, unit) / temperature
    own = torch.eye(count, dtype=torch.bool, device=features.device)
    positive = similar.diagonal(dim1=-2, dim2=-1)
    negative = similar.masked_fill(own, -torch.inf).logsumexp(dim=-1)
    other = ~torch.eye(scenes, dtype=torch.bool, device=features.device)
    return (negative - positive)[other].mean()


def _train(
    decoder: Decoder,
    scenes: Sequence[Scene],
    keypoints: list[Int[Tensor, "k"]],
    config: PretrainConfig,
    generator: torch.Generator,
    progress: bool,
) -> list[float]:
    """Adam on Eq. 6; every step turns the scenes and moves the keypoint queries off the surface."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.learning_rate)
    hide = [torch.zeros(len(k), len(s.points), dtype=torch.bool) for s, k in zip(scenes, keypoints, strict=True)]
    for mask, index in zip(hide, keypoints, strict=True):
        # At distance zero a point would simply copy its own feature, which solves the loss without learning anything.
        mask[torch.arange(len(index)), index] = True
    losses = []
    for _ in tqdm(range(config.steps), desc="pretrain", unit="step", disable=not progress):
        outputs = []
        for scene, index, mask in zip(scenes, keypoints, hide, strict=True):
            turn = quat_wxyz_to_matrix(torch.nn.functional.normalize(torch.randn(4, generator=generator), dim=0))
            points = (scene.points - scene.points.mean(dim=0)) @ turn.T
            step = torch.nn.functional.normalize(torch.randn(len(index), 3, generator=generator), dim=-1)
            low, high = config.jitter
            reach = low + (high - low) * torch.rand(len(index), 1, generator=generator)
            outputs.append(decoder(points, scene.features, points[index] + reach * step, mask))
        loss = info_nce(torch.stack(outputs), config.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses
