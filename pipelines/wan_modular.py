"""Sparse attention as a block of modular diffusers: denoising within it is sparse, all else as before.

```python
>>> pipe = WanSparseBlocks().init_pipeline("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
>>> pipe.load_components(dtype=torch.bfloat16)
>>> videos = pipe(prompt="a cat walks on the grass", diffattn_config="radial", output="videos")
```
"""

from typing import Any

from diffusers.modular_pipelines import InputParam
from diffusers.modular_pipelines.wan.denoise import WanDenoiseStep
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks, WanCoreDenoiseStep

from diffattn import AttentionConfig, Schedule
from diffattn.integration.scope import sparse_attention_scope

METHOD = InputParam(
    "diffattn_config",
    default="auto",
    type_hint=str | AttentionConfig,
    description="Method of sparse attention, by name or configured.",
)
SCHEDULE = InputParam("diffattn_schedule", type_hint=Schedule, description="Dense steps and layers of this call.")


class WanSparseDenoiseStep(WanDenoiseStep):
    """`WanDenoiseStep` with two more inputs: `diffattn_config` and `diffattn_schedule`."""

    @property
    def loop_inputs(self) -> list[InputParam]:
        """Inputs of the whole loop."""
        return [*super().loop_inputs, METHOD, SCHEDULE]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Denoise with sparse attention; afterwards `components` are as before."""
        inputs = self.get_block_state(state)
        config, schedule = inputs.diffattn_config, inputs.diffattn_schedule
        with sparse_attention_scope(components, config, schedule=schedule):
            return super().__call__(components, state)


class WanSparseCoreDenoiseStep(WanCoreDenoiseStep):
    """`WanCoreDenoiseStep` whose loop is sparse."""

    block_classes = [*WanCoreDenoiseStep.block_classes[:-1], WanSparseDenoiseStep]


class WanSparseBlocks(WanBlocks):
    """`WanBlocks` whose loop is sparse."""

    block_classes = [WanBlocks.block_classes[0], WanSparseCoreDenoiseStep, WanBlocks.block_classes[2]]
