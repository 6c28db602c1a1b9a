"""Where in the scene is the demonstrated object? A similarity that lays what the camera sees onto an affordance function.

Actron3D, III-D: hypotheses around the object, a coarse stage on surface and descriptors, a fine stage that adds contact. The
default solves all hypotheses at once with Levenberg-Marquardt on closed-form derivatives (`solve`); `alignment_adam.py` is the
paper's own way, rendering and Adam.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from afield.fields.volume import Volume
from afield.geometry import rotation_about_axis, rotation_angle
from afield.optimize import LevenbergMarquardtConfig, Quadratic, minimize_lm
from afield.target import Target

HIDDEN = 1e3
"""Added to the cost of hypotheses whose contact region no camera would see."""


@dataclass(frozen=True)
class Similarity:
    """A batch of maps from the world to the canonical frame: x_o = sign * exp(log_scale) * (R (x - pivot)) + t.

    The three scales are equal for a member of SIM(3), as in the paper; a box that is wider but not higher than the demonstrated
    one needs one for each axis. `sign` is (-1, 1, 1) for a mirrored function: a door with its hinge on the other side.
    """

    rotation: Float[Tensor, "s 3 3"]
    translation: Float[Tensor, "s 3"]
    log_scale: Float[Tensor, "s 3"]
    sign: Float[Tensor, "s 3"]
    pivot: Float[Tensor, "3"]
    """In the world; rotating about it keeps what is seen in place."""

    def __len__(self) -> int:
        return len(self.rotation)

    def turned(self, points: Float[Tensor, "*s n 3"]) -> Float[Tensor, "s n 3"]:
        """World points rotated and scaled, not yet moved."""
        scale = (self.sign * self.log_scale.exp())[:, None]
        return scale * ((points - self.pivot) @ self.rotation.transpose(-1, -2))

    def apply(self, points: Float[Tensor, "*s n 3"]) -> Float[Tensor, "s n 3"]:
        """World points in canonical units."""
        return self.turned(points) + self.translation[:, None]

    def invert(self, points: Float[Tensor, "*s n 3"]) -> Float[Tensor, "s n 3"]:
        """Canonical points in the world, in metres."""
        scale = (self.sign * self.log_scale.exp())[:, None]
        return ((points - self.translation[:, None]) / scale) @ self.rotation + self.pivot

    def linear(self) -> Float[Tensor, "s 3 3"]:
        """The matrix of `apply`."""
        return (self.sign * self.log_scale.exp())[:, :, None] * self.rotation

    def retract(self, step: Float[Tensor, "s 9"]) -> Similarity:
        """Move along a tangent: rotation vector (from the left), translation, log-scales."""
        angle = step[:, :3].norm(dim=-1)
        axis = step[:, :3] / angle.clamp_min(1e-12)[:, None]
        return replace(
            self,
            rotation=rotation_about_axis(axis, angle) @ self.rotation,
            translation=self.translation + step[:, 3:6],
            log_scale=self.log_scale + step[:, 6:],
        )

    def derivative(self, points: Float[Tensor, "*s n 3"]) -> Float[Tensor, "s n 3 9"]:
        """Of `apply` with respect to the tangent of `retract`."""
        plain = (points - self.pivot) @ self.rotation.transpose(-1, -2)
        x, y, z = plain.unbind(dim=-1)
        zero = torch.zeros_like(x)
        # d(exp(w) p) = w x p = -[p] w
        cross = torch.stack((zero, z, -y, -z, zero, x, y, -x, zero), dim=-1).unflatten(-1, (3, 3))
        factor = (self.sign * self.log_scale.exp())[:, None, :, None]
        one = torch.eye(3).to(plain).expand(*plain.shape[:-1], 3, 3)
        return torch.cat((factor * cross, one, torch.diag_embed(self.turned(points))), dim=-1)

    def __getitem__(self, index: Int[Tensor, "k"] | Bool[Tensor, "s"]) -> Similarity:
        return replace(
            self,
            rotation=self.rotation[index],
            translation=self.translation[index],
            log_scale=self.log_scale[index],
            sign=self.sign[index],
        )

    def where(self, keep: Bool[Tensor, "s"], other: Similarity) -> Similarity:
        """This one where `keep`, else the other."""
        return replace(
            self,
            rotation=torch.where(keep[:, None, None], self.rotation, other.rotation),
            translation=torch.where(keep[:, None], self.translation, other.translation),
            log_scale=torch.where(keep[:, None], self.log_scale, other.log_scale),
        )


@dataclass(frozen=True)
class Weights:
    """Width of every residual: what counts as one unit of error. Smaller is stronger."""

    surface: float = 0.02
    """Distance of seen points to the surface, in canonical units."""
    feature: float = 0.35
    """Difference of descriptors."""
    free: float = 0.02
    """How deep a point known to be empty lies inside, in canonical units."""
    collision: float = math.inf
    """How deep a point of something else lies inside, in canonical units; infinite leaves this term out."""
    contact: float = 0.10
    """Distance of points that look like the contact region to it, in canonical units; fine stage only."""
    tilt: float = 0.03
    """Radians by which the object leans; infinite where nothing stands upright."""
    floor: float = 0.03
    """Of the height of what it stands on, in canonical units."""
    scale: float = 0.35
    """Of the log-scale against the demonstrated size."""
    stretch: float = 0.35
    """Of the differences between the log-scales of the axes; 0 keeps them equal, as in the paper."""
    mirror: float = 0.5
    """Cost of being mirrored: most doors have their hinge where the demonstrated one has it."""


@dataclass(frozen=True)
class AlignConfig:
    """How the search is done."""

    views: int = 24
    """Hypotheses N_r on each circle."""
    raised: tuple[float, ...] = (0.0,)
    """Circles, by how much the object leans towards the camera on them, in radians. The horizontal one suffices where +z is up;
    others are for worlds that do not know what is up, with `Weights.tilt` infinite."""
    mirror: bool = True
    """Also try the mirrored function."""
    weights: Weights = field(default_factory=Weights)
    least_seen: float = 0.3
    """Hypotheses are left out for which the camera would see less than this share of the contact region."""
    rounds: tuple[tuple[int, int, int], ...] = ((6, 150, 8), (10, 300, 6))
    """Coarse stage: trial steps, seen points, and how many hypotheses go on, all of them different."""
    fine: int = 12
    """Trial steps of the fine stage, on all points, with the contact term."""


@dataclass(frozen=True)
class Alignment:
    """The hypotheses that went on to the end, best first; those whose contact region would be hidden come last."""

    similarity: Similarity
    cost: Float[Tensor, "s"]
    terms: dict[str, Float[Tensor, "s"]]
    """The parts of the cost; `hidden`, which is no part of it, is 1 where no camera would see the contact region."""

    def same_place(self, index: int, other: int) -> bool:
        """Whether two hypotheses differ by less than 30 degrees and are both mirrored or both not."""
        state = self.similarity
        turned = float(rotation_angle(state.rotation[index], state.rotation[other]))
        return turned < math.radians(30.0) and bool(state.sign[index, 0] == state.sign[other, 0])

    def since(self, index: int) -> Alignment:
        """Without the first `index` hypotheses; those that are left keep their order."""
        rest = torch.arange(index, len(self.cost))
        return Alignment(
            self.similarity[rest], self.cost[rest], {name: value[rest] for name, value in self.terms.items()}
        )


def first_guesses(
    volume: Volume, target: Target, scale: float, config: AlignConfig, *, metric: bool = True
) -> Similarity:
    """Hypotheses: the camera somewhere on circles around the object, which fills what is seen.

    For each, the part of the surface that would face a camera is laid onto the seen points, middle onto middle.

    Args:
        volume: the baked function.
        target: what is seen.
        scale: metres per canonical unit of the demonstrated object.
        config: how many.
        metric: whether the scale means anything; if not, any size is tried.
    """
    pivot = _box(target.points)[0]
    up = torch.tensor([0.0, 0.0, 1.0])
    lying = functional.normalize(torch.linalg.cross(up, target.eyes[0] - pivot), dim=0)
    lean = rotation_about_axis(lying.expand(len(config.raised), 3), -torch.tensor(config.raised))
    angle = torch.arange(config.views) * (2 * math.pi / config.views)
    rotation = (rotation_about_axis(up.expand(config.views, 3), angle) @ lean[:, None]).flatten(0, 1)
    sign = torch.ones(len(rotation), 3)
    if config.mirror:
        rotation, sign = rotation.repeat(2, 1, 1), torch.cat((sign, sign * torch.tensor([-1.0, 1.0, 1.0])))
    start = Similarity(
        rotation, torch.zeros(len(rotation), 3), torch.full((len(rotation), 3), -math.log(scale)), sign, pivot
    )
    seen = start.turned(target.points)
    towards = functional.normalize(sign[:, None] * ((target.eyes - pivot) @ rotation.mT), dim=-1)
    shifts, sizes = [], []
    for index in range(len(start)):
        facing = (volume.normals @ towards[index].T).amax(dim=-1) > 0.15
        middle, extent = _box(volume.surface[facing])
        own_middle, own_extent = _box(seen[index])
        size = extent.norm() / own_extent.norm().clamp_min(1e-6)
        size = size.clamp(0.6, 1.6) if metric else size
        shifts.append(middle - own_middle * size)
        sizes.append(size.log())
    return replace(start, translation=torch.stack(shifts), log_scale=start.log_scale + torch.stack(sizes)[:, None])


def _box(points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Middle and extent, without the outermost hundredths."""
    low, high = torch.quantile(points, torch.tensor([0.02, 0.98]).to(points), dim=0)
    return (low + high) / 2, high - low


