"""Hands in pictures: 21 landmarks and a mask, by the two small networks inside the wheel of `mediapipe`.

The networks are read straight from the wheel (a wheel is a zip file) or from an installed copy, and run by `ai-edge-litert`;
`mediapipe` itself is not imported, for it pins old versions of its dependencies.
"""

from __future__ import annotations

import importlib.util
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from afield.errors import AfieldError

PALM_FILE = "mediapipe/modules/palm_detection/palm_detection_full.tflite"
LANDMARK_FILE = "mediapipe/modules/hand_landmark/hand_landmark_full.tflite"
MODEL_VARIABLE = "AFIELD_HAND_MODELS"
"""Environment variable with the wheel, or the folder in which it was unpacked."""
INSTALL = (
    "pip install 'afield[hands]' && pip install --no-deps mediapipe==0.10.21; where no such wheel fits your Python: pip download "
    "--no-deps --python-version 3.12 --only-binary :all: --platform manylinux_2_28_x86_64 mediapipe==0.10.21, then set "
    f"{MODEL_VARIABLE} to the wheel"
)
PALM_SIZE, LANDMARK_SIZE = 192, 224
PALM_SCORE, HAND_SCORE = 0.5, 0.5
LOOK_AGAIN = 5
"""While a hand is followed, new ones are looked for in every fifth frame only."""
BONES = (
    *((0, 1), (1, 2), (2, 3), (3, 4), (0, 5), (5, 6), (6, 7), (7, 8), (5, 9), (9, 10), (10, 11), (11, 12)),
    *((9, 13), (13, 14), (14, 15), (15, 16), (13, 17), (17, 18), (18, 19), (19, 20), (0, 17)),
)
"""Pairs of landmarks that a finger or the palm's edge connects."""
PALM_OUTLINE = (0, 1, 5, 9, 13, 17)
TIPS = (4, 8, 12, 16, 20)


@dataclass(frozen=True)
class Hand:
    """One hand in one picture."""

    landmarks: Float[np.ndarray, "21 2"]
    """Pixels (x, y): wrist, then four joints a finger from the thumb to the little finger, tips last."""
    depth: Float[np.ndarray, "21"]
    """How much farther away than the wrist each landmark is, in pixels too: divided by pixels per metre these are metres."""
    score: float
    """How sure it is that this is a hand, 0 to 1."""
    right: float
    """How sure it is that it is a right hand, 0 to 1."""


@runtime_checkable
class HandDetector(Protocol):
    """Finds hands in the frames of a video."""

    def detect(self, frames: UInt8[np.ndarray, "t h w 3"], *, progress: bool = True) -> list[list[Hand]]:
        """The hands of every frame."""
        ...


