"""What an unperturbed pass leaves for the perturbed one, which starts at its first perturbed block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from .blocks import Tree, take_samples, without_memory
from .targets import LayerCall


@dataclass
class Prefix:
    """Recorded by an unperturbed pass.

    Args:
        inputs (`tuple`, *optional*): positional and keyword arguments of the first perturbed block.
        outputs (`dict[str, Any]`): by the name of each block before it, zeros in the shapes of its outputs.
        attention (`list[torch.Tensor]`): outputs `(B, S, H, D)` of the first perturbed layer, one for every call.
    """

    inputs: tuple | None = None
    outputs: dict[str, Tree] = field(default_factory=dict)
    attention: list[Tensor] = field(default_factory=list)

    def take(self, batch: int, samples: slice) -> Prefix:
        """Only some samples of a batch."""
        calls = self.attention
        calls = calls[samples] if len(calls) == batch > 1 else take_samples(calls, batch, samples)
        return Prefix(
            take_samples(self.inputs, batch, samples), take_samples(self.outputs, batch, samples), list(calls)
        )

    def record_inputs(self, forward: Callable) -> Callable:
        """The forward of the first perturbed block."""

        def run(*args, **kwargs):
            self.inputs = (args, kwargs)
            return forward(*args, **kwargs)

        return run

    def record_output(self, forward: Callable, block: str) -> Callable:
        """The forward of a block before it."""

        def run(*args, **kwargs):
            output = forward(*args, **kwargs)
            self.outputs[block] = without_memory(output)
            return output

        return run

    def record_attention(self, call: LayerCall) -> Tensor:
        """An attention call of the first perturbed layer."""
        self.attention.append(call.run())
        return self.attention[-1]

    def replay_inputs(self, forward: Callable) -> Callable:
        """The forward of the first perturbed block, with the recorded inputs whatever it is given."""
        return lambda *args, **kwargs: forward(*self.inputs[0], **self.inputs[1])

    def replay_output(self, forward: Callable, block: str) -> Callable:
        """In place of the forward of a block before it, whose output nobody reads."""
        return lambda *args, **kwargs: self.outputs[block]
