"""Find a stable hand configuration on a part of a sample object, by closing the hand there and testing it in physics.

    python scripts/make_demonstration.py --object horse --part back

It stands for the person who would show the grasp. The palm hovers over the part and looks down, fingers across the part's long
side; every finger closes until it touches; the physics test and its repetition under noise choose the best of many.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch
import trimesh
import tyro
from tqdm import tqdm

from afield.capture import read_capture
from afield.geometry import matrix_to_quat_wxyz, pose_from
from afield.hand import Hand, hand_by_name
from afield.simulate import build_world, simulate_grasp, world_from_capture
from afield.simulate.world import HandActuation, World, carrier_pose, hand_joint_ids

SAMPLES = Path(__file__).parents[1] / "src" / "afield" / "samples"


@dataclass(frozen=True)
class Part:
    """A part of an object as it stands in a capture."""

    center: torch.Tensor
    """World, metres."""
    across: torch.Tensor
    """Horizontal unit vector along the part's short side."""
    top: float
    """World z of its upper side."""
    surface: torch.Tensor
    """Points of the whole object's surface, world."""


def find_part(world: World, name: str, part: str) -> Part:
    """Read a named box of an object and put it into the world."""
    thing = next(o for o in world.objects if o.name == name)
    assert thing.folder is not None
    description = json.loads((thing.folder / "object.json").read_text())
    box = description["parts"][part]
    pose = torch.tensor(thing.T_world_object, dtype=torch.float32)
    axis = int(np.argmin(box["size"][:2]))
    mesh = trimesh.load(thing.folder / description["visual"], force="mesh")
    points, _ = trimesh.sample.sample_surface(mesh, 4000, seed=0)
    surface = torch.tensor(np.asarray(points), dtype=torch.float32) @ pose[:3, :3].T + pose[:3, 3]
    center = pose[:3, :3] @ torch.tensor(box["center"]) + pose[:3, 3]
    return Part(center, pose[:3, axis], float(center[2]) + box["size"][2] / 2, surface)


