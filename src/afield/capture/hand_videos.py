"""Rendered videos of a human hand that manipulates something, with the truth about everything that a video does not say.

A video shows the object alone at first, then a hand that comes, holds, moves and lets go, all seen by a camera that is carried
along an arc and shakes. Beside the video lie its true cameras, depth, masks, contact region and motion (`Truth`).
"""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import KDTree
from torch import Tensor
from tqdm import tqdm

from afield.artifacts import HEADER_NAME, load_artifact, write_artifact_files, write_folder, write_json
from afield.capture.furniture import BODY, JOINT
from afield.capture.hand_tasks import HandTask, task_by_name
from afield.capture.household import MOVING, box, printed, speckled
from afield.capture.human_hand import OPEN, bend_hand, blend, sleeve
from afield.capture.images import read_depth, read_mask, write_mask
from afield.capture.objects import TABLE_GROUP
from afield.capture.rendered import bodies_of, open_renderer, shoot
from afield.geometry import look_at
from afield.observation import Camera

SHAPES = 6
"""Hand shapes between open and closed; one of them is shown at a time."""
TOUCH = 0.018
"""What of the object lies within a finger's width, in metres, of the palmar side of the fingers is the contact region."""
SKIN = (0.80, 0.58, 0.46, 1.0)
AWAY = np.array([0.40, -0.62, 0.16])
"""From where the hand comes, in metres from where it touches."""


@dataclass(frozen=True)
class VideoConfig:
    """One rendered video."""

    task: str = "open_microwave"
    """See `hand_tasks.TASKS`."""
    seed: int = 0
    """Of the instance, the room, and the camera's path."""
    width: int = 640
    height: int = 480
    field_of_view: float = 50.0
    """Vertical, in degrees."""
    fps: int = 15
    free: int = 20
    """Frames before the hand comes."""
    approach: int = 16
    """Frames from there to first contact."""
    hold: int = 3
    """Frames between first contact and the first motion."""
    motion: int = 32
    """Frames during which the object moves."""
    release: int = 12
    """Frames in which the hand goes away."""
    arc: float = 26.0
    """Degrees that the camera goes around the object; 0 is a camera on a tripod."""
    shake: float = 1.0
    """Of the hands that hold the camera; 1 is 3 mm and 0.3 degrees."""

    @property
    def contact_frame(self) -> int:
        """The first frame in which the hand touches."""
        return self.free + self.approach

    @property
    def release_frame(self) -> int:
        """The last frame of contact."""
        return self.contact_frame + self.hold + self.motion

    @property
    def frames(self) -> int:
        """How many there are."""
        return self.release_frame + 1 + self.release


@dataclass(frozen=True)
class Truth:
    """What is true of a rendered video."""

    cameras: tuple[Camera, ...]
    """Of every frame."""
    motion: Float[Tensor, "n 4 4"]
    """Where the moving part is in every frame, relative to the first one, in the world."""
    contact: Bool[np.ndarray, "h w"]
    """Contact region in the first frame."""
    moving: Bool[np.ndarray, "h w"]
    """The part of the object that will move, in the first frame."""
    contact_frame: int
    release_frame: int
    folder: Path

    def depth(self, frame: int) -> Float[np.ndarray, "h w"]:
        """True depth of a frame in metres, hand included."""
        return read_depth(self.folder / "depth" / f"{frame:05d}.png", 0.001)

    def mask(self, frame: int) -> Bool[np.ndarray, "h w"]:
        """Where the object is seen."""
        return read_mask(self.folder / "object" / f"{frame:05d}.png")

    def hand(self, frame: int) -> Bool[np.ndarray, "h w"]:
        """Where hand and sleeve are seen."""
        return read_mask(self.folder / "hand" / f"{frame:05d}.png")


