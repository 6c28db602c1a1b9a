"""Any hand that MuJoCo can compile, as a batched differentiable function of its configuration (section 3.4).

A configuration is one tensor `beta`: translation (3, metres), rotation in 6-D (6), and the joints (radians, metres for
slides). Translation and rotation are `T_world_hand`, the pose of the hand frame, which is the frame of the palm body.
"""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int
from torch import Tensor

from afield.artifacts import read_json
from afield.errors import AfieldError
from afield.geometry import pose_from, rotation_from_6d, rotation_to_6d
from afield.hand_description import (
    DESCRIPTIONS,
    HandDescription,
    hand_names,
    joint_index,
    pose_from_json,
    read_description,
    unknown_name,
)
from afield.hand_kinematics import KinematicTree, joint_limits, kinematic_tree
from afield.hand_model import HandModel, geom_mesh, load_hand_model
from afield.hand_shapes import CollisionShapes, collision_shapes, moved, signed_distance, total_depth
from afield.hand_surface import HandPoints, keypoints, sample_surface

__all__ = [
    "Hand",
    "HandDescription",
    "HandPoints",
    "hand_by_name",
    "hand_configuration_from_json",
    "hand_from_file",
    "hand_names",
]

_CONFIGURATION_ENTRIES = ("hand", "T_world_hand", "joints", "capture", "part", "comment")
"""What a hand-configuration file may hold; the last three are notes for people."""


