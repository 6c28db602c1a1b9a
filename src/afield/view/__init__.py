"""Looking at results: the offline HTML report and PNG figures."""

from __future__ import annotations

from afield.view.figures import write_figures
from afield.view.panels import AttentionPanel, EnergySection, ReportPanels, SectionPlane, energy_section, section_planes
from afield.view.report import write_report
from afield.view.run_report import run_panels, write_run_report

__all__ = [
    "AttentionPanel",
    "EnergySection",
    "ReportPanels",
    "SectionPlane",
    "energy_section",
    "run_panels",
    "section_planes",
    "write_figures",
    "write_report",
    "write_run_report",
]
