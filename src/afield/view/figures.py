"""The figures of a run as PNG files, for papers, slides and the README."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from afield.artifacts import write_file
from afield.demonstration import Demonstration
from afield.errors import AfieldError
from afield.hand import Hand
from afield.result import Grasp
from afield.scene import Scene
from afield.view.hand_mesh import hand_mesh
from afield.view.page_data import SLAB, WIDE_SLAB, points_in_section, start_groups
from afield.view.painter import Balls, Surface, render
from afield.view.panels import EnergySection, ReportPanels, attention_ratio, joint_feature_colors, palm_position
from afield.view.stage import stages_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

HAND = (0.25, 0.50, 0.76)
PATH = (0.12, 0.62, 0.33)
MARK = "#b0171f"
POINT_RADIUS = 0.0032
"""Radius in metres with which a scene point is drawn."""
PIXELS, SMALL = (600, 540), (400, 360)
TERMS = ("#2c6cb0", "#d1642b", "#9467d8", "#1f9d55", "#b8871b", "#c2458f")
STARTS = ("#b9c1cc", "#cc9f3d", "#2c6cb0")
ATTENTION_COLORS = ((0.0, "#b9c1cc"), (0.34, "#b9c1cc"), (0.55, "#f2c14e"), (0.78, "#ee6c2f"), (1.0, "#b0171f"))
LIFTED_PICTURE = 23
"""Of the film: the last picture before the pushes."""


def write_figures(
    folder: Path,
    *,
    hand: Hand,
    demonstration: Demonstration,
    scene: Scene,
    grasp: Grasp,
    panels: ReportPanels | None = None,
    resolution: int = 160,
) -> list[Path]:
    """Draw a run's figures on white.

    Args:
        folder: where to write; made if it is not there.
        hand: the hand.
        demonstration: what was repeated.
        scene: the target scene with its raw features.
        grasp: the result with its history.
        panels: attention and energy sections; a figure without data is left out.
        resolution: pixels per inch.

    Returns:
        The files: `overview.png`, `features.png`, `energy.png`, and with panels `attention.png`, `sections.png`.

    Raises:
        AfieldError: matplotlib is missing, or a file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise AfieldError("Figures need matplotlib: pip install 'afield[report]'.") from error
    panels = panels or ReportPanels()
    pictures = _Pictures(hand, demonstration, scene, grasp)
    figures = {
        "overview": _overview(pictures, panels),
        "features": _features(pictures, panels),
        "energy": _energy(grasp),
    }
    if panels.attention:
        figures["attention"] = _attention(pictures, panels)
    if panels.sections:
        figures["sections"] = _sections(pictures, panels.sections)
    written = []
    for name, figure in figures.items():
        FigureCanvasAgg(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=resolution, facecolor="white", bbox_inches="tight", pad_inches=0.08)
        written.append(folder / f"{name}.png")
        write_file(written[-1], picture.getvalue())
    return written


class _Pictures:
    """Renders the demonstrated scene and the target scene with their hands."""

    def __init__(self, hand: Hand, demonstration: Demonstration, scene: Scene, grasp: Grasp):
        self.hand, self.demonstration, self.grasp = hand, demonstration, grasp
        self.scenes = {"demo": demonstration.scene, "target": scene}
        self.beta = {"demo": demonstration.beta, "target": grasp.beta}
        placed = ((demonstration.scene, demonstration.beta), (scene, grasp.beta))
        first, second = stages_for(hand, demonstration.points, placed)
        self.stages = {"demo": first, "target": second}
        self._mesh = hand_mesh(hand, cell=0.0012)

    def draw(
        self,
        axes: Axes,
        which: str,
        *,
        colors: Float[Tensor, "n 3"] | None = None,
        with_hand: bool = True,
        path: bool = False,
    ) -> None:
        """Draw one scene into matplotlib axes, in the scene's own colors unless others are given."""
        scene, stage = self.scenes[which], self.stages[which]
        things: list[Balls | Surface] = [Balls(scene.points, scene.colors if colors is None else colors, POINT_RADIUS)]
        if with_hand:
            things.append(self._hand(self.beta[which]))
        if path and len(self.grasp.history.beta) > 1:
            things.append(_line(palm_position(self.hand, self.grasp.history.beta), PATH, 0.0032))
        axes.imshow(render(things, stage, *PIXELS), interpolation="antialiased")
        axes.set_axis_off()

    def draw_attention(
        self, axes: Axes, which: str, ratio: Float[Tensor, "n"], colormap: Colormap, point: Tensor
    ) -> None:
        """Draw one hand point and what it looks at; ignored points are small, so that both sides of a body are seen."""
        scene = self.scenes[which]
        colors = torch.from_numpy(colormap((ratio.cpu().numpy() + 1) / 3)[:, :3]).float()
        groups = [Balls(point.cpu()[None], torch.tensor([PATH]), 0.006)]
        for low, high, radius in ((-1.1, 0.2, 0.0014), (0.2, 0.8, 0.0028), (0.8, 2.1, 0.0042)):
            chosen = (ratio >= low) & (ratio < high)
            groups.append(Balls(scene.points[chosen], colors[chosen.cpu()], radius, flat=high < 0.3))
        axes.imshow(render(groups, self.stages[which], *SMALL), interpolation="antialiased")
        axes.set_axis_off()

    def _hand(self, beta: Float[Tensor, "d"]) -> Surface:
        with torch.no_grad():
            return Surface(self._mesh.pose(self.hand.link_poses(beta)).cpu(), self._mesh.faces, HAND)


