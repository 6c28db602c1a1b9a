"""The mask of an object in every frame of a video, from what a person said about one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch.nn import functional
from tqdm import tqdm

from afield.errors import AfieldError
from afield.perception.masks import Box, Click, mask_from_box, mask_from_click

BAND = 3
"""GrabCut decides anew within so many pixels of where the flow has carried a mask's border."""
PROPAGATION_SIZE = 320
"""Frames are reduced to so many pixels on the longer side while a mask is carried through them."""
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


Better = Callable[[Bool[np.ndarray, "h w"]], Bool[np.ndarray, "h w"]]


@dataclass(frozen=True)
class Prompt:
    """Which object is meant, said in one frame: a box around it, or a click upon it, in pixels."""

    box: Box | None = None
    click: Click | None = None

    def inside(self, size: tuple[int, int]) -> Prompt:
        """The same prompt, if it means something in a picture of that width and height.

        Raises:
            AfieldError: there is not exactly one of the two, or it lies outside of the picture.
        """
        width, height = size
        if (self.box is None) == (self.click is None):
            raise AfieldError("Say which object is meant with exactly one of a box and a click.")
        if self.click is not None and not (0 <= self.click[0] < width and 0 <= self.click[1] < height):
            raise AfieldError(
                f"The click {tuple(self.click)} lies outside of the {width}x{height} picture; give column and row in pixels."
            )
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (left < right and top < bottom):
                raise AfieldError(f"The box {tuple(self.box)} is not left, top, right, bottom; right must exceed left.")
            if left >= width or top >= height or right <= 0 or bottom <= 0:
                raise AfieldError(f"The box {tuple(self.box)} lies outside of the {width}x{height} picture.")
        return self

    def scaled(self, factor: float) -> Prompt:
        """The prompt in a picture that was resized by a factor."""
        box, click = self.box, self.click
        return Prompt(
            None if box is None else (box[0] * factor, box[1] * factor, box[2] * factor, box[3] * factor),
            None if click is None else (click[0] * factor, click[1] * factor),
        )


@runtime_checkable
class MaskPropagator(Protocol):
    """Finds the object that is meant in all frames of a video."""

    def masks(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        prompt: Prompt,
        start: int,
        hidden: Bool[np.ndarray, "t h w"],
        better: Better | None = None,
        *,
        progress: bool = True,
    ) -> Bool[np.ndarray, "t h w"]:
        """Where the object is seen in every frame.

        Args:
            frames: RGB.
            prompt: which object is meant.
            start: the frame that the prompt belongs to.
            hidden: where hands are.
            better: mends a mask that was drawn by the colours of that frame; a model that knows objects does without.
            progress: show a progress bar.
        """
        ...


class GrabCutFlow:
    """GrabCut in the prompted frame, carried on by dense flow; needs no weights."""

    def masks(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        prompt: Prompt,
        start: int,
        hidden: Bool[np.ndarray, "t h w"],
        better: Better | None = None,
        *,
        progress: bool = True,
    ) -> Bool[np.ndarray, "t h w"]:
        """See `propagate_mask`."""
        if prompt.box is not None:
            first = mask_from_box(frames[start], prompt.box)
        else:
            assert prompt.click is not None, "one of the two was given"
            first = mask_from_click(frames[start], prompt.click)
        first = without_holes(first)
        return propagate_mask(frames, better(first) if better else first, start, hidden, progress=progress)


