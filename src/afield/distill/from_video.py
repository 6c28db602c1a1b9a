"""From an ordinary video to posed pictures with labels and an affordance function: the stages in their order (III-C).

Each stage leaves a folder in `stages/`; a stage whose folder is there is not run again unless `start` names it or one before it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool
from tqdm import tqdm

from afield.artifacts import load_artifact, read_json, save_artifact, write_artifact_files, write_folder, write_json
from afield.capture.folder import read_folder_capture, write_capture
from afield.distill.fit import FitConfig, fit_affordance
from afield.distill.labels import Flow, Labels, describe_views
from afield.distill.stages.cameras import load_cameras, read_camera_file, save_cameras
from afield.distill.stages.contact import Contact, find_contact
from afield.distill.stages.depth import DepthMaps, depth_from_files, depth_from_frames, depth_from_network, free_run
from afield.distill.stages.hands import HandTrack, find_hands, hands_from_masks
from afield.distill.stages.masks import ObjectMasks, masks_from_box
from afield.distill.stages.tracks import ObjectTracks, track_object
from afield.distill.stages.views import contact_in_views, object_flow, posed_views, table_height
from afield.errors import AfieldError
from afield.observation import Observation
from afield.perception.cameras import CameraPath, cameras_from_video
from afield.perception.depth import DepthFiles, TransformersDepth
from afield.perception.features import extractor_by_name
from afield.perception.hands import hand_detector_by_name
from afield.perception.masks import Box
from afield.perception.tracks import tracker_by_name
from afield.perception.video import Video, pictures_in, read_video
from afield.skills import DescriptorBasis, Skill

logger = logging.getLogger(__name__)
T = TypeVar("T")

STAGES = ("hands", "cameras", "depth", "masks", "tracks", "contact", "views", "fit")
"""In the order in which they run; each uses what those before it have found."""
VERSION = 1
"""Changes when the results of an older version are worth nothing any more."""
PUSHING = ("close", "shut", "push", "press")
"""Narrations that begin so are done with closed fingers."""


@dataclass(frozen=True)
class DistillConfig:
    """What each stage is to use."""

    box: Box | None = None
    """Left, top, right, bottom of the object in pixels of the video, in the last frame before the hand comes."""
    object_masks: Path | None = None
    """Folder with a mask for every frame instead of a box."""
    hands: str = "mediapipe"
    """Name of the hand detector."""
    hand_models: Path | None = None
    """The wheel of mediapipe 0.10.21, where it is not installed."""
    hand_masks: Path | None = None
    """Folder with a mask of the hand for every frame instead of a detector."""
    cameras: Path | None = None
    """JSON file with poses (see docs/distill.md) instead of structure from motion."""
    focal: float | None = None
    """Focal length in pixels of the video, where it is known."""
    depth: str = "plane-sweep"
    """plane-sweep, a folder of 16-bit images in millimetres, or a depth model of transformers by name or folder."""
    tracker: str = "lucas-kanade"
    """Name of the point tracker."""
    extractor: str | None = "dinov2-s-embedded"
    """Name of the image feature extractor; None fits no descriptors."""
    points: int = 500
    """Points of the object that are tracked."""
    horizon: int = 32
    """Steps of the flow, H."""
    longest: int = 640
    """Frames are reduced to so many pixels on the longer side."""
    frames: int = 120
    """Most frames taken from the video."""
    fit: FitConfig = field(default_factory=FitConfig)
    seed: int = 0


@dataclass(frozen=True)
class Distilled:
    """Everything that came out, stage by stage."""

    video: Video
    hands: HandTrack
    cameras: CameraPath
    depth: DepthMaps
    masks: ObjectMasks
    tracks: ObjectTracks
    contact: Contact
    observation: Observation
    labels: Labels
    skill: Skill | None
    """None if the run ended before the fit."""


def distill_video(
    source: Path,
    narration: str,
    out: Path,
    config: DistillConfig | None = None,
    *,
    start: str | None = None,
    stop: str = "fit",
    progress: bool = True,
) -> Distilled:
    """Run all stages on a video.

    Args:
        source: a video file or a folder of frames.
        narration: what is done in it, e.g. "open the microwave".
        out: folder for the stages' results; an interrupted run goes on from there.
        config: what each stage is to use.
        start: name of the first stage to run again, though its result is there.
        stop: "views" ends before the fit.
        progress: show progress bars.

    Raises:
        AfieldError: a stage cannot go on; the sentence names it and says what would help.
    """
    config = config or DistillConfig()
    if not narration.strip():
        raise AfieldError(
            "The narration is empty; say what is done in the video, e.g. --narration 'open the microwave'."
        )
    video = read_video(source, longest=config.longest, most=config.frames, progress=progress)
    run = Runner(Path(out), start, fingerprint(source, narration, config))
    run.note(video)
    hands = run.stage("hands", HandTrack.load, HandTrack.save, lambda: _hands(video, config, progress))
    cameras = run.stage("cameras", load_cameras, save_cameras, lambda: _cameras(video, hands, config, progress))
    free = free_run(hands.free)
    depth, cameras = run.stage(
        "depth", _load_depth, _save_depth, lambda: _depth(video, cameras, free, config, progress)
    )
    masks = run.stage(
        "masks",
        ObjectMasks.load,
        ObjectMasks.save,
        lambda: _masks(video, hands, free[-1], depth, cameras, config, progress),
    )
    known, mask = depth.reference(video.size), masks.masks[free[-1]]
    tracks = run.stage(
        "tracks",
        ObjectTracks.load,
        ObjectTracks.save,
        lambda: track_object(
            *(video, cameras, mask, known, free[-1], hands, tracker_by_name(config.tracker)),
            count=config.points,
            progress=progress,
        ),
    )
    contact = run.stage(
        "contact", Contact.load, Contact.save, lambda: find_contact(cameras, hands, tracks, mask, known)
    )
    observation, labels, basis = run.stage(
        "views",
        load_labels,
        save_labels,
        lambda: _views(video, cameras, depth, masks, tracks, contact, narration, config, progress),
    )
    skill = None
    if stop == "fit":
        checkpoint = Path(out) / "stages" / ".fit"
        skill = run.stage(
            "fit",
            Skill.load,
            Skill.save,
            lambda: make_skill(
                *(observation, labels, basis, narration, config),
                metric=depth.metric,
                checkpoint=checkpoint,
                progress=progress,
            ),
        )
    return Distilled(video, hands, cameras, depth, masks, tracks, contact, observation, labels, skill)


class Runner:
    """Runs stages whose result is not yet on disk."""

    def __init__(self, out: Path, start: str | None, fingerprint: dict[str, Any]) -> None:
        """Make the folder ready.

        Raises:
            AfieldError: there is no such stage, or the folder belongs to another video or other settings.
        """
        if start is not None and start not in STAGES:
            raise AfieldError(f"There is no stage '{start}'; the stages are {', '.join(STAGES)}.")
        self._folder = out / "stages"
        again = STAGES.index(start) if start is not None else len(STAGES)
        record = out / "run.json"
        if out.exists() and not out.is_dir():
            raise AfieldError(f"{out} is a file; choose a folder for the result.")
        if out.is_dir() and any(out.iterdir()) and not record.is_file():
            raise AfieldError(f"{out} holds other files; choose a new folder.")
        before = read_json(record) if record.is_file() else fingerprint
        for index, name in enumerate(STAGES):
            for key in _depends(name):
                if before.get(key) != fingerprint.get(key):
                    again = min(again, index)
        for name in STAGES[again:]:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        if again < len(STAGES):  # where a fit stood belongs to what came before it
            shutil.rmtree(self._folder / ".fit", ignore_errors=True)
        write_json(record, fingerprint)
        self._out = out

    def note(self, video: Video) -> None:
        """Keep what was read, for whoever inspects the folder."""
        width, height = video.full_size
        entry = {
            "frames": len(video.frames),
            "read": list(video.read),
            "seconds": video.times.tolist(),
            "size": [width, height],
        }
        write_json(self._out / "video.json", {"name": video.name, **entry})

    def stage(self, name: str, load: Callable[[Path], T], save: Callable[[T, Path], None], make: Callable[[], T]) -> T:
        """Read a stage's result, or make it and write it."""
        folder = self._folder / name
        if folder.is_dir():
            tqdm.write(f"stage {name}: read from {folder}", file=_Log())
            return load(folder)
        result = make()
        save(result, folder)
        tqdm.write(f"stage {name}: done", file=_Log())
        return result