class MediapipeHands:
    """Palm detector and landmark network; a hand found once is followed into the neighbouring frames."""

    def __init__(self, models: Path | None = None, most: int = 2) -> None:
        """Load both networks.

        Args:
            models: a wheel of mediapipe 0.10, or a folder in which it was unpacked; searched for if left out.
            most: hands per frame.

        Raises:
            AfieldError: `ai-edge-litert` or the networks are not there; the sentence says how to get them.
        """
        palm, landmark = hand_models(models)
        self._palm, self._landmark = _interpreter(palm), _interpreter(landmark)
        self._anchors = palm_anchors()
        self._most = most

    def detect(self, frames: UInt8[np.ndarray, "t h w 3"], *, progress: bool = True) -> list[list[Hand]]:
        """Forwards through the video, then backwards, so that a hand is also followed to where it came in."""
        found: list[list[Hand]] = [[] for _ in frames]
        bar = tqdm(total=2 * len(frames), desc="hands", unit="frame", disable=not progress, leave=False)
        for index, frame in enumerate(frames):
            before = found[index - 1] if index else []
            followed = self._hands(frame, [region_of_hand(hand) for hand in before], [])
            look = not followed or index % LOOK_AGAIN == 0
            found[index] = self._hands(frame, self.palms(frame), followed) if look else followed
            bar.update()
        for index in range(len(frames) - 2, -1, -1):
            regions = [region_of_hand(hand) for hand in found[index + 1]]
            found[index] = self._hands(frames[index], regions, found[index])
            bar.update()
        bar.close()
        return found

    def _hands(self, frame: UInt8[np.ndarray, "h w 3"], regions: list[Region], known: list[Hand]) -> list[Hand]:
        """The best hands among the known ones and those in the regions, one for each place."""
        hands = known + [hand for region in regions if (hand := self.landmarks(frame, region)) is not None]
        kept: list[Hand] = []
        for hand in sorted(hands, key=lambda one: -one.score):
            size = max(np.ptp(hand.landmarks, axis=0))
            if all(np.linalg.norm(hand.landmarks.mean(0) - other.landmarks.mean(0)) > 0.6 * size for other in kept):
                kept.append(hand)
        return kept[: self._most]

    def palms(self, frame: UInt8[np.ndarray, "h w 3"]) -> list[Region]:
        """Where palms may be: in the whole picture, and in five overlapping parts of it, for small hands."""
        height, width = frame.shape[:2]
        part_h, part_w = round(0.6 * height), round(0.6 * width)
        windows = [(0, 0, width, height)]
        for top, left in ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)):
            windows.append((round(left * (width - part_w)), round(top * (height - part_h)), part_w, part_h))
        return [region for window in windows for region in self._palms_in(frame, window)]

    def _palms_in(self, frame: UInt8[np.ndarray, "h w 3"], window: tuple[int, int, int, int]) -> list[Region]:
        left, top, width, height = window
        scale = PALM_SIZE / max(width, height)
        part = cv2.resize(frame[top : top + height, left : left + width], None, fx=scale, fy=scale, interpolation=3)
        image = np.zeros((PALM_SIZE, PALM_SIZE, 3), np.float32)
        pad_y, pad_x = (PALM_SIZE - part.shape[0]) // 2, (PALM_SIZE - part.shape[1]) // 2
        image[pad_y : pad_y + part.shape[0], pad_x : pad_x + part.shape[1]] = part / 255.0
        regression, logits = (out[0] for out in _run(self._palm, image))
        score = 1 / (1 + np.exp(-np.clip(logits[:, 0], -80, 80)))
        regions: list[Region] = []
        for index in np.argsort(-score)[:30]:
            if score[index] < PALM_SCORE:
                break
            raw = regression[index] / PALM_SIZE
            center = raw[:2] + self._anchors[index]
            points = raw[4:].reshape(7, 2) + self._anchors[index]
            to_frame = np.array([left - pad_x / scale, top - pad_y / scale])
            center, points = center * PALM_SIZE / scale + to_frame, points * PALM_SIZE / scale + to_frame
            size = float(raw[2:4].max()) * PALM_SIZE / scale
            if any(np.linalg.norm(region.seed - center) < 0.5 * size for region in regions):
                continue
            along = points[2] - points[0]
            turn = math.atan2(along[0], -along[1])
            up = np.array([math.sin(turn), -math.cos(turn)])
            regions.append(Region(center + 0.5 * size * up, 2.6 * size, turn, center))
        return regions

    def landmarks(self, frame: UInt8[np.ndarray, "h w 3"], region: Region) -> Hand | None:
        """The landmarks of the hand in a region; None where there is none."""
        to_frame = region.matrix()
        image = cv2.warpAffine(
            frame, to_frame, (LANDMARK_SIZE, LANDMARK_SIZE), flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        )
        points, score, right, _ = _run(self._landmark, image.astype(np.float32) / 255.0)
        if float(score.squeeze()) < HAND_SCORE:
            return None
        found = points.reshape(21, 3)[:, :2] @ to_frame[:, :2].T + to_frame[:, 2]
        height, width = frame.shape[:2]
        inside = ((found > -0.1 * width) & (found < [1.1 * width, 1.1 * height])).all(axis=1).mean()
        if inside < 0.5:
            return None
        depth = points.reshape(21, 3)[:, 2] * region.size / LANDMARK_SIZE
        return Hand(found.astype(np.float32), depth.astype(np.float32), float(score.squeeze()), float(right.squeeze()))


@dataclass(frozen=True)
class Region:
    """A turned square in a picture."""

    center: Float[np.ndarray, "2"]
    size: float
    turn: float
    """Radians by which the hand leans clockwise from upright."""
    seed: Float[np.ndarray, "2"]
    """The middle of the palm that it was made from."""

    def matrix(self) -> Float[np.ndarray, "2 3"]:
        """From the pixels of the network's input to those of the picture."""
        scale = self.size / LANDMARK_SIZE
        cosine, sine = scale * math.cos(self.turn), scale * math.sin(self.turn)
        linear = np.array([[cosine, -sine], [sine, cosine]])
        return np.column_stack((linear, self.center - linear @ [LANDMARK_SIZE / 2, LANDMARK_SIZE / 2]))


def region_of_hand(hand: Hand) -> Region:
    """Where the hand will be looked for in the next frame."""
    points = hand.landmarks.astype(float)
    along = points[[5, 9, 13]].mean(axis=0) - points[0]
    turn = math.atan2(along[0], -along[1])
    right, up = np.array([math.cos(turn), math.sin(turn)]), np.array([math.sin(turn), -math.cos(turn)])
    a, b = points @ right, points @ up
    size = max(np.ptp(a), np.ptp(b))
    center = (a.max() + a.min()) / 2 * right + ((b.max() + b.min()) / 2 + 0.1 * size) * up
    return Region(center, 2.0 * size, turn, center)


