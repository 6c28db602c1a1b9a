"""Few-shot self-supervised training of the attention field (section 3.3), and `FieldModel`, a field on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from afield.artifacts import load_artifact, write_artifact_files, write_folder
from afield.errors import AfieldError
from afield.fields.attention import PRESETS, AttentionConfig, AttentionField, Decoder, Preset
from afield.fields.base import Field
from afield.fields.correspondence import KeypointConfig, cyclic_keypoints
from afield.fields.geometric import GeometryField, WithGeometry
from afield.fields.interpolated import InterpolatedField
from afield.fields.prepare import Projection, center_features
from afield.fields.refine import RefineConfig, Refiner, train_refiner
from afield.geometry import quat_wxyz_to_matrix
from afield.scene import FeatureSource, Scene, check_one_source

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
    jitter: tuple[float, float] = (0.01, 0.03)
    """Keypoint queries are moved by a random distance between these, in metres."""
    keypoints: KeypointConfig = field(default_factory=KeypointConfig)
    """How keypoints are found."""
    refine: RefineConfig = field(default_factory=RefineConfig)
    """The refinement of `sparsedff`."""


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
    refiner: Refiner | None = None
    """Of `sparsedff`; None where the training scenes did not know their views, then it equals `dff`."""
    losses: tuple[float, ...] = ()
    """Loss of every training step."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Scenes, configuration, keypoints, seed."""

    def project(self, scene: Scene) -> Scene:
        """The scene with features in the field's own space; `sparsedff` also drops doubtful points."""
        return self.refiner.apply_to(scene) if self.refiner is not None else self.projection.apply(scene)

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
        if self.kind == "sparsedff" and self.refiner is None:
            loss = ", without refinement: the training scenes did not know their views"
        return f"{self.kind} field of {self.projection.basis.shape[1]} channels on {self.source}{loss}"

    def to(self, device: torch.device | str) -> FieldModel:
        """The field on another device."""
        projection = Projection(self.projection.mean.to(device), self.projection.basis.to(device))
        return replace(
            self,
            projection=projection,
            decoder=None if self.decoder is None else deepcopy(self.decoder).to(device),
            refiner=None if self.refiner is None else deepcopy(self.refiner).to(device),
        )

    def save(self, folder: Path) -> None:
        """Write the field as an artifact folder."""
        write_folder(folder, self.write_files)

    def write_files(self, folder: Path) -> None:
        """Write the files into an existing folder; for use inside `write_folder`."""
        tensors = {"mean": self.projection.mean, "basis": self.projection.basis, "losses": torch.tensor(self.losses)}
        header: dict[str, Any] = {"kind": self.kind, "source": asdict(self.source), "provenance": self.provenance}
        for name, network in (("decoder", self.decoder), ("refiner", self.refiner)):
            if network is not None:
                tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
                header[name] = asdict(network.config)
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
        decoder = refiner = None
        try:
            if "decoder" in header:
                decoder = Decoder(basis.shape[1], AttentionConfig(**header["decoder"]))
            if "refiner" in header:
                refiner = Refiner(basis.shape[0], RefineConfig(**header["refiner"]))
        except TypeError as error:
            raise AfieldError(f"{folder} describes a network that this release does not know: {error}.") from error
        for name, network in (("decoder", decoder), ("refiner", refiner)):
            if network is not None:
                _load_network(
                    network, name, tensors, f"{folder}: {basis.shape[0]} raw and {basis.shape[1]} own channels"
                )
        losses = tuple(tensors["losses"].tolist()) if "losses" in tensors else ()
        source = FeatureSource.from_header(header, str(folder))
        return cls(
            header["kind"], Projection(mean, basis), source, decoder, refiner, losses, header.get("provenance", {})
        )


def _load_network(network: torch.nn.Module, name: str, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fill a network from an artifact's tensors, after their shapes were compared."""
    state = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if expected != found:
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))[0]
        raise AfieldError(
            f"{where} need a {name} whose '{wrong}' has shape {expected.get(wrong)}, but it has {found.get(wrong)}."
        )
    network.load_state_dict(state)
    network.requires_grad_(False)


