"""One HTML page about a capture: warnings, the cameras around the cloud, and every view with its numbers."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from afield.artifacts import write_file
from afield.capture.check import (
    MAX_CONTRADICTION,
    MAX_TILT,
    MIN_OVERLAP,
    MIN_VALID,
    SAMPLES_PER_VIEW,
    CaptureCheck,
    ViewStatistics,
)
from afield.errors import AfieldError
from afield.observation import Camera, Observation, View

THUMBNAIL_WIDTH = 480
PLOT_POINTS = 24000
CAMERA_COLORS = ("#2563a8", "#d9822b", "#2a8f5b", "#b3446c", "#7a5bb5", "#8a6d3b", "#3b8a8a", "#666666")

STYLE = Path(__file__).with_name("check_page.css")


def write_check_page(observation: Observation, check: CaptureCheck, path: Path) -> None:
    """Write the page in one step: an interrupted write leaves the old page or none.

    Args:
        observation: the capture.
        check: what `check_capture` said about it.
        path: the HTML file.

    Raises:
        AfieldError: plotly is not installed, or the place cannot be written.
    """
    style = STYLE.read_text(encoding="utf-8")
    cards = "".join(
        _card(view, statistics, CAMERA_COLORS[index % len(CAMERA_COLORS)])
        for index, (view, statistics) in enumerate(zip(observation.views, check.statistics.views, strict=True))
    )
    name = html.escape(observation.name)
    count = len(check.warnings)
    verdict = f"{count} warning{'s' if count > 1 else ''}" if count else "nothing looks wrong"
    warnings = "".join(f"<li>{html.escape(warning)}</li>" for warning in check.warnings)
    content = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: capture check</title><style>{style}</style></head><body><main>
<header><h1>{name}</h1><span class="pill {"bad" if count else "good"}">{verdict}</span></header>
<p class="note">Capture check by Afield. {_origin(observation)}</p>
{f'<ul class="warnings">{warnings}</ul>' if count else ""}
<div class="tiles">{_tiles(observation, check)}</div>
<h2>Cameras and cloud</h2><div class="plot">{_plot(observation, check)}</div>
<p class="note">Drag to turn, scroll to zoom. Every pyramid is a camera with its name; the short axes at the
world origin are x (red), y (green) and z (blue, up), 10 cm each. The buttons color the points as photographed, by
camera, or by height.</p>
<h2>Views</h2><div class="views">{cards}</div>
</main></body></html>
"""
    write_file(path, content.encode("utf-8"))


def _origin(observation: Observation) -> str:
    attribution = observation.extra.get("attribution")
    return html.escape(str(attribution)) if attribution else ""


def _tiles(observation: Observation, check: CaptureCheck) -> str:
    statistics = check.statistics
    depths = [view.median_depth for view in statistics.views if view.valid_depth > 0]
    sizes = sorted({f"{view.camera.width}x{view.camera.height}" for view in observation.views})
    tiles = [
        (f"{len(statistics.views)}", f"views, {', '.join(sizes)} pixels", False),
        (f"{np.median(depths):.3g} m" if depths else "none", "median depth", not depths),
    ]
    if statistics.plane_tilt is None:
        tiles.append(("none", "dominant plane", False))
    else:
        tiles.append(
            (f"{statistics.plane_tilt:.1f}&deg;", "largest plane against +z", statistics.plane_tilt > MAX_TILT),
        )
        if statistics.plane_height is not None:
            tiles.append((f"{statistics.plane_height:+.3f} m", "height of that plane", False))
    if statistics.residual is not None:
        worst = min(view.agreement for view in statistics.views)
        tiles.append((f"{worst:.0%}", "least confirmed by other cameras", worst < MIN_OVERLAP))
        tiles.append((f"{1000 * statistics.residual:.1f} mm", "median gap between cameras", False))
    return "".join(
        f'<div class="tile{" bad" if bad else ""}"><b>{value}</b><span>{label}</span></div>'
        for value, label, bad in tiles
    )


