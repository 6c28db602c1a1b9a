"""Motion of one degree of freedom, seen by a camera: a hinge, a slide, or a screw, from tracks of points on the part."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import expm, logm
from scipy.optimize import least_squares
from scipy.sparse import lil_matrix

from afield.perception.cameras import CameraPath

FORGIVE = 1.5
"""Pixels from which on a residual counts as an outlier."""
WORSE = 1.35
"""A screw is accepted if its residual is at most so many times that of poses without any constraint (and 0.3 pixels more)."""
KINDS = ("slide", "hinge", "screw")
"""From the simplest motion to the most general one."""
SIMPLER = 1.04
"""A simpler kind is preferred while its residual is at most so many times that of the best one (and 0.02 pixels more)."""
MOST_FRAMES, MOST_POINTS = 24, 160
HAND_LOOSE, HAND_WEIGHT = 8.0, 6.0
"""Pixels by which a hand may turn and slip on what it holds, and how many points it is worth."""


@dataclass(frozen=True)
class Screw:
    """Motion exp(amount * twist) of a part, in the world."""

    twist: Float[np.ndarray, "4 4"]
    """A rotation's generator and a shift."""
    amount: Float[np.ndarray, "t"]
    """For every frame; 0 at rest, 1 where the part had moved farthest when the screw was fitted."""
    error: float
    """Mean residual in pixels, outliers cut off."""

    def motion(self, frame: int) -> Float[np.ndarray, "4 4"]:
        """How the part has moved in a frame."""
        return np.real(expm(self.amount[frame] * self.twist))


