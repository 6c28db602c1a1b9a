"""The words of the page: each section says in one sentence how to read its picture, to a person who knows robots."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from afield.demonstration import Demonstration
from afield.hand import Hand
from afield.result import Grasp
from afield.scene import Scene
from afield.view.panels import ReportPanels
from afield.view.verdict import Condition, conditions

RESULTS = {
    True: '<span class="pass">✓ passed</span>',
    False: '<span class="fail">✗ failed</span>',
    None: "not counted",
}
SWATCH = '<span><i style="background:var(--{color})"></i>{text}</span>'


def verdict(test: Mapping[str, Any] | None) -> tuple[str, str]:
    """The page's one big line: its kind ("good", "bad", "unknown") and its words as HTML."""
    if test is None:
        return "unknown", "Not tested in physics yet.<small><code>afield simulate RUN</code> adds the test.</small>"
    passed = conditions(test)
    if test["success"]:
        return "good", (
            f"The grasp holds in physics.<small>All {len(passed)} conditions are met: the object is lifted and stays "
            "in the hand while it is pushed from six sides.</small>"
        )
    reason = str(test.get("failure") or "")
    return "bad", f"The grasp fails in physics.<small>{html.escape(reason[:1].upper() + reason[1:])}</small>"


def facts(hand: Hand, demonstration: Demonstration, scene: Scene, grasp: Grasp, notes: Mapping[str, Any]) -> str:
    """The figures under the verdict."""
    source = scene.source
    items = {
        "shown on": demonstration.scene.name.replace("_", " "),
        "repeated in": scene.name.replace("_", " "),
        "hand": f"{hand.name}, {len(hand.joint_names)} joints",
        "field": str(grasp.provenance.get("field", "unknown")),
        "features": f"{source.extractor}, layer {source.layer}",
        "energy": f"{grasp.energy:.4g}",
    }
    seed = grasp.provenance.get("config", {}).get("seed", grasp.provenance.get("seed"))
    if seed is not None:
        items["seed"] = str(seed)
    seconds = notes.get("seconds")
    if seconds:
        total = sum(seconds.values()) if isinstance(seconds, Mapping) else float(seconds)
        items["computing time"] = f"{total:.0f} s"
    return "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in items.items())


def sections(hand: Hand, panels: ReportPanels, data: Mapping[str, Any], test: Mapping[str, Any] | None) -> str:
    """All sections, in the order in which the method works."""
    parts = [_scenes(panels)]
    if panels.attention:
        parts.append(_attention(panels))
    if panels.sections:
        parts.append(_energy_sections(panels))
    if data["path"]:
        parts.append(_path(len(data["path"]["steps"])))
    if data["energy"]:
        parts.append(_curves())
    if test is not None or panels.frames:
        parts.append(_physics(panels, test))
    return "\n".join(parts)


def provenance(demonstration: Demonstration, grasp: Grasp, notes: Mapping[str, Any]) -> str:
    """Everything that is needed to make the same grasp again."""
    content = {
        "grasp": dict(grasp.provenance),
        "terms": dict(grasp.terms),
        "demonstration": dict(demonstration.provenance),
        "notes": dict(notes),
    }
    return f"<pre>{html.escape(json.dumps(content, indent=2, default=str))}</pre>"


def _section(name: str, heading: str, words: str, body: str) -> str:
    return f'<section id="{name}"><h2>{heading}</h2><p>{words}</p>{body}</section>'


def _buttons(name: str, label: str, choices: Mapping[str, str], chosen: str) -> str:
    buttons = "".join(
        f'<button type="button" value="{html.escape(value)}" aria-pressed="{str(value == chosen).lower()}">'
        f"{html.escape(text)}</button>"
        for value, text in choices.items()
    )
    return f'<div class="controls" id="{name}" role="group" aria-label="{label}"><span>{label}</span>{buttons}</div>'


def _figure(name: str, heading: str, described: str, kind: str = "", below: str = "") -> str:
    return (
        f'<figure><h3>{heading}</h3><div class="plot {kind}" id="{name}" role="img" '
        f'aria-label="{html.escape(described)}"></div>{below}</figure>'
    )


def _scenes(panels: ReportPanels) -> str:
    choices = {"natural": "what the cameras saw", "pca": "features"}
    if panels.field_colors is not None:
        choices["kept"] = "features the field keeps"
    controls = _buttons("scene-colors", "Points show", choices, "natural")
    controls += _buttons("scene-hand", "Hand", {"1": "shown", "0": "hidden"}, "1")
    controls = f'<div class="row">{controls}</div>'
    body = (
        '<div class="pair">'
        + _figure("scene-demo", "Shown once", "3-D cloud of the demonstrated scene with the demonstrating hand")
        + _figure("scene-target", "Repeated here", "3-D cloud of the target scene with the final hand")
        + "</div>"
    )
    words = (
        "Each dot is a point that depth cameras measured; both pictures look at the hand from the same side. Switch to "
        "<b>features</b>: equal colors then mean that the vision network sees equal things."
    )
    if panels.field_colors is not None:
        words += (
            " <b>Features the field keeps</b> are compared within each scene; gray points were left out as they do not "
            "resemble the demonstrated part."
        )
    return _section("scenes", "What was shown, and where it was repeated", words, controls + body)


