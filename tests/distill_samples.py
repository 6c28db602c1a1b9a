"""Tiny models with random weights, of the classes that the adapters load, and small videos for them and for all stages."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from afield.geometry import inverse_pose, look_at, matrix_to_quat_wxyz
from afield.observation import Camera


def noise_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth random texture, so that patches and corners can be found."""
    rough = np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), 1.5)
    smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
    return np.repeat(smooth.astype(np.uint8)[..., None], 3, axis=-1)


def write_mp4(path: Path, frames: list[np.ndarray], fps: float = 15.0) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def moving_frames(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    large = noise_picture(width + 2 * count, height)
    return [large[:, 2 * i : 2 * i + width].copy() for i in range(count)]


def save_tiny_sam2(folder: Path) -> Path:
    """A SAM 2 video model that sees pictures of 64x64 pixels and has learnt nothing."""
    import transformers

    torch.manual_seed(0)
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[8, 8, 8, 8],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[2, 2],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=128,
    )
    config = transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=transformers.Sam2VideoPromptEncoderConfig(
            hidden_size=128, image_size=64, mask_input_channels=4
        ),
        mask_decoder_config=transformers.Sam2VideoMaskDecoderConfig(
            hidden_size=128, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
        ),
        image_size=64,
        num_maskmem=3,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
    )
    transformers.Sam2VideoModel(config).save_pretrained(folder)
    return folder


FREE, APPROACH, HOLD, MOTION = 12, 8, 3, 15
OPENED = np.radians(55)


@dataclass(frozen=True)
class DoorVideo:
    """A door beside a fixed panel of the same size, on a table before a wall; a hand comes and opens it by its edge."""

    folder: Path
    cameras: list[Camera]
    box: tuple[int, int, int, int]
    """Around door and panel in the last frame before the hand comes."""

    @property
    def frames(self) -> Path:
        return self.folder / "frames"

    def write_cameras(self, name: str, *, metric: bool, scale: float = 1.0) -> Path:
        """A camera file without points, in units of which one is 1/scale metres."""
        poses = torch.stack([camera.T_world_camera for camera in self.cameras]).clone()
        poses[:, :3, 3] *= scale
        content = {"focal": self.cameras[0].fx, "width": 240, "T_world_camera": poses.tolist(), "metric": metric}
        (self.folder / name).write_text(json.dumps(content))
        return self.folder / name


def hinge_point(x: float, z: float, angle: float) -> np.ndarray:
    """A point of the door, which reaches from its hinge at x = -0.2 to x = 0; it opens towards the camera."""
    away = x + 0.2
    return np.array([-0.2 + away * np.cos(angle), -away * np.sin(angle), z])


def door_video(folder: Path, *, arc: float, reverse: bool = False) -> DoorVideo:
    """Write frames, hand masks, object masks and 16-bit depth of such a video.

    Args:
        folder: gets `frames`, `hands`, `object`, `depth`.
        arc: radians that the camera goes around the door; 0 is a tripod.
        reverse: write everything from the end, where the hand holds the open door, to the beginning.
    """
    count = FREE + APPROACH + HOLD + MOTION
    textures = [noise_picture(256, 256, seed) for seed in range(5)]
    textures = [
        np.clip(0.5 * t + shade, 0, 255).astype(np.uint8)
        for t, shade in zip(textures, (60, 20, 100, 130, 90), strict=True)
    ]
    cameras, pictures = [], []
    for index in range(count):
        side = arc * (index / (count - 1) - 0.3)
        place = torch.tensor([0.8 * np.sin(side), -0.8 * np.cos(side), 0.42]).float()
        pose = look_at(place, torch.tensor([0.0, 0.0, 0.12]), torch.tensor([0.0, 0.0, 1.0]))
        camera = Camera(240, 180, 250.0, 250.0, 119.5, 89.5, pose)
        cameras.append(camera)
        pictures.append(_door_frame(camera, index, textures))
    order = range(count)[:: -1 if reverse else 1]
    for name in ("frames", "hands", "object", "depth"):
        (folder / name).mkdir(parents=True)
    for number, index in enumerate(order):
        color, depth, thing, hand = pictures[index]
        cv2.imwrite(str(folder / "frames" / f"{number:03d}.png"), color[..., ::-1])
        cv2.imwrite(str(folder / "hands" / f"{number:03d}.png"), hand.astype(np.uint8) * 255)
        cv2.imwrite(str(folder / "object" / f"{number:03d}.png"), thing.astype(np.uint8) * 255)
        cv2.imwrite(str(folder / "depth" / f"{number:03d}.png"), np.round(depth * 1000).astype(np.uint16))
    rows, columns = np.nonzero(pictures[FREE - 1][2])
    box = (int(columns.min()) - 4, int(rows.min()) - 4, int(columns.max()) + 4, int(rows.max()) + 4)
    return DoorVideo(folder, [cameras[index] for index in order], box)