@dataclass(frozen=True)
class Problem:
    """The energy of a similarity and its local quadratic model."""

    volume: Volume
    target: Target
    weights: Weights
    scale: float
    floor: float | None
    contact: Float[Tensor, "k 3"] | None = None
    """Q_c, canonical; with `like_contact`, adds Eq. 11."""
    like_contact: Float[Tensor, "l 3"] | None = None
    """Seen points that look like the contact region."""

    def __call__(self, state: Similarity) -> Quadratic:
        """Cost, gradient and Gauss-Newton matrix of every hypothesis."""
        total = Quadratic.zero(len(state), 9)
        for name, part in self._parts(state):
            total = total.plus(name, part)
        return total

    def _parts(self, state: Similarity) -> list[tuple[str, Quadratic]]:
        weights, channels = self.weights, self.volume.grid.shape[-1]
        place, jacobian = state.apply(self.target.points), state.derivative(self.target.points)
        value, slope = self.volume.look_up(place)
        parts = [
            ("surface", Quadratic.of(value[..., :1] / weights.surface, slope[..., :1, :] / weights.surface, jacobian))
        ]
        difference = (value[..., 1 : channels - 1] - self.target.descriptors) / weights.feature
        parts.append(("feature", Quadratic.of(difference, slope[..., 1 : channels - 1, :] / weights.feature, jacobian)))
        parts += self._outside(state, "free", self.target.free, weights.free)
        parts += self._outside(state, "collision", self.target.others, weights.collision)
        if self.like_contact is not None and self.contact is not None:
            place, jacobian = state.apply(self.like_contact), state.derivative(self.like_contact)
            nearest = self.contact[torch.cdist(place, self.contact.expand(len(state), -1, -1)).argmin(dim=-1)]
            one = torch.eye(3).expand(*place.shape[:-1], 3, 3) / weights.contact
            parts.append(("contact", Quadratic.of((place - nearest) / weights.contact, one, jacobian)))
        return [*parts, *self._priors(state)]

    def _outside(
        self, state: Similarity, name: str, points: Float[Tensor, "m 3"], width: float
    ) -> list[tuple[str, Quadratic]]:
        """Points that must not lie inside of the object."""
        if len(points) == 0 or not math.isfinite(width):
            return []
        distance, way = self.volume.look_up(state.apply(points), distance_only=True)
        deep = distance.clamp_max(0.0) / width
        slope = way * (deep < 0).unsqueeze(-1) / width
        return [(name, Quadratic.of(deep, slope, state.derivative(points)))]

    def _priors(self, state: Similarity) -> list[tuple[str, Quadratic]]:
        """It stands upright on the table and is about as large as the demonstrated one."""
        weights, count = self.weights, len(state)
        zero = Quadratic.zero(count, 9)
        parts = [("mirror", replace(zero, cost=weights.mirror * (state.sign[:, 0] < 0).float()))]
        if math.isfinite(weights.tilt):
            up = state.rotation[:, :, 2]
            x, y, z = up.unbind(dim=-1)
            zero = torch.zeros_like(x)
            rows = torch.stack((zero, z, -y, -z, zero, x), dim=-1).reshape(count, 2, 3)
            jacobian = torch.cat((rows, torch.zeros(count, 2, 6)), dim=-1)
            parts.append(("tilt", Quadratic.plain(up[:, :2] / weights.tilt, jacobian / weights.tilt)))
        if self.floor is not None and self.target.table is not None:
            foot = torch.cat((self.target.points.mean(dim=0)[:2], torch.tensor([self.target.table])))[None]
            height = state.apply(foot)[:, 0, 2:] - self.floor
            jacobian = state.derivative(foot)[:, 0, 2:]
            parts.append(("floor", Quadratic.plain(height / weights.floor, jacobian / weights.floor)))
        own = state.log_scale + math.log(self.scale)
        mean = torch.full((count, 1, 3), 1 / 3)
        jacobian = torch.cat((torch.zeros(count, 1, 6), mean), dim=-1)
        parts.append(
            ("scale", Quadratic.plain(own.mean(dim=-1, keepdim=True) / weights.scale, jacobian / weights.scale))
        )
        if weights.stretch > 0:
            apart = own - own.mean(dim=-1, keepdim=True)
            jacobian = torch.cat((torch.zeros(count, 3, 6), (torch.eye(3) - 1 / 3).expand(count, 3, 3)), dim=-1)
            parts.append(("stretch", Quadratic.plain(apart / weights.stretch, jacobian / weights.stretch)))
        return parts


