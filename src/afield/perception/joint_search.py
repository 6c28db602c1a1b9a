"""The joint of a part that moves, from pictures and from the way of the hand that moves it.

Hinges and slides are tried all over the object; those under which the pictures make most sense, and that take what the hand
holds to where the hand is, are refined by least squares on the pictures themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from scipy.spatial import KDTree
from tqdm import tqdm

from afield.perception.cameras import CameraPath
from afield.perception.direct import Surface, make_surface, unlikeness
from afield.perception.hand_witness import HandWitness

Kind = Literal["slide", "hinge"]
CELLS = 12
"""Cells on the diagonal of the object in the grid of places through which an axis may go."""
TURNS = np.radians(np.arange(-100.0, 101.0, 5.0))
WAYS = np.linspace(-0.8, 0.8, 33)
"""Amounts of a hinge in radians, and of a slide as shares of the object's diagonal."""
SURVIVORS = 3, 5
"""Candidates of every family (main direction and sense of motion) that are shifted on blurred pictures, and how many of all are
refined on sharp ones."""
JUMP = 1.5
"""How much worse a sequence of amounts is that jumps over half of the range from one moment to the next."""
BACK = 6.0
"""So much more a step back towards rest counts as a jump: who opens or closes something seldom turns back."""
HAND = 0.05
"""What it counts if the hand is in a moment where a joint takes it, beside what all squares would gain together."""
BELONGS = 0.1
"""Summed gain of a square from which on it counts as part of what moves."""
SIMPLER = 0.95
"""A slide is believed if it explains at least such a share of what the best hinge explains."""
NEIGHBOURS = 12
"""Nearest points to which each is tied."""
CLEAR = 1.0
"""Summed gain of a point from which on it is quite clear that it moves."""
TIED, BEND, STEP = 1.0, 0.1, 0.02
"""What it costs to part two neighbours on a flat surface; one minus the cosine of the angle between their sides, and the
step from one to the other as a share of the object's size, beyond which it costs much less."""
FRAME_JUMP = 12.0
"""The same penalty from one frame to the next."""
UNSEEN = 0.65
"""What a point that cannot be seen counts, as a difference in appearance: turning all points away must not be a gain."""
ATTACHED = 0.035, 0.08
"""A hinge lies at the edge of what turns about it: so far, as a share of the object's diagonal, its axis may pass from the
nearest of that; at so much more, a third of what it explains is left."""
SLICES, REACHES = 8, 0.25
"""Slices of the part, one after the other along the axis, and the share of them that has to reach it."""
HELD = 0.15
"""The same as `HAND` where the part is followed, beside what all its points would add that look right."""
HOPELESS = 0.6
"""A candidate that explains less than such a share of what the best one explains is not shifted."""
LEAN = {"hinge": np.radians(4.0), "slide": np.radians(20.0)}
"""Axes of furniture run along its edges, give or take so much; ways of what is pushed or lifted less so."""
ASIDE = 0.03
"""A refined axis stays near the edge at which it was found, give or take so much of the object's diagonal."""
TRUST = 0.03
"""How much worse an explanation is, as a mean difference in appearance, whose axis leans or has gone aside by that much."""


@dataclass(frozen=True)
class Joint:
    """A hinge or a slide, in the world."""

    kind: Kind
    twist: Float[np.ndarray, "6"]
    """Rotation (a unit vector, or zero) and shift (a unit vector for a slide)."""
    main: Float[np.ndarray, "3"]
    """The direction of the object that axis or way is expected along."""
    amounts: Float[np.ndarray, "f"]
    """How far it has gone in some frames: radians, or lengths of the world."""
    score: float = 0.0
    place: Float[np.ndarray, "3"] | None = None
    """A point that a hinge's axis is expected to pass through ..."""
    aside: float = 1.0
    """... give or take such a length of the world."""

    def motion(self, amount: Float[np.ndarray, "*m"]) -> Float[np.ndarray, "*m 4 4"]:
        """How the part moves."""
        return motions(self.twist, amount)


