"""COLMAP models (text or binary, read by `pycolmap`) with a folder of depth images beside them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from afield.capture.distortion import evenly, intrinsic_matrix, pinhole_view, resize_depth
from afield.capture.images import DEPTH_SUFFIXES, read_color, read_depth, read_mask
from afield.capture.poses import PosedFrames
from afield.errors import AfieldError
from afield.geometry import inverse_pose, pose_from
from afield.observation import Observation, View

logger = logging.getLogger(__name__)

MODEL_FOLDERS = (".", "sparse/0", "sparse", "colmap/sparse/0", "0")
MIN_SCALE_POINTS = 20
"""Fewer sparse points with measured depth than this do not determine the scale of a model."""
DISTORTION = {
    # Where OpenCV's coefficients stand among COLMAP's parameters.
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": (3,),
    "RADIAL": (3, 4),
    "OPENCV": (4, 5, 6, 7),
    "FULL_OPENCV": (4, 5, 6, 7, 8, 9, 10, 11),
    "OPENCV_FISHEYE": (4, 5, 6, 7),
}


def read_colmap_capture(
    path: Path,
    *,
    images: Path | None = None,
    depths: Path | None = None,
    depth_unit: float = 0.001,
    scale: float | None = None,
    max_views: int | None = None,
) -> Observation:
    """Read a COLMAP model with metric depth.

    Args:
        path: the model, or the project folder with the model in `sparse/0`.
        images: color images; `images` in the project folder by default.
        depths: depth images, named like the color images (any of .png, .tif, .npy); `depth` or `depths` by default. A
            folder `masks` beside them is read where it has files of the same names.
        depth_unit: meters per unit of the depth images.
        scale: meters per unit of the model. By default it is measured: the median ratio of measured depth and depth of
            COLMAP's own points, because structure from motion does not know the size of the world.
        max_views: read at most so many images, evenly spaced in the order of their names.

    Raises:
        AfieldError: `pycolmap` is not installed, a file is missing or damaged, the lens model is not supported, or the
            scale cannot be measured.
    """
    path = Path(path)
    model, posed, model_folder = _model(path)
    images = images or _beside(path, model_folder, ("images",))
    depths = depths or _beside(path, model_folder, ("depth", "depths"))
    chosen = [posed[index] for index in evenly(len(posed), max_views)]
    views = [_read_image(image, model.cameras[image.camera_id], images, depths, depth_unit) for image in chosen]
    factor = scale if scale is not None else _measure_scale(model, chosen, depths, depth_unit, model_folder)
    if not factor > 0:
        raise AfieldError(f"The scale of {model_folder} is {factor:g} meters per unit; it must be positive.")
    name = path.resolve().name
    return Observation(
        tuple(_scaled(view, factor) for view in views), name=name, folder=path, extra={"meters_per_model_unit": factor}
    )


def read_colmap_poses(path: Path) -> PosedFrames:
    """The cameras and points of a COLMAP model alone, as they stand there: its world has no up and no scale.

    Raises:
        AfieldError: there is no complete model, it has several cameras, or the lens model is not supported.
    """
    model, posed, folder = _model(path)
    if len(model.cameras) > 1:
        raise AfieldError(f"The COLMAP model {folder} has {len(model.cameras)} cameras, but a video has one.")
    camera = next(iter(model.cameras.values()))
    if camera.model.name not in DISTORTION:
        raise AfieldError(
            f"The lens model {camera.model.name} of {folder} is not supported ({', '.join(DISTORTION)}); run COLMAP's "
            "image_undistorter first."
        )
    points = list(model.points3D.values())
    return PosedFrames(
        tuple(image.name for image in posed),
        torch.stack([inverse_pose(_T_camera_world(image)) for image in posed]),
        int(camera.width),
        int(camera.height),
        intrinsic_matrix(
            camera.focal_length_x, camera.focal_length_y, camera.principal_point_x - 0.5, camera.principal_point_y - 0.5
        ),
        tuple(_coefficients(camera)),
        camera.model.name == "OPENCV_FISHEYE",
        torch.tensor(np.array([point.xyz for point in points]).reshape(-1, 3)).float(),
        torch.tensor([float(point.error) for point in points]),
        upright=False,
        metric=False,
    )


def _model(path: Path) -> tuple[Any, list[Any], Path]:
    """The model in or below a folder, its images with poses in the order of their names, and the model's own folder."""
    try:
        import pycolmap
    except ImportError as error:
        raise AfieldError("Reading COLMAP models needs pycolmap: pip install 'afield[colmap]'.") from error
    folder = find_model(path)
    if folder is None:
        raise AfieldError(f"{path} holds no COLMAP model (cameras.bin or cameras.txt, also in sparse/0).")
    pycolmap.logging.minloglevel = 3  # only fatal messages; what fails is told as an AfieldError
    try:
        model = pycolmap.Reconstruction(str(folder))
        posed = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    except Exception as error:  # the binding raises whatever its C++ code threw
        reason = str(error).strip().splitlines()
        raise AfieldError(f"{folder} is not a complete COLMAP model: {reason[-1] if reason else error!r}.") from error
    if not posed:
        raise AfieldError(f"The COLMAP model {folder} has no registered images.")
    return model, posed, folder


