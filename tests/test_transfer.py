from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afield.attend import RESIZED, attend, unlikeness
from afield.carry import carry, moved
from afield.confidence import Evidence
from afield.demonstration import Demonstration, demonstrate
from afield.energy import HandState, InsideTerm
from afield.errors import AfieldError
from afield.fields.registration import Registration, register
from afield.geometry import pose_from, rotation_about_axis, rotation_angle, transform_points
from afield.hand import Hand, hand_by_name
from afield.pipeline import is_calibrated, refuse_if_absent, with_confidence
from afield.pretrain import FieldModel, train_field
from afield.recognition import recognize
from afield.result import Grasp
from afield.run import Run
from afield.scene import FeatureSource, Plane, Scene
from afield.starts import StartConfig, matched_motions, palm_towards, sample_starts
from afield.transfer import Stage, TransferConfig, Weights, _spread, transfer_grasp

SOURCE = FeatureSource("color", 1, 224, 0.3)
TABLE = Plane(torch.tensor([0.0, 0.0, 1.0]), 0.0)
QUICK = TransferConfig(
    align=False,
    stages=(Stage(24, 60, 64, 128, True, 1e-2, 3e-3), Stage(4, 60, 128, 512, False, 5e-3, 5e-4)),
    start=StartConfig(matched=0.0, like_demonstration=1.0),
)


def _thing(seed: int = 0) -> Scene:
    """A bent bar 14 cm long, 8 cm above the table, whose features change smoothly along and around it."""
    generator = torch.Generator().manual_seed(seed)
    along = torch.rand(700, generator=generator) - 0.5
    angle = 2 * math.pi * torch.rand(700, generator=generator)
    bend = 0.03 * (along * 4).square()
    points = torch.stack((0.14 * along, bend + 0.02 * angle.cos(), 0.08 + 0.02 * angle.sin()), dim=-1)
    normals = torch.stack((torch.zeros(700), angle.cos(), angle.sin()), dim=-1)
    wave = 25 * torch.randn(3, 16, generator=torch.Generator().manual_seed(9))
    features = torch.nn.functional.normalize(torch.cos(points @ wave + torch.arange(16.0)), dim=-1)
    colors = torch.rand(700, 1, generator=generator).expand(700, 3).clone()
    return Scene(points, features, colors, normals, SOURCE, TABLE, f"thing{seed}")


def _moved(scene: Scene, pose: torch.Tensor) -> Scene:
    return replace(
        scene, points=transform_points(pose, scene.points), normals=scene.normals @ pose[:3, :3].T, name="moved"
    )


@pytest.fixture(scope="module")
def hand() -> Hand:
    return hand_by_name("shadow")


@pytest.fixture(scope="module")
def demonstration(hand: Hand) -> Demonstration:
    """The palm looks down on one half of the bar, fingers across it, as low as it can without touching it."""
    normal, finger = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, 1.0, 0.0])
    axes = torch.stack(
        (hand.palm_normal, hand.finger_direction, torch.linalg.cross(hand.palm_normal, hand.finger_direction)), 1
    )
    rotation = torch.stack((normal, finger, torch.linalg.cross(normal, finger)), 1) @ axes.T
    palm = torch.tensor([0.03, -0.02, 0.115])
    beta = hand.join(pose_from(rotation, palm - rotation @ hand.palm_center), hand.neutral())
    while float(hand.signed_distance(beta, _thing().points).min()) < 0.0:
        beta[2] += 0.001
    return demonstrate("bar", hand, beta, _thing())


@pytest.fixture(scope="module")
def model() -> FieldModel:
    return train_field([_thing(), _thing(1)], kind="dff", channels=16, progress=False)


@pytest.fixture(scope="module")
def motion() -> torch.Tensor:
    turn = rotation_about_axis(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(2.1))
    return pose_from(turn, torch.tensor([0.2, -0.1, 0.0]))


