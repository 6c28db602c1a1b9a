"""Where the camera was in every frame of a video, up to a similarity: structure from motion on tracked corners."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from tqdm import tqdm

from afield.errors import AfieldError
from afield.observation import Camera
from afield.perception.tracks import PointTracks, track_everywhere

logger = logging.getLogger(__name__)

STILL = 1.5
"""A camera is on a tripod where the background moves by less than so many pixels over the whole video."""
FOCAL_GUESS = 1.1
"""Of the longer side of the picture: telephones' main cameras lie between 0.7 and 1.3."""
NOMINAL = 1.0
"""Metres from the camera to the middle of what it sees; a video without a known length is scaled to it."""
LEAST_POINTS = 40
"""Points without which poses from elsewhere are not believed."""
LEAST_PARALLAX = 1.0
"""Degrees between the rays to a point, below which its place is not known."""
AGREES = 1.5
"""Pixels, on the average, between a triangulated point and its track."""


@dataclass(frozen=True)
class CameraPath:
    """Cameras of all frames in a common frame with +Z up."""

    width: int
    height: int
    focal: float
    """In pixels; the principal point is the middle of the picture."""
    T_world_camera: Float[Tensor, "n 4 4"]
    points: Float[Tensor, "m 3"]
    """What stands still and was seen from several sides."""
    spread: Float[Tensor, "m"]
    """Reprojection error of each point in pixels."""
    static: bool
    """The camera did not move: there is one view, and no parallax."""
    metric: bool
    """Lengths are metres; otherwise the scale was chosen so that the scene lies about a metre away."""

    def camera(self, frame: int) -> Camera:
        """The camera of a frame."""
        center = ((self.width - 1) / 2, (self.height - 1) / 2)
        return Camera(self.width, self.height, self.focal, self.focal, *center, self.T_world_camera[frame])

    def __len__(self) -> int:
        return len(self.T_world_camera)

    def distance(
        self, pixels: Float[np.ndarray, "k 2"], points: Float[np.ndarray, "k 3"], frame: int
    ) -> Float[np.ndarray, "k"]:
        """How far, in pixels of a frame, points of the world are seen from given pixels."""
        found = self.camera(frame).project(torch.from_numpy(points).float())[0].numpy()
        return np.linalg.norm(found - pixels, axis=-1)

    def scaled(self, factor: float, *, metric: bool) -> CameraPath:
        """The path with all lengths multiplied."""
        poses = self.T_world_camera.clone()
        poses[:, :3, 3] *= factor
        return replace(self, T_world_camera=poses, points=self.points * factor, metric=metric)

    def tensors(self) -> dict[str, Tensor]:
        """What of it are tensors, for a file; `described` is the rest, and `restored` reads both."""
        return {"T_world_camera": self.T_world_camera, "points": self.points, "spread": self.spread}

    def described(self) -> dict[str, Any]:
        """What of it are numbers."""
        return {name: getattr(self, name) for name in ("width", "height", "focal", "static", "metric")}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> CameraPath:
        """A path from its tensors and numbers."""
        return cls(
            int(numbers["width"]),
            int(numbers["height"]),
            float(numbers["focal"]),
            *(tensors[name] for name in ("T_world_camera", "points", "spread")),
            static=bool(numbers["static"]),
            metric=bool(numbers["metric"]),
        )


