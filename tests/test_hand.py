from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from afield.errors import AfieldError
from afield.geometry import matrix_to_quat_wxyz, pose_from, rotation_about_axis
from afield.hand import Hand, hand_by_name, hand_configuration_from_json, hand_from_file, hand_names
from afield.hand_description import DESCRIPTIONS, read_description
from afield.hand_model import geom_mesh, mesh_vertices

# A hand with every kind of shape and joint, below an arm that must be cut off.
MJCF = """
<mujoco><compiler angle="radian"/>
<asset><mesh name="wedge" vertex="0 0 0  .02 0 0  0 .03 0  0 0 .04  .02 .01 .03"/></asset>
<worldbody><geom name="floor" type="plane" size="1 1 1"/><light pos="0 0 1"/>
<body name="arm" pos=".1 .2 .3" euler=".3 0 .5"><freejoint/><geom name="armgeom" size=".03"/>
 <body name="mount" pos="0 0 .1" euler="0 .4 0"><joint name="swivel" axis="0 0 1" range="-1 1"/><geom size=".02"/>
  <body name="palm" pos=".01 .02 .05" quat=".9 .1 .3 .2">
   <joint name="wrist" pos="0 0 -.02" axis="1 0 0" range="-.5 .5"/>
   <geom name="palmbox" type="box" size=".04 .03 .01" contype="2" conaffinity="4"/>
   <geom name="skin" type="box" size=".05 .05 .02" contype="0" conaffinity="0"/>
   <body name="a1" pos=".04 0 .01" euler="0 0 .2">
    <joint name="ja" pos="0 .003 0" axis="0 1 1" range="-.2 1.5" ref=".1"/>
    <joint name="jb" axis="1 0 0" range="-.5 .5"/><geom type="capsule" size=".008 .02" pos="0 0 .03"/>
    <body name="a2" pos="0 0 .06"><joint name="slide" type="slide" axis="0 1 1" range="0 .03"/>
     <geom type="cylinder" size=".007 .015" pos="0 0 .02" euler=".2 0 0"/>
     <body name="a3" pos="0 0 .05"><geom type="ellipsoid" size=".008 .01 .012"/></body></body></body>
   <body name="b1" pos="-.04 0 .01"><joint name="jc" axis="0 -1 0" limited="false"/><geom type="mesh" mesh="wedge"/>
    <geom type="sphere" size=".009" pos="0 0 .05"/></body>
  </body></body></body>
<body name="object" pos="1 0 0"><freejoint/><geom size=".1"/></body></worldbody>
<tendon><fixed name="t"><joint joint="ja" coef="1"/><joint joint="jb" coef="-1"/></fixed></tendon>
<equality><joint joint1="ja" joint2="jb"/></equality>
<actuator><position joint="ja"/></actuator><sensor><jointpos joint="ja"/></sensor>
<contact><exclude body1="palm" body2="a2"/><exclude body1="arm" body2="object"/></contact></mujoco>
"""
URDF = """
<robot name="gripper">
<link name="palm"><collision><geometry><box size="0.1 0.06 0.02"/></geometry></collision></link>
<link name="finger">
 <inertial><mass value="0.1"/><inertia ixx="1e-4" iyy="1e-4" izz="1e-4" ixy="0" ixz="0" iyz="0"/></inertial>
 <collision><origin xyz="0 0 0.03"/><geometry><cylinder radius="0.01" length="0.06"/></geometry></collision></link>
<link name="tip"><collision><geometry><sphere radius="0.011"/></geometry></collision></link>
<joint name="knuckle" type="revolute"><parent link="palm"/><child link="finger"/>
 <origin xyz="0.04 0 0.02" rpy="0.1 0 0"/><axis xyz="1 0 0"/>
 <limit lower="0" upper="1.5" effort="1" velocity="1"/></joint>
<joint name="glue" type="fixed"><parent link="finger"/><child link="tip"/><origin xyz="0 0 0.06"/></joint>
</robot>
"""
DESCRIPTION = {
    "name": "toy",
    "file": "toy.xml",
    "base": "palm",
    "root": "mount",
    "fixed": {"swivel": 0.3, "wrist": -0.2},
    "palm_center": [0, 0, 0.01],
    "palm_normal": [0, 0, 2],
    "finger_direction": [1, 0, 0],
    "fingers": {"a": ["a1", "a2", "a3"], "b": ["b1"]},
}


