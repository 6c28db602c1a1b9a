"""The method, a page long: repeat a demonstrated grasp in another scene (section 3.4 of the attention-field paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from afield.attend import Attended, attend
from afield.carry import Carried, carry, moved
from afield.demonstration import Demonstration
from afield.energy import (
    CarriedTerm,
    Energy,
    EnergyTerm,
    FeatureTerm,
    JointLimitTerm,
    PenetrationTerm,
    SelfPenetrationTerm,
    TableTerm,
    subset_points,
)
from afield.errors import AfieldError
from afield.fields.baked import BakedField
from afield.fields.base import Field
from afield.fields.registration import Registration, RegistrationConfig, register
from afield.geometry import rotation_angle
from afield.hand import Hand
from afield.optimize import AdamConfig, Trace, best_distinct, minimize_adam
from afield.pretrain import FieldModel
from afield.recognition import Recognized, recognize
from afield.result import Grasp, GraspHistory
from afield.scene import Plane, Scene, farthest_points
from afield.starts import StartConfig, sample_starts


@dataclass(frozen=True)
class Weights:
    """The weights of Eq. 9; those of self-penetration and limits are the published ones."""

    feature: float = 1.0
    """Weight of the feature difference, Eq. 7."""
    penetration: float = 5.0
    """lambda_pen, per metre of summed penetration of scene points. The published 0.1 lets the hand sink in by centimetres."""
    self_penetration: float = 1e-2
    """lambda_spen, per metre."""
    joint_limits: float = 1e-2
    """lambda_pose, per radian outside the limits."""
    table: float = 10.0
    """Per metre of mean depth below the table's margin; the paper prevents this by hand."""
    alignment: float = 0.5
    """Per metre of mean distance from where the alignment of the two objects carries the hand; not in the paper."""


@dataclass(frozen=True)
class Stage:
    """One round of the successive halving of the starts."""

    starts: int
    """How many starts take part; the best of the round before."""
    steps: int
    """Adam steps; 0 only compares the starts."""
    query_points: int
    """How many of the demonstration's query points are used."""
    scene_points: int
    """How many scene points the penetration term sees."""
    baked: bool
    """Look the field up on a grid (True) or evaluate it exactly (False)."""
    learning_rate: float = 1e-2
    """First learning rate of the round."""
    final_learning_rate: float = 1e-4
    """Last learning rate of the round."""


HALVING = (
    Stage(1024, 0, 64, 256, True),
    Stage(64, 60, 64, 256, True, 1e-2, 3e-3),
    Stage(16, 80, 128, 512, True, 5e-3, 1e-3),
    Stage(8, 60, 256, 2048, False, 2e-3, 1e-4),
)
"""The default: of many draws the best 64 distinct ones start, most are dropped early, the best eight are finished exactly."""

FULL = (Stage(64, 300, 256, 2048, False),)
"""All starts, all steps, exact: what the default must not be worse than."""


@dataclass(frozen=True)
class TransferConfig:
    """How a grasp is transferred."""

    preset: Literal["default", "faithful"] = "default"
    """`faithful` switches the additions off (gate, centring, geometry channel, alignment, table term) and draws joints at
    random."""
    gate: bool = True
    """Look only at scene points that resemble the demonstrated region."""
    center: bool = True
    """Subtract each scene's mean feature."""
    geometry: bool = True
    """Append the distance to the nearest scene point to the field's output."""
    align: bool = True
    """Align the demonstrated object as a whole with what is attended, and carry the hand along (`afield.carry`)."""
    alignment: RegistrationConfig = field(default_factory=RegistrationConfig)
    """How the objects are aligned."""
    weights: Weights = field(default_factory=Weights)
    """The weights of Eq. 9."""
    stages: tuple[Stage, ...] = HALVING
    """Successive halving of the starts."""
    start: StartConfig = field(default_factory=StartConfig)
    """How the starts are drawn."""
    grid_spacing: float = 0.01
    """Spacing of the baked field in metres."""
    seed: int = 0
    """Seed of the starts."""

    def resolved(self) -> TransferConfig:
        """The configuration with its preset applied."""
        if self.preset == "default":
            return self
        return replace(
            self,
            gate=False,
            center=False,
            geometry=False,
            align=False,
            weights=replace(self.weights, penetration=0.1, table=0.0),
            start=StartConfig(carried=0.0, matched=0.0, like_demonstration=0.0, random_joints=True),
        )