def cameras_from_video(
    frames: UInt8[np.ndarray, "t h w 3"],
    ignore: Bool[np.ndarray, "t h w"] | None = None,
    *,
    focal: float | None = None,
    keyframes: int = 22,
    seed: int = 0,
    progress: bool = True,
) -> CameraPath:
    """Structure from motion (`pycolmap`) on keyframes, then the pose of every frame from the points that were found.

    Args:
        frames: RGB.
        ignore: where hands are.
        focal: in pixels, where it is known; estimated otherwise.
        keyframes: frames that take part in the structure from motion.
        seed: of its random choices.
        progress: show progress bars.

    Raises:
        AfieldError: too little texture or motion to tell where the camera was, or `pycolmap` is not installed.
    """
    gray, masks = _prepared(frames, ignore)
    tracks = track_everywhere(gray, masks, progress=progress)
    height, width = gray.shape[1:]
    guess = focal or FOCAL_GUESS * max(width, height)
    if background_motion(tracks) < STILL:
        poses = torch.eye(4).repeat(len(gray), 1, 1)
        poses[:, :3, :3] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
        return CameraPath(width, height, guess, poses, torch.zeros(0, 3), torch.zeros(0), static=True, metric=False)
    chosen = np.unique(np.linspace(0, len(gray) - 1, min(keyframes, len(gray))).round().astype(int))
    found_focal, points, errors = _structure(frames, tracks, chosen, guess, focal is not None, seed)
    poses = _poses(tracks, points, found_focal, (width, height), progress)
    used = sorted(points)
    cloud = torch.tensor(np.array([points[key] for key in used])).float()
    spread = torch.tensor([errors[key] for key in used]).float()
    turned, cloud = upright(torch.from_numpy(poses).float(), cloud)
    return CameraPath(width, height, found_focal, turned, cloud, spread, static=False, metric=False)


def with_points(
    path: CameraPath,
    frames: UInt8[np.ndarray, "t h w 3"],
    ignore: Bool[np.ndarray, "t h w"] | None = None,
    *,
    progress: bool = True,
) -> CameraPath:
    """A camera path from elsewhere with points: tracked corners, triangulated under the given poses.

    Args:
        path: poses of all frames; it moves.
        frames: RGB.
        ignore: where hands are.
        progress: show a progress bar.

    Raises:
        AfieldError: hardly any corner agrees with the poses.
    """
    gray, masks = _prepared(frames, ignore)
    tracks = track_everywhere(gray, masks, progress=progress)
    long = int((tracks.seen.sum(axis=0) >= 3).sum())
    points, spread = triangulate(path, tracks)
    if len(points) < LEAST_POINTS or len(points) < 0.1 * long:
        raise AfieldError(
            f"Stage cameras: only {len(points)} of {long} tracked corners fit the given poses; check that they belong to these "
            "frames, in this order, with this focal length, as T_world_camera of OpenCV cameras."
        )
    return replace(path, points=points, spread=spread)


def triangulate(path: CameraPath, tracks: PointTracks) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m"]]:
    """Points of tracks, from the first and the last frame that see each; those that other frames do not confirm are dropped.

    Returns:
        Points in the world, and the mean distance in pixels between each and its track.
    """
    matrix = path.camera(0).intrinsics.double().numpy()
    camera_world = torch.linalg.inv(path.T_world_camera.double()).numpy()[:, :3]
    eyes = path.T_world_camera[:, :3, 3].double().numpy()
    number = tracks.seen.sum(axis=0)
    first = tracks.seen.argmax(axis=0)
    last = len(tracks.seen) - 1 - tracks.seen[::-1].argmax(axis=0)
    places, spreads = [np.zeros((0, 3))], [np.zeros(0)]
    for a, b in np.unique(np.stack((first, last), axis=1)[number >= 3], axis=0):
        some = np.flatnonzero((first == a) & (last == b) & (number >= 3))
        pixels = [tracks.pixels[frame, some].T.astype(np.float64) for frame in (a, b)]
        answer = cv2.triangulatePoints(matrix @ camera_world[a], matrix @ camera_world[b], *pixels)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (answer[:3] / answer[3]).T
        toward = [found - eyes[frame] for frame in (a, b)]
        cosine = (toward[0] * toward[1]).sum(axis=1) / np.prod([np.linalg.norm(way, axis=1) for way in toward], axis=0)
        off = np.full((len(tracks.seen), len(some)), np.nan)
        for frame in range(a, b + 1):
            seen_from = found @ camera_world[frame, :, :3].T + camera_world[frame, :, 3]
            where = seen_from[:, :2] / seen_from[:, 2:] * path.focal + matrix[:2, 2]
            far = np.linalg.norm(where - tracks.pixels[frame, some], axis=1)
            off[frame] = np.where(tracks.seen[frame, some], np.where(seen_from[:, 2] > 0, far, np.inf), np.nan)
        kept = np.isfinite(found).all(axis=1) & (cosine < math.cos(math.radians(LEAST_PARALLAX)))
        kept &= np.nanmax(off, axis=0) < 2 * AGREES
        kept &= np.nanmean(off, axis=0) < AGREES
        places.append(found[kept])
        spreads.append(np.nanmean(off, axis=0)[kept])
    return torch.from_numpy(np.concatenate(places)).float(), torch.from_numpy(np.concatenate(spreads)).float()


