"""From a run folder's content to its report: computes the panels, then writes the page and the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from afield.attend import attend
from afield.energy import FeatureTerm, HandState, subset_points
from afield.fields.baked import BakedField
from afield.fields.base import AttentiveField
from afield.pretrain import FieldModel, train_field
from afield.run import Run
from afield.scene import Scene, farthest_points
from afield.view.figures import write_figures
from afield.view.panels import (
    AttentionPanel,
    EnergySection,
    ReportPanels,
    SectionPlane,
    chosen_hand_points,
    energy_section,
    joint_feature_colors,
    section_planes,
)
from afield.view.report import write_report

COMPARED_WITH = "sparsedff"
"""The field that stands beside the run's own in the energy sections, as in Fig. 4."""
SECTION_POINTS = 64
"""Query points of the energy sections; the hand is moved over thousands of places."""
LEFT_OUT = 0.75
"""Gray of the points that the gate left out."""
SECTION_REACH = 0.2
"""The sections end this far from the palm, in metres."""


def write_run_report(
    folder: Path,
    run: Run,
    test: Mapping[str, Any] | None = None,
    *,
    frames: Sequence[np.ndarray] = (),
    appendix: tuple[str, str] = ("", ""),
    progress: bool = True,
) -> Path:
    """Write `report.html` and `figures/*.png` of a run.

    Args:
        folder: the run folder.
        run: its content.
        test: what the physics test found, as its `to_json()` gives it; None if there was none.
        frames: pictures of the physics test in order of time, 8-bit RGB.
        appendix: more sections of the page, and their script elements.
        progress: show a progress bar.

    Returns:
        The path of the page.

    Raises:
        AfieldError: the packages for reports are missing, or a file cannot be written.
    """
    with tqdm(total=3, desc="report", unit="part", disable=not progress) as bar:
        panels = replace(run_panels(run), frames=tuple(frames))
        bar.update()
        inputs = {
            "hand": run.hand,
            "demonstration": run.demonstration,
            "scene": run.scene,
            "grasp": run.grasp,
            "panels": panels,
        }
        page = Path(folder) / "report.html"
        write_report(
            page,
            **inputs,
            test=test,
            notes={"seconds": dict(run.seconds), "field": run.model.describe()},
            appendix=appendix,
        )
        bar.update()
        write_figures(Path(folder) / "figures", **inputs)
        bar.update()
    return page


def run_panels(run: Run) -> ReportPanels:
    """Attention and energy sections of a run, with the gate, centering and geometry channel the run was made with."""
    models = {run.model.kind: run.model}
    if run.model.kind != COMPARED_WITH:
        # It learns from the two scenes' own views; without views it is the plain interpolation.
        models[COMPARED_WITH] = train_field([run.demonstration.scene, run.scene], kind=COMPARED_WITH, progress=False)
    vertical, horizontal = section_planes(run.hand, run.grasp.beta)
    energies = {kind: _feature_energy(run, model) for kind, model in models.items()}
    sections = [_section(run, energies[kind], kind, plane) for plane in (vertical, horizontal) for kind in models]
    return ReportPanels(attention=_attention(run), sections=tuple(sections), field_colors=_field_colors(run))


def _field_colors(run: Run) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "m 3"]]:
    gate, center, _ = _switches(run)
    parts = attend(run.demonstration, run.scene, run.model, run.hand, use_gate=gate, center=center)
    colors = joint_feature_colors(parts[0].scene.features, parts[1].scene.features)
    filled = []
    for full, part, kept in zip((run.demonstration.scene, run.scene), parts, colors, strict=True):
        every = torch.full((len(full.points), 3), LEFT_OUT)
        every[_positions(part.scene, full)] = kept
        filled.append(every)
    return filled[0], filled[1]


def _switches(run: Run) -> tuple[bool, bool, bool]:
    """Whether the run used the gate, centering and the geometry channel."""
    config = run.grasp.provenance.get("config", {})
    return bool(config.get("gate", True)), bool(config.get("center", True)), bool(config.get("geometry", True))


def _feature_energy(run: Run, model: FieldModel) -> Callable[[Float[Tensor, "b d"]], Float[Tensor, "b"]]:
    """Eq. 7 alone, with the field looked up on a grid and fewer query points."""
    gate, center, geometry = _switches(run)
    shown, here = attend(run.demonstration, run.scene, model, run.hand, use_gate=gate, center=center)
    points = run.demonstration.points
    if len(points.link) > SECTION_POINTS:
        points = subset_points(points, farthest_points(points.points_link, SECTION_POINTS, seed=0))
    with torch.no_grad():
        goal = model.build(shown.scene, geometry=geometry)(run.hand.place(points, run.demonstration.beta))
    baked = BakedField.around(model.build(here.scene, geometry=geometry), here.scene)
    term = FeatureTerm(baked, goal)

    def energy(beta: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        return term(HandState.of(run.hand, points, beta))

    return energy


def _section(
    run: Run, energy: Callable[[Float[Tensor, "b d"]], Float[Tensor, "b"]], kind: str, plane: SectionPlane
) -> EnergySection:
    bottom = -SECTION_REACH
    if plane.name == "vertical" and run.scene.table is not None:  # nothing is to be seen below the table
        height = float(plane.center @ run.scene.table.normal.to(plane.center)) - run.scene.table.offset
        bottom = max(bottom, min(-0.05, -height - 0.01))
    extent = (-SECTION_REACH, SECTION_REACH, bottom, SECTION_REACH)
    return energy_section(energy, run.grasp.beta, plane, name=kind, extent=extent)


def _attention(run: Run) -> tuple[AttentionPanel, ...]:
    gate, center, _ = _switches(run)
    prepared = attend(run.demonstration, run.scene, run.model, run.hand, use_gate=gate, center=center)
    fields = [run.model.build(part.scene, geometry=False) for part in prepared]
    places = (run.demonstration.query_points(run.hand), run.hand.place(run.demonstration.points, run.grasp.beta))
    contact = torch.cdist(places[0], run.demonstration.scene.points).amin(dim=-1)
    labels, index = chosen_hand_points(run.hand, run.demonstration.points, contact)
    weights = []
    for field, part, place, full in zip(fields, prepared, places, (run.demonstration.scene, run.scene), strict=True):
        if not isinstance(field, AttentiveField):
            return ()
        with torch.no_grad():
            found = field.weights(place[index])
        every = torch.zeros(len(index), len(full.points)).to(found)
        every[:, _positions(part.scene, full)] = found
        weights.append(every)
    return tuple(
        AttentionPanel(label, places[0][i], places[1][i], weights[0][k], weights[1][k])
        for k, (label, i) in enumerate(zip(labels, index.tolist(), strict=True))
    )


def _positions(part: Scene, full: Scene) -> Int[Tensor, "k"]:
    """Where the points that the gate kept are in the whole scene."""
    return torch.cdist(part.points, full.points).argmin(dim=-1)
