from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from afield import artifacts
from afield.errors import AfieldError


def test_round_trip_keeps_tensors_and_header(tmp_path: Path, generator: torch.Generator) -> None:
    tensors = {"a": torch.randn(3, 4, generator=generator), "b": torch.arange(5)}
    artifacts.save_artifact(tmp_path / "x", "scene", tensors, {"seed": 7})
    loaded, header = artifacts.load_artifact(tmp_path / "x", "scene", ("a", "b"))
    assert torch.equal(loaded["a"], tensors["a"])
    assert torch.equal(loaded["b"], tensors["b"])
    assert header["seed"] == 7
    assert header["units"]["length"] == "metre"
    assert header["packages"]["torch"] != "unknown"


def test_views_of_one_tensor_can_be_saved_together(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    artifacts.save_artifact(tmp_path / "x", "scene", {"whole": whole, "row": whole[0], "turned": whole.T}, {})
    loaded, _ = artifacts.load_artifact(tmp_path / "x", "scene")
    assert torch.equal(loaded["turned"], whole.T)


def test_replacing_leaves_only_the_new_files(tmp_path: Path) -> None:
    artifacts.write_folder(tmp_path / "x", lambda f: (f / "run.json").write_text("old") and None)
    artifacts.write_folder(tmp_path / "x", lambda f: (f / "new.txt").write_text("new") and None)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["new.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "x"
    if existing:
        artifacts.write_folder(target, lambda f: (f / "run.json").write_text("good") and None)

    def fill(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AfieldError, match=r"Cannot write .*No space left on device; nothing was saved"):
        artifacts.write_folder(target, fill)
    assert sorted(p.name for p in tmp_path.rglob("*")) == (["run.json", "x"] if existing else [])


_TOO_BIG = """
import resource, sys, torch
from pathlib import Path
from afield import artifacts
from afield.errors import AfieldError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    artifacts.save_artifact(Path(sys.argv[1]), "scene", {"points": torch.ones(100_000)}, {})
except AfieldError as error:
    sys.exit(f"told: {error}")
"""


def test_a_write_that_the_system_refuses_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TOO_BIG, str(tmp_path / "x")], capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("told: Cannot write"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("precious")
    with pytest.raises(AfieldError, match="in the way"):
        artifacts.save_artifact(tmp_path / "x", "scene", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "x").read_text() == "precious"


def _saved(folder: Path) -> Path:
    artifacts.save_artifact(folder, "scene", {"points": torch.ones(100, 3)}, {})
    return folder


def test_bad_artifacts_are_explained(tmp_path: Path) -> None:
    good = _saved(tmp_path / "x")
    with pytest.raises(AfieldError, match="holds a scene, but a field is needed"):
        artifacts.load_artifact(good, "field")
    with pytest.raises(AfieldError, match=r"has no afield\.json"):
        artifacts.load_artifact(tmp_path, "scene")
    with pytest.raises(AfieldError, match="lacks the tensor 'features'"):
        artifacts.load_artifact(good, "scene", ("features",))


@pytest.mark.parametrize("keep", [0, 4, 60, 500])
def test_truncated_tensors_are_explained(tmp_path: Path, keep: int) -> None:
    file = _saved(tmp_path / "x") / artifacts.TENSORS_NAME
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(AfieldError, match="may be truncated"):
        artifacts.load_artifact(tmp_path / "x", "scene")


def test_truncated_header_is_explained(tmp_path: Path) -> None:
    file = _saved(tmp_path / "x") / artifacts.HEADER_NAME
    file.write_text(file.read_text()[:40])
    with pytest.raises(AfieldError, match="not valid JSON"):
        artifacts.load_artifact(tmp_path / "x", "scene")
    file.write_text(json.dumps([1]))
    with pytest.raises(AfieldError, match="must hold a JSON object"):
        artifacts.load_artifact(tmp_path / "x", "scene")


def test_not_finite_numbers_are_refused(tmp_path: Path) -> None:
    artifacts.save_artifact(tmp_path / "x", "scene", {"points": torch.tensor([1.0, float("nan")])}, {})
    with pytest.raises(AfieldError, match="'points' .* holds NaN"):
        artifacts.load_artifact(tmp_path / "x", "scene", ("points",))


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "thesis.txt").write_text("years of work")
    with pytest.raises(AfieldError, match="other files"):
        artifacts.save_artifact(tmp_path / "photos", "thing", {"x": torch.zeros(1)}, {})
    assert (tmp_path / "photos" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    artifacts.save_artifact(tmp_path / "empty", "thing", {"x": torch.zeros(1)}, {})


def test_a_missing_header_entry_is_named(tmp_path: Path) -> None:
    artifacts.save_artifact(tmp_path / "thing", "thing", {"x": torch.zeros(1)}, {"name": "a"})
    with pytest.raises(AfieldError, match="lacks the entry 'energy'"):
        artifacts.load_artifact(tmp_path / "thing", "thing", ("x",), ("name", "energy"))
