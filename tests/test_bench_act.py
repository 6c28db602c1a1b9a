"""Shown once, done elsewhere, in physics: the benchmark's own parts, and one small run of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afield.artifacts import read_json
from afield.benchmark import act_bench
from afield.benchmark.act_bench import ActBenchConfig, joint_flow, markdown, summarize
from afield.capture.furniture import Furniture, joint_motion
from afield.errors import AfieldError


@pytest.mark.parametrize("kind", ["microwave", "drawer", "laptop"])
def test_closing_undoes_opening(kind: str) -> None:
    """The flow that closes begins where a part that was opened so far is, and ends at rest."""
    item = Furniture.random(kind, 3)
    opened = 0.8 * item.travel
    rest = joint_flow(item, 0.0, 200, 0)
    closing = joint_flow(item, opened, 200, 0)
    there = closing.start + closing.displacement[:, -1]
    torch.testing.assert_close(there, rest.start, atol=1e-5, rtol=1e-4)
    motion = torch.from_numpy(joint_motion(item, opened)).float()
    moves = (closing.start - rest.start).norm(dim=-1) > 1e-6
    expected = rest.start @ motion[:3, :3].T + motion[:3, 3]
    torch.testing.assert_close(closing.start[moves], expected[moves], atol=1e-5, rtol=1e-4)
    assert 20 < int(moves.sum()) < 180
    assert float(closing.displacement[~moves].abs().max()) < 1e-6


def test_rates_are_by_task_and_failures_have_causes() -> None:
    done = {"task": "open drawer", "success": True, "cause": None, "axis_deg": 1.0, "contact_to_handle_cm": 2.0}
    trials = [
        done,
        {**done, "axis_deg": 3.0},
        {**done, "task": "close drawer", "success": False, "cause": "blocked", "second": done},
        {"task": "close drawer", "success": False, "cause": "refused", "failure": "nothing like it"},
    ]
    result = summarize(trials)
    assert result["success"] == 0.5 and result["count"] == 4
    assert result["tasks"]["open drawer"]["success"] == 1.0 and result["tasks"]["open drawer"]["axis_deg"] == 2.0
    assert result["causes"] == {"blocked": 1, "refused": 1}
    text = markdown(result)
    assert result["tasks"]["close drawer"]["done"] == 0 and result["tasks"]["close drawer"]["second_done"] == 1
    assert "| open drawer | 2 of 2 |" in text and "blocked 1, refused 1" in text


def test_only_what_has_not_moved_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    first = {"success": False, "cause": "blocked", "moved": 0.0, "threshold": 0.4}
    outcome = {
        0: first,
        1: {**first, "moved": 0.3},
        2: {**first, "cause": "refused"},
        3: {"success": True, "cause": None},
    }

    def trial(skill: object, task: str, kind: str, seed: int, alternative: int = 0) -> dict[str, object]:
        seen.append((seed, alternative))
        return {"task": "open drawer", **(outcome[3] if alternative else outcome[seed])}

    monkeypatch.setattr(act_bench, "_trial", trial)
    monkeypatch.setattr(act_bench, "make_skill", lambda *given: None)
    result = act_bench.run(ActBenchConfig(tasks=("open drawer",), instances=4, out=tmp_path), progress=False)
    assert seen == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]
    assert result["done"] == 1 and result["second_done"] == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ActBenchConfig(tasks=("fold microwave",)), "There is no task 'fold microwave'"),
        (ActBenchConfig(tasks=("open door",)), "There is no task 'open door'"),
        (ActBenchConfig(instances=0), "0 instances are too few"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(config: ActBenchConfig, words: str) -> None:
    with pytest.raises(AfieldError, match=words):
        act_bench.run(config, progress=False)


@pytest.mark.slow
def test_a_drawer_shown_once_is_closed_elsewhere_and_not_closed_twice(tmp_path: Path) -> None:
    config = ActBenchConfig(tasks=("close drawer",), instances=1, out=tmp_path)
    result = act_bench.run(config, progress=False)
    assert result["success"] == 1.0, result["trials"]
    (file,) = (tmp_path / "trials").iterdir()
    changed = file.stat().st_mtime_ns
    assert act_bench.run(config, progress=False)["trials"] == result["trials"]
    assert file.stat().st_mtime_ns == changed and read_json(file)["success"]
