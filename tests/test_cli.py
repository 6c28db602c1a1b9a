"""The command line as a user meets it: in a process of its own, with bad input of every kind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from afield.artifacts import HEADER_NAME, TENSORS_NAME
from afield.demonstration import demonstrate
from afield.hand import hand_by_name, hand_configuration_from_json
from afield.pretrain import train_field
from afield.scene import FeatureSource, Scene

SAMPLES = Path(__file__).parents[1] / "src" / "afield" / "samples"
HORSE = SAMPLES / "captures" / "horse"
CONFIGURATION = SAMPLES / "demonstrations" / "horse_back.json"


def _afield(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "afield", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def _refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one sentence, no traceback, with these words in it."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = [line for line in done.stderr.splitlines() if line.startswith("afield: ")]
    assert len(line) == 1, done.stderr
    for word in words:
        assert word in line[0], line[0]


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Points of the sample horse's place with made-up features, so that no network has to run."""
    generator = torch.Generator().manual_seed(0)
    hand = hand_by_name("shadow")
    beta = hand_configuration_from_json(CONFIGURATION, hand)
    center = hand.place(hand.sample_surface(64, seed=0), beta).mean(dim=0)
    points = center + 0.02 * torch.randn(400, 3, generator=generator)
    features = torch.nn.functional.normalize(torch.randn(400, 384, generator=generator), dim=-1)
    half = torch.full((400, 3), 0.5)
    source = FeatureSource("dinov2-s-embedded", 10, 448, 0.3)
    return Scene(points, features, half, torch.nn.functional.normalize(half, dim=-1), source, None, "horse")


