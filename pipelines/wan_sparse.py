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
from diffattn.integration.scope import sparse_attention_scope


class WanSparsePipeline(WanPipeline):
    """`WanPipeline` whose call takes a method; afterwards the pipeline is as before.

    Args:
        diffattn_config (`str` or [`AttentionConfig`], *optional*, defaults to `"auto"`): a method for this call;
            None changes nothing.
        diffattn_schedule ([`Schedule`], *optional*): dense steps and layers of this call.
        args, kwargs: as `WanPipeline` takes them.
    """

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        diffattn_config: str | diffattn.AttentionConfig | None = "auto",
        diffattn_schedule: diffattn.Schedule | None = None,
        **kwargs: Any,
    ) -> Any:
        with sparse_attention_scope(self, diffattn_config, schedule=diffattn_schedule):
            return super().__call__(*args, **kwargs)
