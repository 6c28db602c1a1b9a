"""What failures look like: for every cause a few trials of one method, at the grasp and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from afield.artifacts import write_file
from afield.benchmark.grasp.manifest import Row
from afield.benchmark.grasp.prepare import Bench, setting_of
from afield.simulate import GraspTestConfig, simulate_grasp, world_from_capture
from afield.simulate.render import film

AT_GRASP = 15
"""Of the 24 pictures of the picking up, the one in which the fingers have closed."""


def draw_causes(
    bench: Bench, rows: Sequence[Row], records: Sequence[Mapping[str, Any]], method: str, each: int = 3
) -> list[Path]:
    """One picture per cause in the work folder's `failures`: a column per trial, the grasp above, the end below.

    Returns:
        The files that were written; fewer where no OpenGL driver works.
    """
    by_name, written = {row.name: row for row in rows}, []
    found = [record for record in records if record["method"] == method and "beta" in record]
    for cause in sorted({str(record["cause"]) for record in found}):
        columns = []
        for record in [record for record in found if record["cause"] == cause][:each]:
            pictures = _pictures(bench, by_name[record["row"]], record)
            if pictures:
                title = f"{record['row'].split('_to_')[0].split('_', 2)[2]} to {record['row'].split('_to_')[1]}"
                columns.append(_titled(np.concatenate((pictures[AT_GRASP], pictures[-1])), title.replace("_", " ")))
        if columns:
            done, data = cv2.imencode(
                ".jpg", np.concatenate(columns, axis=1)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85]
            )
            assert done, "a picture in memory can be encoded"
            file = bench.work / "failures" / f"{cause.replace(' ', '_')}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, data.tobytes())
            written.append(file)
    return written


def _pictures(bench: Bench, row: Row, record: Mapping[str, Any]) -> list[UInt8[np.ndarray, "h w 3"]]:
    setting = setting_of(bench, row, int(record["trial"]))
    world, beta = world_from_capture(setting.observation), torch.tensor(record["beta"])
    config = GraspTestConfig(stop_early=True)
    test = simulate_grasp(world, setting.hand, beta, setting.scene.points, config, progress=False)
    if not len(test.frames):  # an overlap ends the test before it begins; the picture shows it all the same
        test = simulate_grasp(world, setting.hand, beta, setting.scene.points, progress=False)
    return [cv2.resize(picture, (400, 300)) for picture in film(world, setting.hand, beta, test)]


def _titled(picture: UInt8[np.ndarray, "h w 3"], title: str) -> UInt8[np.ndarray, "k w 3"]:
    bar = np.full((28, picture.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(bar, title, (6, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate((bar, picture))