def write_hand(folder: Path, **changes: object) -> Path:
    (folder / "toy.xml").write_text(MJCF)
    (folder / "gripper.urdf").write_text(URDF)
    entries = {**DESCRIPTION, **changes}
    path = folder / "toy.json"
    path.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Hand:
    return hand_from_file(write_hand(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def gripper(tmp_path_factory: pytest.TempPathFactory) -> Hand:
    changes = {"name": "gripper", "file": "gripper.urdf", "root": None, "fixed": {}, "fingers": {}}
    return hand_from_file(write_hand(tmp_path_factory.mktemp("gripper"), **changes))


@pytest.fixture(scope="module")
def shadow() -> Hand:
    return hand_by_name("shadow")


@pytest.fixture(params=["toy", "gripper", "shadow"])
def hand(request: pytest.FixtureRequest) -> Hand:
    return request.getfixturevalue(request.param)


def random_beta(hand: Hand, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, len(hand.joint_names), generator=generator)
    joints = hand.limits[:, 0] + share * (hand.limits[:, 1] - hand.limits[:, 0])
    pose = torch.randn(count, 9, generator=generator)
    return torch.cat((pose, joints), dim=-1)


def mujoco_link_poses(model: mujoco.MjModel, hand: Hand, joints: torch.Tensor, prefix: str = "") -> np.ndarray:
    data = mujoco.MjData(model)
    for name, value in zip(hand.joint_names, joints, strict=True):
        data.qpos[model.joint(prefix + name).qposadr[0]] = float(value)
    mujoco.mj_kinematics(model, data)
    poses = np.tile(np.eye(4), (len(hand.link_names), 1, 1))
    for pose, name in zip(poses, hand.link_names, strict=True):
        body = data.body(prefix + name)
        pose[:3, :3], pose[:3, 3] = body.xmat.reshape(3, 3), body.xpos
    return poses


def test_link_poses_equal_mujoco(hand: Hand) -> None:
    beta = random_beta(hand, 4)
    found = hand.link_poses(beta)
    pose, joints = hand.split(beta)
    base = hand.link_names.index(hand.description.base)
    assert torch.allclose(found[:, base], pose, atol=1e-5)
    for i in range(len(beta)):
        links = mujoco_link_poses(hand.spec().compile(), hand, joints[i])
        expected = pose[i].double().numpy() @ np.linalg.inv(links[base]) @ links
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-5)


def test_fixed_joints_are_welded_where_the_original_file_has_them(toy: Hand, tmp_path: Path) -> None:
    write_hand(tmp_path)
    model = mujoco.MjModel.from_xml_path(str(tmp_path / "toy.xml"))
    data = mujoco.MjData(model)
    joints = random_beta(toy, 1)[0, 9:]
    for name, value in [*zip(toy.joint_names, joints.tolist(), strict=True), ("swivel", 0.3), ("wrist", -0.2)]:
        data.joint(name).qpos[0] = value
    mujoco.mj_kinematics(model, data)
    poses = toy.link_poses(toy.join(torch.eye(4), joints))
    palm = data.body("palm")
    for link, pose in zip(toy.link_names, poses, strict=True):
        expected = palm.xmat.reshape(3, 3).T @ (data.body(link).xpos - palm.xpos)
        np.testing.assert_allclose(pose[:3, 3].numpy(), expected, atol=1e-6)


def test_fk_gradients_by_finite_differences(toy: Hand) -> None:
    exact = toy.to(dtype=torch.float64)
    beta = random_beta(toy, 2).double().requires_grad_(True)
    assert torch.autograd.gradcheck(exact.link_poses, (beta,))


def test_batch_shapes_are_free(toy: Hand) -> None:
    beta = random_beta(toy, 6)
    points = toy.sample_surface(50, seed=0)
    one_by_one = torch.stack([toy.place(points, b) for b in beta])
    assert torch.allclose(toy.place(points, beta.reshape(2, 3, -1)).reshape(6, 50, 3), one_by_one, atol=1e-6)
    world = one_by_one[0]
    distance = toy.signed_distance(beta.reshape(2, 3, -1), world).reshape(6, 50)
    assert torch.allclose(distance[3], toy.signed_distance(beta[3], world), atol=1e-6)
    each = toy.signed_distance(beta.reshape(2, 3, -1), one_by_one.reshape(2, 3, 50, 3)).reshape(6, 50)
    assert torch.allclose(each[0], distance[0], atol=1e-6)


def test_split_join_clamp(toy: Hand) -> None:
    beta = random_beta(toy, 3)
    clean = toy.clamp(beta)
    assert torch.allclose(toy.join(*toy.split(clean)), clean, atol=1e-6)
    beta[:, 9:] += 10
    assert torch.equal(toy.clamp(beta)[:, 9:], toy.limits[:, 1].expand(3, -1))
    assert toy.dof == beta.shape[1] == 9 + len(toy.joint_names)


def test_shadow_is_the_papers_hand(shadow: Hand) -> None:
    assert len(shadow.joint_names) == 22
    assert not any("WRJ" in name for name in shadow.joint_names)
    bent = shadow.neutral()
    bent[[i for i, name in enumerate(shadow.joint_names) if name.endswith(("FJ2", "FJ1"))]] += 0.3
    tip = shadow.link_names.index("robot0:mfdistal")
    straight, curled = (shadow.link_poses(shadow.join(torch.eye(4), q))[tip, :3, 3] for q in (0 * bent, bent))
    assert torch.nn.functional.normalize(straight, dim=0) @ shadow.finger_direction > 0.95
    assert (curled - straight) @ shadow.palm_normal > 0.03


def reference_distance(hand: Hand, beta: torch.Tensor, points: np.ndarray) -> np.ndarray:
    """Per shape and per point, from the meaning of MuJoCo's sizes; meshes by the triangles of their convex hull."""
    model, poses = hand.model.model, hand.link_poses(beta).double().numpy()
    kinds, distances = mujoco.mjtGeom, []
    for link, g in zip(hand.shapes.link.tolist(), hand.shapes.geoms, strict=True):
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[g])
        local = (points - poses[link, :3, 3]) @ poses[link, :3, :3]
        local = (local - model.geom_pos[g]) @ rotation.reshape(3, 3)
        size, kind = model.geom_size[g], model.geom_type[g]
        if kind == kinds.mjGEOM_SPHERE:
            distance = np.linalg.norm(local, axis=1) - size[0]
        elif kind == kinds.mjGEOM_CAPSULE:
            axis = np.clip(local[:, 2], -size[1], size[1])
            distance = np.linalg.norm(local - np.outer(axis, [0, 0, 1]), axis=1) - size[0]
        elif kind == kinds.mjGEOM_BOX:
            outside = np.linalg.norm(local - np.clip(local, -size, size), axis=1)
            distance = np.where(outside > 0, outside, -(size - np.abs(local)).min(axis=1))
        elif kind == kinds.mjGEOM_CYLINDER:
            side, cap = np.linalg.norm(local[:, :2], axis=1) - size[0], np.abs(local[:, 2]) - size[1]
            outside = np.hypot(np.maximum(side, 0), np.maximum(cap, 0))
            distance = np.where(outside > 0, outside, np.maximum(side, cap))
        elif kind == kinds.mjGEOM_ELLIPSOID:
            surface = trimesh.creation.icosphere(subdivisions=6).vertices * size
            distance = cKDTree(surface).query(local)[0] * np.sign(np.linalg.norm(local / size, axis=1) - 1)
        else:
            hull = trimesh.convex.convex_hull(mesh_vertices(model, g))
            distance = ((local[:, None] - hull.triangles_center) * hull.face_normals).sum(axis=-1).max(axis=1)
        distances.append(distance)
    return np.min(distances, axis=0)


