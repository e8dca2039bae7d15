"""How much of a model's attention a method keeps, head by head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention_config import AttentionConfig
from ..functional import make_plan
from ..kernels.attend import attend
from ..kernels.plan.plan import Plan
from ..kernels.plan.sampled_levels import sampled_levels
from .capture import AttentionCall

QUERIES = 256  # sampled evenly from a sequence


@dataclass(frozen=True)
class Recall:
    """One method on one attention call.

    Args:
        layer (`int`): number of the self-attention layer.
        density (`float`): of the plan.
        exact (`torch.Tensor`): `(H,)`, share of the dense attention mass on keys that the plan sees one by one.
        seen (`torch.Tensor`): `(H,)`, the same, with keys that it sees in a mean of several added.
        error (`torch.Tensor`): `(H,)`, norm of the difference of the outputs over the norm of the dense one.
    """

    layer: int
    density: float
    exact: Tensor
    seen: Tensor
    error: Tensor


@torch.no_grad()
def attention_recall(call: AttentionCall, config: AttentionConfig) -> Recall:
    """What `config` keeps of a captured call, at `QUERIES` of its queries, averaged over the batch.

    Args:
        call ([`~analysis.capture.AttentionCall`]): S tokens.
        config ([`AttentionConfig`]): the method.

    Example:

    ```python
    >>> with capture(pipe, keep=lambda layer, step: step == 5) as calls:
    ...     pipe(prompt)
    >>> [attention_recall(call, diffattn.AutoConfig(density=0.2)).error.mean() for call in calls]
    ```
    """
    query, key, value = (x.float() for x in (call.query, call.key, call.value))
    plan = make_plan(config, call.grid, query, key, value=value, layer=call.layer)
    if call.key_mask is not None:
        plan = plan.with_key_mask(call.key_mask)
    tokens = torch.linspace(0, plan.tokens - 1, min(QUERIES, plan.tokens)).round().long()
    probs, exact_out = _dense(query[:, tokens], key, value, call.key_mask)
    out = attend(query, key, value, plan)[:, tokens].transpose(1, 2)
    levels = _levels(plan, tokens, query.shape[0], query.shape[2])
    exact, seen = ((probs * kept).sum(-1).mean((0, 2)) for kept in (levels == 1, levels > 0))
    error = _norm(out - exact_out) / _norm(exact_out)
    return Recall(call.layer, plan.density, exact, seen, error)


def _dense(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities `(B, H, n, S)` and outputs `(B, H, n, D)` of some queries."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q.shape[-1] ** -0.5 * q @ k.mT
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
    probs = scores.softmax(-1)
    return probs, probs @ v


def _norm(rows: Tensor) -> Tensor:
    """`(H,)` of `(B, H, n, D)`."""
    return rows.square().sum((0, 2, 3)).sqrt()


def _levels(plan: Plan, queries: Tensor, batch: int, heads: int) -> Tensor:
    """`(B, H, n, S)`, the pool at which each query sees each key, 0 where it does not."""
    keys = torch.arange(plan.tokens)
    levels = [sampled_levels(plan, queries, keys, b, h) for b in range(batch) for h in range(heads)]
    return torch.stack(levels).unflatten(0, (batch, heads))
