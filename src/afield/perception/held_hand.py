"""Where the joints of a hand are that holds a moving part, from the pictures of all frames in which it holds it.

Landmarks of one picture have no depth of their own. But a hand that holds a door goes with it, so that to the part's own eyes it
stands nearly still, while the camera sees both from many sides. At most it turns about the place where it holds: less than the
door does, for the arm stays behind. So one set of joints, one such turn and the size of the hand are fitted to all pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from afield.perception.hands import TIPS

LENGTHS = {
    **{(0, 1): 0.040, (1, 2): 0.046, (2, 3): 0.0316, (3, 4): 0.0267},
    **{(0, 5): 0.090, (5, 6): 0.0398, (6, 7): 0.0224, (7, 8): 0.0205},
    **{(0, 9): 0.088, (9, 10): 0.0446, (10, 11): 0.0263, (11, 12): 0.0223},
    **{(0, 13): 0.083, (13, 14): 0.0414, (14, 15): 0.0257, (15, 16): 0.0223},
    **{(0, 17): 0.080, (17, 18): 0.0327, (18, 19): 0.0181, (19, 20): 0.0205},
    **{(5, 9): 0.024, (9, 13): 0.021, (13, 17): 0.020},
}
"""Metres between landmarks of a grown-up's hand (phalanges: Buryanov and Kotiuk 2010)."""
BONE_SPREAD = 0.12
"""Hands differ from these lengths by so much, as a share."""
SIZE_SPREAD = 0.3
"""The size of the hand differs by so much from what its palm in one picture says."""
LANDMARK_SPREAD = 3.0
"""Pixels by which landmarks are off."""
DEPTH_SPREAD = 0.02
"""Metres by which the relative depth of landmarks is off."""
TURN_SPREAD = 0.5
"""Radians that a hand may turn within its grip."""
PIVOT_SPREAD = 0.03
"""Metres from the middle of the fingertips to the place about which it turns."""
AWAY_SPREAD = 0.06
"""The fingertips are as far away as the object is next to them in the picture, up to this share."""
WORTH = 6.0
"""Landmarks err alike in neighbouring frames: all of them together count as so many independent pictures."""

Points = Float[np.ndarray, "21 3"]


@dataclass(frozen=True)
class HeldHand:
    """A hand at the beginning of contact."""

    joints: Points
    """In the frame of `camera_part`: that of the part, in the units of the camera path."""
    metre: float
    """How many of these units a metre is, by the size of the hand."""
    turn: Float[np.ndarray, "3"]
    """Rotation vector by which it has turned within its grip in the end."""
    error: float
    """Median distance in pixels between landmarks and joints."""


@dataclass(frozen=True)
class HandViews:
    """What the pictures say about a hand, in `t` frames."""

    landmarks: Float[np.ndarray, "t 21 2"]
    """Pixels from the middle of the picture."""
    depth: Float[np.ndarray, "t 21"]
    """How much farther away than the wrist each landmark is, in pixels."""
    camera_part: Float[np.ndarray, "t 4 4"]
    """From the part's frame to the camera's."""
    turned: Float[np.ndarray, "t"]
    """Share of its whole turn that the part has made, 0 to 1."""
    focal: float
    """Pixels."""
    away: float
    """Depth of the object next to the fingertips in the first of the frames, in units of the camera path."""
    metre: float
    """How many units a metre is, as the palm in the first frame says."""


def locate_hand(views: HandViews) -> HeldHand:
    """Joints, turn and size of a hand that explain all its pictures best; landmarks that are far off count little.

    Lengths come in the units of the camera path and scale with it.
    """
    problem = _Problem(views)
    answer = least_squares(problem.residuals, problem.start(), x_scale="jac", max_nfev=40).x
    joints, _, turn, size = problem.parts(answer)
    off = np.linalg.norm(problem.seen(problem.place(answer)) - views.landmarks, axis=-1)
    return HeldHand(joints, views.metre * size, turn, float(np.median(off)))


class _Problem:
    """Joints (63), pivot (3), turn (3) and the logarithm of the size (1); lengths are in metres by the first picture's palm."""

    def __init__(self, views: HandViews) -> None:
        self.views = views
        self.weight = np.sqrt(WORTH / len(views.landmarks))
        self.bones, self.lengths = np.array(list(LENGTHS)), np.array(list(LENGTHS.values()))

    def start(self) -> Float[np.ndarray, "70"]:
        """The first picture with its relative depth, the fingertips as far away as the object."""
        views, tips = self.views, list(TIPS)
        relative = views.depth[0] * views.away / views.focal
        away = views.away + relative - np.median(relative[tips])
        in_camera = np.column_stack((views.landmarks[0] / views.focal * away[:, None], away))
        pose = np.linalg.inv(views.camera_part[0])
        joints = (in_camera @ pose[:3, :3].T + pose[:3, 3]) / views.metre
        return np.concatenate((joints.ravel(), joints[tips].mean(axis=0), np.zeros(4)))

    def parts(self, x: Float[np.ndarray, "70"]) -> tuple[Points, Float[np.ndarray, "3"], Float[np.ndarray, "3"], float]:
        """Joints and pivot in units of the path, turn, and size."""
        metre = self.views.metre
        return x[:63].reshape(21, 3) * metre, x[63:66] * metre, x[66:69], float(np.exp(x[69]))

    def place(self, x: Float[np.ndarray, "70"]) -> Float[np.ndarray, "t 21 3"]:
        """The joints in the camera's frame, in every frame of the video."""
        joints, pivot, turn, _ = self.parts(x)
        rotation = Rotation.from_rotvec(self.views.turned[:, None] * turn).as_matrix()
        in_part = (joints - pivot) @ rotation.transpose(0, 2, 1) + pivot
        pose = self.views.camera_part
        return in_part @ pose[:, :3, :3].transpose(0, 2, 1) + pose[:, None, :3, 3]

    def seen(self, place: Float[np.ndarray, "t 21 3"]) -> Float[np.ndarray, "t 21 2"]:
        """Pixels from the middle of the picture."""
        return place[..., :2] / np.maximum(place[..., 2:], 1e-6 * self.views.away) * self.views.focal

    def residuals(self, x: Float[np.ndarray, "70"]) -> Float[np.ndarray, "m"]:
        """Everything that is off, each in its own spread."""
        views, place, tips = self.views, self.place(x), list(TIPS)
        joints, pivot, turn, size = self.parts(x)
        metre = views.metre * size
        off = (self.seen(place) - views.landmarks) / LANDMARK_SPREAD
        far = np.linalg.norm(off, axis=-1, keepdims=True) + 1e-9
        bones = np.linalg.norm(joints[self.bones[:, 0]] - joints[self.bones[:, 1]], axis=1)
        relative = place[..., 2] - place[:, :1, 2] - views.depth * place[:, 9:10, 2] / views.focal
        return np.concatenate(
            (
                (off / far * _forgiving(far) * self.weight).ravel(),
                np.log(np.maximum(bones / (self.lengths * metre), 1e-6)) / BONE_SPREAD,
                (_forgiving(relative / metre / DEPTH_SPREAD) * self.weight).ravel(),
                turn / TURN_SPREAD,
                (pivot - joints[tips].mean(axis=0)) / (PIVOT_SPREAD * metre),
                [(np.median(place[0, tips, 2]) / views.away - 1) / AWAY_SPREAD, x[69] / SIZE_SPREAD],
            )
        )


def _forgiving(off: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Residuals whose squares grow like the distance itself beyond 1."""
    return np.sign(off) * np.sqrt(2 * (np.sqrt(1 + off**2) - 1))
