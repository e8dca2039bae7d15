"""Stable Diffusion 3 with guidance by perturbed attention heads or a negative prompt, as one diffusers pipeline.

```python
>>> pipe = DiffusionPipeline.from_pretrained(
...     model, custom_pipeline="pipelines/sd3_guided.py", trust_remote_code=True
... )
>>> image = pipe(prompt, diffattn_config={"heads": [(9, 3), (12, 0)], "scale": 3.0}).images[0]
```
"""

from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from diffattn.guidance import NAGConfig
from diffattn.guidance.scope import guidance_scope


class StableDiffusion3GuidedPipeline(StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` whose call takes guidance; afterwards the pipeline is as before.

    Args:
        diffattn_config (`dict` or [`NAGConfig`], *optional*): the arguments of [`guide`] for this call, such as
            heads, layers and scale; `{}` is the preset of the model. A [`NAGConfig`] is a negative prompt. None
            changes nothing.
        args, kwargs: as `StableDiffusion3Pipeline` takes them.
    """

    @torch.no_grad()
    def __call__(self, *args: Any, diffattn_config: dict | NAGConfig | None = None, **kwargs: Any) -> Any:
        with guidance_scope(self, diffattn_config):
            return super().__call__(*args, **kwargs)
