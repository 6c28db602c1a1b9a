from __future__ import annotations

import pytest
import torch
from scene_samples import SOURCE, three_blobs

from afield.fields.prepare import center_features, gate, relevance
from afield.scene import Scene


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_gate_keeps_the_whole_object_that_resembles_the_region(number: int) -> None:
    scene = three_blobs(0.03)
    wanted = torch.eye(8)[number : number + 1]
    kept = gate(scene, relevance(scene, wanted))
    assert len(kept.points) == 120
    torch.testing.assert_close(kept.points, scene.points[number * 120 : (number + 1) * 120])


def test_stray_points_are_never_the_object() -> None:
    scene = three_blobs(0.03)
    stray = scene.select(torch.arange(3))
    moved = torch.tensor([0.0, 1.0, 0.0])
    scores = torch.cat((torch.linspace(0, 1, 360), torch.full((3,), 5.0)))
    both = Scene(
        torch.cat((scene.points, stray.points + moved)),
        torch.cat((scene.features, stray.features)),
        torch.cat((scene.colors, stray.colors)),
        torch.cat((scene.normals, stray.normals)),
        SOURCE,
    )
    assert float(gate(both, scores).points[:, 1].max()) < 0.5


def test_centering_removes_what_all_points_share() -> None:
    scene = three_blobs(0.03)
    shared = scene.with_features(torch.nn.functional.normalize(scene.features + 5.0, dim=-1))
    centered = center_features(shared).features
    torch.testing.assert_close(centered.norm(dim=-1), torch.ones(360))
    before = (shared.features[:120] @ shared.features[120:240].T).mean()
    after = (centered[:120] @ centered[120:240].T).mean()
    assert float(before) > 0.9
    assert float(after) < 0.0
