from __future__ import annotations

import torch

from afield.optimize import AdamConfig, best_distinct, minimize_adam


def _bowl(beta: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Two parabolas, centred on +1 and -1; the second is lifted by 0.1."""
    first = (beta - 1).square().sum(-1)
    second = (beta + 1).square().sum(-1) + 0.1
    total = torch.minimum(first, second)
    return total, {"total": total}


def test_every_start_finds_its_own_minimum() -> None:
    starts = torch.tensor([[2.0, 2.0], [-2.0, -1.5], [0.3, 0.2]])
    trace = minimize_adam(_bowl, starts, AdamConfig(steps=300, learning_rate=5e-2))
    expected = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0]])
    torch.testing.assert_close(trace.final, expected, atol=5e-3, rtol=0)
    assert trace.beta.shape == (301, 3, 2)
    torch.testing.assert_close(trace.beta[0], starts)
    torch.testing.assert_close(trace.final_energy, torch.tensor([0.0, 0.1, 0.0]), atol=1e-3, rtol=0)


def test_starts_do_not_influence_each_other(generator: torch.Generator) -> None:
    starts = torch.randn(5, 4, generator=generator)
    together = minimize_adam(_bowl, starts, AdamConfig(steps=50))
    for index in range(5):
        alone = minimize_adam(_bowl, starts[index : index + 1], AdamConfig(steps=50))
        torch.testing.assert_close(together.beta[:, index], alone.beta[:, 0])


def test_a_start_that_turns_bad_does_not_win() -> None:
    def cliff(beta: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total = torch.where(beta[:, 0] < 0, beta[:, 0] * torch.nan, beta[:, 0].square())
        return total, {"cliff": total}

    trace = minimize_adam(cliff, torch.tensor([[-1.0], [0.5]]), AdamConfig(steps=20))
    assert int(trace.final_energy.argmin()) == 1
    assert torch.isinf(trace.final_energy[0])
    assert torch.isfinite(trace.final).all()


def test_the_best_configuration_of_the_path_is_kept() -> None:
    # A step size far too large overshoots, so the last step is not the best one.
    trace = minimize_adam(
        _bowl, torch.tensor([[1.001]]), AdamConfig(steps=7, learning_rate=0.5, final_learning_rate=0.5)
    )
    assert float(trace.final_energy[0]) == float(trace.energy.min())
    assert float(trace.energy[-1, 0]) > float(trace.final_energy[0])


def test_progress_is_reported_once_per_step() -> None:
    seen = []
    minimize_adam(_bowl, torch.zeros(1, 1), AdamConfig(steps=9), on_step=lambda: seen.append(1))
    assert len(seen) == 9


def test_distinct_minima_are_preferred_and_then_filled_up() -> None:
    position = torch.tensor([0.0, 0.001, 0.5, 1.0])
    energy = torch.tensor([1.0, 0.9, 3.0, 2.0])
    distance = (position[:, None] - position[None]).abs()
    assert best_distinct(energy, distance, 2, apart=0.1).tolist() == [1, 3]
    assert best_distinct(energy, distance, 3, apart=0.1).tolist() == [1, 3, 2]
    assert best_distinct(energy, distance, 4, apart=0.1).tolist() == [1, 0, 3, 2]
    assert best_distinct(energy, distance, 9, apart=0.1).tolist() == [1, 0, 3, 2]