@pytest.mark.parametrize("name", ["toy", "gripper", "shadow"])
def test_signed_distance_equals_the_reference(name: str, request: pytest.FixtureRequest) -> None:
    hand: Hand = request.getfixturevalue(name)
    beta = hand.clamp(random_beta(hand, 1))[0]
    near = hand.place(hand.sample_surface(300, seed=0), beta)
    points = near + 0.01 * torch.randn(near.shape, generator=torch.Generator().manual_seed(1))
    found = hand.signed_distance(beta, points).numpy()
    expected = reference_distance(hand, beta, points.double().numpy())
    assert (found < -1e-3).sum() > 20
    # The distance to an ellipsoid is exact only near it, and the hull of Shadow's forearm is a little enlarged.
    found, expected = np.minimum(found, 0.008), np.minimum(expected, 0.008)
    np.testing.assert_allclose(found, expected, atol={"toy": 1.2e-3, "gripper": 1e-5, "shadow": 3e-4}[name])


def test_signed_distance_gradients_by_finite_differences(toy: Hand) -> None:
    exact = toy.to(dtype=torch.float64)
    beta = toy.clamp(random_beta(toy, 2)).double()
    points = exact.place(exact.sample_surface(40, seed=0), beta[0])
    points = points + 0.004 * torch.randn(points.shape, generator=torch.Generator().manual_seed(2)).double()
    assert torch.autograd.gradcheck(
        exact.signed_distance, (beta.requires_grad_(True), points.requires_grad_(True)), eps=1e-8, atol=1e-4
    )


