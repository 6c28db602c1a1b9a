"""What is compared: columns that differ in what they describe, not in how it is searched.

All methods but `faithful` share search, physical terms and rehearsal. `attention` is what `afield grasp` does by default, so
it also aligns the objects as wholes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from afield.fields.registration import RegistrationConfig
from afield.starts import StartConfig
from afield.transfer import TransferConfig

UNALIGNED = replace(TransferConfig(), align=False)
PLAIN = replace(UNALIGNED, gate=False, center=False, geometry=False)
SHAPE = replace(PLAIN, start=StartConfig(matched=0.0))


@dataclass(frozen=True)
class Method:
    """One column of the tables."""

    kind: str
    """Of the field."""
    preset: str = "default"
    """Of the attention field."""
    config: TransferConfig = field(default_factory=TransferConfig)
    rehearse: bool = True
    """Choose among the last minima in physics, on the observed points."""
    true_mask: bool = False
    """See the target's points only: an upper bound of finding the object."""

    @property
    def field_name(self) -> str:
        """Name of the field it needs; several methods share one."""
        return f"{self.kind}-{self.preset}"


METHODS = {
    "attention": Method("attention"),
    "attention, true mask": Method("attention", true_mask=True, config=replace(TransferConfig(), gate=False)),
    "faithful": Method("attention", "faithful", TransferConfig(preset="faithful"), rehearse=False),
    "sparsedff": Method("sparsedff", config=PLAIN),
    "sparsedff + geometry + gate": Method("sparsedff", config=UNALIGNED),
    "dff": Method("dff", config=PLAIN),
    "dff + geometry + gate": Method("dff", config=UNALIGNED),
    "geometry": Method("geometry", config=SHAPE),
    "attention, not aligned": Method("attention", config=UNALIGNED),
    "geometry + alignment": Method(
        "geometry", config=replace(SHAPE, align=True, alignment=RegistrationConfig(features=0.0))
    ),
}
"""By name. `geometry` alone has no features and so neither gate nor centring nor matched starts."""
COLUMNS = tuple(name for name in METHODS if name not in ("attention, not aligned", "geometry + alignment"))
"""Those that run by default."""
