"""What a demonstration is recorded in: a video, or an RGB-D recording that also knows depth and where its camera was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float

from afield.capture.record3d import read_record3d_capture
from afield.perception.cameras import CameraPath
from afield.perception.video import Video, as_video, read_video, reduced


@dataclass(frozen=True)
class Sensed:
    """What an RGB-D recording says about its frames, in metres."""

    cameras: CameraPath
    depth: Float[np.ndarray, "t h w"]
    """Along the optical axis, in the size of the frames; 0 where it is not known."""

    def backwards(self) -> Sensed:
        """The same in reverse order."""
        path = replace(self.cameras, T_world_camera=self.cameras.T_world_camera.flip(0))
        return Sensed(path, np.ascontiguousarray(self.depth[::-1]))


def read_recording(source: Path, *, longest: int, most: int, progress: bool = True) -> tuple[Video, Sensed | None]:
    """Read a video, a folder of frames, or a Record3D file (`.r3d`), reduced to what the stages can use.

    Raises:
        AfieldError: there is none, it is damaged, too short or black.
    """
    if Path(source).suffix.lower() != ".r3d" or not Path(source).is_file():
        return read_video(source, longest=longest, most=most, progress=progress), None
    views = read_record3d_capture(source, max_views=most).views
    read = [int(view.name.removeprefix("frame")) for view in views]
    full = (views[0].camera.width, views[0].camera.height)
    frames = [reduced(np.ascontiguousarray(view.color[..., ::-1]), longest) for view in views]
    video = as_video(Path(source), frames, [index / 30.0 for index in read], read, full)
    depth = np.stack([cv2.resize(view.depth, video.size, interpolation=cv2.INTER_NEAREST) for view in views])
    poses = torch.stack([view.camera.T_world_camera for view in views])
    focal = float(np.median([(view.camera.fx + view.camera.fy) / 2 for view in views])) * video.size[0] / full[0]
    moved = float((poses[:, :3, 3] - poses[0, :3, 3]).norm(dim=-1).max())
    # A telephone on a tripod drifts by millimetres in its own opinion.
    nothing = torch.zeros(0, 3), torch.zeros(0)
    path = CameraPath(*video.size, focal, poses, *nothing, static=moved < 0.01, metric=True)
    return video, Sensed(path, depth)