def align(
    volume: Volume,
    target: Target,
    scale: float,
    floor: float | None,
    contact: Float[Tensor, "k 3"],
    config: AlignConfig | None = None,
    *,
    metric: bool = True,
) -> Alignment:
    """Coarse on all hypotheses, fine on the best ones.

    Args:
        volume: the skill's baked function.
        target: what is seen.
        scale: metres per canonical unit of the demonstrated object.
        floor: canonical height of what it stood on.
        contact: Q_c, canonical points.
        config: see `AlignConfig`.
        metric: whether the demonstrated size is known; if not, it counts for nothing.
    """
    config = config or AlignConfig()
    weights = config.weights if metric else replace(config.weights, scale=1e6)
    problem = Problem(volume, target, weights, scale, floor)
    basis = None if config.weights.stretch > 0 else _equal_scales()
    state = first_guesses(volume, target, scale, config, metric=metric)
    for steps, points, keep in config.rounds:
        part = replace(problem, target=target.thinned(points))
        coarse = minimize_lm(part, state, LevenbergMarquardtConfig(steps), basis)
        hidden = seen_share(volume, coarse.state, contact, target.eyes) < config.least_seen
        state = coarse.state[distinct(coarse.state, coarse.quadratic.cost + HIDDEN * hidden, keep)]
    problem = replace(problem, contact=contact, like_contact=like_contact(volume, target))
    fine = minimize_lm(problem, state, LevenbergMarquardtConfig(config.fine), basis)
    hidden = seen_share(volume, fine.state, contact, target.eyes) < config.least_seen
    order = (fine.quadratic.cost + HIDDEN * hidden).argsort(stable=True)
    terms = {name: value[order] for name, value in {**fine.quadratic.terms, "hidden": hidden.float()}.items()}
    return Alignment(fine.state[order], fine.quadratic.cost[order], terms)