def test_a_moved_object_moves_the_grasp_with_it(
    hand: Hand, demonstration: Demonstration, model: FieldModel, motion: torch.Tensor
) -> None:
    target = _moved(_thing(), motion)
    grasp = transfer_grasp(demonstration, target, model, hand, QUICK, progress=False)
    wanted = transform_points(motion, demonstration.query_points(hand))
    found = hand.place(demonstration.points, grasp.beta)
    assert float((found - wanted).norm(dim=-1).mean()) < 0.01
    low, high = hand.limits[:, 0], hand.limits[:, 1]
    assert bool(((grasp.beta[9:] >= low) & (grasp.beta[9:] <= high)).all())
    assert abs(grasp.energy - sum(grasp.terms.values())) < 1e-4


def test_history_is_kept_and_the_energy_of_the_path_falls(
    hand: Hand, demonstration: Demonstration, model: FieldModel
) -> None:
    grasp = transfer_grasp(demonstration, _thing(2), model, hand, QUICK, progress=False)
    history = grasp.history
    assert history.beta.shape == (61 + 61, hand.dof)
    assert history.step[0] == 0
    assert history.step[-1] == 120
    assert set(history.terms) == {"feature", "penetration", "self_penetration", "joint_limits", "table"}
    assert len(history.start_energy) == 24
    assert [len(start) for start, _, _ in history.rounds] == [24, 4]
    total = torch.stack(tuple(history.terms.values())).sum(dim=0)
    assert float(total[60]) < float(total[0])
    assert float(total[-1]) < float(total[61])


def test_the_same_seed_gives_the_same_bytes(hand: Hand, demonstration: Demonstration, model: FieldModel) -> None:
    config = replace(QUICK, stages=(Stage(4, 5, 32, 64, True), Stage(2, 3, 32, 64, False)))
    first = transfer_grasp(demonstration, _thing(2), model, hand, config, progress=False)
    second = transfer_grasp(demonstration, _thing(2), model, hand, config, progress=False)
    other = transfer_grasp(demonstration, _thing(2), model, hand, replace(config, seed=1), progress=False)
    assert torch.equal(first.beta, second.beta)
    assert not torch.equal(first.beta, other.beta)


def test_the_judge_gets_the_minima_best_first_and_is_obeyed(
    hand: Hand, demonstration: Demonstration, model: FieldModel
) -> None:
    seen = []

    def judge(finalists: torch.Tensor, _: torch.Tensor) -> int:
        seen.append(finalists)
        return 1

    config = replace(QUICK, stages=(Stage(6, 20, 64, 64, True), Stage(3, 5, 64, 128, False)))
    best = transfer_grasp(demonstration, _thing(2), model, hand, config, progress=False)
    chosen = transfer_grasp(demonstration, _thing(2), model, hand, config, judge=judge, progress=False)
    assert seen[0].shape == (3, hand.dof)
    torch.testing.assert_close(seen[0][0], best.beta)
    torch.testing.assert_close(seen[0][1], chosen.beta)
    assert chosen.energy > best.energy


def test_faithful_means_the_paper(hand: Hand) -> None:
    config = TransferConfig(preset="faithful").resolved()
    assert (config.gate, config.center, config.geometry) == (False, False, False)
    assert config.weights == Weights(penetration=0.1, self_penetration=0.01, joint_limits=0.01, table=0.0)
    assert config.start.random_joints


def test_the_gate_leaves_other_objects_aside(hand: Hand, demonstration: Demonstration, model: FieldModel) -> None:
    thing, other = _thing(), _thing(1)
    shift = torch.tensor([0.3, 0.0, 0.0])
    strange = torch.nn.functional.normalize(torch.randn(700, 16, generator=torch.Generator().manual_seed(4)), dim=-1)
    both = replace(
        thing,
        points=torch.cat((thing.points, other.points + shift)),
        features=torch.cat((thing.features, strange)),
        colors=torch.cat((thing.colors, other.colors)),
        normals=torch.cat((thing.normals, other.normals)),
    )
    _, here = attend(demonstration, both, model, hand, use_gate=True, center=True)
    assert float(here.scene.points[:, 0].max()) < 0.15
    assert len(here.scene.points) > 600
    _, whole = attend(demonstration, both, model, hand, use_gate=False, center=True)
    assert len(whole.scene.points) == 1400