class Sam2Video:
    """A SAM 2 video model of `transformers` by name or folder.

    Its pictures are prepared here, for the processors that come with it need torchvision.
    """

    def __init__(self, model: str) -> None:
        """Load it.

        Raises:
            AfieldError: `transformers` or the weights are not there, or the folder holds another kind of model.
        """
        try:
            from transformers import Sam2VideoModel
        except ImportError as error:
            raise AfieldError("SAM 2 needs transformers 4.56 or newer: pip install 'afield[transformers]'.") from error
        kind = model_type(model)
        if kind not in ("sam2_video", None):
            raise AfieldError(f"'{model}' is a model of the kind {kind}, not a SAM 2 video model (sam2_video).")
        try:
            self._model: Any = Sam2VideoModel.from_pretrained(model, local_files_only=True).eval()
        except (OSError, ValueError) as error:
            raise AfieldError(
                f"There is no mask propagator '{model}': choose grabcut, or a SAM 2 video model whose weights are here (hf "
                "download facebook/sam2.1-hiera-small), by name or folder."
            ) from error
        self._side = int(self._model.config.prompt_encoder_config.image_size)

    @torch.no_grad()
    def masks(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        prompt: Prompt,
        start: int,
        hidden: Bool[np.ndarray, "t h w"],
        better: Better | None = None,
        *,
        progress: bool = True,
    ) -> Bool[np.ndarray, "t h w"]:
        """The object, forwards and backwards from the prompted frame; what hands hide of it is left out."""
        from transformers import Sam2VideoInferenceSession

        height, width = hidden.shape[1:]
        pictures = torch.stack([self._prepared(frame) for frame in frames])
        session: Any = Sam2VideoInferenceSession(pictures, height, width, dtype=torch.float32)
        session.obj_id_to_idx(1)
        session.add_point_inputs(0, start, self._said(prompt, width, height))
        session.obj_with_new_inputs = [1]
        found = np.zeros(hidden.shape, bool)
        with tqdm(total=len(frames), desc="masks", unit="frame", disable=not progress, leave=False) as bar:
            self._model(session, frame_idx=start)
            for backwards in (False, True):
                for answer in self._model.propagate_in_video_iterator(
                    session, start_frame_idx=start, reverse=backwards
                ):
                    logits = answer.pred_masks.reshape(1, 1, *answer.pred_masks.shape[-2:]).float()
                    whole = functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
                    found[answer.frame_idx] = (whole[0, 0] > 0).numpy()
                    bar.update(0 if backwards and answer.frame_idx == start else 1)
        return found & ~hidden

    def _prepared(self, frame: UInt8[np.ndarray, "h w 3"]) -> Float[torch.Tensor, "3 s s"]:
        """A frame as the model wants it: square, with ImageNet's mean and deviation."""
        picture = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
        size = (self._side, self._side)
        picture = functional.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False)[0]
        return (picture - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_DEVIATION)[:, None, None]

    def _said(self, prompt: Prompt, width: int, height: int) -> dict[str, torch.Tensor]:
        """The prompt as points of the square picture: label 1 is the object, 2 and 3 are the corners of a box."""
        points, labels = (prompt.box, [2, 3]) if prompt.box is not None else (prompt.click, [1])
        assert points is not None, "one of the two was given"
        places = torch.tensor(points, dtype=torch.float32).reshape(1, 1, -1, 2)
        scale = torch.tensor([self._side / width, self._side / height])
        return {"point_coords": places * scale, "point_labels": torch.tensor([[labels]], dtype=torch.int32)}


def model_type(model: str) -> str | None:
    """The kind of a model of `transformers` that is on this machine; None if it is not, or has none."""
    try:
        from transformers import PretrainedConfig

        return PretrainedConfig.get_config_dict(model, local_files_only=True)[0].get("model_type")
    except (ImportError, OSError, ValueError):
        return None


def mask_propagator_by_name(name: str) -> MaskPropagator:
    """`grabcut`, or a SAM 2 video model by name or folder.

    Raises:
        AfieldError: its package or its weights are not there.
    """
    return GrabCutFlow() if name == "grabcut" else Sam2Video(name)


