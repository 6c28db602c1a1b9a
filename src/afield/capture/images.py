"""Image files of a capture: colour, metric depth and masks, read strictly so that a damaged file is never half used."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from afield.errors import AfieldError

MILLIMETERS_PER_METER = 1000.0
DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy")


def read_color(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an 8-bit color image (JPEG, PNG, ...) as RGB; transparency is dropped.

    Raises:
        AfieldError: missing, truncated, or not an image.
    """
    image = _decode(path, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(image[..., ::-1])


def read_depth(path: Path, meters_per_unit: float) -> Float[np.ndarray, "height width"]:
    """Read a depth image as float32 meters along the optical axis, 0 where nothing was measured.

    Args:
        path: a 16-bit PNG or TIFF, a float TIFF, or a `.npy` array.
        meters_per_unit: what one unit of the file is worth, e.g. 0.001 for millimeters.

    Raises:
        AfieldError: missing, truncated, not one channel, 8-bit, NaN or negative.
    """
    if path.suffix.lower() not in DEPTH_SUFFIXES:
        raise AfieldError(f"Depth image {path} must be one of {', '.join(DEPTH_SUFFIXES)}, not '{path.suffix}'.")
    raw = read_array(path) if path.suffix.lower() == ".npy" else _decode(path, cv2.IMREAD_UNCHANGED)
    if raw.ndim == 3 and raw.shape[2] == 1:
        raw = raw[..., 0]
    if raw.ndim != 2:
        raise AfieldError(f"Depth image {path} must have one channel, but has the shape {raw.shape}.")
    if raw.dtype == np.uint8 or raw.dtype.kind not in "uif":
        raise AfieldError(f"Depth image {path} holds {raw.dtype} numbers; 16-bit integers or floats are needed.")
    return checked_depth(raw.astype(np.float32) * np.float32(meters_per_unit), path)


def checked_depth(depth: Float[np.ndarray, "height width"], path: Path) -> Float[np.ndarray, "height width"]:
    """The same depth, after making sure that it is finite and not negative; `path` is named in the error."""
    bad = int((~np.isfinite(depth)).sum())
    if bad:
        raise AfieldError(f"Depth image {path} has {bad} NaN or infinite pixels; mark missing depth with 0 instead.")
    if (depth < 0).any():
        raise AfieldError(f"Depth image {path} has negative depth; it must be a distance along the optical axis.")
    return depth


def read_mask(path: Path) -> Bool[np.ndarray, "height width"]:
    """Read a mask: every pixel that is not black belongs to the object."""
    return _decode(path, cv2.IMREAD_GRAYSCALE) > 0


def read_array(path: Path) -> np.ndarray:
    """Read a `.npy` file without ever unpickling."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise AfieldError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, EOFError) as error:
        raise AfieldError(f"{path} is not a complete NumPy array ({error}).") from error
    if not isinstance(array, np.ndarray):
        raise AfieldError(f"{path} is an archive of arrays, but one array is needed.")
    return array


def write_color(path: Path, color: UInt8[np.ndarray, "height width 3"], jpeg_quality: int = 92) -> None:
    """Write RGB as JPEG or, for a `.png` name, without loss."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if path.suffix.lower() in (".jpg", ".jpeg") else []
    _encode(path, np.ascontiguousarray(color[..., ::-1]), parameters)


def write_depth(path: Path, depth: Float[np.ndarray, "height width"]) -> None:
    """Write meters as a 16-bit PNG in millimeters, rounded; depth beyond 65 m does not fit and is an error."""
    millimeters = np.round(depth * MILLIMETERS_PER_METER)
    if millimeters.max(initial=0) > np.iinfo(np.uint16).max:
        raise AfieldError(
            f"Depth of {depth.max():.1f} m does not fit into the millimeters of {path.name} (at most 65.5 m)."
        )
    _encode(path, millimeters.astype(np.uint16), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def write_mask(path: Path, mask: Bool[np.ndarray, "height width"]) -> None:
    """Write a mask as a 1-bit PNG."""
    _encode(path, mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])


def _decode(path: Path, flags: int) -> np.ndarray:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AfieldError(f"Cannot read the image {path}: {error.strerror or error}.") from error
    # OpenCV fills what a truncated file lacks with gray, so the end markers are checked here.
    cut_png = content[:4] == b"\x89PNG" and b"IEND" not in content[-16:]
    cut_jpeg = content[:2] == b"\xff\xd8" and b"\xff\xd9" not in content[-64:]
    if not content or cut_png or cut_jpeg:
        raise AfieldError(f"The image {path} is truncated ({len(content)} bytes).")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise AfieldError(f"{path} is not an image that can be read ({error.err}).") from error
    if image is None:
        raise AfieldError(f"{path} is not an image that can be read.")
    return image


def _encode(path: Path, image: np.ndarray, parameters: list[int]) -> None:
    done, content = cv2.imencode(path.suffix, image, parameters)
    if not done:
        raise AfieldError(f"Cannot encode {path.name}: {image.dtype} {image.shape} does not fit that image format.")
    path.write_bytes(content.tobytes())
