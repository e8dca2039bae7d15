"""Dense attention with a mask of the test's own, put under an unchanged model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .cases import Case
from .own_block import own_block_mask


class MaskedAttention(TorchFunctionMode):
    """Adds the own-block mask to every attention over as many tokens as the case says, `(B, H, S, D)`."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.calls = case, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(func, *args, **kwargs)

    def _attend(self, func, query: Tensor, key: Tensor, value: Tensor, attn_mask=None, **options) -> Tensor:
        tokens, others = key.shape[-2], key.shape[-2] - self.case.video
        if (
            query.shape[-2] in (tokens, self.case.video)
            and others in self.case.others
            and not options.get("is_causal")
        ):
            self.calls += 1
            before = others if self.case.before < 0 else min(self.case.before, others)
            mask = own_block_mask(self.case.grid, before, tokens)
            if query.shape[-2] < tokens:
                mask = mask[before : before + self.case.video]
            attn_mask = mask if attn_mask is None else attn_mask & mask
        return func(query, key, value, attn_mask=attn_mask, **options)
