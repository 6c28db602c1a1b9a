"""What to repeat, independent of where: a hand configuration in a demonstrated scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afield.artifacts import load_artifact, write_artifact_files, write_folder
from afield.errors import AfieldError
from afield.hand import Hand, HandPoints
from afield.scene import Scene


@dataclass(frozen=True)
class Demonstration:
    """One grasp, shown once (section 3.4): the hand's parameters beta-hat and the scene X-hat they belong to.

    The scene is kept with its raw features rather than with the features of one particular field at the query points, so
    that one demonstration serves every field: `transfer_grasp` evaluates f(Q | beta-hat, X-hat) anew, which is exact.
    """

    name: str
    hand: str
    """Name of the hand that was demonstrated."""
    hand_fingerprint: str
    """Hash of that hand's kinematics; another hand cannot repeat these joint angles."""
    beta: Float[Tensor, "d"]
    """Hand configuration: translation (m), rotation 6-D, joint angles (rad), in the demonstrated scene's world frame."""
    points: HandPoints
    """The query points Q on the hand's surface, sampled once in the canonical pose (Eq. 1)."""
    scene: Scene
    """The demonstrated scene, with raw features."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: the capture, the configuration file, the seed."""

    def query_points(self, hand: Hand) -> Float[Tensor, "q 3"]:
        """The query points in the demonstrated scene's world frame, in metres."""
        self.check_hand(hand)
        return hand.place(self.points, self.beta)

    def region(self, hand: Hand, reach: float = 0.03) -> Bool[Tensor, "n"]:
        """Which points of the demonstrated scene are within `reach` metres of the hand: the demonstrated region."""
        distance = torch.cdist(self.scene.points, self.query_points(hand)).amin(dim=-1)
        near = distance <= reach
        if int(near.sum()) < 5:
            raise AfieldError(
                f"The demonstration '{self.name}' touches nothing: only {int(near.sum())} scene points lie within "
                f"{reach * 100:.0f} cm of the hand (the nearest is {float(distance.min()) * 100:.1f} cm away). "
                "Check the hand configuration's frame and units."
            )
        return near

    def check_hand(self, hand: Hand) -> None:
        """Refuse a hand other than the demonstrated one."""
        if hand.fingerprint != self.hand_fingerprint:
            raise AfieldError(
                f"The demonstration '{self.name}' was made with the hand '{self.hand}' "
                f"({self.hand_fingerprint[:8]}), but this is the hand '{hand.name}' ({hand.fingerprint[:8]})."
            )
        if self.beta.shape != (hand.dof,):
            raise AfieldError(
                f"The demonstration '{self.name}' has {len(self.beta)} numbers, but a configuration of the hand "
                f"'{hand.name}' has {hand.dof}."
            )

    def to(self, device: torch.device | str) -> Demonstration:
        """The same demonstration on another device."""
        points = HandPoints(
            link=self.points.link.to(device),
            points_link=self.points.points_link.to(device),
            normals_link=self.points.normals_link.to(device),
        )
        return Demonstration(
            self.name,
            self.hand,
            self.hand_fingerprint,
            self.beta.to(device),
            points,
            self.scene.to(device),
            self.provenance,
        )

    def save(self, folder: Path) -> None:
        """Write the demonstration as an artifact folder, its scene in the subfolder `scene`."""
        write_folder(folder, self.write_files)

    def write_files(self, folder: Path) -> None:
        """Write the files into an existing folder; for use inside `write_folder`."""
        tensors = {
            "beta": self.beta,
            "link": self.points.link,
            "points_link": self.points.points_link,
            "normals_link": self.points.normals_link,
        }
        header = {
            "name": self.name,
            "hand": self.hand,
            "hand_fingerprint": self.hand_fingerprint,
            "provenance": dict(self.provenance),
        }
        write_artifact_files(folder, "demonstration", tensors, header)
        self.scene.write_files(folder / "scene")

    @classmethod
    def load(cls, folder: Path) -> Demonstration:
        """Read a demonstration back."""
        tensors, header = load_artifact(
            folder,
            "demonstration",
            ("beta", "link", "points_link", "normals_link"),
            ("name", "hand", "hand_fingerprint"),
        )
        return cls(
            name=header["name"],
            hand=header["hand"],
            hand_fingerprint=header["hand_fingerprint"],
            beta=tensors["beta"],
            points=HandPoints(tensors["link"], tensors["points_link"], tensors["normals_link"]),
            scene=Scene.load(Path(folder) / "scene"),
            provenance=header.get("provenance", {}),
        )


def demonstrate(
    name: str,
    hand: Hand,
    beta: Float[Tensor, "d"],
    scene: Scene,
    *,
    query_count: int = 256,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> Demonstration:
    """Make a demonstration from a hand configuration in a scene.

    Args:
        name: what to call it.
        hand: the hand that `beta` describes.
        beta: translation (m), rotation 6-D, joint angles (rad), in the scene's world frame.
        scene: the scene the hand was shown in, with raw features.
        query_count: number of points sampled on the hand's surface (Q of Eq. 1).
        seed: of that sampling.
        provenance: whatever should be remembered of where it came from.

    Raises:
        AfieldError: the hand is nowhere near the scene's points.
    """
    demonstration = Demonstration(
        name=name,
        hand=hand.name,
        hand_fingerprint=hand.fingerprint,
        beta=beta,
        points=hand.sample_surface(query_count, seed=seed),
        scene=scene,
        provenance={**(provenance or {}), "query_count": query_count, "seed": seed},
    )
    demonstration.region(hand)
    return demonstration
