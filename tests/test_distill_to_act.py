"""A video of a hand is enough: what it shows is done to another object, by an arm, in physics."""

from __future__ import annotations

from pathlib import Path

import pytest

from afield.benchmark.distill_bench import object_box, truth_reference
from afield.capture.folder import write_capture
from afield.capture.furniture import Furniture, photograph_scene, random_scene
from afield.capture.hand_tasks import task_by_name
from afield.capture.hand_videos import VideoConfig, load_truth, render_video
from afield.capture.household import FurnitureThing
from afield.capture.opengl import draw_elsewhere
from afield.distill.from_video import DistillConfig, distill_video
from afield.perception.hands import hand_models
from afield.skill_pipeline import act_from_files, execute_run


@pytest.mark.slow
def test_a_drawer_opens_as_a_hand_has_shown_on_another_one(tmp_path: Path) -> None:
    hand_models()  # `make setup` installs them; their absence is a failure here, not a reason to skip
    video = draw_elsewhere(render_video, tmp_path / "video", VideoConfig(task="open_drawer"), progress=False)
    # The box is the only help; the truth beside the video stands in for the person who draws it.
    frame = truth_reference(tmp_path)
    config = DistillConfig(box=object_box(load_truth(tmp_path / "video" / "truth"), frame), prompt_frame=frame)
    found = distill_video(video, "open the drawer", tmp_path / "distilled", config, progress=False)
    assert found.skill is not None and not found.skill.metric

    placed, camera = random_scene(Furniture.random("drawer", 3), 3)
    shown = task_by_name("open_drawer").thing
    assert isinstance(shown, FurnitureThing)
    assert abs(placed.item.width / shown.item.width - 1) > 0.2  # another one, and not only by its colour
    write_capture(draw_elsewhere(photograph_scene, placed, camera), tmp_path / "elsewhere")
    run = act_from_files(found.skill, tmp_path / "elsewhere", progress=False)
    assert run.joint.kind == "prismatic"
    run.save(tmp_path / "act")
    test = execute_run(tmp_path / "act", progress=False)
    assert test.success, test.failure
    assert test.moved > test.threshold
