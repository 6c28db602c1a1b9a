"""Show a grasp on the horse, repeat it on the cat in clutter, and print it in a robot's words.

    python examples/01_repeat_a_grasp.py

With `--test` it uses colour instead of DINOv2 and a short search, to check that the example runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import tyro

import afield
from afield.demo import SAMPLES
from afield.hand import hand_configuration_from_json
from afield.transfer import Stage


def main(test: bool = False, seed: int = 0) -> None:
    """Run the example.

    Args:
        test: quick check without network weights.
        seed: of everything random.
    """
    extractor = "color" if test else "dinov2-s-embedded"
    hand = afield.hand_by_name("shadow")

    shown = afield.scene_from_capture(SAMPLES / "captures" / "horse", extractor=extractor, seed=seed)
    beta = hand_configuration_from_json(SAMPLES / "demonstrations" / "horse_back.json", hand)
    demonstration = afield.demonstrate("horse_back", hand, beta, shown, seed=seed)

    field = afield.train_field([shown], kind="dff", seed=seed)
    target = afield.scene_from_capture(Path(SAMPLES / "captures" / "cat_in_clutter"), extractor=extractor, seed=seed)
    config = afield.TransferConfig(seed=seed)
    if test:
        config = afield.TransferConfig(stages=(Stage(4, 5, 32, 64, True), Stage(2, 3, 32, 64, False)), seed=seed)
    grasp = afield.transfer_grasp(demonstration, target, field, hand, config)
    print(json.dumps(grasp.describe(hand), indent=2))


if __name__ == "__main__":
    tyro.cli(main)