def render_video(folder: Path, config: VideoConfig, *, progress: bool = True) -> Path:
    """Render a video and its truth into `folder`; needs OpenGL in this process, see `opengl.draw_elsewhere`.

    Returns:
        The mp4 file.
    """
    task = task_by_name(config.task, config.seed)
    if task.keep:
        config = replace(config, release=0)
    cameras = camera_path(task, config)

    def fill(temporary: Path) -> None:
        """Write the video and what is true of it."""
        (temporary / "truth").mkdir()
        for name in ("depth", "object", "hand"):
            (temporary / "truth" / name).mkdir()
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        size = (config.width, config.height)
        writer = cv2.VideoWriter(str(temporary / "video.mp4"), codec, float(config.fps), size)
        contact = moving = np.zeros((config.height, config.width), bool)
        frames = _draw(task, config, cameras)
        for index, (color, depth, object_mask, part_mask, hand) in enumerate(
            tqdm(frames, total=config.frames, desc=config.task, unit="frame", disable=not progress)
        ):
            writer.write(np.ascontiguousarray(color[..., ::-1]))
            millimeters = np.round(depth * 1000).astype(np.uint16)
            cv2.imwrite(
                str(temporary / "truth" / "depth" / f"{index:05d}.png"), millimeters, [cv2.IMWRITE_PNG_COMPRESSION, 1]
            )
            write_mask(temporary / "truth" / "object" / f"{index:05d}.png", object_mask)
            write_mask(temporary / "truth" / "hand" / f"{index:05d}.png", hand)
            if index == 0:
                contact, moving = contact_region(task, cameras[0], depth, object_mask), part_mask
        writer.release()
        start = np.linalg.inv(task.thing.motion(task.start))
        motion = np.stack([task.thing.motion(amount) @ start for amount in amounts(task, config)])
        tensors = {
            "T_world_camera": torch.stack([camera.T_world_camera for camera in cameras]),
            "motion": torch.from_numpy(motion).float(),
            "contact": torch.from_numpy(contact),
            "moving": torch.from_numpy(moving),
        }
        header = {
            "config": asdict(config),
            "narration": task.narration,
            "focal": cameras[0].fx,
            "contact_frame": config.contact_frame,
            "release_frame": config.release_frame,
        }
        write_artifact_files(temporary / "truth", "video-truth", tensors, header)
        write_json(temporary / HEADER_NAME, {"format": "afield-video", **header})

    write_folder(folder, fill)
    return folder / "video.mp4"


def load_truth(folder: Path) -> Truth:
    """Read the truth of a rendered video from its `truth` folder."""
    names = ("T_world_camera", "motion", "contact", "moving")
    tensors, header = load_artifact(folder, "video-truth", names, ("focal", "contact_frame", "release_frame"))
    height, width = tensors["contact"].shape
    focal = float(header["focal"])
    cameras = tuple(
        Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2, pose)
        for pose in tensors["T_world_camera"]
    )
    return Truth(
        cameras,
        tensors["motion"],
        tensors["contact"].numpy(),
        tensors["moving"].numpy(),
        int(header["contact_frame"]),
        int(header["release_frame"]),
        folder,
    )


def camera_path(task: HandTask, config: VideoConfig) -> list[Camera]:
    """Cameras along an arc in front of the object, fast at first, with the small motions of a hand."""
    generator = np.random.default_rng(config.seed)
    size = np.array(task.thing.size)
    diagonal = float(np.linalg.norm(size))
    distance = max(0.55, 1.75 * diagonal)
    time = np.linspace(0, 1, config.frames)
    progress = (1 - np.exp(-3.0 * time)) / (1 - math.exp(-3.0))
    azimuth = math.radians(-90 - 0.55 * config.arc) + math.radians(config.arc) * progress
    lift = math.radians(30.0 + generator.uniform(-3, 3)) + math.radians(0.25 * config.arc) * np.sin(2.5 * progress)
    shake = gaussian_filter1d(generator.normal(size=(config.frames, 6)), 2.5, axis=0) * 2.8 * config.shake
    focal = config.height / 2 / math.tan(math.radians(config.field_of_view) / 2)
    cameras = []
    for index in range(config.frames):
        a, e = azimuth[index], lift[index]
        away = np.array([math.cos(a) * math.cos(e), math.sin(a) * math.cos(e), math.sin(e)])
        place = distance * away + [0, 0, size[2] / 2] + 0.003 * shake[index, :3]
        target = np.array([0.0, -0.1 * diagonal, size[2] / 2]) + math.radians(0.3) * distance * shake[index, 3:]
        up = torch.tensor([0.01 * float(shake[index, 0]), 0.0, 1.0])
        pose = look_at(torch.from_numpy(place).float(), torch.from_numpy(target).float(), up)
        center = ((config.width - 1) / 2, (config.height - 1) / 2)
        cameras.append(Camera(config.width, config.height, focal, focal, *center, pose))
    return cameras


