"""Make the captures of the second half of the demo: a microwave that is shown, and other ones that a robot sees.

python scripts/make_skill_samples.py
"""

import math
from pathlib import Path

from afield.benchmark.fit_bench import true_flow
from afield.capture import write_capture
from afield.capture.furniture import (
    Furniture,
    PlacedFurniture,
    front_camera,
    photograph_furniture,
    photograph_scene,
    ring_cameras,
)
from afield.capture.opengl import draw_elsewhere
from afield.distill.label_files import Shown, write_shown
from afield.distill.labels import Labels

CAPTURES = Path(__file__).parents[1] / "src" / "afield" / "samples" / "captures"

SHOWN = Furniture(kind="microwave")
ELSEWHERE = {
    "microwave_elsewhere": PlacedFurniture(
        Furniture(
            kind="microwave",
            width=0.34,
            depth=0.25,
            height=0.20,
            body_color=(0.62, 0.18, 0.16),
            part_color=(0.16, 0.15, 0.16),
            handle_color=(0.62, 0.62, 0.64),
            seed=11,
        ),
        x=0.05,
        y=0.04,
        yaw=0.35,
    ),
}


def main() -> None:
    """Write all of them."""
    observation, handles = draw_elsewhere(
        photograph_furniture, SHOWN, ring_cameras(SHOWN, 12, 160), name="microwave_shown"
    )
    folder = CAPTURES / "microwave_shown"
    write_capture(observation, folder)
    labels = Labels(tuple(handles), None, 0.0, true_flow(SHOWN, 500, 0))
    write_shown(folder, observation, Shown(labels, "open the microwave"))
    print(folder)
    for name, placed in ELSEWHERE.items():
        camera = front_camera(placed, sideways=math.radians(-35.0), distance=0.65, above=0.3)
        write_capture(draw_elsewhere(photograph_scene, placed, camera, name=name), CAPTURES / name)
        print(CAPTURES / name)


if __name__ == "__main__":
    main()