class _Log:
    """A file that writes to the log."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.info(text.strip())
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""


def fingerprint(source: Path, narration: str, config: DistillConfig) -> dict[str, Any]:
    """What the results of the stages depend on: settings, and which files with what changes."""
    path = Path(source)
    settings = {key: (_stamp(value) if isinstance(value, Path) else value) for key, value in asdict(config).items()}
    if Path(config.depth).exists():
        settings["depth"] = _stamp(Path(config.depth))
    settings["box"] = list(config.box) if config.box is not None else None
    settings["fit"] = repr(config.fit)
    return {"version": VERSION, "video": _stamp(path), "narration": narration, **settings}


def _stamp(path: Path) -> list[str | int]:
    """A file or folder with the time of its latest change and the number of its files."""
    files = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
    times = [file.stat().st_mtime_ns for file in files if file.exists()]
    return [str(path.resolve()), max(times, default=0), len(files)]


def _depends(stage: str) -> tuple[str, ...]:
    """Settings that make a stage's result stale."""
    return {
        "hands": ("version", "video", "longest", "frames", "hands", "hand_models", "hand_masks"),
        "cameras": ("cameras", "focal", "seed"),
        "depth": ("depth",),
        "masks": ("box", "object_masks"),
        "tracks": ("tracker", "points"),
        "contact": (),
        "views": ("extractor", "horizon", "narration"),
        "fit": ("fit",),
    }[stage]