def transfer_grasp(
    demonstration: Demonstration,
    scene: Scene,
    model: FieldModel,
    hand: Hand,
    config: TransferConfig | None = None,
    *,
    judge: Callable[[Float[Tensor, "k d"], Recognized | None], int] | None = None,
    progress: bool = True,
) -> Grasp:
    """Find the hand configuration that meets in `scene` what the demonstrated hand met in its own scene.

    Args:
        demonstration: the hand configuration beta-hat, its query points Q and its scene X-hat.
        scene: the target scene X, with features of the same extractor.
        model: the field f, trained or not.
        hand: the demonstrated hand.
        config: see `TransferConfig`.
        judge: chooses among the minima of the last round, which it gets best first; with `align` the carried hand comes
            before them, and on the very same object the shown one, with what is known of its hidden sides. The least energy
            if None. `afield.simulate.rehearse` tries them in physics.
        progress: show a progress bar.

    Returns:
        The grasp in the target scene's world frame: the minimum of Eq. 9 over all starts, or the judge's choice.

    Raises:
        AfieldError: extractor, layer or hand of the demonstration differ, or nothing is left to look at.
    """
    config = (config or TransferConfig()).resolved()
    demonstration.check_hand(hand)

    # 1. Describe both scenes in the field, and the demonstration by the features its query points meet there.
    shown, here = attend(demonstration, scene, model, hand, use_gate=config.gate, center=config.center)
    field_shown = model.build(shown.scene, geometry=config.geometry)
    field_here = model.build(here.scene, geometry=config.geometry)
    goal = field_shown(demonstration.query_points(hand)).detach()

    # 2. Draw starts where the target scene resembles the demonstrated region, and around the hand that the aligned object
    #    carries along.
    aligned = _align(demonstration, hand, shown.scene, here.scene, scene, config.alignment) if config.align else None
    generator = torch.Generator().manual_seed(config.seed)
    draw = (config.stages[0].starts, config.start, generator, aligned and aligned.carried.beta)
    beta = sample_starts(demonstration, shown.scene, here.scene, hand, *draw)
    still = torch.zeros(len(beta), dtype=torch.bool, device=beta.device)
    for index, known in enumerate(aligned.hands[: len(beta)] if aligned else (), start=1):
        beta[-index], still[-index] = known, True

    # 3. Minimize Eq. 9 from all of them; after each round only the best go on, with more points and the exact field. The
    #    carried hand itself stands still, to be judged as it is; on the very same object so does the one that was shown.
    baked = (
        BakedField.around(field_here, here.scene, config.grid_spacing) if any(s.baked for s in config.stages) else None
    )
    same, wanted = (aligned.same, aligned.carried.points) if aligned else (None, None)
    solid = torch.cat((scene.points, same.points)) if same else scene.points
    physics, weights = (demonstration, hand, solid, scene.table), config.weights
    energies = [
        grasp_energy(*physics, (stage.baked and baked) or field_here, goal, stage, weights, wanted)
        for stage in config.stages
    ]
    rounds = _halve(hand, energies, config.stages, beta, still, progress=progress)

    # 4. Choose among the minima that are left; the carried hand is judged before them, for features tell parts badly.
    alive, last = rounds[-1]
    finalists = last.final_energy.argsort()
    if judge:
        finalists = finalists[still[alive][finalists].logical_not().argsort(stable=True)]
    choice = judge(hand.clamp(last.final[finalists]).cpu(), same) if judge else 0
    grasp = _report(hand, energies[-1], rounds, int(finalists[choice]), demonstration, scene, model, config, here)
    found = {"similarity": {"demonstration": shown.similarity, "target": here.similarity}}
    if aligned:
        found["alignment"] = aligned.report(carried=bool(still[alive[finalists[choice]]]))
    return replace(grasp, provenance={**grasp.provenance, **found})


@dataclass(frozen=True)
class _Aligned:
    """Where the shown object lies here."""

    alignment: Registration
    same: Recognized | None
    """If it is the very same object."""
    carried: Carried
    """The hand that it carries along."""
    hands: tuple[Float[Tensor, "d"], ...]
    """Those that are judged as they are: the carried one, and of the very same object the one that was shown."""

    def report(self, *, carried: bool) -> dict[str, float | bool]:
        """What the grasp says about it; `carried` if the chosen hand is one of `hands`."""
        found = {"cost": self.alignment.cost, "scale": self.alignment.scale}
        return {**found, "carried": carried, "same_object": self.same is not None}


def _align(
    demonstration: Demonstration, hand: Hand, shown: Scene, here: Scene, scene: Scene, config: RegistrationConfig
) -> _Aligned:
    """Lay the shown object upon what is attended, and carry the hand along."""
    alignment = register(shown, here, config)
    same = recognize(alignment, shown, here, scene)
    if same is None:
        carried = carry(demonstration, hand, alignment, shown, here)
        return _Aligned(alignment, None, carried, (carried.beta,))
    carried = carry(demonstration, hand, same.alignment, shown, same.completed(here))
    return _Aligned(same.alignment, same, carried, (carried.beta, moved(demonstration, hand, same.alignment)))


def grasp_energy(
    demonstration: Demonstration,
    hand: Hand,
    solid: Float[Tensor, "n 3"],
    table: Plane | None,
    field_here: Field,
    goal: Float[Tensor, "q c"],
    stage: Stage,
    weights: Weights,
    carried: Float[Tensor, "q 3"] | None = None,
) -> Energy:
    """Eq. 9 for one round: the feature term of Eq. 7 and the physical terms of Eq. 8, over thinned points.

    The hand keeps out of `solid` points and above the `table`; where the query points are `carried` is known, it is also
    drawn there.
    """
    chosen = _spread(demonstration.query_points(hand), stage.query_points)
    points = solid[_spread(solid, stage.scene_points)]
    terms: dict[str, EnergyTerm] = {
        "feature": FeatureTerm(field_here, goal[chosen]),
        "penetration": PenetrationTerm(points, len(solid) / len(points)),
        "self_penetration": SelfPenetrationTerm(),
        "joint_limits": JointLimitTerm(),
    }
    if table is not None and weights.table > 0:
        terms["table"] = TableTerm(table)
    if carried is not None:
        terms["alignment"] = CarriedTerm(carried[chosen])
    return Energy(hand, subset_points(demonstration.points, chosen), terms, asdict(weights))


