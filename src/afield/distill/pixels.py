"""The pixels to which an affordance function is fitted, of all views at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from afield.distill.labels import Labels
from afield.fields.rendering import Rays, camera_rays
from afield.observation import Observation
from afield.perception.crops import object_square


@dataclass(frozen=True)
class Pixels:
    """All pixels of all views whose rays meet the object's cube, with their labels."""

    rays: Rays
    color: Float[Tensor, "p 3"]
    mask: Bool[Tensor, "p"]
    contact: Float[Tensor, "p"]
    """1 or 0; -1 in views without the label."""
    descriptor: Float[Tensor, "p d"]
    described: bool
    depth: Float[Tensor, "p"]
    """Along the optical axis in canonical units; 0 where there is none."""
    near_mask: Int[Tensor, "_k"]
    """Pixels on the object or close to its outline; five eighths of every batch come from them."""
    near_contact: Int[Tensor, "_c"]
    """Pixels in or beside the contact region, which is small; an eighth of every batch comes from them."""

    @classmethod
    def of(cls, observation: Observation, labels: Labels, center: Float[Tensor, "3"], scale: float) -> Pixels:
        """Gather the pixels of views with masks; `center` and `scale` (metres) give the canonical frame."""
        rays, colors, masks, contacts, descriptors, depths, near, touched = [], [], [], [], [], [], [], []
        for index, view in enumerate(observation.views):
            assert view.mask is not None, "checked before"
            height, width = view.mask.shape
            row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            pixel = torch.stack((column, row), dim=-1).reshape(-1, 2).float()
            found = camera_rays(view.camera, pixel, center, scale)
            keep = found.hits
            rays.append(Rays(*(getattr(found, name)[keep] for name in ("origin", "direction", "near", "far", "axial"))))
            colors.append(torch.from_numpy(view.color).reshape(-1, 3)[keep].float() / 255)
            depths.append(torch.from_numpy(view.depth).reshape(-1)[keep].float() / scale)
            mask = torch.from_numpy(view.mask)
            masks.append(mask.reshape(-1)[keep])
            wide = functional.max_pool2d(mask[None, None].float(), 9, 1, 4)[0, 0] > 0
            near.append(wide.reshape(-1)[keep])
            contact = labels.contact[index]
            label = torch.full((height, width), -1.0) if contact is None else torch.from_numpy(contact).float()
            contacts.append(label.reshape(-1)[keep])
            wide = functional.max_pool2d(label[None, None], 7, 1, 3)[0, 0] > 0
            touched.append(wide.reshape(-1)[keep])
            if labels.descriptors is None:
                descriptors.append(torch.zeros(int(keep.sum()), 0))
            else:
                square = object_square(view)
                place = (pixel - torch.tensor([square.left, square.top])) / square.side * 2 - 1
                found_map = functional.grid_sample(
                    labels.descriptors[index : index + 1], place[None, None], padding_mode="border", align_corners=False
                )
                descriptors.append(found_map[0, :, 0].T[keep])
        joined = Rays(
            *(torch.cat([getattr(r, n) for r in rays]) for n in ("origin", "direction", "near", "far", "axial"))
        )
        return cls(
            joined,
            torch.cat(colors),
            torch.cat(masks),
            torch.cat(contacts),
            torch.cat(descriptors),
            labels.descriptors is not None,
            torch.cat(depths),
            torch.cat(near).nonzero()[:, 0],
            torch.cat(touched).nonzero()[:, 0],
        )

    def draw(self, count: int, generator: torch.Generator) -> Int[Tensor, "k"]:
        """Five eighths near the object, an eighth near the contact region, the rest anywhere."""
        shares = ((self.near_mask, 5 * count // 8), (self.near_contact, count // 8))
        drawn = [index[torch.randint(len(index), (k,), generator=generator)] for index, k in shares if len(index)]
        rest = count - sum(len(index) for index in drawn)
        return torch.cat((*drawn, torch.randint(len(self.mask), (rest,), generator=generator)))