def _line(points: Float[Tensor, "n 3"], color: tuple[float, float, float], radius: float) -> Balls:
    """A polyline as a chain of balls, one for each millimetre."""
    points = points.detach().cpu()
    parts = [points[-1:]]
    for first, second in itertools.pairwise(points):
        count = int(float((second - first).norm()) / 0.001) + 1
        parts.append(first + (second - first) * torch.linspace(0, 1, count + 1)[:-1, None])
    chain = torch.cat(parts)
    return Balls(chain, torch.tensor([color]).expand(len(chain), 3), radius)


def _figure(columns: int, rows: int = 1, width: float = 3.6, height: float = 3.3) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _heading(axes: Axes, title: str, below: str = "") -> None:
    axes.set_title(title, fontsize=11, fontweight="bold", loc="left", pad=18 if below else 6)
    if below:
        axes.text(0.0, 1.02, below, transform=axes.transAxes, fontsize=8.5, color="#5b6675", va="bottom")


def _overview(pictures: _Pictures, panels: ReportPanels) -> Figure:
    vertical = [section for section in panels.sections if section.plane.name == "vertical"][: 1 if panels.frames else 2]
    figure, axes = _figure(2 + bool(panels.frames) + len(vertical))
    pictures.draw(axes[0, 0], "demo")
    _heading(axes[0, 0], "Shown once", pictures.demonstration.scene.name.replace("_", " "))
    pictures.draw(axes[0, 1], "target", path=True)
    _heading(axes[0, 1], "Repeated here", f"{pictures.scenes['target'].name.replace('_', ' ')}; green: the palm's path")
    if panels.frames:
        lifted = panels.frames[min(LIFTED_PICTURE, len(panels.frames) - 1)]
        side = min(lifted.shape[:2])
        left = (lifted.shape[1] - side) // 2
        axes[0, 2].imshow(lifted[:side, left : left + side], interpolation="antialiased")
        axes[0, 2].set_axis_off()
        _heading(axes[0, 2], "Tried in physics", "lifted, before the six pushes")
    for axis, section in zip(axes[0, 2 + bool(panels.frames) :], vertical, strict=True):
        _draw_section(axis, section, pictures.scenes["target"])
        _heading(axis, f"Energy, {section.field}", "vertical section; yellow: the hand belongs here")
    return figure


def _features(pictures: _Pictures, panels: ReportPanels) -> Figure:
    rows = [(joint_feature_colors(pictures.scenes["demo"].features, pictures.scenes["target"].features), "feature")]
    if panels.field_colors is not None:
        rows.append((panels.field_colors, "feature that the field keeps"))
    figure, axes = _figure(2, len(rows))
    for row, (colors, words) in enumerate(rows):
        for column, which in enumerate(("demo", "target")):
            pictures.draw(axes[row, column], which, colors=colors[column], with_hand=False)
            _heading(axes[row, column], pictures.scenes[which].name.replace("_", " "), f"same color: same {words}")
    return figure


def _attention(pictures: _Pictures, panels: ReportPanels) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colormap = LinearSegmentedColormap.from_list("attention", ATTENTION_COLORS)
    figure, axes = _figure(len(panels.attention), 2, width=2.4, height=2.3)
    for column, panel in enumerate(panels.attention):
        pictures.draw_attention(
            axes[0, column], "demo", attention_ratio(panel.weights_demo), colormap, panel.point_demo
        )
        pictures.draw_attention(
            axes[1, column], "target", attention_ratio(panel.weights_target), colormap, panel.point_target
        )
        _heading(axes[0, column], panel.label)
    for row, which in enumerate(("demo", "target")):
        name = pictures.scenes[which].name.replace("_", " ")
        axes[row, 0].text(
            -0.03, 0.5, name, rotation=90, transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=10
        )
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 2), colormap), ax=axes, shrink=0.5, ticks=(-1, 0, 1, 2))
    bar.ax.set_yticklabels(("0.1 x", "average", "10 x", "100 x"), fontsize=9)
    bar.ax.set_title("attention", fontsize=9, loc="left")
    bar.outline.set_visible(False)
    return figure


