from pathlib import Path

import numpy as np
import pytest
import torch

from afield.artifacts import read_json
from afield.errors import AfieldError
from afield.fields.affordance_grid import GridAffordance, GridConfig
from afield.fields.affordance_neus import NeusAffordance, NeusConfig
from afield.skills import DescriptorBasis, Skill


def _skill(backend: str) -> Skill:
    torch.manual_seed(0)
    small = GridAffordance(GridConfig(resolution=16, detail=8, channels=4, horizon=3))
    field = small if backend == "grid" else NeusAffordance(NeusConfig(channels=4, horizon=3, latent=64, hash_size=64))
    basis = DescriptorBasis("color", torch.zeros(3), torch.rand(3, 4))
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    return Skill(
        "cup", "lift the cup", field, torch.tensor([0.1, 0.2, 0.3]), 0.25, basis, -0.9, "push", picture, {"seed": 4}
    )


@pytest.mark.parametrize("backend", ["grid", "neus"])
def test_a_skill_is_the_same_after_writing_and_reading(tmp_path: Path, backend: str) -> None:
    skill = _skill(backend)
    skill.save(tmp_path / "skill")
    again = Skill.load(tmp_path / "skill")
    points = torch.rand(20, 3) - 0.5
    torch.testing.assert_close(again.field.sdf(points), skill.field.sdf(points))
    for one, other in zip(again.field.appearance(points), skill.field.appearance(points), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(again.field.flow(points)[0], skill.field.flow(points)[0])
    torch.testing.assert_close(torch.as_tensor(again.field.sharpness), torch.as_tensor(skill.field.sharpness))
    assert (again.name, again.narration, again.scale, again.floor, again.mode) == (
        "cup", "lift the cup", 0.25, -0.9, "push",
    )  # fmt: skip
    assert again.picture is not None
    assert skill.picture is not None
    assert (again.picture == skill.picture).all()
    assert again.provenance == {"seed": 4}
    assert Skill.is_skill(tmp_path / "skill")
    assert not Skill.is_skill(tmp_path)
    skill.save(tmp_path / "skill")  # replaces itself


def test_damaged_skills_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AfieldError, match="no skill"):
        Skill.load(tmp_path / "nothing")
    _skill("grid").save(tmp_path / "skill")
    file = tmp_path / "skill" / "afield.json"
    header = read_json(file)
    text = file.read_text()
    file.write_text(text.replace('"backend": "grid"', '"backend": "splats"'))
    with pytest.raises(AfieldError, match="splats"):
        Skill.load(tmp_path / "skill")
    assert header["config"]["detail"] == 8
    file.write_text(text.replace('"detail": 8', '"detail": 9'))
    with pytest.raises(AfieldError, match="do not fit"):
        Skill.load(tmp_path / "skill")


def test_contact_points_are_the_probable_ones_or_the_best_fiftieth(tmp_path: Path) -> None:
    skill = _skill("grid")
    assert len(skill.contact_points(1000)) == 20  # nothing is probable yet: contact starts at sigmoid(-3)
    with torch.no_grad():
        assert isinstance(skill.field, GridAffordance)
        skill.field.looks[3, :, :, 5:] = 9.0  # the +x side
    points = skill.contact_points(1000)
    assert len(points) > 20
    assert float(points[:, 0].min()) > 0.2
