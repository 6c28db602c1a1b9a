"""Differentiable forward kinematics of a compiled MuJoCo tree, batched, one matrix product per level of joints."""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import hashlib
from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from afield.hand_model import HandModel, joint_basis, pose_matrix


@dataclass(frozen=True)
class KinematicTree:
    """The moving frames of a hand ("nodes"): node 0 is the root body, every joint adds one behind it.

    Links that no joint separates share a node. Nodes are sorted by level, the number of joints to the root.
    """

    joint: Int[Tensor, "j"]
    """Place in the configuration of the joint that moves nodes 1, 2, ..."""
    zero: Float[Tensor, "j"]
    """Joint positions at which the file draws the hand, in radians (metres for slides)."""
    basis: Float[Tensor, "j 4 16"]
    """Motion of a node in its parent node's frame is (1, sin q, 1 - cos q, q) times this."""
    parents: tuple[Int[Tensor, "_"], ...]
    """For each level from the first joint on: the parents of its nodes, counted within the level above."""
    link_node: Int[Tensor, "l"]
    T_node_link: Float[Tensor, "l 4 4"]

    def link_poses(
        self, T_world_root: Float[Tensor, "b 4 4"], joints: Float[Tensor, "b j"]
    ) -> Float[Tensor, "b l 4 4"]:
        """`T_world_link` of every link."""
        q = joints[:, self.joint] - self.zero
        terms = torch.stack((torch.ones_like(q), q.sin(), 1 - q.cos(), q), dim=-1)
        local = (terms.transpose(0, 1) @ self.basis).transpose(0, 1).unflatten(-1, (4, 4))
        level, levels, begin = T_world_root[:, None], [T_world_root[:, None]], 0
        for parents in self.parents:
            end = begin + len(parents)
            level = level[:, parents] @ local[:, begin:end]
            levels.append(level)
            begin = end
        return torch.cat(levels, dim=1)[:, self.link_node] @ self.T_node_link

    def fingerprint(self) -> str:
        """A hash of all constants, rounded to a micrometre."""
        digest = hashlib.sha256()
        for tensor in (self.joint, self.zero, self.basis, *self.parents, self.link_node, self.T_node_link):
            digest.update((0.0 + np.round(tensor.detach().cpu().double().numpy(), 6)).tobytes())
        return digest.hexdigest()


def kinematic_tree(hand: HandModel) -> KinematicTree:
    """Read the tree below the root body from a compiled hand, in float64."""
    model = hand.model
    node_of, offset_of = {0: 0}, {0: np.eye(4)}
    parent, level, joint_of, basis = [-1], [0], [-1], [np.zeros((4, 4, 4))]
    for name in hand.body_names:
        body = int(model.body(name).id)
        above = int(model.body_parentid[body])
        # The root of the hand stands at the origin of the world, so what is above it is the identity.
        node, offset = node_of.get(above, 0), offset_of.get(above, np.eye(4))
        offset = offset @ pose_matrix(model.body_pos[body], model.body_quat[body])
        begin = int(model.body_jntadr[body])
        for joint in range(begin, begin + int(model.body_jntnum[body])):
            basis.append(np.einsum("ij,kjl->kil", offset, joint_basis(model, joint)))
            parent.append(node)
            level.append(level[node] + 1)
            joint_of.append(joint)
            node, offset = len(parent) - 1, np.eye(4)
        node_of[body], offset_of[body] = node, offset
    order = sorted(range(len(parent)), key=lambda n: (level[n], n))
    place = {node: index for index, node in enumerate(order)}
    parents, first = [], 0
    for depth in range(1, max(level) + 1):
        parents.append(torch.tensor([place[parent[n]] - first for n in order if level[n] == depth], dtype=torch.int64))
        first += level.count(depth - 1)
    bodies = [int(model.body(name).id) for name in hand.body_names]
    names = [model.joint(joint_of[n]).name for n in order[1:]]
    return KinematicTree(
        joint=torch.tensor([hand.joint_names.index(name) for name in names], dtype=torch.int64),
        zero=torch.tensor([float(model.qpos0[model.jnt_qposadr[joint_of[n]]]) for n in order[1:]], dtype=torch.float64),
        basis=torch.from_numpy(np.stack([basis[n] for n in order[1:]]).reshape(-1, 4, 16))
        if names
        else torch.zeros(0, 4, 16).double(),
        parents=tuple(parents),
        link_node=torch.tensor([place[node_of[b]] for b in bodies], dtype=torch.int64),
        T_node_link=torch.from_numpy(np.stack([offset_of[b] for b in bodies])),
    )


def joint_limits(hand: HandModel) -> Float[np.ndarray, "j 2"]:
    """Lower and upper limit of every joint; without limits, half a turn (one metre for slides) either way."""
    limits = []
    for name in hand.joint_names:
        joint = int(hand.model.joint(name).id)
        if hand.model.jnt_limited[joint]:
            limits.append(tuple(float(value) for value in hand.model.jnt_range[joint]))
        else:
            slide = hand.model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE
            limits.append((-1.0, 1.0) if slide else (-np.pi, np.pi))
    return np.array(limits).reshape(-1, 2)
