import csv
import json

import pytest
import roma
import torch

from afield.artifacts import write_folder
from afield.errors import AfieldError
from afield.geometry import pose_from, quat_wxyz_to_matrix
from afield.trajectory import COLUMNS, Trajectory


def turning(count: int = 9) -> Trajectory:
    """More than half a turn, so that quaternions have to cross the hemisphere."""
    angle = torch.linspace(0.0, 5.5, count)
    rotation = roma.rotvec_to_rotmat(angle[:, None] * torch.tensor([0.0, 0.6, 0.8]))
    place = torch.stack((angle.cos(), angle.sin(), 0.1 * angle), dim=-1)
    return Trajectory(pose_from(rotation, place), torch.linspace(0.08, 0.0, count), ("move",) * count, {"seed": 3})


def test_a_trajectory_comes_back_from_disk(tmp_path):
    trajectory = turning()
    write_folder(tmp_path / "t", trajectory.write_files)
    again = Trajectory.load(tmp_path / "t")
    assert torch.equal(again.poses, trajectory.poses) and torch.equal(again.opening, trajectory.opening)
    assert again.labels == trajectory.labels and again.provenance == {"seed": 3}


def test_rows_say_the_poses_again_without_a_jump_of_the_sign():
    trajectory = turning()
    rows = trajectory.rows
    assert torch.allclose(quat_wxyz_to_matrix(rows[:, 3:7]), trajectory.poses[:, :3, :3], atol=1e-5)
    assert float((rows[1:, 3:7] * rows[:-1, 3:7]).sum(dim=-1).min()) > 0.9
    assert rows[0, 3] > 0 > rows[-1, 3]


def test_json_and_csv_say_the_same(tmp_path):
    trajectory = turning()
    trajectory.export(tmp_path / "t.json")
    trajectory.export(tmp_path / "t.csv")
    told = json.loads((tmp_path / "t.json").read_text())
    assert "metres" in told["frame"] and len(told["waypoints"]) == len(trajectory)
    table = list(csv.DictReader((tmp_path / "t.csv").open()))
    for row, waypoint in zip(table, told["waypoints"], strict=True):
        numbers = [float(row[f"{name}_m"]) for name in "xyz"] + [float(row[f"quat_{name}"]) for name in "wxyz"]
        assert numbers == pytest.approx(waypoint["position"] + waypoint["quat_wxyz"], abs=1e-6)
        assert float(row["opening_m"]) == pytest.approx(waypoint["opening"], abs=1e-6)


def test_a_lerobot_dataset_leads_from_state_to_state(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    trajectory = turning()
    trajectory.export(tmp_path / "set", task="open the door", hertz=5)
    trajectory.export(tmp_path / "set", task="open the door", hertz=5)  # its own folder may be written again
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    table = parquet.read_table(tmp_path / "set" / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(table.column_names) == set(info["features"]) and table.num_rows == info["total_frames"] == 9
    state = torch.tensor(table["observation.state"].to_pylist())
    action = torch.tensor(table["action"].to_pylist())
    assert torch.equal(state, trajectory.rows) and torch.equal(action[:-1], state[1:])
    assert info["features"]["action"]["names"] == list(COLUMNS)
    assert table["timestamp"].to_pylist() == pytest.approx([0.2 * i for i in range(9)])
    episode = parquet.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()[0]
    assert episode["tasks"] == ["open the door"] and episode["dataset_to_index"] == 9
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    assert stats["action"]["mean"] == pytest.approx(action.mean(dim=0).tolist(), abs=1e-6)


def test_what_makes_no_sense_is_refused(tmp_path):
    trajectory = turning()
    with pytest.raises(AfieldError, match="one of each"):
        Trajectory(trajectory.poses, trajectory.opening[:-1], trajectory.labels)
    with pytest.raises(AfieldError, match="at least one waypoint"):
        Trajectory(trajectory.poses[:0], trajectory.opening[:0], ())
    with pytest.raises(AfieldError, match="NaN"):
        Trajectory(trajectory.poses * float("nan"), trajectory.opening, trajectory.labels)
    with pytest.raises(AfieldError, match=r"\.json, \.csv"):
        trajectory.export(tmp_path / "t.xml")
    with pytest.raises(AfieldError, match="frames per second"):
        trajectory.export(tmp_path / "set", hertz=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(AfieldError, match="other files"):
        trajectory.export(tmp_path / "mine")
    assert not (tmp_path / "t.xml").exists() and not (tmp_path / "set").exists()