@pytest.fixture
def demo(tmp_path: Path, scene: Scene) -> Path:
    hand = hand_by_name("shadow")
    beta = hand_configuration_from_json(CONFIGURATION, hand)
    demonstrate("horse_back", hand, beta, scene).save(tmp_path / "demo")
    return tmp_path / "demo"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of a sample capture that a test may damage."""
    shutil.copytree(HORSE, tmp_path / "broken")
    return tmp_path / "broken"


def test_help_lists_every_verb() -> None:
    done = _afield("--help")
    assert done.returncode == 0
    for verb in ("demo", "capture", "train", "demonstrate", "grasp", "simulate", "view", "bench", "info"):
        assert verb in done.stdout


def test_info_names_versions() -> None:
    done = _afield("info")
    assert done.returncode == 0
    assert "torch: 2" in done.stdout


def test_importing_afield_is_light() -> None:
    code = "import afield, sys; print([m for m in ('plotly', 'matplotlib', 'transformers', 'onnx', 'viser') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_capture(tmp_path: Path) -> None:
    _refused(_afield("capture", "check", tmp_path / "nothing"), "nothing")


def test_a_truncated_depth_image(broken: Path) -> None:
    file = broken / "camera0_depth.png"
    file.write_bytes(file.read_bytes()[:200])
    _refused(_afield("capture", "check", broken), "camera0_depth.png")


def test_wrong_intrinsics_size(broken: Path) -> None:
    content = json.loads((broken / "capture.json").read_text())
    content["views"][0]["width"] = 640
    (broken / "capture.json").write_text(json.dumps(content))
    _refused(_afield("capture", "check", broken), "640x720", "1280x720")


def test_not_a_number_in_depth(broken: Path) -> None:
    content = json.loads((broken / "capture.json").read_text())
    depth = np.full((720, 1280), 1.2, np.float32)
    depth[3, 4] = np.nan
    np.save(broken / "depth.npy", depth)
    content["views"][0]["depth"] = "depth.npy"
    (broken / "capture.json").write_text(json.dumps(content))
    _refused(_afield("capture", "check", broken), "NaN")


def test_a_mask_without_an_object(broken: Path, tmp_path: Path) -> None:
    import cv2

    for file in broken.glob("*_mask.png"):
        cv2.imwrite(str(file), np.zeros((720, 1280), np.uint8))
    done = _afield("train", broken, broken, "-o", tmp_path / "field", "--extractor", "color")
    _refused(done, "mask")
    assert not (tmp_path / "field").exists()


def test_an_unknown_extractor(tmp_path: Path) -> None:
    done = _afield("train", HORSE, HORSE, "-o", tmp_path / "field", "--extractor", "dino9")
    _refused(done, "'dino9'", "dinov2-s-embedded")


def test_an_unknown_joint(tmp_path: Path) -> None:
    content = json.loads(CONFIGURATION.read_text())
    content["joints"]["FFJ9"] = 0.1
    (tmp_path / "hand.json").write_text(json.dumps(content))
    done = _afield(
        "demonstrate", "--configuration", tmp_path / "hand.json", "--capture", HORSE, "-o", tmp_path / "demo"
    )
    _refused(done, "FFJ9")
    assert not (tmp_path / "demo").exists()


def test_a_demonstration_from_another_extractor(tmp_path: Path, demo: Path, scene: Scene) -> None:
    header = demo / "scene" / HEADER_NAME
    content = json.loads(header.read_text())
    content["source"]["extractor"], content["source"]["layer"] = "color", 1
    header.write_text(json.dumps(content))
    train_field([scene], kind="dff", progress=False).save(tmp_path / "field")
    done = _afield("grasp", "--demo", demo, "--field", tmp_path / "field", "--scene", HORSE, "-o", tmp_path / "run")
    _refused(done, "color", "dinov2-s-embedded")
    assert not (tmp_path / "run").exists()


def test_a_field_of_the_wrong_dimension(tmp_path: Path, demo: Path, scene: Scene) -> None:
    from safetensors.torch import load_file, save_file

    train_field([scene], kind="dff", progress=False).save(tmp_path / "field")
    tensors = load_file(tmp_path / "field" / TENSORS_NAME)
    tensors["mean"] = tensors["mean"][:100].contiguous()
    save_file(tensors, tmp_path / "field" / TENSORS_NAME)
    done = _afield("grasp", "--demo", demo, "--field", tmp_path / "field", "--scene", HORSE, "-o", tmp_path / "run")
    _refused(done, "100", "384")


def test_a_truncated_demonstration(tmp_path: Path, demo: Path) -> None:
    (demo / TENSORS_NAME).write_bytes((demo / TENSORS_NAME).read_bytes()[:100])
    done = _afield("grasp", "--demo", demo, "--field", "dff", "--scene", HORSE, "-o", tmp_path / "run")
    _refused(done, "truncated")


def test_neither_field_nor_kind(tmp_path: Path, demo: Path) -> None:
    done = _afield("grasp", "--demo", demo, "--field", "nerf", "--scene", HORSE, "-o", tmp_path / "run")
    _refused(done, "'nerf'", "dff")


@pytest.mark.parametrize("verb", ["simulate", "view"])
def test_a_folder_that_is_no_run(tmp_path: Path, verb: str) -> None:
    _refused(_afield(verb, tmp_path), "run.json")


def test_a_typo_in_an_option() -> None:
    done = _afield("demo", "--sede", "3")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_folder_of_other_things_as_output(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    _refused(_afield("demo", "--out", tmp_path), "thesis.txt")
    _refused(_afield("train", HORSE, HORSE, "-o", tmp_path), "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_masking_a_capture_with_one_box(tmp_path: Path) -> None:
    """A box in one view gives masks in all four, close to the true ones that the sample has."""
    from afield.capture import read_capture

    truth = read_capture(HORSE)
    mask = truth.views[0].mask
    assert mask is not None
    rows, columns = np.nonzero(mask)
    box = ["camera0", columns.min() - 6, rows.min() - 6, columns.max() + 6, rows.max() + 6]
    done = _afield("capture", "mask", HORSE, "-o", tmp_path / "masked", "--box", *box)
    assert done.returncode == 0, done.stderr
    for view, true in zip(read_capture(tmp_path / "masked").views, truth.views, strict=True):
        assert view.mask is not None
        assert true.mask is not None
        assert (view.mask & true.mask).sum() / (view.mask | true.mask).sum() > 0.7
    _refused(_afield("capture", "mask", HORSE, "-o", tmp_path / "no"), "box")
    _refused(_afield("capture", "mask", HORSE, "-o", tmp_path / "no", "--workspace", 1, 1, 1, 0, 0, 0), "workspace")
    far = _afield("capture", "mask", HORSE, "-o", tmp_path / "no", "--workspace", 5, 5, 5, 6, 6, 6)
    _refused(far, "No depth")
    assert not (tmp_path / "no").exists()


def test_a_demonstration_needs_a_configuration_or_a_part(tmp_path: Path) -> None:
    _refused(_afield("demonstrate", "-o", tmp_path / "demo", "--capture", HORSE), "--configuration", "--part")
    _refused(_afield("demonstrate", "-o", tmp_path / "demo", "--part", "back", "--object", "cow"), "'cow'", "horse")
    _refused(_afield("demonstrate", "-o", tmp_path / "demo", "--part", "wing", "--object", "horse"), "'wing'", "back")
    assert not (tmp_path / "demo").exists()