def amounts(task: HandTask, config: VideoConfig) -> Float[np.ndarray, "n"]:
    """How far the object has moved in every frame; it starts and stops gently."""
    time = (np.arange(config.frames) - config.contact_frame - config.hold) / config.motion
    return task.start + (task.end - task.start) * _gentle(time)


def _gentle(time: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Minimum jerk from 0 to 1."""
    t = np.clip(time, 0, 1)
    return t**3 * (10 - 15 * t + 6 * t**2)


def hand_path(task: HandTask, config: VideoConfig) -> list[tuple[Float[np.ndarray, "4 4"], float] | None]:
    """`T_world_hand` and how far the hand has closed (0 to 1) for every frame; None while it is not there."""
    path: list[tuple[np.ndarray, float] | None] = []
    moved = amounts(task, config)
    for index in range(config.frames):
        pose = task.hand_pose(moved[index])
        if index < config.free:
            path.append(None)
            continue
        before = (config.contact_frame - index) / config.approach
        after = (index - config.release_frame) / max(1, config.release)
        if before > 0:
            pose[:3, 3] += AWAY * _gentle(np.array([before]))[0]
            path.append((pose, float(np.clip(1 - 3 * before, 0, 1))))
        elif after > 0:
            pose[:3, 3] += AWAY * _gentle(np.array([after]))[0]
            path.append((pose, float(np.clip(1 - 3 * after, 0, 1))))
        else:
            path.append((pose, 1.0))
    return path


def contact_region(
    task: HandTask, camera: Camera, depth: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """What of the object the hand will touch, as a camera sees it before the object has moved."""
    rows, columns = np.nonzero(mask)
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    points = camera.backproject(pixels, torch.from_numpy(depth[rows, columns]).float()).double().numpy()
    pose = task.hand_pose(task.start)
    mesh = bend_hand(task.shape)
    hand = mesh.vertices[mesh.touching] @ pose[:3, :3].T + pose[:3, 3]
    near = KDTree(hand).query(points)[0] < TOUCH
    region = np.zeros_like(mask)
    region[rows[near], columns[near]] = True
    return region


def _draw(
    task: HandTask, config: VideoConfig, cameras: list[Camera]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Colour, depth, and masks of the object, of its moving part and of the hand, frame by frame."""
    spec = _room(config)
    task.thing.add(spec)
    _add_hand(spec, task)
    for index, camera in enumerate(cameras):
        rotation = camera.T_world_camera[:3, :3].double().numpy() @ np.diag([1.0, -1.0, -1.0])
        quat_wxyz = np.zeros(4)
        mujoco.mju_mat2Quat(quat_wxyz, rotation.ravel())
        found = spec.worldbody.add_camera(name=f"frame{index}", pos=camera.position.double().numpy(), quat=quat_wxyz)
        found.fovy = config.field_of_view
    model = spec.compile()
    data = mujoco.MjData(model)
    part, hand = model.body(MOVING).id, model.body("hand").id
    own = [part] + ([model.body(BODY).id] if BODY in [model.body(i).name for i in range(model.nbody)] else [])
    shapes = [model.geom(f"hand{index}").id for index in range(SHAPES)]
    moved, path = amounts(task, config), hand_path(task, config)
    with open_renderer(model, config.width, config.height) as renderer:
        for index in range(config.frames):
            _set_amount(model, data, task, float(moved[index]))
            placed = path[index]
            pose, closed = placed if placed is not None else (_BELOW, 0.0)
            _set_mocap(model, data, "hand", pose)
            shown = round(closed * (SHAPES - 1))
            for number, geom in enumerate(shapes):
                model.geom_group[geom] = TABLE_GROUP if number == shown else 4
            mujoco.mj_forward(model, data)
            color, depth, geoms = shoot(renderer, model, data, f"frame{index}")
            bodies = bodies_of(model, geoms)
            yield color, depth, np.isin(bodies, own), bodies == part, bodies == hand


_BELOW = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -9], [0, 0, 0, 1]])