def close_fingers(world: World, hand: Hand, beta: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Drive the joints softly towards `goal` with all objects held still; contact stops every finger where it touches."""
    soft = HandActuation(stiffness=1.0, damping=0.1, force_limit=0.15)
    model = build_world(world, hand, soft)
    data = mujoco.MjData(model)
    still = data.qpos.copy()
    joints = model.jnt_qposadr[hand_joint_ids(model, hand)]
    free = [model.joint(f"{thing.name}_free") for thing in world.objects]
    base = int(model.joint("hand_carrier_free").qposadr[0])
    pose = carrier_pose(hand, beta)
    still[base : base + 7], still[joints] = pose, beta[9:].numpy()
    data.qpos[:] = still
    data.mocap_pos[0], data.mocap_quat[0] = pose[:3], pose[3:]
    steps = 1200
    for step in range(steps):
        share = min(1.0, step / (0.7 * steps))
        data.ctrl[:] = (beta[9:] + share * (goal - beta[9:])).numpy()
        mujoco.mj_step(model, data)
        for joint in free:
            data.qpos[joint.qposadr[0] : joint.qposadr[0] + 7] = still[joint.qposadr[0] : joint.qposadr[0] + 7]
            data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0.0
    return hand.clamp(torch.cat((beta[:9], torch.tensor(data.qpos[joints], dtype=torch.float32))))


def candidate(world: World, hand: Hand, part: Part, generator: torch.Generator) -> torch.Tensor:
    """One random hand over the part, closed until it touches."""

    def uniform(low: float, high: float) -> float:
        return float(low + (high - low) * torch.rand((), generator=generator))

    side = 1.0 if uniform(0, 1) < 0.5 else -1.0
    down, finger = torch.tensor([0.0, 0.0, -1.0]), side * part.across
    tilt = uniform(-0.35, 0.2)
    normal, finger = (
        down * np.cos(tilt) + finger * np.sin(tilt),
        finger * np.cos(tilt) - down * np.sin(tilt),
    )
    along = torch.linalg.cross(normal, finger)
    hand_axes = torch.stack(
        (hand.palm_normal, hand.finger_direction, torch.linalg.cross(hand.palm_normal, hand.finger_direction)), dim=1
    )
    rotation = (torch.stack((normal, finger, along), dim=1) @ hand_axes.T).float()
    over = torch.tensor([float(part.center[0]), float(part.center[1]), part.top + uniform(-0.01, 0.01)])
    over = over - finger * uniform(0.02, 0.045) + along * uniform(-0.02, 0.02)
    joints, goal = torch.zeros(len(hand.joint_names)), torch.zeros(len(hand.joint_names))
    names = list(hand.joint_names)

    def put(joint: str, first: float, last: float) -> None:
        joints[names.index(f"robot0:{joint}")] = first
        goal[names.index(f"robot0:{joint}")] = last

    bend = uniform(0.3, 1.2)
    for prefix in ("FF", "MF", "RF", "LF"):
        put(f"{prefix}J2", 0.5, 1.57)
        put(f"{prefix}J1", 0.4 * bend, bend)
        put(f"{prefix}J0", 0.2 * bend, 0.6 * bend)
    turn, reach = uniform(0.0, 0.6), uniform(0.9, 1.2)
    put("THJ4", turn, turn + 0.3)
    put("THJ3", reach, reach)
    put("THJ1", 0.45, -0.5)
    put("THJ0", 0.0, -0.8)
    translation = over - rotation @ hand.palm_center
    beta = hand.clamp(hand.join(pose_from(rotation, translation), joints))
    while float(hand.signed_distance(beta, part.surface).min()) < 0.001:
        beta[2] += 0.001  # the open hand comes down until it touches, no further
    return close_fingers(world, hand, beta, goal)


def robustness(world: World, hand: Hand, beta: torch.Tensor, surface: torch.Tensor, trials: int, seed: int) -> float:
    """Share of noisy repetitions (7 mm, 3 degrees, 0.05 rad in the joints) that hold."""
    generator = torch.Generator().manual_seed(seed)
    held = 0
    for _ in range(trials):
        noise = torch.randn(len(beta), generator=generator)
        noisy = beta.clone()
        noisy[:3] += 0.004 * noise[:3]
        noisy[3:9] += 0.05 * noise[3:9]
        noisy[9:] += 0.05 * noise[9:]
        held += simulate_grasp(world, hand, hand.clamp(noisy), surface, progress=False).success
    return held / trials


def main(
    object: str = "horse",
    part: str = "back",
    candidates: int = 40,
    trials: int = 8,
    overlap: float = 0.003,
    seed: int = 0,
    out: Path = SAMPLES / "demonstrations",
) -> None:
    """Search, and write the most robust configuration to the samples.

    Args:
        object: sample object; its own single-object capture is used.
        part: named part of the object.
        candidates: random hands that are tried.
        trials: noisy repetitions of each stable one.
        overlap: deepest overlap of hand and object that is accepted, in metres; the hand shall rest on the surface.
        seed: of everything random.
        out: folder of the configurations.
    """
    hand = hand_by_name("shadow")
    world = world_from_capture(read_capture(SAMPLES / "captures" / object))
    goal = find_part(world, object, part)
    generator = torch.Generator().manual_seed(seed)
    best, best_share = None, -1.0
    for index in tqdm(range(candidates)):
        beta = candidate(world, hand, goal, generator)
        test = simulate_grasp(world, hand, beta, goal.surface, progress=False)
        tqdm.write(f"{index}: {test.failure or 'holds'} (overlap {test.initial_penetration * 1e3:.0f} mm)")
        if test.success and test.initial_penetration < overlap:
            share = robustness(world, hand, beta, goal.surface, trials, seed)
            tqdm.write(f"   robust in {share:.0%}")
            if share > best_share:
                best, best_share = beta, share
                _write(hand, best, object, part, out)
    if best is None:
        raise SystemExit("No stable configuration was found; try more candidates.")
    print(f"the best holds in {best_share:.0%} of {trials} noisy repetitions")


def _write(hand: Hand, beta: torch.Tensor, object: str, part: str, out: Path) -> None:
    pose, joints = hand.split(beta)
    content = {
        "hand": hand.name,
        "capture": object,
        "part": part,
        "T_world_hand": {
            "position": [round(float(x), 5) for x in pose[:3, 3]],
            "quat_wxyz": [round(float(x), 6) for x in matrix_to_quat_wxyz(pose[:3, :3])],
        },
        "joints": {name: round(float(angle), 4) for name, angle in zip(hand.joint_names, joints, strict=True)},
    }
    file = out / f"{object}_{part}.json"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