def _door_frame(
    camera: Camera, index: int, textures: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Colour, depth, object mask and hand mask."""
    share = np.clip((index - FREE - APPROACH - HOLD) / (MOTION - 1), 0, 1)
    angle = OPENED * share * share * (3 - 2 * share)
    table = [(-0.8, -0.5, 0.0), (0.8, -0.5, 0.0), (0.8, 0.5, 0.0), (-0.8, 0.5, 0.0)]
    wall = [(-1.2, 0.5, 0.8), (1.2, 0.5, 0.8), (1.2, 0.5, -0.2), (-1.2, 0.5, -0.2)]
    panel = [(0.0, 0.0, 0.24), (0.2, 0.0, 0.24), (0.2, 0.0, 0.0), (0.0, 0.0, 0.0)]
    inside = [(-0.2, 0.001, 0.24), (0.0, 0.001, 0.24), (0.0, 0.001, 0.0), (-0.2, 0.001, 0.0)]
    door = [hinge_point(x, z, angle) for x, z in ((-0.2, 0.24), (0.0, 0.24), (0.0, 0.0), (-0.2, 0.0))]
    color, owner = np.zeros((180, 240, 3), np.uint8), np.zeros((180, 240), int)
    depth = np.full((180, 240), np.inf)
    columns, rows = np.meshgrid(np.arange(240.0), np.arange(180.0))
    rays = np.stack(((columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones_like(rows)), axis=-1)
    for number, (quad, texture) in enumerate(zip((table, wall, panel, inside, door), textures, strict=True), start=1):
        corners = torch.tensor(np.array(quad)).float()
        pixels = camera.project(corners)[0].numpy()
        world_camera = camera.T_world_camera.double().numpy()
        own = (np.array(quad) - world_camera[:3, 3]) @ world_camera[:3, :3]
        normal = np.cross(own[1] - own[0], own[3] - own[0])
        away = (normal @ own[0]) / (rays @ normal)
        square = np.float32([(0, 0), (255, 0), (255, 255), (0, 255)])
        to_picture = cv2.getPerspectiveTransform(square, pixels.astype(np.float32))
        there = cv2.warpPerspective(np.ones((256, 256), np.uint8), to_picture, (240, 180), flags=cv2.INTER_NEAREST) > 0
        look = cv2.warpPerspective(texture, to_picture, (240, 180), borderMode=cv2.BORDER_REPLICATE)
        nearer = there & (away > 0) & (away < depth)
        color[nearer], depth[nearer], owner[nearer] = look[nearer], away[nearer], number
    hand = np.zeros((180, 240), bool)
    if index >= FREE:
        far = max(0, FREE + APPROACH - index) / APPROACH
        edge = camera.project(torch.tensor(hinge_point(-0.01, 0.12, angle))[None].float())
        tip = edge[0][0].numpy() + 100.0 * far * np.array([0.35, 1.0])
        shape = np.zeros((180, 240), np.uint8)
        arm = tip + 400 * np.array([0.35, 1.0])
        cv2.line(shape, tuple(int(v) for v in tip.round()), tuple(int(v) for v in arm.round()), 1, 15)
        hand = shape > 0
        color[hand] = (205, 150, 120)
        depth[hand] = float(edge[1][0]) - 0.02
    return color, np.where(np.isfinite(depth), depth, 0), np.isin(owner, (3, 4, 5)) & ~hand, hand


def write_recording(drawn: DoorVideo, path: Path) -> Path:
    """The same video as an iPhone's Record3D app writes it, with depth of half the size."""
    import liblzfse

    z_up_from_y_up = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    poses = []
    for camera in drawn.cameras:
        pose = inverse_pose(z_up_from_y_up) @ camera.T_world_camera @ flip
        w, x, y, z = matrix_to_quat_wxyz(pose[:3, :3]).tolist()
        poses.append([x, y, z, w, *pose[:3, 3].tolist()])
    metadata = {
        "w": 240,
        "h": 180,
        "dw": 120,
        "dh": 90,
        "poses": poses,
        "K": [250.0, 0, 0, 0, 250.0, 0, 119.5, 89.5, 1],
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata", json.dumps(metadata))
        for index, file in enumerate(sorted(drawn.frames.iterdir())):
            raw = cv2.imread(str(drawn.folder / "depth" / file.name), cv2.IMREAD_UNCHANGED)
            small = (raw[::2, ::2] / 1000.0).astype(np.float32).copy()
            archive.writestr(f"rgbd/{index}.jpg", cv2.imencode(".jpg", cv2.imread(str(file)))[1].tobytes())
            archive.writestr(f"rgbd/{index}.depth", liblzfse.compress(small.tobytes()))
    return path
