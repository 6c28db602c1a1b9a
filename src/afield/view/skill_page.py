"""The page of a skill, and of what a robot made of it: what was shown, where it was found, how the arm did it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from afield.artifacts import write_file
from afield.errors import AfieldError
from afield.observation import Observation, View
from afield.skill_run import SkillRun
from afield.skills import Skill
from afield.view.page_data import jpeg
from afield.view.skill_pictures import CONTACT, PATH, found, gripper_lines, modalities

Picture = UInt8[np.ndarray, "h w 3"]
SURFACE_POINTS = 2500


def write_skill_page(path: Path, skill: Skill) -> None:
    """Write the page of one skill.

    Raises:
        AfieldError: the packages for reports are missing, or the file cannot be written.
    """
    plots = {"skill-3d": skill_plot(skill)}
    lead = (
        f"What was shown once: <b>{html.escape(skill.narration)}</b>. This is what the affordance function knows of it."
    )
    _write(path, skill.name.replace("_", " "), lead, None, {}, skill_section(skill), plots, skill.provenance)


def write_act_page(
    path: Path,
    run: SkillRun,
    observation: Observation | None = None,
    test: Mapping[str, Any] | None = None,
    frames: Sequence[Picture] = (),
) -> None:
    """Write the page of one transfer of a skill.

    Args:
        path: the HTML file.
        run: what was done.
        observation: the target's capture, where it can still be read.
        test: verdict of the execution as its `to_json()` gives it.
        frames: pictures of the execution.
    """
    text, plots = act_sections(run, observation, test, frames)
    scene = str(run.trajectory.provenance.get("scene", "another scene")).replace("_", " ")
    lead = f"<b>{html.escape(run.skill.narration)}</b>, shown once, was done in <b>{html.escape(scene)}</b>."
    facts = {
        "on the surface": f"{run.quality['on_surface']:.0%}",
        "descriptors agree": f"{run.quality['likeness']:.2f}",
        "joint": run.joint.kind,
        "waypoints": str(len(run.trajectory)),
        "computing time": f"{sum(run.seconds.values()):.0f} s",
    }
    title = f"{run.skill.name.replace('_', ' ')} → {scene}"
    _write(
        path, title, lead, test, facts, text, plots, {"trajectory": run.trajectory.provenance, "seconds": run.seconds}
    )


def skill_section(skill: Skill) -> str:
    """What the skill knows, as pictures and in three dimensions."""
    pictures = {"shown": skill.picture, **modalities(skill)}
    strip = "".join(
        f'<figure><img alt="{name}" src="{jpeg(picture)}"><p>{name}</p></figure>'
        for name, picture in pictures.items()
        if picture is not None
    )
    return (
        '<section id="skill"><h2>What was shown</h2><p>The first picture is the object as it was photographed; the others are '
        "rendered from the affordance function: surface, descriptors, the contact region, and where points go.</p>"
        f'<div class="strip">{strip}</div><div class="plot" id="skill-3d" role="img" aria-label="Surface, contact and flow of '
        'the skill in 3-D"></div></section>'
    )


def act_sections(
    run: SkillRun,
    observation: Observation | None,
    test: Mapping[str, Any] | None,
    frames: Sequence[Picture],
) -> tuple[str, dict[str, Any]]:
    """The sections of a transfer, and the 3-D plots that belong into them."""
    picture = ""
    if observation is not None:
        picture = f'<figure><img alt="The robot\'s picture" src="{jpeg(found(run, _view(observation)))}"></figure>'
    parts = [
        skill_section(run.skill),
        '<section id="found"><h2>Where it was found</h2><p>The skill was aligned with what the robot sees. '
        '<span class="key contact">Contact region</span>, <span class="key axis">joint</span> and '
        '<span class="key path">path of the gripper</span> are carried over with it.</p>'
        f'<div class="pair">{picture}<div class="plot" id="found-3d" role="img" aria-label="Seen points, aligned surface and '
        'gripper path in 3-D"></div></div></section>',
    ]
    if frames or test is not None:
        parts.append(_performed(test, frames))
    return "\n".join(parts), {"skill-3d": skill_plot(run.skill), "found-3d": found_plot(run)}


def _performed(test: Mapping[str, Any] | None, frames: Sequence[Picture]) -> str:
    words = (
        "An arm performed the trajectory in a simulator: inverse kinematics, position servos, friction at the fingers."
    )
    if test is not None:
        words += (
            f" The joint moved {test['moved']:.2f} of at least {test['threshold']:.2f} (radians, metres for a drawer)."
        )
    chosen = [frames[k] for k in np.linspace(0, len(frames) - 1, min(len(frames), 6)).round().astype(int)]
    strip = "".join(f'<figure><img alt="Execution" src="{jpeg(frame)}"></figure>' for frame in chosen)
    return f'<section id="performed"><h2>How the arm did it</h2><p>{words}</p><div class="strip wide">{strip}</div></section>'


def skill_plot(skill: Skill) -> dict[str, Any]:
    """Surface in its colours, the contact region, and the flow."""
    points, _ = skill.field.surface(SURFACE_POINTS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        color, _, contact = skill.field.appearance(points)
        displacement, _ = skill.field.flow(points)
    metres = points * skill.scale
    paint = [
        _css(CONTACT) if probable > 0.5 else _css((color[k] * 255).tolist())
        for k, probable in enumerate(contact.tolist())
    ]
    moving = (displacement[:, -1].norm(dim=-1) > 0.1).nonzero()[:120, 0]
    tracks = [torch.cat((points[k][None], points[k] + displacement[k, 3::4])) * skill.scale for k in moving.tolist()]
    return _layout([_cloud(metres, paint, 3, "surface"), _lines(tracks, "#2c6cb0", 2, "flow")])


def found_plot(run: SkillRun) -> dict[str, Any]:
    """What was seen, the aligned surface, and the gripper along its path."""
    surface, _ = run.skill.field.surface(SURFACE_POINTS, torch.Generator().manual_seed(0))
    aligned = run.similarity[torch.tensor([0])]
    with torch.no_grad():
        contact = run.skill.field.appearance(surface)[2]
    world = aligned.invert(surface)[0]
    paint = [_css(CONTACT) if probable > 0.5 else "rgb(170,178,190)" for probable in contact.tolist()]
    moving = [k for k, label in enumerate(run.trajectory.labels) if label != "retreat"]
    forks = [gripper_lines(run.trajectory.poses[k]) for k in moving]
    path = [run.trajectory.poses[moving, :3, 3]]
    return _layout(
        [
            _cloud(run.seen, "#2c6cb0", 3, "seen"),
            _cloud(world, paint, 2, "aligned skill"),
            _lines([*forks, *path], _css(PATH), 4, "gripper"),
        ]
    )


def _cloud(points: torch.Tensor, color: Any, size: int, name: str) -> dict[str, Any]:
    x, y, z = ([round(v, 4) for v in points[:, axis].tolist()] for axis in range(3))
    marker = {"size": size, "color": color}
    return {
        "type": "scatter3d",
        "mode": "markers",
        "x": x,
        "y": y,
        "z": z,
        "marker": marker,
        "name": name,
        "hoverinfo": "name",
    }


def _lines(lines: Sequence[torch.Tensor], color: str, width: int, name: str) -> dict[str, Any]:
    """Several lines as one trace, with gaps between them."""
    x, y, z = [], [], []
    for line in lines:
        for values, axis in ((x, 0), (y, 1), (z, 2)):
            values += [*(round(v, 4) for v in line[:, axis].tolist()), None]
    style = {"color": color, "width": width}
    return {
        "type": "scatter3d",
        "mode": "lines",
        "x": x,
        "y": y,
        "z": z,
        "line": style,
        "name": name,
        "hoverinfo": "name",
    }


def _layout(traces: list[dict[str, Any]]) -> dict[str, Any]:
    hidden = {"visible": False}
    return {
        "data": traces,
        "layout": {
            "scene": {
                "aspectmode": "data",
                "xaxis": hidden,
                "yaxis": hidden,
                "zaxis": hidden,
                "camera": {"eye": {"x": 0.5, "y": -1.5, "z": 0.8}},
            },
            "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "legend": {"orientation": "h", "x": 0, "y": 0},
        },
    }


def _css(color: Sequence[float | int]) -> str:
    return f"rgb({','.join(str(round(c)) for c in color)})"


def _view(observation: Observation) -> View:
    return next((view for view in observation.views if view.mask is not None), observation.views[0])


def _write(
    path: Path,
    title: str,
    lead: str,
    test: Mapping[str, Any] | None,
    facts: Mapping[str, str],
    text: str,
    plots: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise AfieldError("A report needs plotly and matplotlib: pip install 'afield[report]'.") from error
    verdict = ""
    if test is not None:
        words = (
            "The arm did it."
            if test["success"]
            else f"The arm failed.<small>{html.escape(str(test['failure']))}</small>"
        )
        verdict = f'<p class="verdict {"good" if test["success"] else "bad"}">{words}</p>'
    listed = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    origin = html.escape(json.dumps(provenance, indent=2, default=str))
    css = (files("afield.view") / "report.css").read_text(encoding="utf-8")
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{css}</style></head><body>
<header><p class="kicker">Afield &middot; a skill shown once</p><h1>{html.escape(title)}</h1><p class="lead">{lead}</p>
{verdict}<dl class="facts">{listed}</dl></header><main>{text}</main>
<footer><details><summary>Where everything comes from</summary><pre>{origin}</pre></details>
<p>This page is one file and works offline. Lengths are in metres, the world's z axis points up.</p></footer>
<script>{get_plotlyjs()}</script>{plot_script(plots)}</body></html>
"""
    write_file(path, page.encode("utf-8"))


def plot_script(plots: Mapping[str, Any]) -> str:
    """The script element that draws the plots into their places."""
    data = json.dumps(plots, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<script type="application/json" id="skill-plots">{data}</script><script>'
        'const skillPlots = JSON.parse(document.getElementById("skill-plots").textContent);'
        "for (const [name, plot] of Object.entries(skillPlots)) "
        "Plotly.newPlot(name, plot.data, plot.layout, {displayModeBar: false, responsive: true});</script>"
    )
