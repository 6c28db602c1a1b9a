"""From an ordinary video to posed pictures with labels and an affordance function: the stages in their order (III-C).

Each stage leaves a folder in `stages/`; a stage whose folder is there is not run again unless `start` names it or one before it.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from afield.artifacts import read_json, write_json
from afield.distill.fit import FitConfig, fit_affordance
from afield.distill.labels import Labels, describe_views
from afield.distill.recording import Sensed, read_recording
from afield.distill.stages.cameras import given_cameras, load_cameras, save_cameras
from afield.distill.stages.contact import Contact, find_contact
from afield.distill.stages.depth import (
    DepthMaps,
    depth_from_files,
    depth_from_frames,
    depth_from_network,
    depth_from_sensor,
    free_run,
    load_depth,
    save_depth,
)
from afield.distill.stages.drawn_views import DrawnViews, find_generator, is_generator
from afield.distill.stages.given_views import CaptureViews, region_in, tie_views
from afield.distill.stages.hands import HandTrack, begins_in_contact, find_hands, hands_from_masks
from afield.distill.stages.masks import ObjectMasks, find_masks
from afield.distill.stages.rewind import rewound
from afield.distill.stages.surface import load_surface, object_surface, save_surface
from afield.distill.stages.tracks import ObjectTracks, track_object
from afield.distill.stages.views import (
    contact_in_views,
    load_labels,
    object_flow,
    posed_views,
    save_labels,
    small_region,
    table_height,
)
from afield.errors import AfieldError
from afield.observation import Observation, View
from afield.perception.cameras import CameraPath, cameras_from_video, with_points
from afield.perception.depth import DepthFiles, TransformersDepth
from afield.perception.features import extractor_by_name
from afield.perception.given_tracks import TRACK_FILES, read_tracks
from afield.perception.hands import hand_detector_by_name
from afield.perception.masks import Box, Click
from afield.perception.propagation import Prompt, mask_propagator_by_name
from afield.perception.tracks import PointTracker, tracker_by_name
from afield.perception.video import Video, pictures_in
from afield.skills import DescriptorBasis, Skill, mode_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

STAGES = ("hands", "cameras", "depth", "masks", "surface", "tracks", "contact", "views", "fit")
"""In the order in which they run; each uses what those before it have found."""
VERSIONS = {"version": 7, "surface_version": 1, "contact_version": 2, "fit_version": 1}
"""Each changes when older results are worth nothing any more: those of all stages, from `surface`, `contact`, `fit` on."""


@dataclass(frozen=True)
class DistillConfig:
    """What each stage is to use."""

    box: Box | None = None
    """Left, top, right, bottom of the object in pixels of the video, in the last frame before the hand comes."""
    click: Click | None = None
    """Column and row of a pixel of the object in that frame, instead of a box."""
    prompt_frame: int | None = None
    """Number of the frame in which box or click were given (0 is the first), if it is another one without a hand."""
    object_masks: Path | None = None
    """Folder with a mask for every frame instead of a box or a click."""
    masks: str = "grabcut"
    """What finds the object in the other frames: grabcut, or a SAM 2 video model of transformers by name or folder."""
    hands: str = "mediapipe"
    """Name of the hand detector."""
    hand_models: Path | None = None
    """The wheel of mediapipe 0.10.21, where it is not installed."""
    hand_masks: Path | None = None
    """Folder with a mask of the hand for every frame instead of a detector."""
    cameras: Path | None = None
    """Poses (a JSON file, a transforms.json or a COLMAP model, see docs/distill.md) instead of structure from motion."""
    focal: float | None = None
    """Focal length in pixels of the video, where it is known."""
    depth: str = "plane-sweep"
    """plane-sweep (of an RGB-D recording: its own), a folder of 16-bit images in millimetres, or a depth model of transformers by
    name or folder."""
    views: Path | None = None
    """Capture with masks whose first view is the reference frame, instead of the video's own frames; or `zero123plus`, or a
    folder with such a pipeline, which draws them."""
    tracker: str = "lucas-kanade"
    """Name of the point tracker, or a file with tracks."""
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


class Parts(TypedDict, total=False):
    """What the stages have found so far, in the order in which they find it; names as in `Distilled`."""

    video: Video
    backwards: bool
    hands: HandTrack
    cameras: CameraPath
    depth: DepthMaps
    masks: ObjectMasks
    surface: Float[np.ndarray, "h w"]
    """Depth of the last frame before the hand comes, finer on the object; only where depth is the plane sweep."""
    tracks: ObjectTracks
    contact: Contact
    observation: Observation
    labels: Labels
    skill: Skill


@dataclass(frozen=True)
class Distilled:
    """Everything that came out, stage by stage."""

    video: Video
    hands: HandTrack
    cameras: CameraPath
    depth: DepthMaps
    masks: ObjectMasks
    surface: Float[np.ndarray, "h w"]
    """Depth of the last frame before the hand comes, at full size; finer on the object if it is the plane sweep's."""
    tracks: ObjectTracks
    contact: Contact
    observation: Observation
    labels: Labels
    skill: Skill | None
    """None if the run ended before the fit."""
    backwards: bool = False
    """The video begins in contact, so that all of this is in reverse order: what is called contact here was the release."""

    @property
    def held(self) -> tuple[int, int]:
        """Frames of the file in which the hand takes hold and lets go."""
        first, last = (self.video.read[frame] for frame in (self.contact.contact_frame, self.contact.release_frame))
        return (last, first) if self.backwards else (first, last)


