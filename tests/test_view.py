"""The report and the figures: what they compute, what they write, and that the page needs no network."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from afield.demonstration import Demonstration, demonstrate
from afield.errors import AfieldError
from afield.hand import Hand, hand_from_file
from afield.result import Grasp, GraspHistory
from afield.scene import FeatureSource, Plane, Scene
from afield.view.figures import write_figures
from afield.view.hand_mesh import hand_mesh
from afield.view.page_data import encode, recorded_steps, start_groups
from afield.view.painter import FIELD_OF_VIEW, Balls, Surface, render
from afield.view.panels import (
    AttentionPanel,
    EnergySection,
    ReportPanels,
    attention_ratio,
    chosen_hand_points,
    energy_section,
    joint_feature_colors,
    palm_position,
    section_planes,
)
from afield.view.report import write_report
from afield.view.stage import Stage, stages_for

GRIPPER = """<mujoco><worldbody><body name="arm"><geom type="box" size=".05 .05 .3" pos="0 0 -.3"/>
<body name="palm"><geom type="box" size=".04 .01 .04"/>
<body name="one" pos=".03 0 .04"><joint name="j1" axis="1 0 0" range="0 1.5"/>
<geom type="capsule" size=".01 .03" pos="0 0 .03"/></body>
<body name="two" pos="-.03 0 .04"><joint name="j2" axis="1 0 0" range="0 1.5"/>
<geom type="capsule" size=".01 .03" pos="0 0 .03"/></body>
</body></body></worldbody></mujoco>"""
DESCRIPTION = {
    "name": "toy",
    "file": "toy.xml",
    "base": "palm",
    "palm_center": [0.0, -0.01, 0.0],
    "palm_normal": [0.0, -1.0, 0.0],
    "finger_direction": [0.0, 0.0, 1.0],
    "fingers": {"first": ["one"], "thumb": ["two"]},
}
PASSED = {
    "success": True,
    "failure": None,
    "target": "deer",
    "geometry": "known",
    "initial_penetration": 0.002,
    "lift_height": 0.1,
    "pushes": {"+x": {"displacement": 0.012, "rotation": 0.05, "ok": True}},
    "limits": {"penetration": 0.01, "lift": 0.05, "displacement": 0.05, "rotation": math.radians(15)},
}


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Hand:
    folder = tmp_path_factory.mktemp("hand")
    (folder / "toy.xml").write_text(GRIPPER)
    (folder / "toy.json").write_text(json.dumps(DESCRIPTION))
    return hand_from_file(folder / "toy.json")


def make_scene(name: str, count: int, channels: int = 5) -> Scene:
    generator = torch.Generator().manual_seed(count)
    points = 0.1 * torch.rand(count, 3, generator=generator)
    features = torch.nn.functional.normalize(torch.randn(count, channels, generator=generator), dim=-1)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    source = FeatureSource("color", 0, 448, 0.3)
    colors = torch.rand(count, 3, generator=generator)
    return Scene(points, features, colors, normals, source, Plane(torch.tensor([0.0, 0.0, 1.0]), 0.0), name)


def make_beta(hand: Hand, x: float = 0.05) -> torch.Tensor:
    """Palm down, fingers along world y, 12 cm above the table."""
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    pose[:3, 3] = torch.tensor([x, 0.0, 0.12])
    return hand.join(pose, hand.neutral())


@pytest.fixture(scope="module")
def demonstration(hand: Hand) -> Demonstration:
    return demonstrate("toy_grasp", hand, make_beta(hand), make_scene("shown", 200), query_count=40)


@pytest.fixture(scope="module")
def grasp(hand: Hand) -> Grasp:
    path = make_beta(hand).repeat(30, 1)
    path[:, 2] += torch.linspace(0.2, 0, 30)
    terms = {"feature": torch.linspace(1, 0.2, 30), "table": torch.zeros(30)}
    everyone, alive = torch.arange(6), torch.tensor([4, 2])
    empty = (torch.zeros(1, 6, hand.dof), torch.zeros(1, 6))
    history = GraspHistory(
        beta=path,
        step=torch.arange(30),
        terms=terms,
        start_energy=torch.tensor([0.5, 0.1, 0.3, 0.6, 0.2, math.inf]),
        winner=4,
        start_beta=path[:6],
        rounds=((everyone, *empty), (alive, empty[0][:, :2], empty[1][:, :2])),
        stages=({"starts": 6, "steps": 20}, {"starts": 2, "steps": 10}),
    )
    return Grasp(path[-1], 0.2, {"feature": 0.2}, history, {"config": {"seed": 3}, "field": "attention"})


@pytest.fixture(scope="module")
def panels(hand: Hand, demonstration: Demonstration, grasp: Grasp) -> ReportPanels:
    query = demonstration.query_points(hand)
    weights = torch.softmax(-torch.cdist(query[:1], demonstration.scene.points)[0] / 0.01, dim=0)
    attention = AttentionPanel("palm", query[0], query[0], weights, torch.full((300,), 1 / 300))
    sections = [
        energy_section(lambda beta: beta[:, :3].norm(dim=-1), grasp.beta, plane, name=name, spacing=0.05)
        for plane in section_planes(hand, grasp.beta)
        for name in ("attention", "sparsedff")
    ]
    frames = (np.zeros((8, 12, 3), np.uint8), np.full((8, 12, 3), 200, np.uint8))
    colors = (torch.rand(200, 3), torch.rand(300, 3))
    return ReportPanels((attention,), tuple(sections), colors, frames)


def inputs(hand: Hand, demonstration: Demonstration, grasp: Grasp, panels: ReportPanels | None = None) -> dict:
    scene = make_scene("target_scene", 300)
    return {"hand": hand, "demonstration": demonstration, "scene": scene, "grasp": grasp, "panels": panels}


def page_json(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def decode(array: dict, width: int) -> np.ndarray:
    kind = {"f4": "<f4", "u1": "u1", "u2": "<u2", "u4": "<u4"}[array["dtype"]]
    return np.frombuffer(base64.b64decode(array["bytes"]), dtype=kind).reshape(-1, width)


def test_hand_mesh_follows_the_links(hand: Hand) -> None:
    mesh = hand_mesh(hand, cell=0.004)
    poses = hand.link_poses(make_beta(hand))
    posed = mesh.pose(poses)
    originals = hand.meshes()
    for link in range(len(hand.link_names)):
        expected = (
            torch.from_numpy(np.asarray(originals[link].vertices)).float() @ poses[link, :3, :3].T + poses[link, :3, 3]
        )
        mine = posed[mesh.link == link]
        # Every original vertex has a representative in its cell, whose diagonal bounds the distance.
        assert float(torch.cdist(expected, mine).amin(dim=1).max()) < 0.004 * 3**0.5
    arm = {hand.link_names[i] for i in mesh.link[mesh.arm_faces.flatten()].unique().tolist()}
    proper = {hand.link_names[i] for i in mesh.link[mesh.faces.flatten()].unique().tolist()}
    assert arm == {"arm"}
    assert proper == {"palm", "one", "two"}


def test_coarser_meshes_are_smaller_and_have_no_empty_triangles(hand: Hand) -> None:
    fine, coarse = hand_mesh(hand, 0.001), hand_mesh(hand, 0.008)
    assert len(coarse.faces) < len(fine.faces)
    assert all(len(set(face)) == 3 for face in coarse.faces.tolist())


def test_energy_section_is_the_energy_at_each_place(hand: Hand, grasp: Grasp) -> None:
    goal = torch.tensor([0.1, -0.05, 0.2])

    def energy(beta: torch.Tensor) -> torch.Tensor:
        return (palm_position(hand, beta) - goal).norm(dim=-1) + beta[:, 9:].sum(dim=-1)

    for plane in section_planes(hand, grasp.beta):
        section = energy_section(
            energy, grasp.beta, plane, name="x", extent=(-0.1, 0.1, -0.05, 0.1), spacing=0.025, batch=7
        )
        assert section.values.shape == (7, 9)
        for row, up in enumerate(section.up):
            for column, across in enumerate(section.across):
                place = plane.center + across * plane.across + up * plane.up
                expected = (place - goal).norm() + grasp.beta[9:].sum()
                assert float(section.values[row, column]) == pytest.approx(float(expected), abs=1e-5)


def test_section_planes_stand_upright_and_contain_the_palm(hand: Hand, grasp: Grasp) -> None:
    vertical, horizontal = section_planes(hand, grasp.beta)
    torch.testing.assert_close(vertical.center, torch.tensor([0.05, 0.0, 0.11]))
    torch.testing.assert_close(vertical.up, torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(vertical.across, torch.tensor([1.0, 0.0, 0.0]))  # the fingers point along y
    torch.testing.assert_close(horizontal.up, torch.tensor([0.0, 1.0, 0.0]))


def test_lowest_place_scale_and_basin_of_a_section(hand: Hand, grasp: Grasp) -> None:
    plane = section_planes(hand, grasp.beta)[0]
    across, up = torch.linspace(-0.2, 0.2, 5), torch.linspace(0, 0.2, 3)
    values = torch.full((3, 5), 7.0)
    values[2, 1] = 3.0
    section = EnergySection("x", plane, across, up, values)
    torch.testing.assert_close(section.lowest, torch.tensor([-0.1, 0.2]))
    assert float(section.scaled[2, 1]) == 0.0
    assert float(section.scaled[0, 0]) == 1.0
    assert section.basin == pytest.approx(100.0)  # one cell of 10 cm x 10 cm


@pytest.mark.parametrize(("bad", "words"), [(math.nan, "not finite"), (None, "no place")])
def test_bad_sections_are_refused(hand: Hand, grasp: Grasp, bad: float | None, words: str) -> None:
    extent = (0.1, -0.1, 0.0, 0.1) if bad is None else (-0.1, 0.1, 0.0, 0.1)
    with pytest.raises(AfieldError, match=words):
        energy_section(
            lambda beta: torch.full((len(beta),), bad or 0.0),
            grasp.beta,
            section_planes(hand, grasp.beta)[0],
            name="broken",
            extent=extent,
        )


def test_chosen_points_are_the_contacts_of_each_finger_and_the_palm(hand: Hand) -> None:
    points = hand.sample_surface(60, seed=1)
    contact = torch.rand(60, generator=torch.Generator().manual_seed(0))
    labels, index = chosen_hand_points(hand, points, contact)
    assert labels == ("first fingertip", "thumb tip", "palm")
    for k, body in enumerate(("one", "two")):
        on_link = points.link == hand.link_names.index(body)
        assert bool(on_link[index[k]])
        assert float(contact[index[k]]) == float(contact[on_link].min())
    assert hand.link_names[int(points.link[index[2]])] == "palm"


def test_equal_features_have_equal_colors_in_both_scenes() -> None:
    first, second = make_scene("a", 50).features, make_scene("b", 30).features
    second = torch.cat((second, first[:10]))
    colors, others = joint_feature_colors(first, second)
    torch.testing.assert_close(colors[:10], others[30:])
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(joint_feature_colors(first[order], second)[0], colors[order], atol=1e-4, rtol=0)
    assert float(colors.std(dim=0).min()) > 0.1  # all three channels say something
    with pytest.raises(AfieldError, match="5 and of 4 channels"):
        joint_feature_colors(first, second[:, :4])


def test_attention_ratio_counts_in_averages() -> None:
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0])
    torch.testing.assert_close(attention_ratio(weights), torch.tensor([2.0, 1.0, 1.0, 0.1]).log10())


def test_fit_fills_the_picture_and_cuts_nothing() -> None:
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.3, 0.1, 0.05])
    direction = torch.nn.functional.normalize(torch.tensor([1.0, -2.0, 1.0]), dim=0)
    stage = Stage(points, direction, None)
    center, distance = stage.fit(0.7, 1.5, margin=1.0)
    seen = (points - center) @ stage.axes.T
    across = (seen[:, 0] / (distance - seen[:, 2]) / math.tan(0.35) / 1.5).abs()
    upward = (seen[:, 1] / (distance - seen[:, 2]) / math.tan(0.35)).abs()
    assert float(torch.maximum(across, upward).max()) == pytest.approx(1.0, abs=1e-4)
    filled = [
        float(v.max() - v.min()) for v in (seen[:, 0] / (distance - seen[:, 2]), seen[:, 1] / (distance - seen[:, 2]))
    ]
    assert max(filled[0] / 1.5, filled[1]) > 1.9 * math.tan(0.35)  # both ends of the longer side touch the border


def test_camera_turns_with_the_hand(hand: Hand) -> None:
    scene, beta = make_scene("a", 50), make_beta(hand)
    points = hand.sample_surface(20, seed=0)
    quarter = torch.tensor([[0.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    pose, joints = hand.split(beta)
    first = stages_for(hand, points, [(scene, beta)])[0]
    turned = replace(scene, points=scene.points @ quarter[:3, :3].T)
    second = stages_for(hand, points, [(turned, hand.join(quarter @ pose, joints))])[0]
    torch.testing.assert_close(quarter[:3, :3] @ first.direction, second.direction)


def test_the_camera_avoids_what_hides_the_hand(hand: Hand) -> None:
    beta, points = make_beta(hand), hand.sample_surface(60, seed=0)
    bare = make_scene("a", 50)
    before = stages_for(hand, points, [(bare, beta)])[0].direction
    grid = torch.cartesian_prod(torch.linspace(-0.15, 0.15, 61), torch.linspace(-0.15, 0.15, 61))
    middle, across = hand.place(points, beta).mean(dim=0), Stage(bare.points, before, None).axes
    wall = middle + 0.15 * before + grid[:, :1] * across[0] + grid[:, 1:] * across[1]
    blocked = Scene(wall, wall, wall, wall, bare.source, None, "wall")
    after = stages_for(hand, points, [(blocked, beta)])[0].direction
    assert float(before @ after) < 0.9


def test_the_nearer_thing_is_seen() -> None:
    stage = Stage(torch.tensor([[-0.1, 0.0, -0.1], [0.1, 0.0, 0.1]]), torch.tensor([0.0, -1.0, 0.0]), None)
    red, blue = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    near, far = torch.tensor([[0.0, -0.05, 0.0]]), torch.tensor([[0.0, 0.05, 0.0]])
    corners = torch.tensor([[-0.05, 0.0, -0.05], [0.05, 0.0, -0.05], [0.0, 0.0, 0.06]])
    green = Surface(corners, torch.tensor([[0, 1, 2]]), (0.0, 1.0, 0.0))
    for order in (1, -1):
        picture = render([Balls(near, red, 0.01), green, Balls(far, blue, 0.01)][::order], stage, 60, 40)
        assert picture.shape == (40, 60, 4)
        assert picture[20, 30].argmax() in (0, 3)
        assert picture[20, 30, 0] > 0.5
        assert picture[25, 32, 1] > 0.4  # the triangle shows beside the ball
        assert picture[..., 2].max() == 0.0  # and hides the one behind
        assert picture[0, 0, 3] == 0.0


def test_a_ball_and_a_triangle_have_their_true_sizes() -> None:
    stage = Stage(torch.tensor([[-0.1, 0.0, -0.1], [0.1, 0.0, 0.1]]), torch.tensor([0.0, -1.0, 0.0]), None)
    _, distance = stage.fit(FIELD_OF_VIEW, 1.0)
    pixels_per_metre = 50 / math.tan(FIELD_OF_VIEW / 2) / distance
    ball = render([Balls(torch.zeros(1, 3), torch.ones(1, 3), 0.05)], stage, 100, 100)[..., 3]
    assert float(ball.sum()) == pytest.approx(math.pi * (0.05 * pixels_per_metre) ** 2, rel=0.04)
    rows, columns = np.nonzero(ball > 0.5)
    assert (rows.mean(), columns.mean()) == pytest.approx((49.5, 49.5), abs=0.3)
    corners = torch.tensor([[-0.05, 0.0, -0.05], [0.05, 0.0, -0.05], [-0.05, 0.0, 0.05]])
    half = render([Surface(corners, torch.tensor([[0, 1, 2]]), (1.0, 1.0, 1.0))], stage, 100, 100)[..., 3]
    assert float(half.sum()) == pytest.approx(0.005 * pixels_per_metre**2, rel=0.06)


def test_starts_are_grouped_by_where_they_ended(grasp: Grasp) -> None:
    groups = {group["name"]: group for group in start_groups(grasp.history)}
    assert groups["given up after 20 steps"]["start"] == [0, 1, 3]  # start 5 has no finite energy
    assert groups["finished"]["start"] == [2]
    assert groups["chosen"]["start"] == [4]  # not start 1, which was lower by a rougher measure but was given up
    assert groups["chosen"]["rank"] == [2]


def test_recorded_steps_are_few_and_reach_both_ends(grasp: Grasp) -> None:
    steps = recorded_steps(grasp.history, 10)
    assert steps[0] == 0
    assert steps[-1] == 29
    assert len(steps) <= 10
    assert steps[1] - steps[0] <= steps[-1] - steps[-2]


def test_arrays_survive_the_page() -> None:
    values = torch.tensor([[1.5, -2.0], [3.0, 1e-7]])
    np.testing.assert_array_equal(decode(encode(values, "f4"), 2), values.numpy())


def test_report_is_complete_and_needs_no_network(
    tmp_path: Path, hand: Hand, demonstration: Demonstration, grasp: Grasp, panels: ReportPanels
) -> None:
    page = tmp_path / "new" / "report.html"
    given = inputs(hand, demonstration, grasp, panels)
    write_report(page, **given, test=PASSED, notes={"seconds": {"a": 1.0, "b": 2.5}})
    text = page.read_text()
    assert list(page.parent.iterdir()) == [page]
    assert page.stat().st_size < 12e6
    assert "The grasp holds in physics." in text
    assert "1.2 cm, 2.9°" in text
    own = text[: text.index("plotly.js v")] + text[text.index('<script type="application/json"') :]
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", own)
    assert "default-src 'none'" in own
    assert not re.search(r"\{\{\w+\}\}", own)
    data = page_json(text)
    np.testing.assert_array_equal(decode(data["target"]["points"], 3), given["scene"].points.numpy())
    assert len(data["attention"]) == 1
    assert len(data["sections"]) == 4
    assert len(data["frames"]) == 2
    ids = set(re.findall(r'id="([\w-]+)"', own))
    assert {"scene-demo", "attention-target", "section-3", "path-slider", "energy-terms", "film-slider"} <= ids
    poses = decode(data["path"]["poses"], 12).reshape(-1, len(hand.link_names), 3, 4)
    np.testing.assert_allclose(poses[-1], hand.link_poses(grasp.beta)[:, :3].numpy(), atol=1e-6)


def test_report_without_extras_leaves_their_sections_out(
    tmp_path: Path, hand: Hand, demonstration: Demonstration, grasp: Grasp
) -> None:
    page = tmp_path / "report.html"
    write_report(page, **inputs(hand, demonstration, grasp), title="</script><b>&", notes={"odd": "</script>"})
    text = page.read_text()
    assert "Not tested in physics yet" in text
    assert "&lt;/script&gt;&lt;b&gt;&amp;" in text
    assert 'id="attention"' not in text
    assert 'id="physics"' not in text
    assert page_json(text)["sections"] == []


def test_no_name_can_end_the_script(
    tmp_path: Path, hand: Hand, demonstration: Demonstration, grasp: Grasp, panels: ReportPanels
) -> None:
    odd = ReportPanels((replace(panels.attention[0], label="</script>"),))
    write_report(tmp_path / "report.html", **inputs(hand, demonstration, grasp, odd))
    text = (tmp_path / "report.html").read_text()
    assert page_json(text)["attention"][0]["demo"]["label"] == "</script>"


def test_a_failed_grasp_says_why(tmp_path: Path, hand: Hand, demonstration: Demonstration, grasp: Grasp) -> None:
    page = tmp_path / "report.html"
    failed = {**PASSED, "success": False, "failure": "it slipped 7 cm along <x>."}
    write_report(page, **inputs(hand, demonstration, grasp), test=failed)
    assert "The grasp fails in physics.<small>It slipped 7 cm along &lt;x&gt;.</small>" in page.read_text()


def test_conditions_are_judged_by_their_own_limits() -> None:
    from afield.view.verdict import conditions

    rows = conditions({**PASSED, "initial_penetration": 0.0123, "lift_height": 0.04})
    assert [row.passed for row in rows] == [False, False, None]  # a push says nothing about an object on the table
    assert (rows[0].measured, rows[0].limit) == ("1.23 cm", "≤ 1 cm")
    assert (rows[2].measured, rows[2].limit) == ("1.2 cm, 2.9°", "≤ 5 cm, 15°")


def test_report_cannot_be_written_over_a_folder(
    tmp_path: Path, hand: Hand, demonstration: Demonstration, grasp: Grasp
) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(AfieldError, match="nothing was saved"):
        write_report(tmp_path / "report.html", **inputs(hand, demonstration, grasp))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("module", "write"), [("plotly.offline", write_report), ("matplotlib.backends.backend_agg", write_figures)]
)
def test_missing_packages_name_the_extra(
    tmp_path: Path,
    hand: Hand,
    demonstration: Demonstration,
    grasp: Grasp,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    write,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(AfieldError, match=r"pip install 'afield\[report\]'"):
        write(tmp_path / "x", **inputs(hand, demonstration, grasp))


def test_figures_are_pictures_on_white(
    tmp_path: Path, hand: Hand, demonstration: Demonstration, grasp: Grasp, panels: ReportPanels
) -> None:
    files = write_figures(tmp_path / "figures", **inputs(hand, demonstration, grasp, panels), resolution=50)
    assert [file.name for file in files] == [
        "overview.png",
        "features.png",
        "energy.png",
        "attention.png",
        "sections.png",
    ]
    for file in files:
        picture = imread(file)
        assert picture[0, 0, :3].min() == 1.0
        assert (picture[..., :3].min(axis=-1) < 0.9).mean() > 0.02  # not empty


def test_a_run_is_reported_from_its_parts(
    tmp_path: Path, hand: Hand, demonstration: Demonstration, grasp: Grasp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afield.pretrain import train_field
    from afield.run import Run
    from afield.view import run_report

    monkeypatch.setattr(run_report, "SECTION_REACH", 0.03)
    monkeypatch.setattr(run_report, "write_figures", lambda folder, **_: folder)
    scene = make_scene("target", 250)
    apart = torch.where(torch.arange(250)[:, None] < 125, 0.0, 0.5)
    scene = replace(scene, points=scene.points + apart)  # two objects, so that the gate has something to leave out
    model = train_field([demonstration.scene], kind="dff", channels=4, progress=False)
    page = run_report.write_run_report(tmp_path, Run(grasp, demonstration, scene, model, hand), progress=False)
    data = page_json(page.read_text())
    assert len(data["sections"]) == 4
    assert [panel["target"]["label"] for panel in data["attention"]] == ["first fingertip", "thumb tip", "palm"]
    panels = run_report.run_panels(Run(grasp, demonstration, scene, model, hand))
    assert [section.field for section in panels.sections] == ["dff", "sparsedff", "dff", "sparsedff"]
    for panel in panels.attention:
        assert float(panel.weights_target.sum()) == pytest.approx(1.0, abs=1e-4)
        assert len(panel.weights_target) == 250
        assert int((panel.weights_target > 0).sum()) < 250  # the gate left some points out
