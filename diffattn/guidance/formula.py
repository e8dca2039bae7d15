"""The formula of guidance, for predictions of any kind: noise, velocity or clean sample."""

from __future__ import annotations

from torch import Tensor


def combine(
    cond: Tensor,
    perturbed: Tensor | None = None,
    uncond: Tensor | None = None,
    *,
    scale: float = 0.0,
    guidance_scale: float = 1.0,
    rescale: float = 0.0,
) -> Tensor:
    """`v = v_c + (g - 1) (v_c - v_u) + w (v_c - v_p)`, then optionally the spread of `v_c`.

    Args:
        cond, perturbed, uncond (`torch.Tensor`): predictions `(B, ...)`; a term without its prediction is left out.
        scale (`float`): w of the perturbed prediction (arXiv 2506.10978, Equation 5).
        guidance_scale (`float`): g of classifier-free guidance; 1 is none.
        rescale (`float`): phi from 0 to 1 of arXiv 2305.08891, Section 3.4: `v (phi std(v_c) / std(v) + 1 - phi)`.
    """
    out = cond
    if uncond is not None:
        out = out + (guidance_scale - 1) * (cond - uncond)
    if perturbed is not None:
        out = out + scale * (cond - perturbed)
    if not rescale:
        return out
    spread = [tensor.std(list(range(1, tensor.ndim)), keepdim=True) for tensor in (cond, out)]
    return out * (rescale * spread[0] / spread[1] + 1 - rescale)


def shift_of_batch(
    cond: Tensor, perturbed: Tensor, uncond: Tensor, *, scale: float, guidance_scale: float | None, rescale: float
) -> Tensor:
    """What added to both `v_c` and `v_u` makes a pipeline's `u + g (c - u)` the result of [`combine`].

    Without `rescale` this does not depend on g, which may then be None.
    """
    if not rescale:
        return scale * (cond - perturbed)
    wanted = combine(cond, perturbed, uncond, scale=scale, guidance_scale=guidance_scale, rescale=rescale)
    return wanted - combine(cond, uncond=uncond, guidance_scale=guidance_scale)


def uncond_after(
    returned: Tensor,
    cond: Tensor,
    perturbed: Tensor,
    uncond: Tensor,
    *,
    scale: float,
    guidance_scale: float | None,
    rescale: float,
) -> Tensor:
    """The u that makes a pipeline's `u + g (c - u)` the result of [`combine`], its c being `returned` already.

    Without `rescale` this does not depend on g, which may then be None.
    """
    if not rescale:
        return uncond + scale * (cond - perturbed)
    if guidance_scale == 1:
        return uncond
    wanted = combine(cond, perturbed, uncond, scale=scale, guidance_scale=guidance_scale, rescale=rescale)
    return (wanted - guidance_scale * returned) / (1 - guidance_scale)
