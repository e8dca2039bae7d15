"""The affine output of Rectified SpaAttn: attention to the kept keys is scaled, the rest enters as pooled values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """`out = scale * out + weights @ tile means of value`, one scale and one row of weights per query tile.

    What is stored are weights, not the sum: plans know no values, and the gradient of value goes through.
    Rectified SpaAttn, arXiv 2511.19835.

    Args:
        scale (`torch.Tensor`): `(B|1, H|1, NQ)` float32.
        weights (`torch.Tensor`): `(B|1, H|1, NQ, NT)` floating point, NT the tiles of `tile` rows of the plan's order.
        tile (`int`): rows of a tile whose values are averaged, valid rows only.
    """

    scale: Tensor
    weights: Tensor
    tile: int

    def __post_init__(self) -> None:
        if self.weights.ndim != 4 or self.scale.shape[-1] != self.weights.shape[-2]:
            raise ValueError(
                f"post needs scale (B|1, H|1, NQ) and weights (B|1, H|1, NQ, NT), got {tuple(self.scale.shape)} and "
                f"{tuple(self.weights.shape)}"
            )

    def __call__(self, out: Tensor, means: Tensor) -> Tensor:
        """Apply to rows.

        Args:
            out (`torch.Tensor`): `(B, H, Rq, D)`, attention over the lists of the plan.
            means (`torch.Tensor`): `(B, Hkv, NT, D)`, mean value of every tile, float32 or wider.

        Returns:
            `torch.Tensor`: `(B, H, Rq, D)` in the dtype of `out`.
        """
        heads, tiles = out.shape[1], self.scale.shape[-1]
        means = means.repeat_interleave(heads // means.shape[1], 1)
        rest = self.weights.to(means.dtype) @ means  # (B, H, NQ, D)
        rows = out.unflatten(2, (tiles, -1)).to(means.dtype)
        return (rows * self.scale.to(means.dtype)[..., None, None] + rest[..., None, :]).flatten(2, 3).to(out.dtype)