def _set_amount(model: mujoco.MjModel, data: mujoco.MjData, task: HandTask, amount: float) -> None:
    if model.body(MOVING).mocapid[0] >= 0:
        _set_mocap(model, data, MOVING, task.thing.motion(amount))
    else:
        data.joint(f"{BODY}_{JOINT}").qpos[0] = amount


def _set_mocap(model: mujoco.MjModel, data: mujoco.MjData, name: str, pose: Float[np.ndarray, "4 4"]) -> None:
    mocap = int(model.body(name).mocapid[0])
    data.mocap_pos[mocap] = pose[:3, 3]
    quat_wxyz = np.zeros(4)
    mujoco.mju_mat2Quat(quat_wxyz, np.ascontiguousarray(pose[:3, :3]).ravel())
    data.mocap_quat[mocap] = quat_wxyz


def _add_hand(spec: mujoco.MjSpec, task: HandTask) -> None:
    """All shapes of the hand as geoms of one body, and the sleeve."""
    body = spec.worldbody.add_body(name="hand", mocap=True)
    for index in range(SHAPES):
        mesh = bend_hand(blend(OPEN, task.shape, index / (SHAPES - 1)))
        added = spec.add_mesh(name=f"hand{index}")
        added.uservert, added.userface = mesh.vertices.ravel(), mesh.faces.ravel()
        added.usernormal = mesh.normals.ravel()
        added.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        geom = body.add_geom(name=f"hand{index}", type=mujoco.mjtGeom.mjGEOM_MESH, meshname=f"hand{index}")
        geom.rgba, geom.group = SKIN, TABLE_GROUP
    first, last, radius = sleeve()
    arm = body.add_geom(type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[*first, *last], size=[radius, 0, 0])
    arm.material, arm.group = speckled(spec, "sleeve", (0.25, 0.30, 0.42), 5), TABLE_GROUP


def _room(config: VideoConfig) -> mujoco.MjSpec:
    """A table with a few boxes on it in a papered corner of a room; what SfM holds on to."""
    spec = mujoco.MjSpec()
    spec.visual.global_.offwidth, spec.visual.global_.offheight = config.width, config.height
    spec.visual.map.znear, spec.visual.map.zfar = 0.02, 30.0
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.42] * 3, [0.0] * 3
    spec.visual.headlight.specular = [0.0] * 3
    spec.visual.quality.shadowsize, spec.visual.quality.offsamples = 1024, 4
    spec.stat.extent, spec.stat.center = 1.0, [0, 0, 0]
    for index, (place, power) in enumerate((((0.7, -1.0, 2.0), 0.42), ((-1.3, -0.3, 1.7), 0.28))):
        lamp = spec.worldbody.add_light(name=f"lamp{index}", pos=place, dir=[-x for x in place], diffuse=[power] * 3)
        lamp.castshadow, lamp.specular = index == 0, [0.0] * 3
    generator = np.random.default_rng(500 + config.seed)
    tone = generator.uniform(0.35, 0.8, (8, 3))
    wood = printed(spec, "table", (0.62, 0.48, 0.34), 50 + config.seed, repeat=(2.0, 2.0), marks=160)
    wall = printed(spec, "wall", (0.72, 0.74, 0.70), 60 + config.seed, repeat=(3.0, 2.0), marks=120)
    floor = printed(spec, "floor", (0.45, 0.42, 0.40), 70 + config.seed, repeat=(4.0, 4.0), marks=120)
    world = spec.worldbody
    box(world, (-0.9, -0.75, -0.04), (0.9, 0.6, 0.0), wood)
    box(world, (-3, -3, -0.8), (3, 1.2, -0.75), floor)
    box(world, (-3, 0.9, -0.8), (3, 1.0, 2.2), wall)
    box(world, (-1.7, -3, -0.8), (-1.6, 1.0, 2.2), wall)
    for index, (x, y) in enumerate(((-0.55, 0.30), (0.52, 0.34), (-0.62, -0.25), (0.60, -0.05), (0.30, 0.48))):
        half = generator.uniform(0.03, 0.07, 3)
        color = (float(tone[index, 0]), float(tone[index, 1]), float(tone[index, 2]))
        look = printed(spec, f"thing{index}", color, 80 + 10 * config.seed + index, marks=25, size=256)
        box(world, (x - half[0], y - half[1], 0), (x + half[0], y + half[1], 2 * half[2]), look)
    return spec
