"""One HTML page that shows what every stage of a distillation has found, drawn on the video; it needs no other files."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from afield.artifacts import write_file
from afield.distill.from_video import Parts
from afield.perception.hands import BONES
from afield.perception.video import Video
from afield.view.skill_pictures import modalities

Image = UInt8[np.ndarray, "_h _w 3"]
STRIP = 6
"""Frames shown of a stage."""
PLAYED = 48
"""Frames of the film at the top."""
BACKWARDS = (
    "The video begins in contact; all of this page shows it from its end, and what is called contact was the release. "
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
.strip { display: flex; flex-wrap: wrap; gap: 6px; } figure { margin: 0; } figcaption { font-size: .8rem; color: #666; }
img { display: block; border-radius: 4px; } #film { max-width: 100%; } input { width: 100%; max-width: 640px; }
p { max-width: 60rem; } .stopped { border-left: 4px solid #d33; padding: .5rem 1rem; background: #fff3f0; }
"""
SCRIPT = """
const frames = JSON.parse(document.getElementById("frames").textContent);
const film = document.getElementById("film"), at = document.getElementById("at"), label = document.getElementById("label");
function show() { film.src = frames[at.value][1]; label.textContent = frames[at.value][0]; }
at.addEventListener("input", show); show();
"""


def write_distill_page(video: Video, narration: str, found: Parts, path: Path, stopped: str | None = None) -> None:
    """Write the page.

    Args:
        video: the frames, in the order in which the stages saw them.
        narration: what is done in it.
        found: what the stages have found; those that never ran are left out.
        path: of the page.
        stopped: the sentence of the stage that could not go on, if one could not.
    """
    title = html.escape(f"{video.name}: {narration}")
    backwards = f"<p>{BACKWARDS}</p>" if found.get("backwards") else ""
    lead = backwards if stopped is None else f"<p class='stopped'>{html.escape(stopped)}</p>{backwards}"
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1>{lead}{''.join(_sections(video, found))}<script>{SCRIPT}</script></html>"
    )
    write_file(path, page.encode("utf-8"))


def _sections(video: Video, found: Parts) -> Iterator[str]:
    """The film, and what every stage has found."""
    every = range(len(video.frames))
    yield _film(
        [
            (f"frame {video.read[i]}: {_phase(found, i)}", all_of_it(video.frames[i], found, i))
            for i in _even(every, PLAYED)
        ]
    )
    if "hands" in found:
        state = found["hands"].state
        yield _section(
            "Hands",
            f"A hand was found in {int((state == 2).sum())} frames and guessed between finds in {int((state == 1).sum())}.",
            _strip(video, found, _even(np.flatnonzero(state > 0).tolist(), STRIP), hand_on),
        )
    if "cameras" in found:
        cameras = found["cameras"]
        yield _section(
            "Cameras",
            f"Focal length {cameras.focal:.0f} pixels; {len(cameras.points)} points; the camera "
            f"{'stood still' if cameras.static else 'moved'}; lengths are {'metres' if cameras.metric else 'up to scale'}.",
            _figure(_map(found), "from above: cameras from blue to red, points, tracks of the object"),
        )
    if "depth" in found:
        maps = zip(found["depth"].frames, found["depth"].depth, strict=True)
        yield _section(
            "Depth",
            f"{'Metric' if found['depth'].metric else 'Up to scale'}; black is unknown.",
            "".join(_figure(_colored(depth), f"frame {video.read[i]}") for i, depth in maps),
        )
    if "masks" in found:
        yield _section("Object masks", "", _strip(video, found, _even(every, STRIP), object_on))
    if "surface" in found and "masks" in found and "depth" in found:
        reference = found["depth"].frames[-1]
        alone = np.where(found["masks"].masks[reference], found["surface"], 0.0).astype(np.float32)
        words = "Depth of the object, pixel by pixel; tracks and contact are found on it."
        yield _section("Surface", words, _figure(_colored(alone), f"frame {video.read[reference]}"))
    if "tracks" in found:
        moving = found["tracks"].moving
        during = range(found["tracks"].reference, len(every))
        if "contact" in found:
            during = range(found["contact"].contact_frame, found["contact"].release_frame + 1)
        yield _section(
            "Tracks",
            f"{int(moving.sum())} of {len(moving)} points move (orange), the others stay (blue).",
            _strip(video, found, _even(during, STRIP), tracks_on),
        )
    if "contact" in found:
        contact = found["contact"]
        touched, moves, left, free = (
            video.read[i]
            for i in (contact.contact_frame, contact.motion_frame, contact.release_frame, contact.free_frame)
        )
        yield _section(
            "Contact",
            f"First contact in frame {touched}, motion from frame {moves}, "
            f"release after frame {left}. The region, in the last frame before the hand comes:",
            _figure(mask_on(video.frames[contact.free_frame], contact.region), f"frame {free}"),
        )
    if "observation" in found and "labels" in found:
        yield _section(
            "Views",
            "What the affordance function is fitted to; the contact region as each view sees it.",
            "".join(
                _figure(mask_on(mask_on(view.color, view.mask, (80, 140, 255)), region), view.name)
                for view, region in zip(found["observation"].views, found["labels"].contact, strict=True)
                if view.mask is not None and region is not None
            ),
        )
    if "skill" in found:
        facts = {k: v for k, v in found["skill"].provenance["fit"].items() if not isinstance(v, dict)}
        yield _section(
            "Fit",
            "Rendered from the affordance function. "
            + html.escape(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())),
            "".join(_figure(picture, name) for name, picture in modalities(found["skill"]).items()),
        )