def _hands(video: Video, config: DistillConfig, progress: bool) -> HandTrack:
    if config.hand_masks is not None:
        return hands_from_masks(read_masks(config.hand_masks, video))
    return find_hands(video.frames, hand_detector_by_name(config.hands, config.hand_models), progress=progress)


def _cameras(video: Video, hands: HandTrack, config: DistillConfig, progress: bool) -> CameraPath:
    if config.cameras is not None:
        return read_camera_file(config.cameras, len(video.frames), video.size, video.read)
    focal = None if config.focal is None else config.focal * video.size[0] / video.full_size[0]
    return cameras_from_video(video.frames, hands.masks, focal=focal, seed=config.seed, progress=progress)


def _depth(
    video: Video, cameras: CameraPath, free: list[int], config: DistillConfig, progress: bool
) -> tuple[DepthMaps, CameraPath]:
    if config.depth == "plane-sweep":
        return depth_from_frames(video, cameras, free, progress=progress), cameras
    folder = Path(config.depth)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return depth_from_files(video, cameras, DepthFiles(folder), free)
    return depth_from_network(video, cameras, TransformersDepth(config.depth), free), cameras


def _masks(
    video: Video,
    hands: HandTrack,
    frame: int,
    depth: DepthMaps,
    cameras: CameraPath,
    config: DistillConfig,
    progress: bool,
) -> ObjectMasks:
    if config.object_masks is not None:
        return ObjectMasks(read_masks(config.object_masks, video) & ~hands.masks)
    return masks_from_box(
        *(video, config.box, frame, hands.masks, depth.reference(video.size), cameras), progress=progress
    )


def _views(
    video: Video,
    cameras: CameraPath,
    depth: DepthMaps,
    masks: ObjectMasks,
    tracks: ObjectTracks,
    contact: Contact,
    narration: str,
    config: DistillConfig,
    progress: bool,
) -> tuple[Observation, Labels, DescriptorBasis]:
    observation = posed_views(video, cameras, depth, masks.masks, narration)
    regions = contact_in_views(observation, contact)
    descriptors, basis = None, DescriptorBasis("none", torch.zeros(1), torch.zeros(1, config.fit.grid.channels))
    if config.extractor is not None:
        extractor = extractor_by_name(config.extractor)
        descriptors, mean, axes = describe_views(observation, extractor, progress=progress)
        basis = DescriptorBasis(config.extractor, mean, axes)
    flow = object_flow(tracks, contact, config.horizon, video.times)
    return observation, Labels(regions, descriptors, table_height(observation, tracks.points), flow), basis