def _prepared(
    frames: UInt8[np.ndarray, "t h w 3"], ignore: Bool[np.ndarray, "t h w"] | None
) -> tuple[UInt8[np.ndarray, "t h w"], Bool[np.ndarray, "t h w"] | None]:
    """Grey frames, and where no corner may be: on hands and close to them."""
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    if ignore is None:
        return gray, None
    kernel = np.ones((9, 9), np.uint8)
    return gray, np.stack([cv2.dilate(mask.astype(np.uint8), kernel) > 0 for mask in ignore])


def background_motion(tracks: PointTracks) -> float:
    """How far half of the corners that were followed for long have moved at least, in pixels."""
    long = tracks.seen.sum(axis=0) > 0.5 * len(tracks.seen)
    if long.sum() < 20:
        return float("inf")
    pixels = np.where(tracks.seen[..., None], tracks.pixels, np.nan)[:, long]
    extent = np.nanmax(pixels, axis=0) - np.nanmin(pixels, axis=0)
    return float(np.median(np.linalg.norm(extent, axis=-1)))


def _structure(
    frames: UInt8[np.ndarray, "t h w 3"], tracks: PointTracks, chosen: np.ndarray, focal: float, known: bool, seed: int
) -> tuple[float, dict[int, np.ndarray], dict[int, float]]:
    """Incremental mapping of the chosen frames: the focal length, and the place and error of the tracks' points."""
    pycolmap = _pycolmap()
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value if hasattr(pycolmap.logging.FATAL, "value") else 3
    height, width = frames.shape[1:3]
    pycolmap.set_random_seed(seed)
    with tempfile.TemporaryDirectory(prefix="afield-sfm-") as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for frame in chosen:
            cv2.imwrite(str(folder / "images" / f"{frame:06d}.jpg"), np.ascontiguousarray(frames[frame][..., ::-1]))
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = "SIMPLE_PINHOLE"
        reader.camera_params = f"{focal},{width / 2},{height / 2}"
        database = folder / "database.db"
        pycolmap.Database.open(str(database)).close()
        pycolmap.import_images(database, folder / "images", camera_mode=pycolmap.CameraMode.SINGLE, options=reader)
        members = _write_matches(pycolmap, database, tracks, chosen, folder / "pairs.txt")
        pycolmap.verify_matches(database, folder / "pairs.txt", _two_view(pycolmap, seed))
        options = pycolmap.IncrementalPipelineOptions()
        options.multiple_models, options.extract_colors, options.random_seed = False, False, seed
        options.min_model_size, options.ba_refine_focal_length, options.num_threads = 3, not known, 1
        options.mapper.abs_pose_refine_focal_length = not known
        options.mapper.init_min_tri_angle = 4.0  # a demonstration is seen from a narrow arc
        options.mapper.filter_min_tri_angle = options.triangulation.min_angle = 1.0
        options.mapper.init_min_num_inliers = 60
        options.mapper.filter_max_reproj_error = 2.0
        models = pycolmap.incremental_mapping(database, folder / "images", folder, options)
        if not models:
            raise AfieldError(
                "Stage cameras: the frames have too little texture or the camera moves too little to tell where it was; film "
                "with a slow sideways motion, or give poses with --cameras FILE."
            )
        model = max(models.values(), key=lambda m: m.num_reg_images())
        if model.num_reg_images() < 0.6 * len(chosen):
            raise AfieldError(
                f"Stage cameras: only {model.num_reg_images()} of {len(chosen)} keyframes fit together; film without cuts and "
                "without fast turns, or give poses with --cameras FILE."
            )
        places, errors = {}, {}
        for point in model.points3D.values():
            element = point.track.elements[0]
            frame = int(Path(model.images[element.image_id].name).stem)
            track = int(members[frame][element.point2D_idx])
            places[track], errors[track] = np.array(point.xyz), float(point.error)
        camera = next(iter(model.cameras.values()))
        return float(camera.params[0]), places, errors