def motions(twist: Float[np.ndarray, "6"], amount: Float[np.ndarray, "*m"]) -> Float[np.ndarray, "*m 4 4"]:
    """exp(amount * twist) for a unit twist, in closed form."""
    turn, shift = twist[:3], twist[3:]
    cross = np.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
    a = np.asarray(amount, float)[..., None, None]
    angle = float(np.linalg.norm(turn))
    pose = np.broadcast_to(np.eye(4), (*np.shape(amount), 4, 4)).copy()
    if angle < 1e-9:
        pose[..., :3, 3] = a[..., 0] * shift
        return pose
    square = cross @ cross
    pose[..., :3, :3] = np.eye(3) + np.sin(a) * cross + (1 - np.cos(a)) * square
    pose[..., :3, 3] = (a * np.eye(3) + (1 - np.cos(a)) * cross + (a - np.sin(a)) * square) @ shift
    return pose


def candidates(surface: Surface, up: Float[np.ndarray, "3"]) -> tuple[list[tuple[Kind, Float[np.ndarray, "6"]]], float]:
    """Slides along the three main directions of the object and hinges parallel to them, on a grid; and the object's diagonal.

    Things that stand have one upright direction; the other two are where most of their sides look.
    """
    level = surface.normals - np.outer(surface.normals @ up, up)
    side = np.cross(up, [0.0, 0.0, 1.0]) if abs(up[2]) < 0.9 else np.cross(up, [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    ahead = np.cross(up, side)
    steep = np.linalg.norm(level, axis=1) > 0.9
    angle = np.arctan2(level[steep] @ ahead, level[steep] @ side)
    trials = np.radians(np.arange(90))
    votes = np.exp(4 * (np.cos(4 * (angle[:, None] - trials)) - 1)).sum(axis=0)
    yaw = trials[votes.argmax()]
    main = np.stack((np.cos(yaw) * side + np.sin(yaw) * ahead, np.cos(yaw) * ahead - np.sin(yaw) * side, up))
    along = surface.points @ main.T
    low, high = np.quantile(along, 0.01, axis=0), np.quantile(along, 0.99, axis=0)
    diagonal = float(np.linalg.norm(high - low))
    found: list[tuple[Kind, np.ndarray]] = [("slide", np.concatenate((np.zeros(3), axis))) for axis in main]
    for index, axis in enumerate(main):
        first, second = (
            np.linspace(low[i], high[i], max(2, int(np.ceil((high[i] - low[i]) / diagonal * CELLS)) + 1))
            for i in range(3)
            if i != index
        )
        others = [main[i] for i in range(3) if i != index]
        for a in first:
            for b in second:
                found.append(("hinge", np.concatenate((axis, -np.cross(axis, a * others[0] + b * others[1])))))
    return found, diagonal


def score_joint(
    surface: Surface,
    twist: Float[np.ndarray, "6"],
    frames: Int[np.ndarray, "f"],
    amounts: Float[np.ndarray, "a"],
    hand: HandWitness | None = None,
) -> tuple[Float[np.ndarray, "f"], Float[np.ndarray, "b"], float]:
    """The best amounts in some frames.

    Under them one set of squares gains most, and the hand, if there is one, stays with one spot of the part.

    Returns:
        The amounts, what each square gains over all frames, and the sum of what is gained, the hand's agreement included and
        times how well the axis is attached to what turns about it.
    """
    poses, every = motions(twist, amounts), np.arange(len(frames))
    gain = np.stack([surface.gain(int(frame), poses) for frame in frames])
    agreed = np.zeros((1, len(frames), len(amounts)))
    if hand is not None and len(hand.spots):
        agreed = HAND * gain.shape[2] * np.stack([hand.agreement(int(frame), poses) for frame in frames], axis=1)
    score = np.maximum(gain, 0).sum(axis=2)
    for last in (False, False, False, True):
        chosen, spot = _best_path(score + agreed, amounts)
        square = gain[every, chosen].sum(axis=0)
        member = square > BELONGS
        if last or not member.any():
            break
        score = gain[:, :, member].sum(axis=2)
    total = float(np.maximum(square, 0).sum() + agreed[spot, every, chosen].sum())
    return amounts[chosen], square, total * attachment(surface, twist, (square > BELONGS)[surface.block])


def attachment(surface: Surface, twist: Float[np.ndarray, "6"], member: Bool[np.ndarray, "n"]) -> float:
    """1 where a hinge's axis touches what turns about it, down to 0 where it passes far from it; slides have no axis."""
    turn, shift = twist[:3], twist[3:]
    if not turn.any() or not member.any():
        return 1.0
    points = surface.points[member] - np.cross(turn, shift)
    away, along = np.linalg.norm(np.cross(points, turn), axis=1), points @ turn
    slices = np.array_split(along.argsort(), max(1, min(SLICES, len(along) // 5)))
    diagonal = float(np.linalg.norm(np.ptp(surface.points, axis=0)))
    nearest = float(np.quantile([np.quantile(away[one], 0.05) for one in slices], REACHES))
    return float(np.exp(-((max(0.0, nearest / diagonal - ATTACHED[0]) / ATTACHED[1]) ** 2)))


def _best_path(score: Float[np.ndarray, "s f a"], amounts: Float[np.ndarray, "a"]) -> tuple[Int[np.ndarray, "f"], int]:
    """The best of the smooth paths for each of some scores, and whose it is."""
    paths, totals = smooth_paths(score, amounts, JUMP)
    best = int(totals.argmax())
    return paths[best], best


def smooth_paths(
    score: Float[np.ndarray, "s f a"], amounts: Float[np.ndarray, "a"], jump: float
) -> tuple[Int[np.ndarray, "s f"], Float[np.ndarray, "s"]]:
    """For each of some scores the sequence with the largest sum, less a penalty on jumps, and that sum; it begins at rest."""
    weight = jump * np.maximum(score.max(axis=2).mean(axis=1), 1e-9)[:, None]
    span = np.ptp(amounts) / 2
    back = (np.abs(amounts)[:, None] < np.abs(amounts)[None]) | (amounts[:, None] * amounts[None] < 0)
    penalty = ((amounts[:, None] - amounts[None]) / span) ** 2 * np.where(back, BACK, 1.0)
    total = score[:, 0] - weight * (amounts / span) ** 2
    before = np.zeros(score.shape, int)
    for index in range(1, score.shape[1]):
        reach = total[:, None] - weight[:, None] * penalty
        before[:, index] = reach.argmax(axis=2)
        total = score[:, index] + reach.max(axis=2)
    path = [total.argmax(axis=1)]
    for index in range(score.shape[1] - 1, 0, -1):
        path.append(np.take_along_axis(before[:, index], path[-1][:, None], axis=1)[:, 0])
    return np.stack(path[::-1], axis=1), total.max(axis=1)


def refine_joint(
    surface: Surface, joint: Joint, frames: Int[np.ndarray, "f"], member: Int[np.ndarray, "k"], steps: int = 8
) -> Joint:
    """Levenberg-Marquardt on the differences in appearance of the members, over the joint and all amounts."""
    middle = surface.points[member].mean(axis=0)
    count, damping, weigh = len(frames), 1e-3, TRUST * len(frames) * len(member)
    current = _mismatch(surface, joint, frames, member)
    for _ in range(steps):
        normal, slope = np.zeros((6 + count, 6 + count)), np.zeros(6 + count)
        for index, frame in enumerate(frames):
            rows, residual, weight = _linear(surface, joint, int(frame), float(joint.amounts[index]), member, middle)
            where = np.r_[0:6, 6 + index]
            normal[np.ix_(where, where)] += rows.T @ (rows * weight[:, None])
            slope[where] += rows.T @ (weight * residual)
        rows, lean = _lean(joint, middle)
        normal[:6, :6] += weigh * rows.T @ rows
        slope[:6] += weigh * rows.T @ lean
        before = current
        for _ in range(5):
            floor = 1e-9 * np.trace(normal) / len(normal) + 1e-12
            step = -np.linalg.solve(normal + np.diag(damping * np.diag(normal) + floor), slope)
            twist = joint.twist + step[:6]
            twist[3:] -= np.cross(step[:3], middle)
            trial = _unit(joint, twist, joint.amounts + step[6:])
            new = _mismatch(surface, trial, frames, member)
            if new < current:
                joint, current, damping = trial, new, max(damping / 6, 1e-6)
                break
            damping *= 6
        if before - current < 1e-5:
            break
    return joint


def _linear(
    surface: Surface,
    joint: Joint,
    frame: int,
    amount: float,
    member: Int[np.ndarray, "k"],
    middle: Float[np.ndarray, "3"],
) -> tuple[Float[np.ndarray, "m 7"], Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Derivatives, differences and weights in a frame; rotations are about the middle of the members."""
    near = 1e-3
    twists = [joint.twist]
    for axis in range(6):
        change = np.zeros(6)
        change[axis] = near
        change[3:] -= np.cross(change[:3], middle)
        twists.append(joint.twist + change)
    poses = np.stack([*(_motion(twist, amount) for twist in twists), _motion(joint.twist, amount + near)])
    found, lost = surface.difference(frame, poses, member)
    rows = (found[1:] - found[:1]) / near
    if joint.kind == "slide":
        rows[:3] = 0.0
    size = np.linalg.norm(found[0], axis=-1)
    weight = np.where(lost.any(axis=0) | (size > 1.2), 0.0, 1 / (0.15 + size))
    return rows.reshape(7, -1).T, found[0].reshape(-1), np.repeat(weight, 3)


def _motion(twist: Float[np.ndarray, "6"], amount: float) -> Float[np.ndarray, "4 4"]:
    """exp(amount * twist) for a twist that need not be a unit one."""
    angle = float(np.linalg.norm(twist[:3]))
    if angle < 1e-9:
        return motions(twist, np.array(amount))
    return motions(twist / angle, np.array(amount * angle))


def _mismatch(surface: Surface, joint: Joint, frames: Int[np.ndarray, "f"], member: Int[np.ndarray, "k"]) -> float:
    """Mean difference in appearance; what is not seen counts half, so that nothing is gained by hiding it."""
    total = 0.0
    for frame, amount in zip(frames, joint.amounts, strict=True):
        found, lost = surface.difference(int(frame), joint.motion(np.array([amount])), member)
        size = np.minimum(np.linalg.norm(found, axis=-1), 1.0)
        total += float(np.where(lost, 0.5, size).mean())
    return total / len(frames) + TRUST * float((_lean(joint, np.zeros(3))[1] ** 2).sum())


def _lean(joint: Joint, middle: Float[np.ndarray, "3"]) -> tuple[Float[np.ndarray, "k 6"], Float[np.ndarray, "k"]]:
    """How far axis or way lean, and the axis has gone aside, in units of what is expected, after the derivative.

    That is by a rotation about the middle and a shift, as in `refine_joint`.
    """
    rows = np.zeros((3, 6))
    turn, shift = joint.twist[:3], joint.twist[3:]
    if joint.kind == "slide":
        rows[:, 3:] = np.eye(3)
        return rows / LEAN["slide"], (shift - joint.main) / LEAN["slide"]
    rows[:, :3] = np.eye(3)
    rows, lean = rows / LEAN["hinge"], (turn - joint.main) / LEAN["hinge"]
    if joint.place is None:
        return rows, lean
    # Where the axis passes through the place, the place does not move.
    moves = shift + np.cross(turn, joint.place)
    beside = np.column_stack([*(np.cross(axis, joint.place - middle) for axis in np.eye(3)), np.eye(3)])
    return np.concatenate((rows, beside / joint.aside)), np.concatenate((lean, moves / joint.aside))


def _unit(joint: Joint, twist: Float[np.ndarray, "6"], amounts: Float[np.ndarray, "f"]) -> Joint:
    """A joint whose twist is a unit one: a slide does not turn, and a hinge does not go along its axis."""
    twist = twist.copy()
    if joint.kind == "slide":
        twist[:3] = 0.0
        size = float(np.linalg.norm(twist[3:]))
    else:
        size = float(np.linalg.norm(twist[:3]))
        axis = twist[:3] / size
        twist[3:] -= axis * (axis @ twist[3:])
    return replace(joint, twist=twist / size, amounts=amounts * size)


def find_joint(
    frames: UInt8[np.ndarray, "t h w 3"],
    path: CameraPath,
    mask: Bool[np.ndarray, "h w"],
    depth: Float[np.ndarray, "h w"],
    reference: int,
    hidden: Bool[np.ndarray, "t h w"],
    moments: Int[np.ndarray, "f"],
    hand: HandWitness | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> list[Joint]:
    """The joints that explain best how the object looks at some moments, the best first.

    Args:
        frames: RGB.
        path: cameras, world +Z up.
        mask: the object in the reference frame.
        depth: of the reference frame.
        reference: a frame before anything moves.
        hidden: where hands are.
        moments: frames in which the part has moved.
        hand: where the hand is that moves it.
        seed: which of the object's points are looked at.
        progress: show a progress bar.
    """

    def surface(**options: float | int) -> Surface:
        """The object as points with what they look like, as rough or fine as asked for."""
        return make_surface(frames, path, mask, depth, reference, hidden, seed=seed, **options)  # pyright: ignore[reportArgumentType]

    rough, sharp = surface(count=700, blur=2.0), surface(count=1500, blur=1.0)
    trials, diagonal = candidates(rough, np.array([0.0, 0.0, 1.0]))
    found = []
    for kind, twist in tqdm(trials, desc="joints", disable=not progress, leave=False):
        amounts = TURNS[::2] if kind == "hinge" else WAYS[::2] * diagonal
        chosen, _, score = score_joint(rough, twist, moments, amounts, hand)
        main = twist[:3] if kind == "hinge" else twist[3:]
        found.append(Joint(kind, twist, main, chosen, score))
    found.sort(key=lambda joint: -joint.score)
    families: dict[tuple[object, ...], list[Joint]] = {}
    for joint in found:
        sense = bool(joint.amounts.sum() > 0)
        families.setdefault((joint.kind, *np.round(joint.main, 3), sense), []).append(joint)
    chosen = [joint for group in families.values() for joint in group[: SURVIVORS[0]]]
    chosen = [joint for joint in chosen if joint.score > HOPELESS * found[0].score]
    found = [
        _climb(rough, joint, moments, diagonal, hand)
        for joint in tqdm(chosen, desc="shifted joints", disable=not progress, leave=False)
    ]
    found = _different(sorted(found, key=lambda joint: -joint.score), diagonal)
    found = [
        _improve(sharp, joint, moments, diagonal, hand)
        for joint in tqdm(found[: SURVIVORS[1]], desc="refined joints", disable=not progress, leave=False)
    ]
    return sorted(found, key=lambda joint: -joint.score)


def simplest(found: list[Joint]) -> Joint | None:
    """The best joint, or a slide that explains nearly as much; None if there is none that explains anything."""
    if not found or found[0].score <= 0:
        return None
    slides = [joint for joint in found if joint.kind == "slide" and joint.score > SIMPLER * found[0].score]
    return slides[0] if slides else found[0]


def _different(found: list[Joint], diagonal: float) -> list[Joint]:
    """The joints without those that are nearly a better one's."""
    kept: list[Joint] = []
    for joint in found:
        if all(np.linalg.norm(joint.twist - other.twist) > diagonal / CELLS for other in kept):
            kept.append(joint)
    return kept


def _climb(
    surface: Surface, joint: Joint, moments: Int[np.ndarray, "f"], diagonal: float, hand: HandWitness | None
) -> Joint:
    """Shift the axis of a hinge sideways in ever smaller steps while it explains more; slides have no place."""
    if joint.kind == "slide":
        return joint
    amounts, axis = TURNS[::2], joint.twist[:3]
    first = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    first /= np.linalg.norm(first)
    step = 0.5 * diagonal / CELLS
    while step > 0.1 * diagonal / CELLS:
        best = joint
        for aside in (first, -first, np.cross(axis, first), -np.cross(axis, first)):
            twist = joint.twist - np.concatenate((np.zeros(3), np.cross(axis, step * aside)))
            chosen, _, score = score_joint(surface, twist, moments, amounts, hand)
            if score > best.score:
                best = replace(joint, twist=twist, amounts=chosen, score=score)
        if best is joint:
            step /= 2
        joint = best
    return joint


def _improve(
    surface: Surface, joint: Joint, moments: Int[np.ndarray, "f"], diagonal: float, hand: HandWitness | None
) -> Joint:
    """Amounts, members and joint in turn; the best of all rounds."""
    amounts = TURNS if joint.kind == "hinge" else WAYS * diagonal
    chosen, square, score = score_joint(surface, joint.twist, moments, amounts, hand)
    if joint.kind == "hinge":
        turn, foot = joint.twist[:3], np.cross(joint.twist[:3], joint.twist[3:])
        member = (square > BELONGS)[surface.block]
        middle = surface.points[member if member.any() else slice(None)].mean(axis=0)
        joint = replace(joint, place=foot + turn * (turn @ (middle - foot)), aside=ASIDE * diagonal)
    best = replace(joint, amounts=chosen, score=score)
    for _ in range(3):
        member = np.flatnonzero((square > BELONGS)[surface.block])
        if len(member) < 20:
            break
        joint = refine_joint(surface, replace(joint, amounts=chosen), moments, member)
        low, high = min(joint.amounts.min(), 0.0), max(joint.amounts.max(), 0.0)
        room = 0.1 * (high - low)
        grid = np.linspace(low - room, high + room, 41)
        chosen, square, score = score_joint(surface, joint.twist, moments, grid, hand)
        if score > best.score:
            best = replace(joint, amounts=chosen, score=score)
    return best


def follow_joint(
    surface: Surface,
    joint: Joint,
    member: Int[np.ndarray, "k"],
    first: int,
    count: int,
    hand: HandWitness | None = None,
) -> Float[np.ndarray, "t"]:
    """How far the part has gone in every frame.

    0 until `first`, then the smooth path under which its members look right and what the hand holds stays near it. A hand that
    has not come yet, or has left, is too far away to count.
    """
    low, high = min(joint.amounts.min(), 0.0), max(joint.amounts.max(), 0.0)
    room = 0.15 * (high - low)
    grid = np.linspace(low - room, high + room, 79)
    frames = np.arange(first + 1, count)
    score = np.stack([_likeness(surface, joint, int(frame), grid, member, hand) for frame in frames])
    amount = np.zeros(count)
    amount[frames] = grid[smooth_paths(score[None], grid, FRAME_JUMP)[0][0]]
    near = np.linspace(-1, 1, 9) * (grid[1] - grid[0])
    for frame in frames:
        around = amount[frame] + near
        amount[frame] = around[_likeness(surface, joint, int(frame), around, member, hand).argmax()]
    return amount


def _likeness(
    surface: Surface,
    joint: Joint,
    frame: int,
    amounts: Float[np.ndarray, "a"],
    member: Int[np.ndarray, "k"],
    hand: HandWitness | None,
) -> Float[np.ndarray, "a"]:
    """How well the members look in a frame for each amount, and how near what the hand holds is to it.

    What is not seen counts as looking quite wrong.
    """
    poses = joint.motion(amounts)
    found, lost = surface.difference(frame, poses, member)
    size = np.minimum(np.linalg.norm(found, axis=-1), 1.0)
    likeness = (1.0 - np.where(lost, UNSEEN, size)).sum(axis=1)
    if hand is not None and len(hand.spots):
        likeness = likeness + HELD * len(member) * hand.agreement(frame, poses)[0]
    return likeness


def moving_part(
    surface: Surface, joint: Joint, frames: Int[np.ndarray, "f"], amounts: Float[np.ndarray, "f"]
) -> Bool[np.ndarray, "n"]:
    """Which points move: those that a motion explains better than rest, with few borders but where the surface bends or steps."""
    total = np.zeros(len(surface.points))
    for frame, amount in zip(frames, amounts, strict=True):
        stay, lost = surface.difference(int(frame), np.eye(4)[None])
        go, gone = surface.difference(int(frame), joint.motion(np.array([amount])))
        total += np.where(lost[0] | gone[0], 0.0, unlikeness(stay[0]) - unlikeness(go[0]))
    return least_cut(surface, np.clip(total, -CLEAR, CLEAR))


def least_cut(surface: Surface, evidence: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """The division of a surface in two that goes against the least evidence and parts the fewest neighbours (a minimum cut).

    Args:
        surface: its points, of which near ones that look the same way are neighbours.
        evidence: what it costs to leave a point out of the answer; if negative, to take it in.

    Returns:
        Which points are in the answer; those for which nothing speaks are not.
    """
    count = len(evidence)
    if count < 2:
        return evidence > 0
    size = max(float(np.ptp(surface.points, axis=0).max()), 1e-9)
    near = np.asarray(KDTree(surface.points).query(surface.points, k=min(NEIGHBOURS + 1, count))[1])[:, 1:]
    one, other = np.repeat(np.arange(count), near.shape[1]), near.reshape(-1)
    bend = 1.0 - (surface.normals[one] * surface.normals[other]).sum(axis=1)
    step = ((surface.points[other] - surface.points[one]) * surface.normals[one]).sum(axis=1) / size
    tie = TIED / 2 * np.exp(-bend / BEND - (step / STEP) ** 2)
    every, source, sink = np.arange(count), np.full(count, count), np.full(count, count + 1)
    rows = np.concatenate((one, other, source, every))
    columns = np.concatenate((other, one, every, sink))
    costs = np.concatenate((tie, tie, np.maximum(evidence, 0), np.maximum(-evidence, 0)))
    graph = csr_array((np.round(1000 * costs).astype(np.int32), (rows, columns)), shape=(count + 2, count + 2))
    left = graph - maximum_flow(graph, count, count + 1).flow
    left.eliminate_zeros()
    answer = np.zeros(count + 2, bool)
    answer[breadth_first_order(left, count, return_predecessors=False)] = True
    return answer[:count]
