"""The report of one transfer: one HTML file that works offline and can be turned, slid through and read."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from afield.artifacts import write_file
from afield.demonstration import Demonstration
from afield.errors import AfieldError
from afield.hand import Hand
from afield.result import Grasp
from afield.scene import Scene
from afield.view.page_data import page_data
from afield.view.page_text import facts, provenance, sections, verdict
from afield.view.panels import ReportPanels


def write_report(
    path: Path,
    *,
    hand: Hand,
    demonstration: Demonstration,
    scene: Scene,
    grasp: Grasp,
    panels: ReportPanels | None = None,
    test: Mapping[str, Any] | None = None,
    title: str | None = None,
    notes: Mapping[str, Any] | None = None,
    appendix: tuple[str, str] = ("", ""),
) -> None:
    """Write the page of one transferred grasp.

    Args:
        path: the HTML file; an existing one is replaced in one step.
        hand: the hand that was demonstrated and transferred.
        demonstration: what was repeated.
        scene: the target scene with its raw features.
        grasp: the result with its history.
        panels: attention, energy sections and pictures of the physics test; a part that is missing is left out.
        test: what the physics test found, as its `to_json()` gives it; None if there was none.
        title: heading of the page.
        appendix: more sections, and the script elements that belong to them.
        notes: further facts; `seconds` (a number, or seconds by step) is shown on top, the rest under the provenance.

    Raises:
        AfieldError: the viewer's packages are missing, or the file cannot be written.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise AfieldError("A report needs plotly and matplotlib: pip install 'afield[report]'.") from error
    panels, notes = panels or ReportPanels(), notes or {}
    data = page_data(hand, demonstration, scene, grasp, panels)
    title = title or f"{demonstration.name.replace('_', ' ')} → {scene.name.replace('_', ' ')}"
    kind, words = verdict(test)
    parts = {
        "title": html.escape(title),
        "lead": (
            f"A grasp shown once on <b>{_plain(demonstration.scene.name)}</b> was repeated in the scene "
            f"<b>{_plain(scene.name)}</b>, which had no demonstration."
        ),
        "verdict_class": kind,
        "verdict": words,
        "facts": facts(hand, demonstration, scene, grasp, notes),
        "sections": sections(hand, panels, data, test) + appendix[0],
        "provenance": provenance(demonstration, grasp, notes),
        "css": _asset("report.css"),
        "js": _asset("report.js"),
        "appendix": appendix[1],
        "plotly": get_plotlyjs(),
        # A "</script>" inside a name must not end the script element.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("report.html"))
    write_file(path, page.encode("utf-8"))


def _plain(name: str) -> str:
    return html.escape(name.replace("_", " "))


def _asset(name: str) -> str:
    return (files("afield.view") / name).read_text(encoding="utf-8")