def _write_matches(
    pycolmap: Any, database: Path, tracks: PointTracks, chosen: np.ndarray, pairs: Path
) -> dict[int, np.ndarray]:
    """Every corner that two keyframes share is a match. Returns the tracks of each keyframe's corners."""
    opened = pycolmap.Database.open(str(database))
    ids = {int(Path(image.name).stem): image.image_id for image in opened.read_all_images()}
    members = {int(frame): np.flatnonzero(tracks.seen[frame]) for frame in chosen}
    for frame, corners in members.items():
        # COLMAP counts pixels from the corner of the picture, this library from the middle of the first pixel.
        opened.write_keypoints(ids[frame], tracks.pixels[frame, corners].astype(np.float32) + 0.5)
    lines = []
    for first in chosen:
        for second in chosen[chosen > first]:
            _, a, b = np.intersect1d(members[int(first)], members[int(second)], return_indices=True)
            if len(a) >= 30:
                opened.write_matches(ids[int(first)], ids[int(second)], np.stack((a, b), axis=1).astype(np.uint32))
                lines.append(f"{first:06d}.jpg {second:06d}.jpg\n")
    opened.close()
    pairs.write_text("".join(lines))
    return members


def _two_view(pycolmap: Any, seed: int) -> Any:
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.max_error = 1.5
    options.ransac.random_seed = seed
    return options


def _poses(
    tracks: PointTracks, points: dict[int, np.ndarray], focal: float, size: tuple[int, int], progress: bool
) -> Float[np.ndarray, "t 4 4"]:
    """`T_world_camera` of every frame from the corners whose place is known, robustly."""
    width, height = size
    matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    keys = np.array(sorted(points))
    places = np.array([points[key] for key in keys])
    poses = []
    for frame in tqdm(range(len(tracks.seen)), desc="poses", unit="frame", disable=not progress, leave=False):
        here = tracks.seen[frame, keys]
        if here.sum() < 12:
            raise AfieldError(
                f"Stage cameras: frame {frame} shows only {int(here.sum())} known points; film without cuts and fast turns, or "
                "give poses with --cameras FILE."
            )
        object_points = places[here].astype(np.float64)
        pixels = tracks.pixels[frame, keys][here].astype(np.float64)
        cv2.setRNGSeed(frame)
        ok, turn, shift, inliers = cv2.solvePnPRansac(
            object_points, pixels, matrix, None, reprojectionError=2.0, iterationsCount=300, flags=cv2.SOLVEPNP_EPNP
        )
        if not ok or inliers is None or len(inliers) < 10:
            raise AfieldError(
                f"Stage cameras: the pose of frame {frame} could not be found; film without cuts and fast turns, or give poses "
                "with --cameras FILE."
            )
        kept = np.asarray(inliers, dtype=np.int64)[:, 0]
        turn, shift = cv2.solvePnPRefineLM(object_points[kept], pixels[kept], matrix, None, turn, shift)
        pose = np.eye(4)
        pose[:3, :3] = cv2.Rodrigues(turn)[0].T
        pose[:3, 3] = -pose[:3, :3] @ shift[:, 0]
        poses.append(pose)
    return np.stack(poses)