def fit_screw(
    path: CameraPath,
    pixels: Float[np.ndarray, "t q 2"],
    seen: Bool[np.ndarray, "t q"],
    points: Float[np.ndarray, "q 3"],
    motion: Float[np.ndarray, "t 4 4"],
    known: Bool[np.ndarray, "t"],
    reference: int,
    hand: Float[np.ndarray, "t 2"],
) -> tuple[Screw, Float[np.ndarray, "q 3"]] | None:
    """The screw along which a part moves, together with better places of its points, by one bundle adjustment.

    Args:
        path: cameras.
        pixels: tracks of the part's points.
        seen: where they are seen.
        points: where they are in the reference frame, roughly.
        motion: poses of the part, found for each frame alone.
        known: frames in which they were found.
        reference: the frame before the motion.
        hand: pixel of the middle of the hand that moves the part, NaN where it is not seen; where the part's own points are
            out of sight, the hand tells how far it has gone.

    Returns:
        Screw and points; None if no single screw explains the tracks nearly as well as the free poses do.
    """
    frames = np.flatnonzero(known & (np.arange(len(known)) > reference))
    if len(frames) < 6:
        return None
    way = np.array([np.median(np.linalg.norm(_moved(points, motion[f]) - points, axis=1)) for f in frames])
    farthest = int(frames[way.argmax()])
    twist = np.real(logm(motion[farthest]))
    some = np.unique(np.concatenate((frames[:: max(1, len(frames) // MOST_FRAMES)], [farthest])))
    chosen = np.flatnonzero(seen[some].sum(axis=0) >= 4)
    chosen = chosen[np.argsort(-seen[some][:, chosen].sum(axis=0), kind="stable")][:MOST_POINTS]
    if len(chosen) < 6:
        return None
    problem = _Problem(path, pixels[:, chosen], seen[:, chosen], points[chosen], some, farthest, reference)
    amount = np.array([way[np.searchsorted(frames, f)] / way.max() for f in some])
    trials = [problem.solve(_vector(twist), amount, kind) for kind in KINDS]
    least = min(trial.error for trial in trials)
    # A slide says less than a hinge, and a hinge less than a screw: the simplest one that explains the tracks is believed.
    best = next(trial for trial in trials if trial.error <= SIMPLER * least + 0.02)
    better = points.copy()
    better[chosen] = problem.placed(best.factors)
    matrix = _matrix(best.twist)
    guess = np.interp(np.arange(len(pixels)), some, best.amounts, left=0.0)
    held = _held_spot(path, matrix, some, best.amounts, hand, better)
    screw = Screw(matrix, follow_screw(path, pixels, seen, better, matrix, guess, reference, hand, held), 0.0)
    own = _error(path, pixels, seen, better, [screw.motion(int(f)) for f in frames], frames)
    free = _error(path, pixels, seen, points, [motion[f] for f in frames], frames)
    if own > WORSE * free + 0.3:
        return None
    return replace(screw, error=own), better


def follow_screw(
    path: CameraPath,
    pixels: Float[np.ndarray, "t q 2"],
    seen: Bool[np.ndarray, "t q"],
    points: Float[np.ndarray, "q 3"],
    twist: Float[np.ndarray, "4 4"],
    guess: Float[np.ndarray, "t"],
    reference: int,
    hand: Float[np.ndarray, "t 2"],
    held: Float[np.ndarray, "3"] | None,
) -> Float[np.ndarray, "t"]:
    """How far the part has gone in every frame: the amount under which most of its seen points are where they should be."""
    amount = np.zeros(len(pixels))
    last, speed = 0.0, 0.0
    for frame in range(reference + 1, len(pixels)):
        here = np.flatnonzero(seen[frame])

        def cost(
            trial: float, frame: int = frame, here: np.ndarray = here, expected: float = last + 0.7 * speed
        ) -> float:
            moved = np.real(expm(trial * twist))
            # What the part did last is a weak witness, for frames in which there is no other.
            total = 2.0 * ((trial - expected) / 0.05) ** 2
            if len(here):
                total += float(
                    np.minimum(_residual(path, pixels[frame, here], _moved(points[here], moved), frame), 4.0).sum()
                )
            if held is not None and np.isfinite(hand[frame]).all():
                off = _residual(path, hand[frame][None], _moved(held[None], moved), frame)[0]
                total += HAND_WEIGHT * min(off / HAND_LOOSE, 4.0)
            return total

        trials = np.concatenate((last + np.linspace(-0.12, 0.12, 25), guess[frame] + np.linspace(-0.08, 0.08, 17)))
        best = min(trials, key=cost)
        for width in (0.005, 0.0012):
            best = min(best + width * np.arange(-4, 5) / 2, key=cost)
        amount[frame] = best
        speed, last = 0.5 * speed + 0.5 * (best - last), best
    return amount


def _held_spot(
    path: CameraPath,
    twist: Float[np.ndarray, "4 4"],
    frames: np.ndarray,
    amounts: Float[np.ndarray, "f"],
    hand: Float[np.ndarray, "t 2"],
    points: Float[np.ndarray, "q 3"],
) -> Float[np.ndarray, "3"] | None:
    """The point of the part, at rest, that goes where the hand goes while the part moves; None if there is none."""
    used = [(int(f), a) for f, a in zip(frames, amounts, strict=True) if a > 0.15 and np.isfinite(hand[f]).all()]
    if len(used) < 4:
        return None

    def off(spot: Float[np.ndarray, "3"]) -> Float[np.ndarray, "m"]:
        parts = [
            _residual(path, hand[f][None], _moved(spot[None], np.real(expm(a * twist))), f) / HAND_LOOSE
            for f, a in used
        ]
        return np.concatenate((*parts, (spot - points.mean(axis=0)) / (10 * np.ptp(points, axis=0).max())))

    first = min(points, key=lambda point: float(np.abs(off(point)).sum()))
    answer = least_squares(off, first, loss="soft_l1", max_nfev=50)
    return answer.x if np.median(np.abs(answer.fun[: len(used)])) < 1.5 else None


@dataclass(frozen=True)
class _Problem:
    """Bundle adjustment of a twist, an amount a frame and a depth a point."""

    path: CameraPath
    pixels: Float[np.ndarray, "t q 2"]
    seen: Bool[np.ndarray, "t q"]
    points: Float[np.ndarray, "q 3"]
    frames: np.ndarray
    farthest: int
    reference: int

    def placed(self, factors: Float[np.ndarray, "q"]) -> Float[np.ndarray, "q 3"]:
        """The points, moved along their rays in the reference frame."""
        eye = self.path.camera(self.reference).position.double().numpy()
        return eye + factors[:, None] * (self.points - eye)

    def solve(self, twist: Float[np.ndarray, "6"], amount: Float[np.ndarray, "f"], kind: str) -> _Solution:
        """Least squares with a loss that forgives; depths may change by a few per cent."""
        count, number = len(self.frames), len(self.points)
        rows, columns = np.nonzero(self.seen[self.frames])
        cameras = [self.path.camera(int(frame)) for frame in self.frames]
        turn = np.stack([camera.T_world_camera[:3, :3].double().numpy() for camera in cameras])
        eye = np.stack([camera.position.double().numpy() for camera in cameras])
        focal, middle = self.path.focal, np.array([(self.path.width - 1) / 2, (self.path.height - 1) / 2])
        wanted = self.pixels[self.frames[rows], columns].astype(float)
        fixed = int(np.flatnonzero(self.frames == self.farthest)[0])

        def off(x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "m"]:
            matrix = _matrix(_allowed(x[:6], kind))
            poses = np.stack([np.real(expm(value * matrix)) for value in x[6 : 6 + count]])
            place = self.placed(x[6 + count :])[columns]
            moved = np.einsum("mij,mj->mi", poses[rows, :3, :3], place) + poses[rows, :3, 3]
            seen_from = np.einsum("mij,mi->mj", turn[rows], moved - eye[rows])
            away = np.maximum(seen_from[:, 2:], 1e-3)
            pixel = focal * seen_from[:, :2] / away + middle
            gauge = np.array([100.0 * (x[6 + fixed] - 1.0)])
            return np.concatenate(((pixel - wanted).ravel(), (x[6 + count :] - 1) / 0.01, gauge))

        pattern = lil_matrix((2 * len(rows) + number + 1, 6 + count + number), dtype=np.int8)
        index = np.arange(len(rows))
        for line in (2 * index, 2 * index + 1):
            pattern[line, :6] = 1
            pattern[line, 6 + rows] = 1
            pattern[line, 6 + count + columns] = 1
        pattern[2 * len(rows) + np.arange(number), 6 + count + np.arange(number)] = 1
        pattern[2 * len(rows) + number, 6 + fixed] = 1
        first = twist.copy()
        if kind == "slide":
            poses = _matrix(twist)
            middle_point = self.points.mean(axis=0)
            first = np.concatenate((np.zeros(3), poses[:3, :3] @ middle_point + poses[:3, 3]))
        start = np.concatenate((first, amount, np.ones(number)))
        answer = least_squares(
            off, start, jac_sparsity=pattern, loss="soft_l1", f_scale=FORGIVE, max_nfev=30, x_scale="jac"
        ).x
        error = np.linalg.norm(off(answer)[: 2 * len(rows)].reshape(-1, 2), axis=1)
        parts = _allowed(answer[:6], kind), answer[6 : 6 + count], answer[6 + count :]
        return _Solution(*parts, error=float(np.minimum(error, 4.0).mean()))


@dataclass(frozen=True)
class _Solution:
    """Twist, amounts of the frames, factors of the points' depths, and the mean residual in pixels."""

    twist: Float[np.ndarray, "6"]
    amounts: Float[np.ndarray, "f"]
    factors: Float[np.ndarray, "q"]
    error: float


def _allowed(twist: Float[np.ndarray, "6"], kind: str) -> Float[np.ndarray, "6"]:
    """The twist without what its kind forbids: a slide does not turn, and a hinge does not go along its axis."""
    turn, shift = twist[:3], twist[3:]
    if kind == "slide":
        return np.concatenate((np.zeros(3), shift))
    if kind == "hinge":
        shift = shift - turn * (turn @ shift) / max(float(turn @ turn), 1e-12)
    return np.concatenate((turn, shift))


def _error(
    path: CameraPath,
    pixels: Float[np.ndarray, "t q 2"],
    seen: Bool[np.ndarray, "t q"],
    points: Float[np.ndarray, "q 3"],
    motion: list[Float[np.ndarray, "4 4"]],
    frames: np.ndarray,
) -> float:
    """Mean residual in pixels over some frames; outliers count 4."""
    parts = [
        np.minimum(_residual(path, pixels[frame, seen[frame]], _moved(points[seen[frame]], pose), int(frame)), 4.0)
        for frame, pose in zip(frames, motion, strict=True)
    ]
    return float(np.concatenate(parts).mean())


def _residual(
    path: CameraPath, pixels: Float[np.ndarray, "k 2"], points: Float[np.ndarray, "k 3"], frame: int
) -> Float[np.ndarray, "k"]:
    return path.distance(pixels, points, frame)


def _moved(points: Float[np.ndarray, "k 3"], motion: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "k 3"]:
    return points @ motion[:3, :3].T + motion[:3, 3]


def _matrix(vector: Float[np.ndarray, "6"]) -> Float[np.ndarray, "4 4"]:
    x, y, z = vector[:3]
    matrix = np.zeros((4, 4))
    matrix[:3, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
    matrix[:3, 3] = vector[3:]
    return matrix


def _vector(matrix: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "6"]:
    return np.array([matrix[2, 1], matrix[0, 2], matrix[1, 0], *matrix[:3, 3]])