def check_training(kind: str, preset: str, scenes: int) -> None:
    """Refuse what `train_field` cannot make, before anything costly is done.

    Raises:
        AfieldError: an unknown kind or preset, or too few scenes.
    """
    if kind not in KINDS:
        raise AfieldError(f"There is no field of kind '{kind}'; choose one of {', '.join(KINDS)}.")
    if preset not in PRESETS:
        raise AfieldError(f"There is no preset '{preset}' of the attention field; choose one of {', '.join(PRESETS)}.")
    if scenes < 1:
        raise AfieldError("A field needs at least one scene.")
    if kind == "attention" and scenes < 2:
        raise AfieldError(
            "The attention field is trained on correspondences between scenes; give at least two captures."
        )


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
        scenes: with raw features. `attention` needs two or more (the paper takes two to four); `sparsedff` learns its
            refinement from one or more; the other kinds only fit their projection.
        kind: dff, sparsedff, attention or geometry.
        preset: of the attention field, default, faithful or block.
        channels: length of the projected features.
        steps: Adam steps, if not the configured ones.
        config: see `PretrainConfig`.
        seed: of everything random; the same seed gives the same bytes on the CPU.
        progress: show a progress bar.

    Raises:
        AfieldError: too few scenes or keypoints, mixed extractors, or an unknown kind.
    """
    check_training(kind, preset, len(scenes))
    config = config or PretrainConfig()
    config = replace(config, steps=config.steps if steps is None else steps)
    check_one_source(scenes)
    projection = Projection.fit(scenes, channels)
    provenance: dict[str, Any] = {"scenes": [scene.name for scene in scenes], "seed": seed}
    generator = torch.Generator().manual_seed(seed)
    model = FieldModel(kind, projection, scenes[0].source, provenance=provenance)
    if kind == "attention":
        return _train_attention(model, scenes, cast(Preset, preset), config, generator, progress)
    if kind == "sparsedff":
        refine = replace(config.refine, channels=channels, steps=config.refine.steps if steps is None else steps)
        trained = train_refiner(scenes, refine, generator, progress=progress)
        if trained is not None:
            return replace(model, refiner=trained[0], losses=tuple(trained[1]))
    return model


def _train_attention(
    model: FieldModel,
    scenes: Sequence[Scene],
    preset: Preset,
    config: PretrainConfig,
    generator: torch.Generator,
    progress: bool,
) -> FieldModel:
    """Find keypoints, train the decoder on them, and note how many find their counterparts before and after."""
    keypoints, neighbours = cyclic_keypoints(scenes, config.keypoints, generator)
    prepared = [center_features(model.projection.apply(scene)) for scene in scenes]
    decoder = Decoder(prepared[0].features.shape[-1], AttentionConfig(preset=preset), generator)
    judge = generator.initial_seed()
    before = _accuracy(decoder, prepared, keypoints, config, judge)
    losses = _train(decoder, prepared, keypoints, config, generator, progress)
    decoder.requires_grad_(False)
    found = {
        "keypoints": len(keypoints[0]),
        "neighbours": neighbours,
        "accuracy": {"untrained": before, "trained": _accuracy(decoder, prepared, keypoints, config, judge)},
        "config": asdict(config),
    }
    return replace(model, decoder=decoder, losses=tuple(losses), provenance=model.provenance | found)


def info_nce(features: Float[Tensor, "i k c"], temperature: float) -> Float[Tensor, ""]:
    """Eq. 6: every keypoint's feature must resemble its counterpart in every scene more than other keypoints.

    As printed, the denominator runs over k' != k, and the sum over all i and j, which keeps keypoints of one scene
    apart where i = j. The sums over pairs of scenes and keypoints are means here: that changes the gradient's size
    only, and Adam does not see it.
    """
    unit = torch.nn.functional.normalize(features, dim=-1)
    similar = torch.einsum("ikc,jlc->ijkl", unit, unit) / temperature
    own = torch.eye(unit.shape[1], dtype=torch.bool, device=features.device)
    positive = similar.diagonal(dim1=-2, dim2=-1)
    negative = similar.masked_fill(own, -torch.inf).logsumexp(dim=-1)
    return (negative - positive).mean()


def retrieval_accuracy(features: Float[Tensor, "i k c"]) -> float:
    """Share of keypoints whose most similar keypoint in another scene is their counterpart."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    hit = torch.einsum("ikc,jlc->ijkl", unit, unit).argmax(dim=-1) == torch.arange(unit.shape[1], device=unit.device)
    other = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return float(hit[other].float().mean())


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
    losses = []
    for _ in tqdm(range(config.steps), desc="pretrain", unit="step", disable=not progress):
        loss = info_nce(_aggregate(decoder, scenes, keypoints, config, generator), config.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def _accuracy(
    decoder: Decoder, scenes: Sequence[Scene], keypoints: list[Int[Tensor, "k"]], config: PretrainConfig, seed: int
) -> float:
    return round(
        retrieval_accuracy(_aggregate(decoder, scenes, keypoints, config, torch.Generator().manual_seed(seed))), 4
    )


def _aggregate(
    decoder: Decoder,
    scenes: Sequence[Scene],
    keypoints: list[Int[Tensor, "k"]],
    config: PretrainConfig,
    generator: torch.Generator,
) -> Float[Tensor, "i k c"]:
    """Eq. 5 for turned scenes and queries near the keypoints.

    At distance zero a point would simply copy its own feature, which solves the loss without learning anything; so
    queries are moved off the surface, and do not see the point they came from.
    """
    outputs = []
    for scene, index in zip(scenes, keypoints, strict=True):
        turn = quat_wxyz_to_matrix(torch.nn.functional.normalize(torch.randn(4, generator=generator), dim=0))
        points = (scene.points - scene.points.mean(dim=0)) @ turn.T
        step = torch.nn.functional.normalize(torch.randn(len(index), 3, generator=generator), dim=-1)
        low, high = config.jitter
        reach = low + (high - low) * torch.rand(len(index), 1, generator=generator)
        hide = torch.zeros(len(index), len(points), dtype=torch.bool)
        hide[torch.arange(len(index)), index] = True
        outputs.append(decoder(points, scene.features, points[index] + reach * step, hide))
    return torch.stack(outputs)