def without_holes(mask: Bool[np.ndarray, "h w"], largest: float = 0.03) -> Bool[np.ndarray, "h w"]:
    """Fill what is enclosed by the mask and smaller than a share of it: a handle of another colour belongs to the object."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    filled = mask.copy()
    height, width = mask.shape
    for number in range(1, count):
        left, top, w, h, area = (int(value) for value in stats[number])
        inside = left > 0 and top > 0 and left + w < width and top + h < height
        if inside and area < largest * mask.sum():
            filled[labels == number] = True
    return filled


def propagate_mask(
    frames: UInt8[np.ndarray, "t h w 3"],
    mask: Bool[np.ndarray, "h w"],
    start: int,
    hidden: Bool[np.ndarray, "t h w"],
    *,
    progress: bool = True,
) -> Bool[np.ndarray, "t h w"]:
    """Carry the mask of one frame through the video by dense flow, and let GrabCut redraw its border in every frame.

    Args:
        frames: RGB.
        mask: of the object in frame `start`.
        start: the frame that the mask belongs to.
        hidden: what stands in front of the object, hands above all; the object goes on behind it unseen.
        progress: show a progress bar.

    Returns:
        Where the object is seen in every frame.
    """
    height, width = mask.shape
    scale = min(1.0, PROPAGATION_SIZE / max(height, width))
    if scale < 1:
        frames = np.stack(
            [cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in frames]
        )
        small = frames.shape[2], frames.shape[1]
        mask = cv2.resize(mask.astype(np.float32), small, interpolation=cv2.INTER_AREA) > 0.5
        hidden = np.stack(
            [cv2.resize(one.astype(np.uint8), small, interpolation=cv2.INTER_NEAREST) > 0 for one in hidden]
        )
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    masks = np.zeros(frames.shape[:3], bool)
    masks[start] = mask & ~hidden[start]
    bar = tqdm(total=len(frames) - 1, desc="masks", unit="frame", disable=not progress, leave=False)
    for order in (range(start + 1, len(frames)), range(start - 1, -1, -1)):
        whole = mask
        for index in order:
            before = index - (1 if order.step > 0 else -1)
            unmoved = np.zeros((*mask.shape, 2), np.float32)
            back = _around_hidden(flow.calc(gray[index], gray[before], unmoved), hidden[index] | hidden[before])
            rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]].astype(np.float32)
            carried = cv2.remap(
                whole.astype(np.float32),
                columns + back[..., 0],
                rows + back[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            whole = _redraw(frames[index], carried > 0.5, hidden[index])
            masks[index] = whole & ~hidden[index]
            bar.update()
    bar.close()
    if scale < 1:
        return np.stack([cv2.resize(one.astype(np.float32), (width, height)) > 0.5 for one in masks])
    return masks


def _around_hidden(flow: Float[np.ndarray, "h w 2"], hidden: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 2"]:
    """Behind a hand the object moves as it does beside it, not as the hand does."""
    if not hidden.any():
        return flow
    known = (cv2.dilate(hidden.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0).astype(np.float32)
    size = (0, 0)
    weight = cv2.GaussianBlur(known, size, 25)
    smooth = cv2.GaussianBlur(flow * known[..., None], size, 25) / np.maximum(weight, 1e-6)[..., None]
    return np.where(known[..., None] > 0, flow, smooth).astype(np.float32)


def _redraw(
    color: UInt8[np.ndarray, "h w 3"], carried: Bool[np.ndarray, "h w"], hidden: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """The carried mask with a border that follows the picture; behind what hides it the border stays as carried."""
    kernel = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    inner, outer = cv2.erode(carried.astype(np.uint8), kernel), cv2.dilate(carried.astype(np.uint8), kernel)
    rows, columns = np.nonzero(outer)
    if len(rows) < 64 or inner.sum() < 32:
        return carried
    margin = 8
    part = (
        slice(max(0, rows.min() - margin), rows.max() + margin),
        slice(max(0, columns.min() - margin), columns.max() + margin),
    )
    labels = np.where(carried[part], cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[outer[part] == 0], labels[inner[part] > 0] = cv2.GC_BGD, cv2.GC_FGD
    if (labels == cv2.GC_BGD).sum() < 32:
        return carried
    cv2.setRNGSeed(0)
    models = (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.grabCut(np.ascontiguousarray(color[part][..., ::-1]), labels, (0, 0, 1, 1), *models, 1, cv2.GC_INIT_WITH_MASK)
    found = carried.copy()
    decided = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    found[part] = np.where(hidden[part], carried[part], decided)
    return found