def distill_video(
    source: Path,
    narration: str,
    out: Path,
    config: DistillConfig | None = None,
    *,
    start: str | None = None,
    stop: str = "fit",
    parts: Parts | None = None,
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
        parts: filled stage by stage, so that it can be shown how far they came when one stops.
        progress: show progress bars, and which stage is done.

    Raises:
        AfieldError: a stage cannot go on; the sentence names it and says what would help.
    """
    config, parts = config or DistillConfig(), {} if parts is None else parts
    video, sensed = _read(source, narration, config, progress)
    run = Runner(Path(out), start, fingerprint(source, narration, config), progress=progress)
    run.note(video)
    parts["video"] = video
    hands = run.stage("hands", HandTrack.load, HandTrack.save, lambda: _hands(video, config, progress))
    backwards = begins_in_contact(hands.free)
    if backwards:  # seen from its end it is a video like any other
        video, hands = video.backwards(), hands.backwards()
        sensed = None if sensed is None else sensed.backwards()
    parts["video"], parts["hands"], parts["backwards"] = video, hands, backwards
    cameras = parts["cameras"] = run.stage(
        "cameras", load_cameras, save_cameras, lambda: _cameras(video, sensed, hands, config, progress)
    )
    free = free_run(hands.free)
    depth, cameras = run.stage(
        "depth", load_depth, save_depth, lambda: _depth(video, sensed, cameras, free, config, progress)
    )
    parts["depth"], parts["cameras"] = depth, cameras
    masks = parts["masks"] = run.stage(
        *("masks", ObjectMasks.load, ObjectMasks.save),
        lambda: _masks(video, hands, free, depth, cameras, config, progress),
    )
    coarse, mask, finer = depth.reference(video.size), masks.masks[free[-1]], None
    if config.depth == "plane-sweep" and sensed is None:
        make = partial(object_surface, video, cameras, mask, coarse, free[-1], progress=progress)
        finer = parts["surface"] = run.stage("surface", load_surface, save_surface, make)
    known = coarse if finer is None else finer
    tracks = parts["tracks"] = run.stage(
        *("tracks", ObjectTracks.load, ObjectTracks.save),
        lambda: track_object(
            *(video, cameras, mask, known, free[-1], hands, _tracker(video, config)),
            count=config.points,
            progress=progress,
        ),
    )
    make = partial(find_contact, cameras, hands, tracks, mask, known, backwards=backwards)
    contact = parts["contact"] = run.stage("contact", Contact.load, Contact.save, make)
    own = posed_views(video, cameras, depth, masks.masks, narration, finer, contact)
    observation, labels, basis = run.stage(
        *("views", load_labels, save_labels),
        lambda: _views(own, video, cameras, masks, tracks, contact, config, backwards, progress),
    )
    parts["observation"], parts["labels"] = observation, labels
    skill = None
    if stop == "fit":
        checkpoint = Path(out) / "stages" / ".fit"
        skill = parts["skill"] = run.stage(
            *("fit", Skill.load, Skill.save),
            lambda: make_skill(observation, labels, basis, narration, config, checkpoint=checkpoint, progress=progress),
        )
    return Distilled(
        *(video, hands, cameras, depth, masks, known, tracks, contact, observation, labels, skill, backwards)
    )


class Runner:
    """Runs stages whose result is not yet on disk."""

    def __init__(self, out: Path, start: str | None, fingerprint: dict[str, Any], *, progress: bool = False) -> None:
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
        self._out, self._progress = out, progress

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
            self._say(f"stage {name}: read from {folder}")
            return load(folder)
        result = make()
        save(result, folder)
        self._say(f"stage {name}: done")
        return result

    def _say(self, line: str) -> None:
        if self._progress:
            tqdm.write(line, file=sys.stderr)


def fingerprint(source: Path, narration: str, config: DistillConfig) -> dict[str, Any]:
    """What the results of the stages depend on: settings, and which files with what changes."""
    path = Path(source)
    settings = {key: (_stamp(value) if isinstance(value, Path) else value) for key, value in asdict(config).items()}
    if config.views is not None and is_generator(config.views):
        settings["views"] = _stamp(find_generator(config.views))
    for name in ("depth", "tracker", "masks"):  # a name, or a file or folder
        place = Path(getattr(config, name))
        if place.exists():
            settings[name] = _stamp(place)
    for name in ("box", "click"):  # as JSON gives them back
        settings[name] = list(settings[name]) if settings[name] is not None else None
    settings["fit"] = repr(config.fit)
    return {
        **VERSIONS,
        "video": _stamp(path),
        "narration": narration,
        **settings,
    }


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
        "masks": ("box", "click", "prompt_frame", "object_masks", "masks"),
        "surface": ("surface_version",),
        "tracks": ("tracker", "points"),
        "contact": ("contact_version",),
        "views": ("views", "extractor", "horizon", "narration"),
        "fit": ("fit_version", "fit"),
    }[stage]


def _read(source: Path, narration: str, config: DistillConfig, progress: bool) -> tuple[Video, Sensed | None]:
    """The video, and what an RGB-D recording brings along.

    Raises:
        AfieldError: it cannot be read, or something else that was given does not fit.
    """
    if not narration.strip():
        raise AfieldError(
            "The narration is empty; say what is done in the video, e.g. --narration 'open the microwave'."
        )
    video, sensed = read_recording(source, longest=config.longest, most=config.frames, progress=progress)
    _check_inputs(video, config)
    return video, sensed


def _check_inputs(video: Video, config: DistillConfig) -> None:
    """Refuse at once what only a later stage would stumble over.

    Raises:
        AfieldError: a file is not there, or the object is named in more than one way, or outside of the picture.
    """
    for name in ("object_masks", "hand_masks", "cameras", "views", "tracker"):
        place = getattr(config, name)
        is_file = name != "tracker" or Path(place).suffix in (*TRACK_FILES, ".pth")
        if name == "views" and place is not None and is_generator(place):
            find_generator(place)
            continue
        if place is not None and is_file and not Path(place).exists():
            raise AfieldError(f"There is no file or folder {place} (--{name.replace('_', '-')}).")
    ways = {"--box": config.box, "--click": config.click, "--object-masks": config.object_masks}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise AfieldError(f"{' and '.join(given)} both say which object is meant; give only one of them.")
    if config.box is not None or config.click is not None:
        Prompt(config.box, config.click).inside(video.full_size)
    elif config.prompt_frame is not None:
        raise AfieldError("--prompt-frame says where --box or --click were given; there is neither.")
    if config.prompt_frame is not None and not 0 <= config.prompt_frame <= max(video.read):
        last = max(video.read)
        raise AfieldError(
            f"--prompt-frame must be between 0 and {last}, the last that was read, not {config.prompt_frame}."
        )


def _hands(video: Video, config: DistillConfig, progress: bool) -> HandTrack:
    if config.hand_masks is not None:
        return hands_from_masks(read_masks(config.hand_masks, video))
    return find_hands(video.frames, hand_detector_by_name(config.hands, config.hand_models), progress=progress)


def _cameras(
    video: Video, sensed: Sensed | None, hands: HandTrack, config: DistillConfig, progress: bool
) -> CameraPath:
    if config.cameras is not None:
        return given_cameras(config.cameras, video, hands.masks, progress=progress)
    if sensed is not None:
        path = sensed.cameras
        if path.static or config.depth == "plane-sweep":  # its own depth needs no points
            return path
        return with_points(path, video.frames, hands.masks, progress=progress)
    focal = None if config.focal is None else config.focal * video.size[0] / video.full_size[0]
    path = cameras_from_video(video.frames, hands.masks, focal=focal, seed=config.seed, progress=progress)
    if path.static and focal is None:
        guess = path.focal * video.full_size[0] / video.size[0]
        logger.warning(
            "The camera stands still, so the video does not tell its focal length; %.0f pixels are taken. Better give --focal.",
            guess,
        )
    return path


def _depth(
    video: Video, sensed: Sensed | None, cameras: CameraPath, free: list[int], config: DistillConfig, progress: bool
) -> tuple[DepthMaps, CameraPath]:
    if config.depth == "plane-sweep" and sensed is not None:
        return depth_from_sensor(video, cameras, sensed.depth, free)
    if config.depth == "plane-sweep":
        return depth_from_frames(video, cameras, free, progress=progress), cameras
    folder = Path(config.depth)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return depth_from_files(video, cameras, DepthFiles(folder), free)
    return depth_from_network(video, cameras, TransformersDepth(config.depth), free)


def _masks(
    video: Video,
    hands: HandTrack,
    free: Sequence[int],
    depth: DepthMaps,
    cameras: CameraPath,
    config: DistillConfig,
    progress: bool,
) -> ObjectMasks:
    if config.object_masks is not None:
        return ObjectMasks(read_masks(config.object_masks, video) & ~hands.masks)
    propagator = mask_propagator_by_name(config.masks)
    prompt, known = Prompt(config.box, config.click), depth.reference(video.size)
    drawn = None if config.prompt_frame is None else video.nearest(config.prompt_frame)
    if drawn is not None and drawn not in free:
        first, last = sorted((video.read[free[0]], video.read[free[-1]]))
        raise AfieldError(
            f"Stage masks: --prompt-frame must be one of the frames {first} to {last}, in which the object is seen without a "
            f"hand, not {config.prompt_frame}."
        )
    return find_masks(video, prompt, free[-1], hands.masks, propagator, known, cameras, drawn=drawn, progress=progress)


def _tracker(video: Video, config: DistillConfig) -> PointTracker:
    file = Path(config.tracker)
    if file.suffix in TRACK_FILES:
        return read_tracks(file, video.read, video.size, video.full_size)
    return tracker_by_name(config.tracker)


def _views(
    own: Observation,
    video: Video,
    cameras: CameraPath,
    masks: ObjectMasks,
    tracks: ObjectTracks,
    contact: Contact,
    config: DistillConfig,
    backwards: bool,
    progress: bool,
) -> tuple[Observation, Labels, DescriptorBasis]:
    """The video's own views, or given ones, and what is known about them."""
    flow = object_flow(tracks, contact, config.horizon, video.times, backwards=backwards)
    floor = table_height(own, tracks.points)
    if config.views is None:
        observation, regions = own, contact_in_views(own, small_region(contact, own.views[-1]))
        if backwards:
            observation, regions = rewound(observation, regions, tracks, contact.release_frame)
    else:
        if backwards:
            raise AfieldError(
                "Stage views: --views shows the object as it is in the hands-free frames, but this video begins in contact, and "
                "the object is needed as it was then; leave --views out."
            )
        frame = contact.free_frame
        source = (
            DrawnViews(config.views, seed=config.seed) if is_generator(config.views) else CaptureViews(config.views)
        )
        nothing = np.zeros(video.frames.shape[1:3], np.float32)
        whole = View(own.views[-1].name, cameras.camera(frame), video.frames[frame], nothing, masks.masks[frame])
        given = tie_views(source.views(whole), own.views[-1], video.read[frame])
        observation, flow, floor = given.observation, given.flow(flow), given.floor(floor)
        region = region_in(contact.region, cameras.camera(frame), observation.views[-1])
        regions = contact_in_views(observation, region)
    descriptors, basis = None, DescriptorBasis("none", torch.zeros(1), torch.zeros(1, config.fit.grid.channels))
    if config.extractor is not None:
        extractor = extractor_by_name(config.extractor)
        descriptors, mean, axes = describe_views(observation, extractor, progress=progress)
        basis = DescriptorBasis(config.extractor, mean, axes)
    return observation, Labels(regions, descriptors, floor, flow), basis


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


def make_skill(
    observation: Observation,
    labels: Labels,
    basis: DescriptorBasis,
    narration: str,
    config: DistillConfig,
    *,
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
        checkpoint: folder from which a killed fit goes on.
        progress: show progress bars.
    """
    settings = replace(config.fit, one_view=True)
    fitted = fit_affordance(observation, labels, settings, checkpoint=checkpoint, progress=progress)
    floor = None if labels.floor is None else float((labels.floor - fitted.center[2]) / fitted.scale)
    return Skill(
        "_".join(narration.strip().lower().split()),
        narration,
        fitted.field,
        fitted.center,
        fitted.scale,
        basis,
        floor,
        mode_of(narration),
        observation.views[0].color,
        {"fit": fitted.summary, "from": "video"},
        bool(observation.extra.get("metric", True)),
    )