def test_starts_hold_the_scene_as_the_demonstration_held_its_region(hand: Hand, demonstration: Demonstration) -> None:
    scene = _thing(2)
    config = StartConfig(matched=0.0, like_demonstration=0.5)
    beta = sample_starts(demonstration, demonstration.scene, scene, hand, 40, config, torch.Generator().manual_seed(0))
    pose, joints = hand.split(beta)
    region = demonstration.scene.points[demonstration.region(hand)].mean(dim=0)
    shown, _ = hand.split(demonstration.beta)
    held = shown[:3, :3].T @ (region - shown[:3, 3])
    anchors = (pose[:, :3, :3] @ held) + pose[:, :3, 3]
    assert float(torch.cdist(anchors, scene.points).amin(dim=-1).max()) < 1e-4
    down = (pose[:, :3, :3] @ hand.palm_normal)[:, 2]
    assert bool((down[:20] < -math.cos(config.tilt) + 1e-3).all()), "turned demonstrations tilt by 30 degrees at most"
    assert bool((joints >= hand.limits[:, 0]).all())
    assert bool((joints <= hand.limits[:, 1]).all())


def test_mismatches_name_both_sides(
    hand: Hand, demonstration: Demonstration, model: FieldModel, tmp_path: Path
) -> None:
    foreign = replace(_thing(2), source=replace(SOURCE, extractor="dinov2-s-embedded", layer=10))
    with pytest.raises(AfieldError, match=r"color, layer 1.*dinov2-s-embedded, layer 10"):
        transfer_grasp(demonstration, foreign, model, hand, QUICK, progress=False)
    other_hand = replace(demonstration, hand="allegro", hand_fingerprint="0123456789abcdef")
    with pytest.raises(AfieldError, match=r"'allegro' .01234567.* the hand 'shadow'"):
        transfer_grasp(other_hand, _thing(2), model, hand, QUICK, progress=False)
    wrong = replace(model, source=replace(SOURCE, layer=3))
    with pytest.raises(AfieldError, match=r"made for features of color, layer 3"):
        transfer_grasp(demonstration, _thing(2), wrong, hand, QUICK, progress=False)


def test_a_hand_far_from_everything_demonstrates_nothing(hand: Hand, demonstration: Demonstration) -> None:
    far = demonstration.beta.clone()
    far[2] += 1.0
    with pytest.raises(AfieldError, match="touches nothing"):
        demonstrate("far", hand, far, _thing())


def test_a_run_survives_the_disk(hand: Hand, demonstration: Demonstration, model: FieldModel, tmp_path: Path) -> None:
    config = replace(QUICK, stages=(Stage(4, 5, 32, 64, True), Stage(2, 3, 32, 64, False)))
    target = _thing(2)
    grasp = transfer_grasp(demonstration, target, model, hand, config, progress=False)
    Run(grasp, demonstration, target, model, hand).save(tmp_path / "run")
    loaded = Run.load(tmp_path / "run")
    assert torch.equal(loaded.grasp.beta, grasp.beta)
    assert loaded.grasp.terms == grasp.terms
    assert len(loaded.grasp.history.rounds) == 2
    assert torch.equal(loaded.grasp.history.rounds[1][1], grasp.history.rounds[1][1])
    assert torch.equal(loaded.demonstration.scene.features, demonstration.scene.features)
    again = transfer_grasp(loaded.demonstration, loaded.scene, loaded.model, loaded.hand, config, progress=False)
    assert torch.equal(again.beta, grasp.beta), "what was loaded repeats the run to the byte"
    described = loaded.grasp.describe(hand)
    assert set(described["joints"]) == set(hand.joint_names)
    (tmp_path / "run" / "grasp" / "tensors.safetensors").write_bytes(b"short")
    with pytest.raises(AfieldError, match="may be truncated"):
        Grasp.load(tmp_path / "run" / "grasp")
    with pytest.raises(AfieldError, match="is not a run"):
        Run.load(tmp_path)