def all_of_it(image: Image, found: Parts, frame: int) -> Image:
    """A frame with object, hand and tracks, as far as they were found."""
    return tracks_on(hand_on(object_on(image, found, frame, (80, 140, 255), 0.25), found, frame), found, frame)


def object_on(
    image: Image,
    found: Parts,
    frame: int,
    color: tuple[int, int, int] = (255, 90, 40),
    strength: float = 0.55,
) -> Image:
    """The object's mask."""
    return mask_on(image, found["masks"].masks[frame], color, strength) if "masks" in found else image


def hand_on(image: Image, found: Parts, frame: int) -> Image:
    """The hand's mask and bones."""
    if "hands" not in found:
        return image
    drawn = mask_on(image, found["hands"].masks[frame], (60, 200, 90), 0.4)
    if found["hands"].state[frame] > 0:
        points = np.round(found["hands"].landmarks[frame]).astype(int)
        for a, b in BONES:
            cv2.line(drawn, tuple(map(int, points[a])), tuple(map(int, points[b])), (255, 255, 255), 1, cv2.LINE_AA)
    return drawn


def mask_on(
    image: Image, mask: Bool[np.ndarray, "_h _w"], color: tuple[int, int, int] = (255, 90, 40), strength: float = 0.55
) -> Image:
    """The picture with a mask in a colour."""
    drawn = image.copy()
    drawn[mask] = ((1 - strength) * drawn[mask] + strength * np.array(color)).astype(np.uint8)
    return drawn