def _sections(pictures: _Pictures, sections: Sequence[EnergySection]) -> Figure:
    planes = list(dict.fromkeys(section.plane.name for section in sections))
    fields = list(dict.fromkeys(section.field for section in sections))
    figure, axes = _figure(len(fields), len(planes))
    for section in sections:
        axis = axes[planes.index(section.plane.name), fields.index(section.field)]
        _draw_section(axis, section, pictures.scenes["target"])
        away = 100 * float(section.lowest.norm())
        _heading(
            axis,
            f"{section.field}, {section.plane.name}",
            f"lowest {away:.0f} cm from the palm; yellow {section.basin:.0f} cm²",
        )
    return figure


def _draw_section(axes: Axes, section: EnergySection, scene: Scene) -> None:
    """One section with the scene points near its plane; yellow is low, as in Fig. 4."""
    across, up = 100 * section.across.numpy(), 100 * section.up.numpy()
    axes.imshow(
        section.scaled.numpy(),
        origin="lower",
        extent=(float(across[0]), float(across[-1]), float(up[0]), float(up[-1])),
        cmap="viridis_r",
        vmin=0,
        vmax=1,
        interpolation="bicubic",
    )
    beside = 100 * points_in_section(section, scene, SLAB, WIDE_SLAB)
    near = 100 * points_in_section(section, scene, 0.0, SLAB)
    axes.scatter(beside[:, 0], beside[:, 1], s=4, color="white", alpha=0.4, linewidths=0)
    axes.scatter(near[:, 0], near[:, 1], s=9, color="white", edgecolors="#222222", linewidths=0.4)
    low = 100 * section.lowest
    axes.scatter([float(low[0])], [float(low[1])], s=110, facecolors="none", edgecolors=MARK, linewidths=2)
    axes.scatter([0], [0], s=70, marker="X", color=HAND, edgecolors="white", linewidths=1)
    axes.set_xlim(float(across[0]), float(across[-1]))
    axes.set_ylim(float(up[0]), float(up[-1]))
    axes.set_xlabel("across the fingers (cm)", fontsize=9)
    axes.set_ylabel("height (cm)" if section.plane.name == "vertical" else "along the fingers (cm)", fontsize=9)
    axes.tick_params(labelsize=8, length=2)


def _energy(grasp: Grasp) -> Figure:
    figure, axes = _figure(2, width=4.6, height=3.2)
    history = grasp.history
    left, right = axes[0]
    steps = history.step.numpy()
    total = torch.stack(list(history.terms.values())).sum(dim=0)
    left.plot(steps, total.numpy(), color="#1c2430", linewidth=2.4, label="total")
    for number, (name, values) in enumerate(history.terms.items()):
        if bool((values > 0).any()):
            seen = torch.where(values > 0, values, torch.nan).numpy()
            left.plot(steps, seen, linewidth=1.3, color=TERMS[number % len(TERMS)], label=name.replace("_", " "))
    first = 0
    for stage in history.stages[:-1]:
        first += int(stage["steps"])
        left.axvline(first, color="#d9dee5", linewidth=1, zorder=0)
    left.set_yscale("log")
    left.set_ylim(bottom=max(1e-9, float(total.min()) * 1e-4))
    left.set_xlabel("optimizer step")
    left.set_ylabel("energy")
    left.legend(frameon=False, fontsize=8)
    carried = grasp.provenance.get("alignment", {}).get("carried")
    _heading(left, "Energy of the carried hand, kept as it is" if carried else "Energy along the winning path")
    groups = start_groups(history)
    for number, group in enumerate(groups):
        color = STARTS[max(0, min(2, number + 4 - len(groups)))]
        star = {"marker": "*", "s": 150, "color": PATH, "zorder": 3} if group["winner"] else {"s": 18, "color": color}
        right.scatter(group["rank"], group["energy"], label=group["name"], **star)
    right.set_xlabel("starts, from best to worst")
    right.set_ylabel("last energy")
    right.legend(frameon=False, fontsize=8)
    _heading(right, "Where all starts ended")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    return figure
