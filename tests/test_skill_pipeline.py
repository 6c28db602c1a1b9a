import pytest
import torch
from skill_samples import box_skill

from afield.errors import AfieldError
from afield.observation import Camera, Observation, View
from afield.skill_pipeline import (
    act_from_files,
    contact_probability,
    refuse_if_unlike,
    scene_points,
    skill_from_capture,
)


def _observation() -> Observation:
    import numpy as np

    camera = Camera(40, 30, 30.0, 30.0, 19.5, 14.5, torch.eye(4))
    depth = np.full((30, 40), 0.5, dtype=np.float32)
    depth[:, :5] = 0.0
    return Observation((View("a", camera, np.zeros((30, 40, 3), np.uint8), depth),), name="wall")


@pytest.mark.parametrize(
    ("on_surface", "likeness", "words"),
    [(0.9, 0.5, None), (0.4, 0.9, "only 40%"), (0.77, 0.2, "too different"), (0.85, 0.2, None)],
)
def test_what_does_not_look_like_it_is_refused(on_surface: float, likeness: float, words: str | None) -> None:
    quality = {"on_surface": on_surface, "likeness": likeness}
    if words is None:
        refuse_if_unlike("box", "wall", quality, force=False)
        return
    with pytest.raises(AfieldError, match=words):
        refuse_if_unlike("box", "wall", quality, force=False)
    refuse_if_unlike("box", "wall", quality, force=True)


def test_points_of_the_scene_are_those_measured_near_a_place() -> None:
    points, normals = scene_points(_observation(), torch.tensor([0.0, 0.0, 0.5]))
    assert len(points) > 500
    assert float((points[:, 2] - 0.5).abs().max()) < 1e-5
    assert bool((normals[:, 2] < -0.99).all()), "towards the camera"


def test_contact_is_likely_where_points_are_taken_for_it() -> None:
    touched = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.05]])
    points = torch.tensor([[0.005, 0.0, 0.0], [0.013, 0.0, 0.05], [0.1, 0.0, 0.0]])
    found = contact_probability(points, touched)
    assert float(found[0]) > 0.5 > float(found[1]) > 0.0
    assert float(found[2]) == 0.0


def test_wrong_requests_are_refused(tmp_path) -> None:
    with pytest.raises(AfieldError, match="no solver 'magic'"):
        act_from_files(box_skill(), tmp_path, solver="magic")
    with pytest.raises(AfieldError, match="no capture"):
        skill_from_capture(tmp_path / "nothing")