def read_masks(folder: Path, video: Video) -> Bool[np.ndarray, "t h w"]:
    """Masks for the frames of a video: pictures in the order of their names, white on what is meant.

    Raises:
        AfieldError: there are fewer masks than frames, or one cannot be read.
    """
    files = pictures_in(Path(folder)) if Path(folder).is_dir() else []
    if len(files) <= max(video.read):
        raise AfieldError(
            f"{folder} holds {len(files)} masks, but the video has at least {max(video.read) + 1} frames."
        )
    masks = []
    for frame in video.read:
        image = cv2.imread(str(files[frame]), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise AfieldError(f"The mask {files[frame]} cannot be decoded.")
        masks.append(cv2.resize(image, video.size, interpolation=cv2.INTER_NEAREST) > 127)
    return np.stack(masks)


def _save_depth(result: tuple[DepthMaps, CameraPath], folder: Path) -> None:
    save_artifact(
        folder,
        "video-depth-cameras",
        {
            "depth": torch.from_numpy(result[0].depth),
            "T_world_camera": result[1].T_world_camera,
            "points": result[1].points,
        },
        {
            "frames": list(result[0].frames),
            "metric": result[0].metric,
            "camera": {n: getattr(result[1], n) for n in ("width", "height", "focal", "static", "metric")},
            "spread": result[1].spread.tolist(),
        },
    )


def _load_depth(folder: Path) -> tuple[DepthMaps, CameraPath]:
    tensors, header = load_artifact(
        folder, "video-depth-cameras", ("depth", "T_world_camera", "points"), ("frames", "metric", "camera")
    )
    maps = DepthMaps(tuple(int(x) for x in header["frames"]), tensors["depth"].numpy(), bool(header["metric"]))
    path = CameraPath(
        **header["camera"],
        T_world_camera=tensors["T_world_camera"],
        points=tensors["points"],
        spread=torch.tensor(header["spread"]),
    )
    return maps, path


def save_labels(result: tuple[Observation, Labels, DescriptorBasis], folder: Path) -> None:
    """Write an observation (as a capture, in `capture`), its labels, and how it is described."""
    observation, labels, basis = result
    assert labels.flow is not None, "a video shows a motion"
    tensors = {
        "contact": torch.from_numpy(np.stack([mask for mask in labels.contact if mask is not None])),
        "start": labels.flow.start,
        "displacement": labels.flow.displacement,
        "visible": labels.flow.visible,
        "basis.mean": basis.mean,
        "basis.basis": basis.basis,
    }
    header = {"floor": labels.floor, "flow": "from contact to release", "extractor": basis.extractor}
    if labels.descriptors is not None:
        tensors["descriptors"] = labels.descriptors

    def fill(temporary: Path) -> None:
        write_artifact_files(temporary, "video-labels", tensors, header)
        write_capture(observation, temporary / "capture", jpeg_quality=None)

    write_folder(folder, fill)


def load_labels(folder: Path) -> tuple[Observation, Labels, DescriptorBasis]:
    """Read what `save_labels` has written."""
    names = ("contact", "start", "displacement", "visible", "basis.mean", "basis.basis")
    tensors, header = load_artifact(folder, "video-labels", names, ("floor", "extractor"))
    flow = Flow(tensors["start"], tensors["displacement"], tensors["visible"])
    contact = tuple(mask.numpy() for mask in tensors["contact"])
    basis = DescriptorBasis(header["extractor"], tensors["basis.mean"], tensors["basis.basis"])
    labels = Labels(contact, tensors.get("descriptors"), header["floor"], flow)
    return read_folder_capture(folder / "capture"), labels, basis


def make_skill(
    observation: Observation,
    labels: Labels,
    basis: DescriptorBasis,
    narration: str,
    config: DistillConfig,
    *,
    metric: bool,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Skill:
    """Fit the affordance function and put it into a frame with its words.

    Args:
        observation: posed views.
        labels: contact, descriptors, flow.
        basis: of the descriptors.
        narration: what is done.
        config: of the fit.
        metric: whether lengths are metres.
        checkpoint: folder from which a killed fit goes on.
        progress: show progress bars.
    """
    fitted = fit_affordance(observation, labels, config.fit, checkpoint=checkpoint, progress=progress)
    floor = None if labels.floor is None else float((labels.floor - fitted.center[2]) / fitted.scale)
    verb = narration.strip().lower().split()[0]
    return Skill(
        "_".join(narration.strip().lower().split()),
        narration,
        fitted.field,
        fitted.center,
        fitted.scale,
        basis,
        floor,
        "push" if verb in PUSHING else "grasp",
        observation.views[0].color,
        {"fit": fitted.summary, "from": "video"},
        metric,
    )