def test_screening_compares_many_draws_and_starts_from_the_best(
    hand: Hand, demonstration: Demonstration, model: FieldModel
) -> None:
    stages = (Stage(64, 0, 64, 64, True), Stage(4, 3, 64, 64, True))
    history = transfer_grasp(
        demonstration, _thing(2), model, hand, replace(QUICK, stages=stages), progress=False
    ).history
    screened, begun = history.rounds[0], history.rounds[1]
    assert screened[1].shape[:2] == (1, 64)
    assert screened[2][0].argmin() in begun[0]
    assert float(screened[2][0][begun[0]].mean()) < float(screened[2][0].median())
    assert history.winner in begun[0]


def test_starts_of_a_gripper_that_looks_along_its_fingers(hand: Hand) -> None:
    gripper = replace(hand, palm_normal=hand.finger_direction)
    rotation = palm_towards(gripper, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(8))


def test_thinned_query_points_cover_every_finger(hand: Hand, demonstration: Demonstration) -> None:
    """Points are spread as the hand holds them, not in the frames of its links, where fingers lie upon each other."""
    chosen = _spread(demonstration.query_points(hand), 64)
    links = {hand.link_names[i] for i in demonstration.points.link[chosen].tolist()}
    for finger, bodies in hand.description.fingers.items():
        assert links & set(bodies), finger


def test_matched_motions_find_how_an_object_was_turned(
    hand: Hand, demonstration: Demonstration, motion: torch.Tensor
) -> None:
    """Turned over as well, which no start that turns about the vertical would meet."""
    over = rotation_about_axis(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(2.5))
    truth = motion @ pose_from(over, torch.tensor([0.0, 0.05, 0.1]))
    target = _moved(_thing(2), truth)
    region = demonstration.region(hand)
    found = matched_motions(demonstration.scene, region, target, 10, torch.Generator().manual_seed(0))
    points = demonstration.scene.points[region]
    off = (transform_points(found[0], points) - transform_points(truth, points)).norm(dim=-1).mean()
    assert float(off) < 0.01


def test_the_aligned_object_carries_the_hand(
    hand: Hand, demonstration: Demonstration, model: FieldModel, motion: torch.Tensor
) -> None:
    """Starts and the energy's term both know where; without the field's help the hand is still drawn there."""
    target = _moved(_thing(2), motion)
    config = StartConfig(matched=0.0, carried=0.5)
    generator = torch.Generator().manual_seed(0)
    pose, joints = hand.split(demonstration.beta)
    carried = hand.join(motion @ pose, joints)
    beta = sample_starts(demonstration, demonstration.scene, target, hand, 40, config, generator, carried)
    wanted = transform_points(motion, demonstration.query_points(hand))
    off = (hand.place(demonstration.points, beta) - wanted).norm(dim=-1).mean(dim=-1)
    assert float(off[:20].median()) < 0.04
    assert float(off[20:].median()) > 0.08
    stages = (Stage(24, 40, 64, 128, True, 1e-2, 3e-3), Stage(2, 40, 64, 256, False, 5e-3, 1e-3))
    config = replace(QUICK, align=True, stages=stages, weights=Weights(feature=0.0, alignment=1.0))
    grasp = transfer_grasp(demonstration, target, model, hand, config, progress=False)
    assert float((hand.place(demonstration.points, grasp.beta) - wanted).norm(dim=-1).mean()) < 0.03
    assert grasp.terms["alignment"] > 0.0
    assert 0.9 < grasp.provenance["alignment"]["scale"] < 1.1


