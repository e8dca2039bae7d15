"""Wan text-to-video with sparse attention, as one diffusers pipeline.

```python
>>> pipe = DiffusionPipeline.from_pretrained(
...     model, custom_pipeline="pipelines/wan_sparse.py", trust_remote_code=True
... )
>>> video = pipe(prompt, diffattn_config="radial").frames[0]
```
"""

from typing import Any

import torch
from diffusers import WanPipeline

import diffattn


class WanSparsePipeline(WanPipeline):
    """`WanPipeline`, whose call takes a method and a schedule and is dense again afterwards."""

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        diffattn_config: str | diffattn.AttentionConfig = "radial",
        diffattn_schedule: diffattn.Schedule | None = None,
        **kwargs: Any,
    ) -> Any:
        diffattn.enable(self, diffattn_config, schedule=diffattn_schedule)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            diffattn.disable(self)
