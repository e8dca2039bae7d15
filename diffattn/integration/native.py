"""The sparse patterns that models bring along, as something that `enable` can turn on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..attention_config import AttentionConfig
from ..kernels.plan.plan import Plan
from ..schedule import Schedule

NO_PATTERN = "the model brings no sparse pattern of its own"
EVERY_CALL = Schedule(dense_start=0, dense_end=0, dense_layers=0)


@dataclass(frozen=True)
class NativeConfig(AttentionConfig):
    """`enable(pipe, "native")`: what the model was trained with, NABLA in Kandinsky 5 (10 s) and Kandinsky 6-SR.

    diffusers runs such a pattern through FlexAttention, which, unless it is compiled, computes dense attention and
    ignores the pattern. Calls that bring no pattern are dense.
    """

    method: ClassVar[str] = "native"

    def _plan(self, **_) -> Plan:
        raise NotImplementedError("the pattern of a model comes with its calls: diffattn.enable(pipe, 'native')")