def test_the_carried_hand_is_judged_first_and_as_it_is(
    hand: Hand, demonstration: Demonstration, model: FieldModel, motion: torch.Tensor
) -> None:
    target = _moved(_thing(2), motion)
    shown, here = attend(demonstration, target, model, hand, use_gate=True, center=True)
    same = recognize(register(shown.scene, here.scene), shown.scene, here.scene, target)
    assert same is not None
    fitted = carry(demonstration, hand, same.alignment, shown.scene, same.completed(here.scene)).beta
    itself = moved(demonstration, hand, same.alignment)
    seen: list[torch.Tensor] = []

    def judge(candidates: torch.Tensor, _: torch.Tensor) -> int:
        seen.append(candidates)
        return 0

    config = replace(QUICK, align=True)
    grasp = transfer_grasp(demonstration, target, model, hand, config, judge=judge, progress=False)
    assert len(seen[0]) == config.stages[-1].starts
    palm, joints = hand.split(demonstration.beta)
    there, same_joints = hand.split(itself)
    assert float((there[:3, 3] - (motion @ palm)[:3, 3]).norm()) < 0.003
    assert float(rotation_angle(there[:3, :3], (motion @ palm)[:3, :3])) < 0.05
    torch.testing.assert_close(same_joints, joints)
    for expected in (fitted, itself):
        assert float((seen[0][:2] - hand.clamp(expected)).abs().amax(dim=1).min()) < 1e-5
    torch.testing.assert_close(grasp.beta, seen[0][0], atol=1e-6, rtol=0)
    torch.testing.assert_close(grasp.history.beta[-1], grasp.history.beta[0])
    assert grasp.history.start_energy[grasp.history.winner] > grasp.history.start_energy.min()
    assert grasp.provenance["alignment"]["carried"] is True
    assert grasp.provenance["alignment"]["same_object"] is True
    other = transfer_grasp(demonstration, target, model, hand, config, judge=lambda *_: 2, progress=False)
    assert other.provenance["alignment"]["carried"] is False


def _tube(radius: float, height: float) -> Scene:
    """Straight along x, below the demonstrated palm."""
    generator = torch.Generator().manual_seed(4)
    along, angle = torch.rand(2, 2000, generator=generator)
    out = torch.stack((torch.zeros(2000), (2 * math.pi * angle).cos(), (2 * math.pi * angle).sin()), dim=-1)
    middle = torch.stack((0.2 * along - 0.1, torch.full((2000,), 0.02), torch.full((2000,), height)), dim=-1)
    features = torch.nn.functional.normalize(torch.ones(2000, 4), dim=-1)
    return Scene(middle + radius * out, features, torch.rand(2000, 3), out, SOURCE, TABLE)


def test_a_wider_object_opens_the_hand(hand: Hand, demonstration: Demonstration) -> None:
    """Carried points keep their distance from the surface, and the fitted hand stays out of it; a rigid one does not."""
    narrow, wide = _tube(0.02, 0.10), _tube(0.04, 0.10)
    shown = replace(demonstration, scene=narrow)
    found = Registration(torch.eye(3), 1.0, torch.zeros(3), 0.0)
    carried = carry(shown, hand, found, narrow, wide)
    near = torch.cdist(shown.query_points(hand), narrow.points).amin(dim=-1)
    there = torch.cdist(carried.points, wide.points).amin(dim=-1)
    assert int((near < 0.03).sum()) > 20
    assert float((there - near)[near < 0.03].abs().mean()) < 0.003
    inside = InsideTerm(wide.points, wide.normals)
    before, after = (float(inside(HandState.of(hand, shown.points, b[None]))) for b in (shown.beta, carried.beta))
    assert before > 5e-4
    assert after < 0.1 * before
    assert float((hand.place(shown.points, carried.beta) - carried.points).norm(dim=-1).mean()) < 0.014