@pytest.mark.parametrize("name", ["toy", "gripper", "shadow"])
def test_total_depth_is_what_the_signed_distance_says_below_zero(name: str, request: pytest.FixtureRequest) -> None:
    """Value and gradient; one of the hands touches nothing."""
    hand: Hand = request.getfixturevalue(name)
    beta = hand.clamp(random_beta(hand, 4))
    near = hand.place(hand.sample_surface(300, seed=0), beta)
    points = near + 0.01 * torch.randn(near.shape, generator=torch.Generator().manual_seed(1))
    points[3] += 5.0
    first, second = beta.clone().requires_grad_(True), beta.clone().requires_grad_(True)
    slow = (-hand.signed_distance(first, points)).clamp_min(0.0).sum(dim=-1)
    fast = hand.total_depth(second, points)
    assert bool((slow[:3] > 0.01).all())
    assert float(fast[3]) == 0.0
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), start)[0] for value, start in ((slow, first), (fast, second))]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


def test_signed_distance_has_finite_gradients_on_axes_and_centers(hand: Hand) -> None:
    beta = hand.join(torch.eye(4), hand.neutral()).requires_grad_(True)
    inside = hand.place(hand.keypoints, beta).detach()
    hand.signed_distance(beta, inside).sum().backward()
    assert beta.grad is not None
    assert torch.isfinite(beta.grad).all()


def test_distance_moves_with_the_hand(hand: Hand) -> None:
    beta = hand.clamp(random_beta(hand, 1))[0]
    points = hand.place(hand.keypoints, beta)
    turn = pose_from(
        rotation_about_axis(torch.tensor([0.0, 0.6, 0.8]), torch.tensor(1.1)), torch.tensor([0.3, -0.2, 0.5])
    )
    pose, joints = hand.split(beta)
    turned = hand.join(turn @ pose, joints)
    there = points @ turn[:3, :3].T + turn[:3, 3]
    assert torch.allclose(hand.signed_distance(turned, there), hand.signed_distance(beta, points), atol=1e-5)