def _halve(
    hand: Hand,
    energies: Sequence[Energy],
    stages: Sequence[Stage],
    beta: Float[Tensor, "s d"],
    still: Bool[Tensor, "s"],
    *,
    progress: bool,
) -> list[tuple[Int[Tensor, "_k"], Trace]]:
    """Successive halving: for every round the starts that took part in it, and what became of them."""
    alive = torch.arange(len(beta), device=beta.device)
    rounds: list[tuple[Tensor, Trace]] = []
    with tqdm(total=sum(s.steps for s in stages), desc="transfer", unit="step", disable=not progress) as bar:
        for stage, energy in zip(stages, energies, strict=True):
            if rounds:
                chosen = _survivors(hand, rounds[-1][1], stage.starts, still[alive])
                alive, beta = alive[chosen], rounds[-1][1].final[chosen]
            schedule = AdamConfig(stage.steps, stage.learning_rate, stage.final_learning_rate)
            rounds.append((alive, minimize_adam(energy, beta, schedule, still=still[alive], on_step=bar.update)))
    return rounds


def _spread(points: Float[Tensor, "n 3"], count: int) -> Int[Tensor, "k"]:
    """Indices of `count` well-spread points; all of them where there are no more."""
    if count >= len(points):
        return torch.arange(len(points), device=points.device)
    return farthest_points(points, count, seed=0)


def _survivors(hand: Hand, trace: Trace, keep: int, still: Bool[Tensor, "s"]) -> Int[Tensor, "k"]:
    """The best distinct minima, and those that stand still.

    Two minima within 2 cm, or 2 cm per radian of turn, count as the same.
    """
    moving, stay = (~still).nonzero()[:, 0], still.nonzero()[:, 0]
    pose, _ = hand.split(trace.final[moving])
    distance = torch.cdist(pose[:, :3, 3], pose[:, :3, 3])
    turn = rotation_angle(pose[:, None, :3, :3], pose[None, :, :3, :3])
    best = best_distinct(trace.final_energy[moving], distance + 0.02 * turn, max(keep - len(stay), 1), apart=0.02)
    return torch.cat((moving[best], stay))


def _report(
    hand: Hand,
    energy: Energy,
    rounds: list[tuple[Tensor, Trace]],
    winner: int,
    demonstration: Demonstration,
    scene: Scene,
    model: FieldModel,
    config: TransferConfig,
    here: Attended,
) -> Grasp:
    """The chosen minimum, its path through all rounds, and where it came from."""
    alive, last = rounds[-1]
    if not torch.isfinite(last.final_energy[winner]):
        raise AfieldError("No start of the transfer ended with a finite energy; check the scene's scale and features.")
    start = int(alive[winner])
    with torch.no_grad():
        beta = hand.clamp(last.final[winner])
        total, parts = energy(beta[None])
    columns = [(trace, int((kept == start).nonzero())) for kept, trace in rounds]
    start_energy, start_beta = rounds[0][1].final_energy.clone(), rounds[0][1].final.clone()
    for kept, trace in rounds[1:]:
        start_energy[kept], start_beta[kept] = trace.final_energy, trace.final
    history = GraspHistory(
        beta=torch.cat([trace.beta[:, column] for trace, column in columns]).cpu(),
        step=torch.cat(list(_step_numbers(rounds))),
        terms={name: torch.cat([t.terms[name][:, c] for t, c in columns]).cpu() for name in columns[0][0].terms},
        start_energy=start_energy.cpu(),
        start_beta=start_beta.cpu(),
        winner=start,
        rounds=tuple((kept.cpu(), trace.beta.cpu(), trace.energy.cpu()) for kept, trace in rounds),
        stages=tuple(asdict(stage) for stage in config.stages),
    )
    provenance = {
        "demonstration": demonstration.name,
        "scene": scene.name,
        "hand": hand.name,
        "hand_fingerprint": hand.fingerprint,
        "field": model.kind,
        "source": asdict(scene.source),
        "config": asdict(config),
        "points_attended": len(here.scene.points),
    }
    terms = {name: float(value) for name, value in parts.items()}
    return Grasp(beta.cpu(), float(total), terms, history, provenance)


def _step_numbers(rounds: list[tuple[Tensor, Trace]]) -> Iterator[Int[Tensor, "t"]]:
    """The optimizer step of every record, counted through all rounds."""
    first = 0
    for _, trace in rounds:
        yield torch.arange(first, first + len(trace.beta))
        first += len(trace.beta) - 1
