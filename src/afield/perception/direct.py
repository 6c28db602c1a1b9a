"""Pictures compared directly: does a surface look as it did after it has moved, or has it stayed?

Corners slide along the streaks of brushed metal and wood, and are lost on doors seen aslant. All pixels of a surface together
still tell how far it has turned, once the motion has one degree of freedom only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from afield.perception.cameras import CameraPath

BLOCK = 14
"""Pixels of the squares over which gains are averaged, so that single pixels that look alike by chance do not count."""
DETAIL, TINT = 0.35, 0.06
"""A difference in the logarithm of brightness, or in the share of a colour, that counts fully."""
CLEAR = 0.06
"""Relative jump in depth beside which a pixel's place is doubtful."""
SAME = 0.3
"""A difference in appearance that counts half. What looks quite different counts fully, whether a little more or less: to turn a
bad match into a less bad one is no evidence."""
FACING = 0.08
"""Cosine between a surface and the line of sight below which it is not seen any more."""


def appearance(color: UInt8[np.ndarray, "h w 3"], scale: float, blur: float) -> Float[np.ndarray, "p q 3"]:
    """What a picture looks like whatever the light: fine changes of brightness, and the shares of red and blue."""
    small = cv2.resize(color, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    small = cv2.GaussianBlur(small, (0, 0), blur)
    bright = np.log(small.mean(axis=-1) + 0.06)
    fine = bright - cv2.GaussianBlur(bright, (0, 0), 24.0 * scale)
    total = small.sum(axis=-1) + 0.18
    return np.stack((fine / DETAIL, small[..., 0] / total / TINT, small[..., 2] / total / TINT), axis=-1)


@dataclass
class Surface:
    """Points of the object, as the reference frame shows them, to be compared with all other frames."""

    frames: UInt8[np.ndarray, "t h w 3"]
    path: CameraPath
    hidden: Bool[np.ndarray, "t h w"]
    """Where hands are."""
    pixels: Float[np.ndarray, "n 2"]
    points: Float[np.ndarray, "n 3"]
    """In the world."""
    normals: Float[np.ndarray, "n 3"]
    """Towards the camera of the reference frame."""
    look: Float[np.ndarray, "n 3"]
    block: Int[np.ndarray, "n"]
    """Square of the reference frame that each belongs to."""
    scale: float
    blur: float
    cache: dict[int, Float[np.ndarray, "p q 3"]] = field(default_factory=dict)

    def picture(self, frame: int) -> Float[np.ndarray, "p q 3"]:
        """The appearance of a frame."""
        if frame not in self.cache:
            self.cache[frame] = appearance(self.frames[frame], self.scale, self.blur)
        return self.cache[frame]

    def difference(
        self,
        frame: int,
        motion: Float[np.ndarray, "m 4 4"],
        member: Int[np.ndarray, "k"] | slice = slice(None),
    ) -> tuple[Float[np.ndarray, "m k 3"], Bool[np.ndarray, "m k"]]:
        """How the points, moved, differ from what they look like, and which of them cannot be seen."""
        points, normals = self.points[member], self.normals[member]
        camera = self.path.camera(frame)
        to_camera = np.linalg.inv(camera.T_world_camera.double().numpy())[:3]
        matrix = (camera.intrinsics.double().numpy() @ to_camera) @ motion
        seen = points @ matrix[:, :, :3].transpose(0, 2, 1).astype(np.float32) + matrix[:, None, :, 3].astype(
            np.float32
        )
        pixels = seen[..., :2] / np.maximum(seen[..., 2:], 1e-3)
        # Whether a side still looks at the camera is asked in the frame of the part, where only the eye has moved.
        eye = np.linalg.solve(motion, np.append(camera.position.double().numpy(), 1.0)[:, None])[:, :3, 0].astype(
            np.float32
        )
        far = np.sqrt(np.maximum((eye**2).sum(-1)[:, None] - 2 * eye @ points.T + (points**2).sum(-1), 1e-12))
        away = eye @ normals.T - (points * normals).sum(axis=-1) < FACING * far
        height, width = self.frames.shape[1:3]
        outside = ((pixels < 1) | (pixels > [width - 2, height - 2])).any(axis=-1)
        column, row = np.rint(pixels[..., 0]).astype(np.int32), np.rint(pixels[..., 1]).astype(np.int32)
        behind = self.hidden[frame][row.clip(0, height - 1), column.clip(0, width - 1)]
        found = _sample(self.picture(frame), (pixels + 0.5) * self.scale - 0.5)
        return found - self.look[member], away | outside | behind

    def gain(self, frame: int, motion: Float[np.ndarray, "m 4 4"]) -> Float[np.ndarray, "m b"]:
        """By how much better a motion explains each square of the reference frame than standing still, -1 to 1."""
        stay, lost = self.difference(frame, np.eye(4)[None])
        go, gone = self.difference(frame, motion)
        better = unlikeness(stay) - unlikeness(go)
        better[:, lost[0]] = 0.0
        better[gone] = 0.0
        count = int(self.block.max()) + 1
        size = np.bincount(self.block, minlength=count)
        return np.stack([np.bincount(self.block, row, minlength=count) for row in better]) / size


def make_surface(
    frames: UInt8[np.ndarray, "t h w 3"],
    path: CameraPath,
    mask: Bool[np.ndarray, "h w"],
    depth: Float[np.ndarray, "h w"],
    reference: int,
    hidden: Bool[np.ndarray, "t h w"],
    *,
    count: int = 1000,
    scale: float = 0.5,
    blur: float = 1.0,
    seed: int = 0,
) -> Surface:
    """Points inside the mask, away from its border and from jumps in depth."""
    normals = surface_normals(path, depth, reference)
    kernel = np.ones((5, 5), np.uint8)
    inner = cv2.erode((mask & (depth > 0)).astype(np.uint8), kernel) > 0
    clear = inner & (cv2.dilate(depth, kernel) - cv2.erode(depth, kernel) < CLEAR * depth)
    rows, columns = np.nonzero(clear if clear.sum() > 0.3 * inner.sum() else inner)
    some = np.random.default_rng(seed).permutation(len(rows))[:count]
    rows, columns = rows[some], columns[some]
    pixels = np.stack((columns, rows), axis=-1).astype(np.float32)
    camera = path.camera(reference)
    points = camera.backproject(torch.from_numpy(pixels), torch.from_numpy(depth[rows, columns]).float())
    block = np.unique(rows // BLOCK * 100_000 + columns // BLOCK, return_inverse=True)[1].reshape(-1)
    wide = np.ones((7, 7), np.uint8)
    covered = np.stack([cv2.dilate(one.astype(np.uint8), wide) > 0 for one in hidden])
    empty = np.zeros((len(rows), 3), np.float32)
    surface = Surface(
        frames,
        path,
        covered,
        pixels,
        points.numpy().astype(np.float32),
        normals[rows, columns].astype(np.float32),
        empty,
        block,
        scale,
        blur,
    )
    surface.look = _sample(surface.picture(reference), (pixels + 0.5) * scale - 0.5)
    return surface


def surface_normals(path: CameraPath, depth: Float[np.ndarray, "h w"], frame: int) -> Float[np.ndarray, "h w 3"]:
    """Directions of the surface from a depth map, in the world, towards the camera."""
    camera = path.camera(frame)
    height, width = depth.shape
    rows, columns = np.mgrid[:height, :width]
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1).reshape(-1, 2)).float()
    smooth = cv2.blur(cv2.medianBlur(depth.astype(np.float32), 5), (5, 5))
    points = camera.backproject(pixels, torch.from_numpy(smooth.reshape(-1))).numpy().reshape(height, width, 3)
    reach = 4
    padded = np.pad(points, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    along = padded[reach:-reach, 2 * reach :] - padded[reach:-reach, : -2 * reach]
    down = padded[2 * reach :, reach:-reach] - padded[: -2 * reach, reach:-reach]
    normals = np.cross(down, along)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    towards = ((camera.position.numpy() - points) * normals).sum(axis=-1, keepdims=True)
    return normals * np.where(towards < 0, -1.0, 1.0)


def unlikeness(difference: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """0 where there is no difference, 1 where it is large (Geman and McClure's robust loss)."""
    square = (difference**2).sum(axis=-1)
    return square / (square + SAME**2)


def _sample(picture: Float[np.ndarray, "p q 3"], pixels: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 3"]:
    """Bilinear look-ups; OpenCV takes at most 32767 of them in a line."""
    flat = pixels.reshape(-1, 2).astype(np.float32)
    parts = [
        cv2.remap(picture, part[None, :, 0], part[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
        for part in np.array_split(flat, 1 + len(flat) // 30_000)
    ]
    return np.concatenate(parts).reshape(*pixels.shape[:-1], 3)