def test_surface_points_lie_on_the_outside(hand: Hand) -> None:
    points = hand.sample_surface(200, seed=3)
    assert len(points.link) == 200
    joints = torch.zeros(len(hand.joint_names)).clamp(hand.limits[:, 0], hand.limits[:, 1])
    beta = hand.join(torch.eye(4), joints)
    places = hand.place(points, beta)
    assert hand.signed_distance(beta, places).abs().max() < 1e-3
    normals = (hand.link_poses(beta)[points.link, :3, :3] @ points.normals_link[..., None])[..., 0]
    outwards = hand.signed_distance(beta, places + 0.002 * normals)
    assert (outwards > 0).float().mean() > 0.95
    again = hand.sample_surface(200, seed=3)
    assert torch.equal(again.points_link, points.points_link)
    assert not torch.equal(hand.sample_surface(200, seed=4).points_link, points.points_link)


def test_surface_is_denser_on_fingers_and_on_the_palmar_side(shadow: Hand) -> None:
    fingers = {body for finger in shadow.description.fingers.values() for body in finger}

    def shares(**density: float) -> tuple[float, float]:
        points = shadow.sample_surface(400, seed=0, **density)
        names = [shadow.link_names[i] for i in points.link.tolist()]
        assert not {"robot0:forearm", "robot0:wrist"} & set(names)
        palmar = [float(n[1]) < 0 for n, name in zip(points.normals_link, names, strict=True) if "palm" in name]
        return sum(name in fingers for name in names) / 400, sum(palmar) / len(palmar)

    uniform = shares(finger_density=1.0, palmar_density=1.0)
    dense = shares(finger_density=4.0, palmar_density=4.0)
    assert dense[0] > uniform[0] + 0.1
    assert dense[1] > uniform[1] + 0.15
    with pytest.raises(AfieldError, match="must be positive"):
        shadow.sample_surface(0, seed=0)


def test_keypoint_pairs_keep_fingers_apart(shadow: Hand) -> None:
    pairs, link = shadow.keypoint_pairs, shadow.keypoints.link
    names = [{shadow.link_names[int(link[a])], shadow.link_names[int(link[b])]} for a, b in pairs]
    assert {"robot0:ffdistal", "robot0:thdistal"} in names
    assert {"robot0:ffproximal", "robot0:ffmiddle"} not in names
    assert {"robot0:palm", "robot0:ffproximal"} not in names  # the knuckle between them has no shape
    assert not any("robot0:forearm" in pair for pair in names)
    points = shadow.place(shadow.keypoints, shadow.join(torch.eye(4), 0 * shadow.neutral()))
    assert (points[pairs[:, 0]] - points[pairs[:, 1]]).norm(dim=-1).min() > 0.02
    counts = torch.bincount(link)
    assert counts[shadow.link_names.index("robot0:ffdistal")] in (1, 2, 3)


def test_spec_is_the_hand_alone_and_attaches(toy: Hand) -> None:
    spec = toy.spec()
    assert not [*spec.actuators, *spec.tendons, *spec.equalities, *spec.sensors]
    model = spec.compile()
    assert not {"object", "arm_geom0", "armgeom", "floor"} & {model.geom(g).name for g in range(model.ngeom)}
    assert {model.joint(j).name for j in range(model.njnt)} == set(toy.joint_names)
    assert model.nexclude == 1
    assert all(model.geom(name).contype[0] & 1 for name in toy.collision_geoms)
    assert "skin" not in toy.collision_geoms
    assert int(model.geom("skin").contype[0]) == 0
    world = mujoco.MjSpec()
    frame = world.worldbody.add_frame()
    frame.attach_body(spec.body(toy.root_name), "hand/", "")
    beta = toy.clamp(random_beta(toy, 1))[0]
    pose, joints = toy.split(beta)
    root = pose @ toy.T_base_root
    body = world.body("hand/" + toy.root_name)
    body.pos, body.quat = root[:3, 3].numpy(), matrix_to_quat_wxyz(root[:3, :3]).numpy()
    links = mujoco_link_poses(world.compile(), toy, joints, "hand/")
    np.testing.assert_allclose(links, toy.link_poses(beta).numpy(), atol=1e-5)