def test_unlike_shapes_have_no_matched_motion(hand: Hand, demonstration: Demonstration) -> None:
    scene = replace(_thing(2), points=_thing(2).points * 5.0)
    region = demonstration.region(hand)
    assert len(matched_motions(demonstration.scene, region, scene, 10, torch.Generator().manual_seed(0))) <= 10
    tiny = replace(_thing(2), points=_thing(2).points * 0.01)
    assert matched_motions(demonstration.scene, region, tiny, 10, torch.Generator().manual_seed(0)).shape == (0, 4, 4)


def test_fields_that_drop_points_still_have_matched_starts(hand: Hand, demonstration: Demonstration) -> None:
    """`sparsedff` prunes doubtful points, so the shown scene may be shorter than the demonstration's own."""
    shown = demonstration.scene.select(torch.arange(0, len(demonstration.scene.points), 3))
    config = StartConfig(matched=0.5)
    beta = sample_starts(demonstration, shown, _thing(2), hand, 40, config, torch.Generator().manual_seed(0))
    assert beta.shape == (40, hand.dof)
    assert bool(torch.isfinite(beta).all())


def _strange(scene: Scene) -> Scene:
    """With features that mean nothing."""
    noise = torch.randn(700, 16, generator=torch.Generator().manual_seed(3))
    return scene.with_features(torch.nn.functional.normalize(noise, dim=-1))


def _plate(scene: Scene) -> Scene:
    """A disc with the scene's features."""
    points = scene.points - torch.tensor([0.0, 0.0, 0.08])
    across = torch.stack((points[:, 0], 3 * points[:, 2], torch.full((700,), 0.08)), dim=-1)
    return replace(scene, points=across, name="plate")


def test_a_scene_without_anything_alike_is_refused_with_the_reason(hand: Hand, demonstration: Demonstration) -> None:
    refuse_if_absent(demonstration, _thing(2), hand)
    disc = _plate(_strange(_thing(2)))
    with pytest.raises(AfieldError, match=r"Nothing in 'plate' is to be grasped like 'bar'.*--force"):
        refuse_if_absent(demonstration, replace(disc, points=3 * disc.points), hand)


def test_unlikeness_counts_shape_features_and_size_but_neither_place_nor_turn(
    hand: Hand, demonstration: Demonstration, motion: torch.Tensor
) -> None:
    same = unlikeness(demonstration, _thing(), hand)
    another = unlikeness(demonstration, _thing(2), hand)
    assert same == pytest.approx(0.0, abs=0.02)
    assert same < another < 0.3
    assert unlikeness(demonstration, _moved(_thing(2), motion), hand) == pytest.approx(another, abs=0.02)
    assert unlikeness(demonstration, _plate(_thing(2)), hand) > another + 0.05
    assert unlikeness(demonstration, _strange(_thing(2)), hand) > another + 0.1
    for factor in (0.7, 1.2):
        resized = replace(_thing(2), points=factor * _thing(2).points)
        expected = another + RESIZED * abs(math.log(factor))
        assert unlikeness(demonstration, resized, hand) == pytest.approx(expected, abs=0.01)


def test_a_probability_is_given_only_for_what_it_was_fitted_to(model: FieldModel) -> None:
    attention = replace(model, kind="attention")
    assert is_calibrated(TransferConfig(), attention)
    assert not is_calibrated(TransferConfig(), model)
    assert not is_calibrated(TransferConfig(align=False), attention)
    assert not is_calibrated(TransferConfig(preset="faithful"), attention)


def test_a_grasp_carries_its_evidence(hand: Hand, demonstration: Demonstration, model: FieldModel) -> None:
    grasp = transfer_grasp(demonstration, demonstration.scene, model, hand, QUICK, progress=False)
    evidence = Evidence.of(grasp, hand)
    assert evidence.similarity == pytest.approx(0.0, abs=1e-6)
    assert evidence.rehearsed == 0.5
    assert 0.0 < evidence.agreement <= 1.0
    assert 0.0 < with_confidence(grasp, hand).provenance["success_probability"] < 1.0