def _card(view: View, statistics: ViewStatistics, mark: str) -> str:
    color = cv2.resize(view.color, _thumbnail_size(view), interpolation=cv2.INTER_AREA)
    if view.mask is not None:
        color = _outlined(color, view.mask)
    pictures = _figure(color, "color" + (", mask outlined" if view.mask is not None else ""))
    pictures += _figure(_depth_picture(view, statistics), _depth_legend(statistics))
    camera = view.camera
    position = ", ".join(f"{value:.2f}" for value in camera.position.tolist())
    rows = [
        (("pixels with depth", f"{statistics.valid_depth:.1%}", statistics.valid_depth < MIN_VALID),
         ("confirmed by others", f"{statistics.agreement:.1%}", statistics.agreement < MIN_OVERLAP)),
        (("median depth", f"{statistics.median_depth:.3f} m", False),
         ("contradicted by others", f"{statistics.contradiction:.1%}", statistics.contradiction > MAX_CONTRADICTION)),
        (("focal length", f"{camera.fx:.1f}, {camera.fy:.1f} px", False),
         ("principal point", f"{camera.cx:.1f}, {camera.cy:.1f} px", False)),
        (("position", f"{position} m", False),
         ("mask", "none" if statistics.mask_share is None else f"{statistics.mask_share:.2%} of the picture",
          statistics.mask_share == 0)),
    ]  # fmt: skip
    table = "".join(
        "<tr>"
        + "".join(f"<td>{key}</td><td{' class=bad' if bad else ''}>{value}</td>" for key, value, bad in row)
        + "</tr>"
        for row in rows
    )
    return (
        f'<section class="card" style="--mark:{mark}"><h3>{html.escape(view.name)}</h3>'
        f'<div class="pictures">{pictures}</div><table>{table}</table></section>'
    )


def _thumbnail_size(view: View) -> tuple[int, int]:
    return THUMBNAIL_WIDTH, max(1, round(THUMBNAIL_WIDTH * view.camera.height / view.camera.width))


def _outlined(color: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w 3"]:
    small = cv2.resize(mask.astype(np.uint8), (color.shape[1], color.shape[0]), interpolation=cv2.INTER_AREA)
    outlines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(color), outlines, -1, (255, 40, 140), 2)


def _depth_picture(view: View, statistics: ViewStatistics) -> UInt8[np.ndarray, "h w 3"]:
    depth = cv2.resize(view.depth, _thumbnail_size(view), interpolation=cv2.INTER_NEAREST)
    span = max(statistics.far_depth - statistics.near_depth, 1e-6)
    near_is_bright = 255 * (1 - np.clip((depth - statistics.near_depth) / span, 0, 1))
    picture = cv2.applyColorMap(near_is_bright.astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()
    picture[depth == 0] = (20, 20, 20)
    return picture


def _depth_legend(statistics: ViewStatistics) -> str:
    stops = cv2.applyColorMap(np.linspace(255, 0, 6).astype(np.uint8)[None], cv2.COLORMAP_VIRIDIS)[0, :, ::-1]
    gradient = ", ".join("rgb({}, {}, {})".format(*stop) for stop in stops)
    return (
        f'<span class="bar">depth {statistics.near_depth:.2f} m '
        f'<i style="background: linear-gradient(90deg, {gradient})"></i>'
        f" {statistics.far_depth:.2f} m</span>"
    )


def _figure(image: UInt8[np.ndarray, "h w 3"], caption: str) -> str:
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    data = base64.b64encode(encoded.tobytes()).decode("ascii")
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{caption}</figcaption></figure>'


def _plot(observation: Observation, check: CaptureCheck) -> str:
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise AfieldError("The check page needs plotly: pip install 'afield[report]'.") from error
    step = max(1, len(check.points) // PLOT_POINTS)
    points, colors = check.points[::step], check.colors[::step]
    photo = ["rgb({},{},{})".format(*(255 * color).astype(int)) for color in colors]
    sources = np.concatenate([np.full(count, i) for i, count in enumerate(_counts(observation, check))])[::step]
    by_camera = [CAMERA_COLORS[index % len(CAMERA_COLORS)] for index in sources]
    heights = points[:, 2].round(4)
    low, high = np.percentile(heights, (1, 99.8)) if len(heights) else (0.0, 1.0)
    cloud = go.Scatter3d(
        **_axes(points),
        mode="markers",
        marker={"size": 1.8, "color": photo},
        hovertemplate="%{x:.3f}, %{y:.3f}, %{z:.3f} m<extra></extra>",
    )
    size = _frustum_size(observation, points)
    traces: list[Any] = [cloud, *_world_axes(go)]
    for index, view in enumerate(observation.views):
        traces.extend(_frustum(go, view, size, CAMERA_COLORS[index % len(CAMERA_COLORS)]))
    figure = go.Figure(traces)
    buttons = [
        {"label": label, "method": "restyle", "args": [change, [0]]}
        for label, change in (
            ("photo", {"marker.color": [photo]}),
            ("camera", {"marker.color": [by_camera]}),
            (
                "height",
                {
                    "marker.color": [heights.tolist()],
                    "marker.colorscale": "Viridis",
                    "marker.cmin": float(low),
                    "marker.cmax": float(high),
                },
            ),
        )
    ]
    grid = {"backgroundcolor": "#f7f8fa", "gridcolor": "#dde2e8", "zerolinecolor": "#c3cad3"}
    figure.update_layout(
        height=620,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        showlegend=False,
        scene={
            "aspectmode": "data",
            **{
                f"{axis}axis": {"title": f"{axis} [m]", "range": limits, **grid}
                for axis, limits in zip("xyz", _ranges(observation, points), strict=True)
            },
            "camera": {"eye": {"x": 1.15, "y": -1.35, "z": 0.75}, "center": {"x": 0, "y": 0, "z": -0.15}},
        },
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": 0.01,
                "y": 0.99,
                "xanchor": "left",
                "yanchor": "top",
                "buttons": buttons,
            }
        ],
    )
    return figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True})