def test_meshes_cover_the_links(hand: Hand) -> None:
    meshes = hand.meshes()
    assert len(meshes) == len(hand.link_names)
    assert len(meshes[hand.link_names.index(hand.description.base)].faces) > 0
    solid = {hand.link_names[i] for i in hand.shapes.link.tolist()}
    assert all(len(mesh.faces) for name, mesh in zip(hand.link_names, meshes, strict=True) if name in solid)
    assert len(geom_mesh(hand.model.model, hand.shapes.geoms[0]).faces)


def test_fingerprint_follows_the_kinematics(toy: Hand, tmp_path: Path) -> None:
    assert hand_from_file(write_hand(tmp_path, palm_center=[0, 0, 0.02])).fingerprint == toy.fingerprint
    assert toy.to(dtype=torch.float64).fingerprint == toy.fingerprint
    assert hand_from_file(write_hand(tmp_path, fixed={"swivel": 0.3, "wrist": -0.1})).fingerprint != toy.fingerprint
    (tmp_path / "wider.xml").write_text(MJCF.replace('range="0 .03"', 'range="0 .04"'))
    assert hand_from_file(write_hand(tmp_path, file="wider.xml")).fingerprint != toy.fingerprint
    order = ["jc", "slide", "jb", "ja"]
    other = hand_from_file(write_hand(tmp_path, joints=order))
    assert other.joint_names == tuple(order)
    assert other.fingerprint != toy.fingerprint


