"""Names of models: `sft`, `spin-0`, `spin-0-epoch-1`, `spin-0-rows-14`, `spin-0-arm-nll`, `sft-more-1`, `dpo`,
`spin-3-dpo`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from spin_utils.files.paths import KitError

_FORM = re.compile(
    r"base|sft(?:-more-(?P<sft_epochs>[1-9]\d{0,3}))?"
    r"|dpo"
    r"|spin-(?P<iteration>0|[1-9]\d{0,3})"
    r"(?:-(?P<dpo>dpo)|-(?P<further>more)|-epoch-(?P<epoch>[1-9]\d{0,3})|-rows-(?P<fiftieths>[1-9]\d{0,3})"
    r"|-arm-(?P<arm>[a-z][a-z0-9]*(?:-[a-z0-9]+)*))?"
)


@dataclass(frozen=True)
class ModelName:
    """A model's name and its parts.

    >>> name = ModelName.parse("spin-3-dpo")
    >>> name.iteration, name.dpo
    (3, True)
    >>> ModelName.parse("spin-1").opponent
    'spin-0'
    """

    name: str
    iteration: int | None = None
    """SPIN's iteration t; None for SFT, and for DPO from SFT."""
    epoch: int | None = None
    """Epoch of the iteration (Figure 4); None for its last one."""
    fiftieths: int | None = None
    """Share of the prompts in fiftieths (Figure 5); None for all."""
    further: bool = False
    """The run of the epochs after the iteration's last one (Figure 4)."""
    sft_epochs: int = 0
    """Further epochs of SFT, the control of Table 5 and Figure 5."""
    arm: str = ""
    """Variant of SPIN that trained it (the profile's `arms`); empty: SPIN itself."""
    dpo: bool = False
    """DPO from this model."""

    @classmethod
    def parse(cls, name: str) -> ModelName:
        """Split a name into its parts. Raises `KitError` if it is not the name of a model."""
        found = _FORM.fullmatch(name)
        if found is None:
            raise KitError(
                f"{name[:80]!r} is not the name of a model; "
                f"names look like sft, spin-0, spin-0-epoch-1, spin-0-arm-nll, sft-more-1, dpo"
            )
        numbers = {key: int(text) for key, text in found.groupdict().items() if text and text.isdigit()}
        dpo = name == "dpo" or bool(found["dpo"])
        return cls(name, **numbers, arm=found["arm"] or "", further=bool(found["further"]), dpo=dpo)

    @property
    def is_iterate(self) -> bool:
        """Whether it is theta_t+1, the main player at the end of an iteration of Algorithm 1."""
        return self.name == f"spin-{self.iteration}"

    @property
    def opponent(self) -> str:
        """Name of the model that an iteration starts from and plays against: the iterate before it, or SFT."""
        assert self.iteration is not None, f"{self.name} is not a SPIN model"
        return f"spin-{self.iteration - 1}" if self.iteration else "sft"


def label(name: str) -> str:
    """A model's name in tables and figures.

    >>> label("spin-3-dpo"), label("sft-more-1")
    ('SPIN iteration 3 + DPO', 'SFT, 1 more epoch')
    """
    model = ModelName.parse(name)
    if name == "base":
        return "Base model"
    if model.iteration is None:
        more = f", {model.sft_epochs} more epoch{'s' * (model.sft_epochs > 1)}" if model.sft_epochs else ""
        return "DPO" if model.dpo else f"SFT{more}"
    text = f"SPIN iteration {model.iteration}"
    if model.epoch is not None:
        return f"{text}, epoch {model.epoch}"
    if model.fiftieths is not None:
        return f"{text}, {model.fiftieths}/50 of the prompts"
    if model.arm:
        return f"{text}, arm {model.arm}"
    further = ", the epochs after its model" if model.further else ""
    return text + further + " + DPO" * model.dpo


def main_chain(iterations: int) -> list[str]:
    """SFT and every iterate, in order.

    >>> main_chain(2)
    ['sft', 'spin-0', 'spin-1']
    """
    return ["sft", *(f"spin-{t}" for t in range(iterations))]


def iterates(names: Iterable[str]) -> list[str]:
    """The iterates among some models, in order.

    >>> iterates(["spin-10", "sft", "spin-2", "spin-0-epoch-1"])
    ['spin-2', 'spin-10']
    """
    found = {name: ModelName.parse(name) for name in set(names)}
    return sorted((n for n in found if found[n].is_iterate), key=lambda name: found[name].iteration or 0)