def _attention(panels: ReportPanels) -> str:
    choices = {str(number): panel.label for number, panel in enumerate(panels.attention)}
    controls = _buttons("attention-points", "Point of the hand", choices, "0")
    controls += _buttons("attention-hand", "Hand", {"0.14": "faint", "0": "hidden"}, "0.14")
    controls = f'<div class="row">{controls}</div>'
    ramp = (
        '<div class="ramp"><span>attention: a tenth of the average, or less</span><b style="background:linear-gradient('
        'to right,var(--low) 0 34%,#f2c14e 55%,#ee6c2f 78%,#b0171f)"></b><span>100 times the average</span></div>'
    )
    body = (
        '<div class="pair">'
        + _figure("attention-demo", "While it was shown", "Attention of a hand point over the demonstrated scene")
        + _figure("attention-target", "At the end of the transfer", "Attention of a hand point over the target scene")
        + "</div>"
        + ramp
    )
    words = (
        "A point of the hand is described by what it looks at in the scene. The green diamond marks the chosen "
        "point; warm colors mark what it looks at. A good transfer looks at the same part of the other object."
    )
    return _section("attention", "What each part of the hand looks at", words, controls + body)


def _energy_sections(panels: ReportPanels) -> str:
    figures = []
    for number, section in enumerate(panels.sections):
        away = 100 * float(section.lowest.norm())
        below = f"<p>Lowest {away:.0f} cm from where the palm ended; yellow area {section.basin:.0f} cm².</p>"
        heading = f"{html.escape(section.field)}, {section.plane.name} section"
        described = f"Energy of the field {section.field} in a {section.plane.name} plane"
        figures.append(_figure(f"section-{number}", heading, described, "square", below))
    ramp = (
        '<div class="ramp"><span>lowest: “the hand belongs here”</span><b style="background:linear-gradient(to right,'
        '#fde725,#5ec962,#21918c,#3b528b,#440154)"></b><span>as high as in half of the picture, or higher</span></div>'
        '<div class="legend"><span><b style="color:#2b6cb0">✖</b> the palm at the end</span>'
        '<span><b style="color:#b0171f">◯</b> lowest energy in this picture</span>'
        "<span>white dots: scene points within 1 cm of the plane (faint: 4 cm)</span></div>"
    )
    words = (
        "The final hand is moved over a plane without turning it or its fingers, and the mismatch of its features "
        "with the demonstrated ones is drawn at the place of its palm. <b>Yellow is low.</b> A small yellow spot "
        "at the right place leads an optimizer there; a wide or scattered one does not. Every picture has its own "
        "scale."
    )
    return _section(
        "energy-sections", "Where the hand wants to be", words, f'<div class="pair">{"".join(figures)}</div>{ramp}'
    )


def _path(steps: int) -> str:
    controls = (
        '<div class="controls"><button type="button" id="path-play">Play</button>'
        f'<input type="range" id="path-slider" min="0" max="{steps - 1}" value="{steps - 1}" step="1" '
        'aria-label="Step of the optimization"><output id="path-step" for="path-slider"></output></div>'
    )
    legend = "".join(
        SWATCH.format(color=color, text=text)
        for color, text in (("path", "path of the palm"), ("hand", "hand (faint: its start)"))
    )
    plot = '<div class="plot wide" id="path-plot" role="img" aria-label="Hand and path of its palm"></div>'
    body = f'{plot}<div class="legend">{legend}</div>'
    words = (
        "Many starts were tried; this is the path of the one that won. Move the slider to see the hand and its "
        "fingers settle (one that the aligned object carries along stands still). "
        "The hand is free to pass through things on its way: this is a search, not a motion for a "
        "robot."
    )
    return _section("path", "How the hand got there", words, controls + body)


def _curves() -> str:
    controls = _buttons("energy-axis", "Energy axis", {"log": "logarithmic", "linear": "linear"}, "log")
    body = (
        controls
        + '<div class="pair">'
        + _figure("energy-terms", "Along the winning path", "Energy by term over optimizer steps", "chart")
        + _figure("energy-starts", "Where all starts ended", "Last energies of all starts, sorted", "chart")
        + "</div>"
    )
    words = (
        "The hand minimizes a sum of terms: <b>feature</b> is the mismatch with the demonstration, the others "
        "keep it out of the object, the table, itself and its joint limits. Left: the terms of the winner; a "
        "vertical line marks where weak starts were given up and more points were used, so the curve may jump. "
        "Where objects are aligned, <b>alignment</b> draws the hand to where the object carries it; the carried hand "
        "itself is not optimized, so its curves are flat. "
        "Right: a winner far below the rest means a clear answer, many equals mean several ways to grasp."
    )
    return _section("energy", "What was minimized", words, body)


def _physics(panels: ReportPanels, test: Mapping[str, Any] | None) -> str:
    film = ""
    if panels.frames:
        last = len(panels.frames) - 1
        film = (
            '<div class="film"><img id="film-image" alt="The physics test"><div class="controls">'
            '<button type="button" id="film-play">Play</button>'
            f'<input type="range" id="film-slider" min="0" max="{last}" value="0" step="1" '
            'aria-label="Time in the physics test">'
            '<output id="film-step" for="film-slider"></output></div></div>'
        )
    table = "" if test is None else _table(conditions(test))
    body = f'<div class="pair">{film}<div>{table}</div></div>' if film and table else film + table
    words = (
        "A simulator closes the hand, lifts the object, and then pushes it along the world's six directions for "
        "two seconds each, with a force of 10 N per kilogram. A grasp holds if the object neither slips nor turns "
        "in the hand beyond the limits."
    )
    if test is not None and test.get("geometry") == "observed":
        words += " The shapes of the objects were guessed from the observed points, so take the verdict with care."
    return _section("physics", "Does it hold?", words, body)


def _table(rows: list[Condition]) -> str:
    lines = "".join(
        f'<tr><td>{html.escape(row.name)}</td><td class="number">{html.escape(row.measured)}</td>'
        f'<td class="number">{html.escape(row.limit)}</td>'
        f"<td>{RESULTS[row.passed]}</td></tr>"
        for row in rows
    )
    head = '<tr><th>condition</th><th class="number">measured</th><th class="number">must be</th><th>result</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{lines}</tbody></table>"