def test_unlimited_joint_gets_half_a_turn(toy: Hand) -> None:
    limits = toy.limits[toy.joint_names.index("jc")]
    assert limits.tolist() == pytest.approx([-math.pi, math.pi])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "pam"}, "Unknown body 'pam' in 'base'.*did you mean palm.*a1, a2"),
        ({"root": "a1"}, "does not carry its base"),
        ({"fingers": {"a": ["a9"]}}, "Unknown body 'a9' in 'fingers'"),
        ({"joints": ["ja", "jx"]}, "Unknown joint 'jx' in 'joints'.*ja, jb, jc"),
        ({"joints": ["ja", "wrist"], "fixed": {}}, "'wrist'.*moves its base"),
        ({"neutral": {"jq": 0}}, "Unknown joint 'jq' in 'neutral'"),
        ({"palm_normal": [0, 0, 0]}, "palm_normal.*not the zero vector"),
        ({"palm_center": [0, "x", 0]}, "palm_center.*three numbers"),
        ({"fixed": {"wrist": "bent"}}, "fixed.*joint name to number"),
        ({"palm_centre": [0, 0, 0]}, "Unknown entry 'palm_centre'.*did you mean palm_center"),
        ({"file": "nowhere.xml"}, "nowhere.xml, which does not exist"),
        ({"file": "toy.json"}, "MuJoCo cannot read"),
        ({"file": "package:no_such_hands/x.xml"}, "needs the package 'no_such_hands': pip install no-such-hands"),
        ({"file": "package:no_such_hands/x.xml", "install": "pip install y"}, "pip install y$"),
        ({"file": "package:mujoco/x.xml"}, "installed release has no such file"),
        ({"base": None}, "lacks 'base'"),
    ],
)
def test_wrong_descriptions_are_explained(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(AfieldError, match=message):
        hand_from_file(write_hand(tmp_path, **changes))


def test_unknown_hand_lists_the_known_ones() -> None:
    assert "shadow" in hand_names()
    with pytest.raises(AfieldError, match=r"Unknown hand 'shaddow'.*did you mean shadow"):
        hand_by_name("shaddow")


@pytest.mark.parametrize("name", hand_names())
def test_every_shipped_hand_loads_or_says_what_to_install(name: str) -> None:
    description = read_description(DESCRIPTIONS / f"{name}.json")
    package = description.file.removeprefix("package:").partition("/")[0]
    if importlib.util.find_spec(package) is None:
        with pytest.raises(AfieldError, match="pip install"):
            hand_by_name(name)
        return
    hand = hand_by_name(name)
    assert hand.name == name
    assert hand.signed_distance(hand.join(torch.eye(4), hand.neutral()), hand.palm_center[None]).abs() < 0.005


def write_configuration(folder: Path, **entries: object) -> Path:
    path = folder / "configuration.json"
    path.write_text(json.dumps({"hand": "toy", "T_world_hand": np.eye(4).tolist(), **entries}))
    return path


def test_configuration_reads_both_poses_and_short_names(toy: Hand, shadow: Hand, tmp_path: Path) -> None:
    pose = {"position": [0.1, 0.2, 0.3], "quat_wxyz": [math.sqrt(0.5), 0, 0, math.sqrt(0.5)]}
    beta = hand_configuration_from_json(write_configuration(tmp_path, T_world_hand=pose, joints={"slide": 0.01}), toy)
    T_world_hand, joints = toy.split(beta)
    expected = torch.tensor([[0.0, -1, 0, 0.1], [1, 0, 0, 0.2], [0, 0, 1, 0.3], [0, 0, 0, 1]])
    assert torch.allclose(T_world_hand, expected, atol=1e-6)
    rest = toy.neutral()
    rest[toy.joint_names.index("slide")] = 0.01
    assert torch.allclose(joints, rest)
    same = hand_configuration_from_json(
        write_configuration(tmp_path, T_world_hand=expected.tolist(), joints={"slide": 0.01}), toy
    )
    assert torch.allclose(same, beta, atol=1e-6)
    beta = hand_configuration_from_json(write_configuration(tmp_path, hand="shadow", joints={"FFJ2": 1.0}), shadow)
    assert float(beta[9 + shadow.joint_names.index("robot0:FFJ2")]) == 1.0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"hand": "shadow"}, "of the hand 'shadow', but the hand here is 'toy'"),
        ({"joints": {"jaa": 0}}, "Unknown joint 'jaa'.*did you mean ja"),
        ({"joints": {"ja": 2.0}}, "'ja'.*2.0.*limits are -0.2 to 1.5"),
        ({"joints": {"ja": "x"}}, "'ja'.*'x'.*limits"),
        ({"joints": [0, 1]}, "must be an object of joint name"),
        ({"T_world_hand": [[1, 2], [3, 4]]}, "must be a 4x4 matrix"),
        ({"T_world_hand": {"position": [0, 0, 0]}}, "quat_wxyz"),
        ({"T_world_hand": {"position": [0, 0, 0], "quat_wxyz": [1, 1, 1, 1]}}, "unit quaternion"),
        ({"T_world_hand": (2 * np.eye(4)).tolist()}, "not a rigid pose"),
        ({"T_world_hand": np.full((4, 4), float("nan")).tolist()}, "not a rigid pose"),
        ({"T_wrold_hand": 0}, "Unknown entry 'T_wrold_hand'.*did you mean T_world_hand"),
    ],
)
def test_wrong_configurations_are_explained(toy: Hand, tmp_path: Path, entries: dict, message: str) -> None:
    with pytest.raises(AfieldError, match=message):
        hand_configuration_from_json(write_configuration(tmp_path, **entries), toy)