def upright(
    poses: Float[Tensor, "n 4 4"], points: Float[Tensor, "m 3"], *, metric: bool = False
) -> tuple[Float[Tensor, "n 4 4"], Float[Tensor, "m 3"]]:
    """Turn and scale a reconstruction: +Z up, the ground at z = 0, what is seen about a metre away unless it is in metres.

    Up is the normal of the plane with the most points among those that could be lying, given that nobody holds a telephone
    upside down; where no plane is found, the mean up of the pictures.
    """
    up_pictures = -poses[:, :3, 1].mean(dim=0)
    up_pictures = up_pictures / up_pictures.norm()
    scale = 1.0 if metric else nominal_scale(poses, points)
    points, poses = points * scale, poses.clone()
    poses[:, :3, 3] *= scale
    plane = lying_plane(points, up_pictures)
    if plane is None:
        logger.warning("Nothing that lies level was found in the video; the camera is taken to have been held level.")
    up, origin = plane if plane is not None else (up_pictures, points.median(dim=0).values)
    forward = poses[:, :3, 2].mean(dim=0)
    y = torch.nn.functional.normalize(forward - (forward @ up) * up, dim=0)
    rotation = torch.stack((torch.linalg.cross(y, up), y, up))
    shift = -(rotation @ origin)
    turned = poses.clone()
    turned[:, :3, :3] = rotation @ poses[:, :3, :3]
    turned[:, :3, 3] = poses[:, :3, 3] @ rotation.T + shift
    return turned, points @ rotation.T + shift


def nominal_scale(poses: Float[Tensor, "n 4 4"], points: Float[Tensor, "m 3"]) -> float:
    """The factor that puts half of the points at least a metre away from the camera in the middle of its way."""
    inverse = torch.linalg.inv(poses[len(poses) // 2])
    depth = (points @ inverse[:3, :3].T + inverse[:3, 3])[:, 2]
    return NOMINAL / float(depth[depth > 0].median())


def lying_plane(
    points: Float[Tensor, "m 3"], up: Float[Tensor, "3"], *, near: float = 0.008, tilt: float = 0.55, tries: int = 3000
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]] | None:
    """Normal and a point of the plane that most points lie on, of those whose normal's cosine with `up` exceeds `tilt`."""
    if len(points) < 30:
        return None
    generator = torch.Generator().manual_seed(0)
    points = points[torch.randperm(len(points), generator=generator)[:4000]] if len(points) > 4000 else points
    some = torch.randint(len(points), (tries, 3), generator=generator)
    a, b, c = points[some[:, 0]], points[some[:, 1]], points[some[:, 2]]
    normal = torch.linalg.cross(b - a, c - a)
    length = normal.norm(dim=-1)
    normal = normal / length.clamp_min(1e-12)[:, None]
    normal = normal * torch.sign(normal @ up)[:, None]
    fine = (length > 1e-6) & (normal @ up > tilt)
    if not bool(fine.any()):
        return None
    normal, a = normal[fine], a[fine]
    far = (points @ normal.T - (a * normal).sum(dim=-1)).abs()
    best = int((far < near).sum(dim=0).argmax())
    member = far[:, best] < near
    if int(member.sum()) < max(20, 0.1 * len(points)):
        return None
    center = points[member].mean(dim=0)
    axis = torch.linalg.svd(points[member] - center, full_matrices=False)[2][2]
    return axis * torch.sign(axis @ up), center


def _pycolmap() -> Any:
    try:
        import pycolmap
    except ImportError as error:
        raise AfieldError("Structure from motion needs pycolmap: pip install 'afield[colmap]'.") from error
    return pycolmap