def distinct(state: Similarity, cost: Float[Tensor, "s"], keep: int) -> Int[Tensor, "k"]:
    """The best hypotheses, no two of which have come to the same place: many starts end in one minimum.

    Two are the same within 10 degrees, 10% of the canonical unit and 15% of scale, and of one handedness.
    """
    turned = rotation_angle(state.rotation[:, None], state.rotation[None])
    moved = torch.cdist(state.translation, state.translation)
    scaled = (state.log_scale[:, None] - state.log_scale[None]).abs().amax(dim=-1)
    handed = state.sign[:, None, 0] == state.sign[None, :, 0]
    same = (turned < math.radians(10.0)) & (moved < 0.1) & (scaled < 0.15) & handed
    chosen: list[int] = []
    for index in cost.argsort(stable=True).tolist():
        if len(chosen) < keep and not any(bool(same[index, other]) for other in chosen):
            chosen.append(index)
    return torch.tensor(chosen)


def seen_share(
    volume: Volume, state: Similarity, region: Float[Tensor, "k 3"], eyes: Float[Tensor, "v 3"], samples: int = 24
) -> Float[Tensor, "s"]:
    """Share of the contact region that the cameras would see: no part of the object lies on the way to one of them.

    The thing that is touched, a handle say, hides its own far side; so a point counts as hidden only behind a depth of 4% inside.
    """
    region = region[:: max(1, len(region) // 40)]
    along = torch.linspace(0.05, 2.2, samples)
    seen = torch.zeros(len(state), len(region), dtype=torch.bool)
    for eye in eyes:
        way = functional.normalize(state.apply(eye[None]) - region, dim=-1)
        points = region[None, :, None] + way[:, :, None] * along[:, None]
        seen |= (volume.look_up(points, distance_only=True)[0][..., 0] >= -0.04).all(dim=-1)
    return seen.float().mean(dim=-1)


def align_cloud(volume: Volume, points: Float[Tensor, "n 3"], steps: int = 40) -> Alignment:
    """T_oc of III-C: the similarity that lays a cloud of an object in another frame onto its signed distance.

    The principal axes of both give 24 starts, the bounding boxes' diagonals the scale; nothing is known of up or size.

    Args:
        volume: the object's baked function.
        points: the cloud, in any unit, for instance where tracks begin in a camera's frame.
        steps: trial steps of the solver.
    """
    low, high = points.amin(dim=0), points.amax(dim=0)
    own_low, own_high = volume.surface.amin(dim=0), volume.surface.amax(dim=0)
    rotation = _principal_axes(volume.surface) @ _turns() @ _principal_axes(points).T
    count, pivot = len(rotation), points.mean(dim=0)
    scale = ((own_high - own_low).norm() / (high - low).norm()).log()
    start = Similarity(
        rotation, volume.surface.mean(dim=0).expand(count, 3), scale.expand(count, 3), torch.ones(count, 3), pivot
    )
    nothing = torch.zeros(len(points), volume.descriptors.shape[1])
    nobody = torch.zeros(len(points), dtype=torch.long)
    target = Target(
        points, nothing, torch.zeros_like(points), torch.zeros(0, 3), pivot[None], nobody, torch.zeros(0, 3)
    )
    weights = Weights(feature=1e6, tilt=math.inf, scale=1e6, stretch=0.0)
    problem = Problem(volume, target, weights, float((-scale).exp()), None)
    solved = minimize_lm(problem, start, LevenbergMarquardtConfig(steps), _equal_scales())
    order = solved.quadratic.cost.argsort(stable=True)
    return Alignment(solved.state[order], solved.quadratic.cost[order], {})


def _principal_axes(points: Float[Tensor, "n 3"]) -> Float[Tensor, "3 3"]:
    """Columns, the longest first; a rotation."""
    _, _, axes = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    return (axes * torch.linalg.det(axes)).T


def _turns() -> Float[Tensor, "24 3 3"]:
    """All rotations of a cube."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turn = torch.zeros(3, 3)
            turn[torch.arange(3), torch.tensor(order)] = torch.tensor(signs)
            if float(torch.linalg.det(turn)) > 0:
                found.append(turn)
    return torch.stack(found)


def like_contact(volume: Volume, target: Target, share: float = 0.03) -> Float[Tensor, "l 3"]:
    """Seen points whose descriptors are most like those of the contact region (cosine)."""
    touched = volume.descriptors[volume.contact >= volume.contact.topk(max(4, len(volume.contact) // 50)).values[-1]]
    wanted = functional.normalize(touched, dim=-1)
    found = (
        (functional.normalize(target.descriptors, dim=-1) @ wanted.T).topk(min(3, len(wanted)), dim=-1).values.mean(-1)
    )
    return target.points[found.topk(max(4, round(share * len(found)))).indices]


def _equal_scales() -> Float[Tensor, "9 7"]:
    """Keeps the three log-scales equal: the tangent of SIM(3)."""
    basis = torch.zeros(9, 7)
    basis[:6, :6] = torch.eye(6)
    basis[6:, 6] = 1.0
    return basis