def tracks_on(image: Image, found: Parts, frame: int) -> Image:
    """The points in their place in this frame, by the motion that was found, with the way they came in the last frames."""
    drawn = image.copy()
    if "tracks" not in found or "cameras" not in found:
        return drawn
    tracks, camera = found["tracks"], found["cameras"].camera(frame)
    shown = np.arange(0, len(tracks.moving), max(1, len(tracks.moving) // 150))
    steps = [max(0, frame - back) for back in (12, 9, 6, 3, 0)]
    ways = np.stack([camera.project(torch.from_numpy(tracks.at(step)[shown]).float())[0].numpy() for step in steps])
    for index, number in enumerate(shown):
        color = (255, 150, 30) if tracks.moving[number] else (60, 120, 255)
        cv2.polylines(drawn, [np.round(ways[:, index]).astype(np.int32)], False, color, 1, cv2.LINE_AA)
        x, y = np.round(ways[-1, index]).astype(int)
        cv2.circle(drawn, (int(x), int(y)), 2, color, -1, cv2.LINE_AA)
    return drawn


def _phase(found: Parts, frame: int) -> str:
    if "contact" not in found:
        return "" if "hands" not in found else "hand" if found["hands"].state[frame] > 0 else "no hand"
    contact = found["contact"]
    if frame <= contact.free_frame:
        return "no hand"
    if frame < contact.contact_frame:
        return "approach"
    return "contact" if frame <= contact.release_frame else "released"


def _map(found: Parts, size: int = 420) -> Image:
    """Cameras, points and the object's way from above."""
    if "cameras" not in found:
        return np.full((size, size, 3), 250, np.uint8)
    path = found["cameras"]
    cameras, tracks = path.T_world_camera[:, :2, 3].numpy(), np.zeros((0, 2))
    if "tracks" in found and "contact" in found:
        ends = (found["contact"].contact_frame, found["contact"].release_frame)
        tracks = np.concatenate([found["tracks"].at(frame)[:, :2] for frame in ends])
    both = np.concatenate((cameras, tracks))
    low, extent = both.min(axis=0), float(np.ptp(both, axis=0).max()) * 1.15 + 1e-6

    def pixel(points: Float[np.ndarray, "n 2"]) -> np.ndarray:
        place = (points - low) / extent * 0.87 + 0.06
        return np.round(np.stack((place[:, 0], 1 - place[:, 1]), axis=-1) * size).astype(int)

    drawn = np.full((size, size, 3), 250, np.uint8)
    for points, color in ((path.points[:, :2].numpy(), (190, 190, 190)), (tracks, (255, 150, 30))):
        for x, y in pixel(points):
            if 0 <= x < size and 0 <= y < size:
                cv2.circle(drawn, (int(x), int(y)), 1, color, -1)
    for index, (x, y) in enumerate(pixel(cameras)):
        share = index / max(1, len(cameras) - 1)
        cv2.circle(drawn, (int(x), int(y)), 3, (int(255 * share), 60, int(255 * (1 - share))), -1, cv2.LINE_AA)
    return drawn


def _colored(depth: Float[np.ndarray, "_h _w"]) -> Image:
    known = depth > 0
    low, high = np.percentile(depth[known], [2, 98]) if known.any() else (0.0, 1.0)
    level = np.clip((high - depth) / max(high - low, 1e-6), 0, 1)
    colored = cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where(known[..., None], colored, 0).astype(np.uint8)


def _even(items: Sequence[int], count: int) -> list[int]:
    items = list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def _strip(video: Video, found: Parts, frames: Sequence[int], draw: Callable[[Image, Parts, int], Image]) -> str:
    return "".join(_figure(draw(video.frames[i], found, i), f"frame {video.read[i]}") for i in frames)


def _section(title: str, text: str, figures: str) -> str:
    return f"<h2>{title}</h2><p>{text}</p><div class='strip'>{figures}</div>"


def _figure(image: Image, caption: str, width: int = 180) -> str:
    words = html.escape(caption)
    image_tag = f"<img width='{width}' src='{_data(image, 2 * width)}' alt='{words}'>"
    return f"<figure>{image_tag}<figcaption>{words}</figcaption></figure>"


def _film(frames: Sequence[tuple[str, Image]]) -> str:
    entries = ",".join(f'["{html.escape(label)}","{_data(image, 480)}"]' for label, image in frames)
    slider = f"<input id='at' type='range' min='0' max='{len(frames) - 1}' value='0' aria-label='frame'>"
    return (
        f"<script type='application/json' id='frames'>[{entries}]</script>"
        f"<img id='film' width='640' alt='the video with what was found'><br>{slider}<div id='label'></div>"
    )


def _data(image: Image, width: int) -> str:
    scale = min(1.0, width / image.shape[1])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 78])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
