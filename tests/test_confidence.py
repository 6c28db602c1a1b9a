"""The probability of success: fitted on made-up trials whose truth is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afield.artifacts import write_json
from afield.confidence import Calibration, Evidence, fit_calibration, reliability, separating_threshold, separation
from afield.errors import AfieldError


def _trials(count: int, seed: int) -> tuple[list[Evidence], list[bool]]:
    """Success depends on similarity and rehearsal alone."""
    generator = torch.Generator().manual_seed(seed)
    evidence, success = [], []
    for _ in range(count):
        similarity, energy, agreement, coin = torch.rand(4, generator=generator).tolist()
        rehearsed = float(torch.rand((), generator=generator) < 0.6)
        evidence.append(Evidence(-0.3 * similarity, 0.1 + 0.1 * energy, agreement, rehearsed))
        chance = torch.sigmoid(torch.tensor(2.0 - 6.0 * similarity + 2.0 * rehearsed))
        success.append(coin < float(chance))
    return evidence, success


def test_the_fit_finds_what_matters_and_is_calibrated_on_new_trials() -> None:
    evidence, success = _trials(600, 0)
    found = fit_calibration(evidence, success, [0.4], [0.6])
    assert found.weights[0] > 0.8
    assert found.weights[3] > 0.5
    assert abs(found.weights[1]) < 0.3
    new, truth = _trials(600, 1)
    for group in reliability([found.probability(item) for item in new], truth):
        assert group["actual"] == pytest.approx(group["predicted"], abs=0.12)
        assert group["trials"] == 120


def test_few_trials_do_not_give_certain_answers() -> None:
    evidence = [Evidence(-0.01, 0.1, 1.0, 1.0), Evidence(-0.3, 0.2, 0.0, 0.0)]
    found = fit_calibration(evidence, [True, False], [0.3], [0.4])
    assert 0.5 < found.probability(evidence[0]) < 0.95
    assert 0.05 < found.probability(evidence[1]) < 0.5


def test_the_threshold_lies_in_the_gap() -> None:
    assert separating_threshold([0.1, 0.05, 0.0], [0.4, 0.3]) == pytest.approx(0.2)
    assert separating_threshold([0.1, 0.2, 0.0, 0.05], [0.15, 0.3, 0.4, 0.5]) == pytest.approx(0.25)
    assert separating_threshold([0.1] * 19 + [0.4], [0.2, 0.3, 0.5]) == pytest.approx(0.15)


def test_separation_is_the_area_under_the_curve() -> None:
    assert separation([0.1, 0.2], [0.3, 0.4]) == 1.0
    assert separation([0.1, 0.3], [0.2, 0.3]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert separation([0.3], [0.1]) == 0.0


def test_a_calibration_survives_the_disk_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    evidence, success = _trials(50, 0)
    found = fit_calibration(evidence, success, [0.4], [0.6])
    write_json(tmp_path / "c.json", {**vars(found)})
    assert Calibration.load(tmp_path / "c.json") == found
    write_json(tmp_path / "d.json", {"weights": [1.0]})
    with pytest.raises(AfieldError, match="not a calibration"):
        Calibration.load(tmp_path / "d.json")
