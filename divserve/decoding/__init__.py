"""The decoding methods: parameters, papers and formulas. Independent of vLLM, HTTP and tensors.

`METHODS` is the registry; `Decoding` is the type of the ``decoding`` field of a request: one object
or a list of them, each discriminated by ``method``, or a preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from divserve.decoding.adacad import AdaCad
from divserve.decoding.base import Method
from divserve.decoding.cad import Cad
from divserve.decoding.cfg import Cfg
from divserve.decoding.coiecd import Coiecd
from divserve.decoding.contrastive import Contrastive
from divserve.decoding.dexperts import DExperts
from divserve.decoding.entropy_switch import EntropySwitch
from divserve.decoding.entropy_temperature import EntropyTemperature
from divserve.decoding.guide import Guide, Selector
from divserve.decoding.instructive import Instructive
from divserve.decoding.kl_temperature import KlTemperature
from divserve.decoding.linear_alignment import LinearAlignment
from divserve.decoding.look import Look, LookRow, LookState
from divserve.decoding.look_back import LookBack
from divserve.decoding.preset_ref import PresetField, PresetRef
from divserve.decoding.proxy_tuning import ProxyTuning
from divserve.decoding.reading import Read, Reading
from divserve.decoding.spec import BASE, Adapter, Spec
from divserve.decoding.stack import Stack, share_guide
from divserve.decoding.switch import SMALL_SUFFIX, ModelSize, Switch, SwitchRule
from divserve.decoding.uscd import Uscd
from divserve.decoding.vdgd import Vdgd
from divserve_contract import EXCLUDED, FIGURES, STATISTICS, Figures, Form, Program

__all__ = [
    "BASE", "EXCLUDED", "FIGURES", "METHODS", "SMALL_SUFFIX", "STATISTICS", "TAGS", "Adapter",
    "Decoding", "EntropySwitch", "Figures", "Form", "Guide", "Instructive", "Look", "LookBack",
    "LookRow", "LookState", "Method", "ModelSize", "PresetRef", "Program", "Read", "Reading",
    "Selector", "Spec", "Stack", "Switch", "SwitchRule",
]  # fmt: skip

AnyMethod = Annotated[
    Cad
    | AdaCad
    | Coiecd
    | Cfg
    | Instructive
    | LinearAlignment
    | Uscd
    | Vdgd
    | KlTemperature
    | EntropyTemperature
    | Contrastive
    | ProxyTuning
    | DExperts
    | EntropySwitch
    | LookBack,
    Field(discriminator="method"),
]
"""One method. A new method is listed here and nowhere else."""

METHODS: dict[str, type[Method]] = {
    get_args(cls.model_fields["method"].annotation)[0]: cls
    for cls in get_args(get_args(AnyMethod)[0])
}
"""Every method by its name."""


def _shape(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "list"
    if isinstance(value, str | PresetRef):
        return "preset"
    named = isinstance(value, Mapping) and "method" not in value
    return "preset" if named and {"preset", "context_weight"} & value.keys() else "one"


def _shared(value: Any) -> Any:
    return share_guide(value, {name: method.needs_guide() for name, method in METHODS.items()})


def _stackable(methods: list[Method]) -> list[Method]:
    Stack(methods)
    return methods


TAGS = ("one", "list", "preset")
"""What pydantic puts into the path of an error to tell the shapes apart."""

Decoding = Annotated[
    Annotated[AnyMethod, Tag("one")]
    | Annotated[
        list[AnyMethod],
        Field(min_length=1, max_length=len(METHODS)),
        AfterValidator(_stackable),
        BeforeValidator(_shared),
        Tag("list"),
    ]
    | Annotated[PresetField, Tag("preset")],
    Discriminator(_shape),
]
"""Type of the ``decoding`` field."""