def _counts(observation: Observation, check: CaptureCheck) -> list[int]:
    """How many of the check's points come from each view, in their order."""
    return [min(int((view.depth > 0).sum()), SAMPLES_PER_VIEW) for view in observation.views]


def _axes(points: Float[np.ndarray, "n 3"]) -> dict[str, Any]:
    rounded = points.round(4)
    return {"x": rounded[:, 0], "y": rounded[:, 1], "z": rounded[:, 2]}


def _ranges(observation: Observation, points: Float[np.ndarray, "n 3"]) -> list[list[float]]:
    """Limits of the three axes, with room for the cameras' names, which are cut off at the edge otherwise."""
    centers = np.stack([view.camera.position.numpy() for view in observation.views])
    everything = np.concatenate((centers, points, np.zeros((1, 3))))
    low, high = everything.min(axis=0), everything.max(axis=0)
    margin = 0.08 * float((high - low).max()) + 0.02
    return np.stack((low - margin, high + margin), axis=1).tolist()


def _frustum_size(observation: Observation, points: Float[np.ndarray, "n 3"]) -> float:
    """Depth of the drawn pyramids in meters: a tenth of the way to the scene."""
    if not len(points):
        return 0.1
    middle = np.median(points, axis=0)
    distances = [np.linalg.norm(view.camera.position.numpy() - middle) for view in observation.views]
    return 0.12 * float(np.median(distances))


def _frustum(go: Any, view: View, size: float, color: str) -> list[Any]:
    corners = _corners(view.camera, size)
    center = view.camera.position.numpy().astype(np.float64)
    gap = np.full(3, np.nan)
    # The triangle on the upper edge tells which way the picture is up.
    tip = 1.35 * (corners[0] + corners[1]) / 2 - 0.35 * (corners[2] + corners[3]) / 2
    outline = np.stack([*corners, corners[0], gap, corners[0], tip, corners[1]])
    rays = np.concatenate([np.stack([center, corner, gap]) for corner in corners])
    lines = np.concatenate([outline, gap[None], rays])
    return [
        go.Scatter3d(**_axes(lines), mode="lines", line={"color": color, "width": 4}, hoverinfo="skip"),
        go.Scatter3d(
            **_axes(center[None]), mode="markers+text", text=[view.name], textposition="top center",
            textfont={"color": color, "size": 13}, marker={"size": 3.5, "color": color}, hoverinfo="text",
        ),
    ]  # fmt: skip


def _corners(camera: Camera, depth: float) -> Float[np.ndarray, "4 3"]:
    """Corners of the picture at `depth` meters: top left, top right, bottom right, bottom left."""
    right, bottom = camera.width - 0.5, camera.height - 0.5
    pixels = torch.tensor([[-0.5, -0.5], [right, -0.5], [right, bottom], [-0.5, bottom]])
    return camera.backproject(pixels, torch.full((4,), depth)).numpy().astype(np.float64)


def _world_axes(go: Any) -> list[Any]:
    traces = []
    for axis, color in enumerate(("#d03b3b", "#2e9e4f", "#2f62c9")):
        line = np.zeros((2, 3))
        line[1, axis] = 0.1
        traces.append(go.Scatter3d(**_axes(line), mode="lines", line={"color": color, "width": 7}, hoverinfo="skip"))
    return traces