def palm_anchors() -> Float[np.ndarray, "2016 2"]:
    """Centres of the palm detector's anchors, from 0 to 1: two a cell of a 24x24 grid, six of a 12x12 grid."""
    parts = []
    for cells, each in ((24, 2), (12, 6)):
        y, x = np.mgrid[:cells, :cells]
        centers = (np.stack((x, y), axis=-1).reshape(-1, 2) + 0.5) / cells
        parts.append(centers.repeat(each, axis=0))
    return np.concatenate(parts)


def hand_mask(color: UInt8[np.ndarray, "h w 3"], hand: Hand, *, iterations: int = 3) -> Bool[np.ndarray, "h w"]:
    """The pixels of a hand: GrabCut around its bones."""
    height, width = color.shape[:2]
    points = hand.landmarks
    size = max(float(np.linalg.norm(points[9] - points[0])), float(np.ptp(points, axis=0).max()) / 2, 8.0)
    bones = np.zeros((height, width), np.uint8)
    whole = np.round(points).astype(int)
    for a, b in BONES:
        cv2.line(bones, tuple(map(int, whole[a])), tuple(map(int, whole[b])), 1, max(2, round(0.12 * size)))
    cv2.fillPoly(bones, [whole[list(PALM_OUTLINE)]], 1)
    reach = cv2.dilate(bones, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(0.22 * size) + 1,) * 2))
    rows, columns = np.nonzero(cv2.dilate(reach, np.ones((2 * round(0.3 * size) + 1,) * 2, np.uint8)))
    if len(rows) == 0:
        return np.zeros((height, width), bool)
    part = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    labels = np.where(reach[part] > 0, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    labels[cv2.erode(bones[part], np.ones((3, 3), np.uint8)) > 0] = cv2.GC_FGD
    if (labels == cv2.GC_BGD).sum() < 16 or (labels == cv2.GC_FGD).sum() < 16:
        return bones > 0
    cv2.setRNGSeed(0)
    models = (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.grabCut(
        np.ascontiguousarray(color[part][..., ::-1]), labels, (0, 0, 1, 1), *models, iterations, cv2.GC_INIT_WITH_MASK
    )
    mask = np.zeros((height, width), bool)
    mask[part] = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return mask | (bones > 0)


def hand_models(models: Path | None = None) -> tuple[bytes, bytes]:
    """The bytes of palm detector and landmark network: from the given place, from `AFIELD_HAND_MODELS`, or an installed wheel.

    Raises:
        AfieldError: they are nowhere; the sentence says how to get them.
    """
    if models is None and os.environ.get(MODEL_VARIABLE):
        models = Path(os.environ[MODEL_VARIABLE])
    if models is None:
        installed = importlib.util.find_spec("mediapipe")
        if installed is None or not installed.submodule_search_locations:
            raise AfieldError(
                f"The networks that find hands are not installed: {INSTALL}; or give masks with --hand-masks."
            )
        models = Path(next(iter(installed.submodule_search_locations))).parent
    try:
        if models.is_dir():
            return (models / PALM_FILE).read_bytes(), (models / LANDMARK_FILE).read_bytes()
        with zipfile.ZipFile(models) as wheel:
            return wheel.read(PALM_FILE), wheel.read(LANDMARK_FILE)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise AfieldError(
            f"{models} does not hold the hand networks of mediapipe 0.10.21 ({error}): {INSTALL}."
        ) from error


def _interpreter(model: bytes) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise AfieldError(f"Running the hand networks needs ai-edge-litert: {INSTALL}.") from error
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _run(interpreter: Any, image: Float[np.ndarray, "s s 3"]) -> list[np.ndarray]:
    """The outputs in the order of their names, which is that of the model: Identity, Identity_1, ..."""
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    interpreter.invoke()
    details = sorted(interpreter.get_output_details(), key=lambda entry: entry["name"])
    return [interpreter.get_tensor(entry["index"]) for entry in details]


HAND_DETECTORS = ("mediapipe",)


def hand_detector_by_name(name: str, models: Path | None = None) -> HandDetector:
    """A detector by its name.

    Raises:
        AfieldError: there is none of that name, or its networks are not installed.
    """
    if name == "mediapipe":
        return MediapipeHands(models)
    raise AfieldError(f"There is no hand detector '{name}'; choose one of {', '.join(HAND_DETECTORS)}.")