@dataclass(frozen=True)
class Hand:
    """A hand: kinematics, limits, surface, collision shapes. Make one with `hand_by_name` or `hand_from_file`."""

    description: HandDescription
    model: HandModel
    """The compiled MuJoCo model of the hand alone."""
    tree: KinematicTree
    shapes: CollisionShapes
    limits: Float[Tensor, "j 2"]
    """Lower and upper joint limits, in radians (metres for slides)."""
    palm_center: Float[Tensor, "3"]
    """A point on the palm's surface, in metres in the hand frame."""
    palm_normal: Float[Tensor, "3"]
    """Where the palm looks: a unit vector in the hand frame."""
    finger_direction: Float[Tensor, "3"]
    """Where straight fingers point: a unit vector in the hand frame."""
    T_root_base: Float[Tensor, "4 4"]
    """Pose of the hand frame in the frame of the topmost body; constant, because nothing above the palm moves."""
    T_base_root: Float[Tensor, "4 4"]
    """Its inverse: where the topmost body of `spec()` is placed, `T_world_hand @ T_base_root`."""
    rest: Float[Tensor, "j"]
    """The resting pose that `neutral` returns."""
    keypoints: HandPoints
    """One to three points inside every link, for self-penetration; on links above the palm, points of their surface."""
    keypoint_pairs: Int[Tensor, "p 2"]
    """Pairs of keypoints that are on different links that are not neighbours."""

    @property
    def name(self) -> str:
        """What the hand is called."""
        return self.description.name

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Joints in the order of the configuration, with their names in the file."""
        return self.model.joint_names

    @property
    def link_names(self) -> tuple[str, ...]:
        """Links (bodies) in the order of `link_poses`."""
        return self.model.body_names

    @property
    def collision_geoms(self) -> tuple[str, ...]:
        """Names of the geoms in `spec()` that touch things, each with bit 1 of its `contype` set."""
        return tuple(self.model.model.geom(g).name for g in self.shapes.geoms)

    @property
    def dof(self) -> int:
        """Length of a configuration: 9 and the number of joints."""
        return 9 + len(self.joint_names)

    @property
    def fingerprint(self) -> str:
        """A hash over names, limits and kinematics: equal for hands on which a configuration means the same."""
        base = self.link_names.index(self.description.base)
        text = repr((self.joint_names, self.link_names, base, np.round(self.limits.cpu().double().numpy(), 5).tolist()))
        return hashlib.sha256((text + self.tree.fingerprint()).encode()).hexdigest()[:16]

    def split(self, beta: Float[Tensor, "*b d"]) -> tuple[Float[Tensor, "*b 4 4"], Float[Tensor, "*b j"]]:
        """`T_world_hand` and the joints of a configuration."""
        return pose_from(rotation_from_6d(beta[..., 3:9]), beta[..., :3]), beta[..., 9:]

    def join(self, T_world_hand: Float[Tensor, "*b 4 4"], joints: Float[Tensor, "*b j"]) -> Float[Tensor, "*b d"]:
        """The configuration with the given pose and joints; the inverse of `split`."""
        pose = T_world_hand.expand(*joints.shape[:-1], 4, 4)
        return torch.cat((pose[..., :3, 3], rotation_to_6d(pose[..., :3, :3]), joints), dim=-1)

    def clamp(self, beta: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The same configuration with joints moved into their limits and the 6-D rotation made orthonormal."""
        pose, joints = self.split(beta)
        return self.join(pose, joints.clamp(self.limits[:, 0], self.limits[:, 1]))

    def neutral(self) -> Float[Tensor, "j"]:
        """Joints of a half-open hand: the description's, or the middle of the limits."""
        return self.rest.clone()

    def link_poses(self, beta: Float[Tensor, "*b d"]) -> Float[Tensor, "*b l 4 4"]:
        """`T_world_link` of every link; differentiable, and equal to MuJoCo's `mj_kinematics`."""
        pose, joints = self.split(beta.reshape(-1, beta.shape[-1]))
        links = self.tree.link_poses(pose @ self.T_base_root, joints)
        return links.reshape(*beta.shape[:-1], len(self.link_names), 4, 4)

    def sample_surface(
        self, count: int, *, seed: int, finger_density: float = 3.0, palmar_density: float = 3.0
    ) -> HandPoints:
        """Query points Q on the outer surface of palm and fingers (Eq. 1), well spread, the same for the same seed.

        Args:
            count: how many points.
            seed: of the sampling.
            finger_density: points per area on fingers relative to the palm; above 1 as in section 3.4.
            palmar_density: points per area on gripping sides relative to back sides.
        """
        if count < 1 or finger_density <= 0 or palmar_density <= 0:
            raise AfieldError(
                f"sample_surface was given {count} points and the densities {finger_density} and {palmar_density}; "
                "all three must be positive."
            )
        exact = moved(self, "cpu", torch.float64)
        points = sample_surface(
            self.model,
            exact.shapes,
            _canonical_links(exact),
            count,
            seed=seed,
            finger_density=finger_density,
            palmar_density=palmar_density,
        )
        return moved(points, self.limits.device, self.limits.dtype)

    def place(self, points: HandPoints, beta: Float[Tensor, "*b d"]) -> Float[Tensor, "*b q 3"]:
        """Points of the hand in the world, for every configuration."""
        return points.on(self.link_poses(beta))

    def signed_distance(
        self, beta: Float[Tensor, "*b d"], points_world: Float[Tensor, "*c n 3"]
    ) -> Float[Tensor, "*b n"]:
        """Distance in metres of world points to the hand's collision shapes, negative inside; differentiable.

        Inside, it is the depth in the shape that holds the point most deeply; `afield.hand_shapes.signed_distance` says
        where it is exact.

        Args:
            beta: configurations.
            points_world: points, either one set for all configurations or one set each.
        """
        links, points_hand = self._seen_from_hand(beta, points_world)
        distance = signed_distance(self.shapes, links, points_hand)
        return distance.reshape(*beta.shape[:-1], points_hand.shape[1])

    def total_depth(self, beta: Float[Tensor, "*b d"], points_world: Float[Tensor, "*c n 3"]) -> Float[Tensor, "*b"]:
        """Summed depth in metres of the world points that lie inside the hand; differentiable.

        The same as what `signed_distance` says below zero, but cheaper.
        """
        links, points_hand = self._seen_from_hand(beta, points_world)
        return total_depth(self.shapes, links, points_hand).reshape(beta.shape[:-1])

    def _seen_from_hand(
        self, beta: Float[Tensor, "*b d"], points_world: Float[Tensor, "*c n 3"]
    ) -> tuple[Float[Tensor, "k l 4 4"], Float[Tensor, "k n 3"]]:
        """Links and points in the hand frame, where coordinates stay small: float32 is exact far from the world's origin."""
        pose, joints = self.split(beta.reshape(-1, beta.shape[-1]))
        links = self.tree.link_poses(self.T_base_root.expand(len(pose), 4, 4), joints)
        shared = points_world.dim() == 2
        points = points_world.expand(len(pose), -1, -1) if shared else points_world.reshape(len(pose), -1, 3)
        return links, (points - pose[:, None, :3, 3]) @ pose[:, :3, :3]

    def meshes(self) -> list[trimesh.Trimesh]:
        """What each link looks like, in the link's frame in metres; an empty mesh for links without geometry."""
        model = self.model.model
        found: dict[str, list[trimesh.Trimesh]] = {name: [] for name in self.link_names}
        for geoms in (self.model.visual_geoms(), self.model.collision_geoms()):
            bare = {name for name, parts in found.items() if not parts}
            for geom in geoms:
                owner = model.body(int(model.geom_bodyid[geom])).name
                if owner in bare:
                    found[owner].append(geom_mesh(model, geom))
        return [_joined(parts) for parts in found.values()]

    def spec(self) -> mujoco.MjSpec:
        """A fresh MuJoCo spec of the hand alone, for a world to attach.

        Its topmost body stands at the origin, unrotated; bodies and joints have the names of the file. Fixed joints
        are welded, and actuators, tendons and equalities are gone. Collision shapes have bit 1 of `contype` set and
        keep the file's self-collision rules, pairs and excludes; objects with `contype` and `conaffinity` 1 touch all
        of them. Place the topmost body, `root_name`, at `T_world_hand @ T_base_root`.
        """
        return self.model.spec.copy()

    @property
    def root_name(self) -> str:
        """Name of the topmost body of `spec()`."""
        return self.link_names[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Hand:
        """The same hand on another device, or in another precision."""
        return moved(self, device, dtype)


def hand_by_name(name: str) -> Hand:
    """Load a hand that ships with Afield, or one described by a JSON file of your own.

    Args:
        name: one of `hand_names()`, or the path of a hand description (see `docs/hands.md`).

    Raises:
        AfieldError: there is no such hand, or its package is not installed.
    """
    if name in hand_names():
        return hand_from_file(DESCRIPTIONS / f"{name}.json")
    if Path(name).suffix == ".json" or Path(name).is_file():
        return hand_from_file(Path(name))
    raise AfieldError(
        unknown_name(name, hand_names(), "hand", "the hands that ship with Afield")
        + " Or give the path of a JSON file."
    )


def hand_from_file(path: Path) -> Hand:
    """Load a hand from its JSON description.

    Raises:
        AfieldError: the description or the hand's MJCF or URDF file is missing or wrong.
    """
    description = read_description(path)
    model = load_hand_model(description)
    tree, shapes = kinematic_tree(model), collision_shapes(model)
    limits = torch.from_numpy(joint_limits(model))
    base = model.body_names.index(description.base)
    T_root_base = tree.link_poses(torch.eye(4).double()[None], torch.zeros(1, len(limits)).double())[0, base]
    if not len(shapes):
        raise AfieldError(f"The hand '{description.name}' has no geometry in {model.file}, so nothing can touch it.")
    T_base_root = torch.linalg.inv(T_root_base)
    canonical = tree.link_poses(
        T_base_root[None], torch.zeros(1, len(limits)).double().clamp(limits[:, 0], limits[:, 1])
    )
    points, pairs = keypoints(model, shapes, canonical[0], tree.link_node)
    exact = Hand(
        description=description,
        model=model,
        tree=tree,
        shapes=shapes,
        limits=limits,
        palm_center=torch.tensor(description.palm_center, dtype=torch.float64),
        palm_normal=torch.tensor(description.palm_normal, dtype=torch.float64),
        finger_direction=torch.tensor(description.finger_direction, dtype=torch.float64),
        T_root_base=T_root_base,
        T_base_root=T_base_root,
        rest=_rest(description, model, limits),
        keypoints=points,
        keypoint_pairs=pairs,
    )
    return exact.to(dtype=torch.float32)


def hand_configuration_from_json(path: Path, hand: Hand) -> Float[Tensor, "d"]:
    """Read a hand configuration: the palm's pose in the world and the joints by name.

    The file holds `{"hand": "shadow", "T_world_hand": ..., "joints": {"robot0:FFJ2": 0.6, ...}}`. The pose is a 4x4
    matrix or `{"position": [x, y, z], "quat_wxyz": [w, x, y, z]}`, in metres. Joints that are not named stay at the
    resting pose; the part of a name behind its last colon or slash is enough where it is unique.

    Raises:
        AfieldError: unreadable, made for another hand, an unknown joint, a joint outside its limits, or no rigid pose.
    """
    content = read_json(path)
    for key in content:
        if key not in _CONFIGURATION_ENTRIES:
            raise AfieldError(unknown_name(key, _CONFIGURATION_ENTRIES, "entry", str(path)))
    if content.get("hand", hand.name) != hand.name:
        raise AfieldError(
            f"{path} is a configuration of the hand '{content['hand']}', but the hand here is '{hand.name}'."
        )
    if "T_world_hand" not in content:
        raise AfieldError(f"{path} lacks 'T_world_hand', the pose of the palm frame in the world.")
    pose = pose_from_json(content["T_world_hand"], path).to(hand.limits)
    given = content.get("joints", {})
    if not isinstance(given, dict):
        raise AfieldError(f"'joints' in {path} must be an object of joint name to angle in radians.")
    joints = hand.neutral()
    for name, value in given.items():
        index = joint_index(name, hand.joint_names, path)
        low, high = hand.limits[index].tolist()
        if isinstance(value, bool) or not isinstance(value, int | float) or not low - 1e-4 <= value <= high + 1e-4:
            raise AfieldError(
                f"The joint '{name}' in {path} is {value!r}, but its limits are {low:.4g} to {high:.4g} "
                "(radians, or metres for slides)."
            )
        joints[index] = float(value)
    return hand.clamp(hand.join(pose, joints))


def _joined(parts: list[trimesh.Trimesh]) -> trimesh.Trimesh:
    """Several meshes as one."""
    whole = trimesh.util.concatenate(parts) if parts else trimesh.Trimesh()
    assert isinstance(whole, trimesh.Trimesh)
    return whole


def _canonical_links(hand: Hand) -> Float[Tensor, "l 4 4"]:
    """Link poses in the hand frame with every joint at zero, or at the limit nearest to it."""
    zero = torch.zeros_like(hand.limits[:, 0]).clamp(hand.limits[:, 0], hand.limits[:, 1])
    return hand.tree.link_poses(hand.T_base_root[None], zero[None])[0]


def _rest(description: HandDescription, model: HandModel, limits: Float[Tensor, "j 2"]) -> Float[Tensor, "j"]:
    """The resting pose, inside the limits."""
    if not description.neutral:
        return limits.mean(dim=1)
    rest = torch.tensor([description.neutral.get(name, 0.0) for name in model.joint_names], dtype=torch.float64)
    return rest.clamp(limits[:, 0], limits[:, 1])