def find_model(path: Path) -> Path | None:
    """The folder of the COLMAP model in or below `path`, or None."""
    for name in MODEL_FOLDERS:
        if any((path / name / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return path / name
    return None


def _beside(path: Path, model_folder: Path, names: tuple[str, ...]) -> Path:
    places = [path, model_folder, *model_folder.resolve().parents[:2]]
    for place in places:
        for name in names:
            if (place / name).is_dir():
                return place / name
    raise AfieldError(f"Found no folder '{names[0]}' beside the COLMAP model {model_folder}; name it explicitly.")


def _depth_path(depths: Path, image_name: str) -> Path:
    for suffix in DEPTH_SUFFIXES:
        for candidate in (depths / Path(image_name).with_suffix(suffix), depths / f"{image_name}{suffix}"):
            if candidate.is_file():
                return candidate
    raise AfieldError(f"There is no depth image for '{image_name}' in {depths} ({', '.join(DEPTH_SUFFIXES)}).")


def _read_image(image: Any, camera: Any, images: Path, depths: Path, depth_unit: float) -> View:
    model = camera.model.name
    if model not in DISTORTION:
        raise AfieldError(
            f"The lens model {model} of '{image.name}' is not supported ({', '.join(DISTORTION)}); run COLMAP's "
            "image_undistorter first."
        )
    color = read_color(images / image.name)
    height, width = color.shape[:2]
    if (camera.width, camera.height) != (width, height):
        raise AfieldError(
            f"{images / image.name} has {width}x{height} pixels, but COLMAP calibrated its camera for "
            f"{camera.width}x{camera.height}."
        )
    depth_path = _depth_path(depths, image.name)
    depth = resize_depth(read_depth(depth_path, depth_unit), width, height, str(depth_path))
    mask_path = depths.parent / "masks" / Path(image.name).with_suffix(".png")
    return pinhole_view(
        Path(image.name).with_suffix("").as_posix().replace("/", "_"),
        color,
        depth,
        # COLMAP counts pixels from the corner of the first one, Afield from its center.
        intrinsic_matrix(
            camera.focal_length_x, camera.focal_length_y, camera.principal_point_x - 0.5, camera.principal_point_y - 0.5
        ),
        inverse_pose(_T_camera_world(image)),
        distortion=_coefficients(camera),
        fisheye=model == "OPENCV_FISHEYE",
        mask=read_mask(mask_path) if mask_path.is_file() else None,
    )


def _coefficients(camera: Any) -> list[float]:
    values = [float(camera.params[index]) for index in DISTORTION[camera.model.name]]
    # OpenCV wants four coefficients at least; the radial models of COLMAP have one or two.
    return values + [0.0] * (4 - len(values)) if values else []


def _T_camera_world(image: Any) -> Float[torch.Tensor, "4 4"]:
    top = torch.from_numpy(np.asarray(image.cam_from_world().matrix(), dtype=np.float64))
    return pose_from(top[:, :3], top[:, 3]).float()


def _scaled(view: View, factor: float) -> View:
    pose = view.camera.T_world_camera.clone()
    pose[:3, 3] *= factor
    return replace(view, camera=replace(view.camera, T_world_camera=pose))


def _measure_scale(model: Any, chosen: list[Any], depths: Path, depth_unit: float, place: Path) -> float:
    """Meters per model unit: median of measured depth over COLMAP's depth at the sparse points."""
    ratios = []
    for image in chosen:
        camera = model.cameras[image.camera_id]
        depth = read_depth(_depth_path(depths, image.name), depth_unit)
        depth = resize_depth(depth, camera.width, camera.height, image.name)
        T_camera_world = _T_camera_world(image).double().numpy()
        for point in image.points2D:
            if not point.has_point3D() or point.point3D_id not in model.points3D:
                continue
            x, y = (int(value) for value in point.xy)
            z = float(T_camera_world[2, :3] @ model.points3D[point.point3D_id].xyz + T_camera_world[2, 3])
            if 0 <= x < camera.width and 0 <= y < camera.height and depth[y, x] > 0 and z > 1e-9:
                ratios.append(float(depth[y, x]) / z)
    if len(ratios) < MIN_SCALE_POINTS:
        raise AfieldError(
            f"Only {len(ratios)} points of the COLMAP model {place} have measured depth (at least "
            f"{MIN_SCALE_POINTS} are needed to measure its scale); give the scale, in meters per unit."
        )
    factor = float(np.median(ratios))
    spread = float(np.median(np.abs(np.asarray(ratios) / factor - 1)))
    logger.info(
        "COLMAP scale: %.4f m per unit from %d points, median deviation %.1f%%", factor, len(ratios), 100 * spread
    )
    return factor
