"""How close two videos are, frame by frame: PSNR, SSIM and MS-SSIM, computed by torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

WINDOW = 11  # pixels of the Gaussian window, sigma 1.5, of Wang et al. 2004
MARGIN = WINDOW // 2
# weights of the scales, Wang, Simoncelli, Bovik, "Multiscale structural similarity", Asilomar 2003, Section 3.2
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@dataclass(frozen=True)
class Comparison:
    """The result of [`compare_videos`], a number for every frame.

    Args:
        psnr (`list[float]`): dB, infinite where two frames are equal.
        ssim, ms_ssim (`list[float]`): 1 where two frames are equal.
        scales (`int`): number of scales of MS-SSIM, 5 unless the frames are too small for that.
    """

    psnr: list[float]
    ssim: list[float]
    ms_ssim: list[float]
    scales: int

    @property
    def mean(self) -> dict[str, float]:
        """Mean over the frames of each metric."""
        return {name: float(np.mean(getattr(self, name))) for name in ("psnr", "ssim", "ms_ssim")}

    def to_dict(self) -> dict:
        """JSON-ready values; JSON has no infinity, so the PSNR of equal frames is `None`."""
        frames = {name: [_finite(value) for value in getattr(self, name)] for name in self.mean}
        mean = {name: _finite(value) for name, value in self.mean.items()}
        return {"mean": mean, "frames": frames, "ms_ssim_scales": self.scales}

    def __str__(self) -> str:
        mean = self.mean
        return (
            f"PSNR {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}, MS-SSIM {mean['ms_ssim']:.4f} "
            f"({self.scales} scales), mean of {len(self.psnr)} frames"
        )


def compare_videos(video: np.ndarray, reference: np.ndarray) -> Comparison:
    """PSNR, SSIM and MS-SSIM of every frame of a video against a reference.

    SSIM takes the Gaussian window of Wang et al. (11 pixels, sigma 1.5) where it lies within the frame, as
    scikit-image does. MS-SSIM halves the frame four times; below 176 pixels the window no longer fits, so the coarsest
    scales are left out and the weights of the others scaled up to the same sum ([`ms_ssim_scales`]): such numbers
    compare with each other, not with published ones.

    Args:
        video, reference (`np.ndarray`): `(frames, height, width, 3)`, uint8 or floats from 0 to 1.

    Raises:
        ValueError: different shapes, or frames of fewer than 11 pixels a side.
        ImportError: without torchmetrics.
    """
    metrics = _torchmetrics()
    _check(video, reference)
    scales = ms_ssim_scales(min(reference.shape[1:3]))
    rows = [_compare_frame(metrics, _tensor(a), _tensor(b), scales) for a, b in zip(video, reference)]
    return Comparison(*(list(column) for column in zip(*rows)), scales)


def ms_ssim_scales(side: int) -> int:
    """How many of the five scales of MS-SSIM fit a frame whose shorter side has so many pixels.

    >>> [ms_ssim_scales(side) for side in (64, 128, 175, 176, 480)]
    [3, 4, 4, 5, 5]
    """
    # the window must fit the coarsest scale; torchmetrics counts its side as side // (scales - 1) ** 2
    fits = [n for n in range(1, len(BETAS) + 1) if min(side >> (n - 1), side // max(1, n - 1) ** 2) >= WINDOW]
    return max(fits, default=0)


def _check(video: np.ndarray, reference: np.ndarray) -> None:
    for array in (video, reference):
        if array.ndim != 4 or array.shape[-1] != 3 or array.shape[0] == 0:
            raise ValueError(f"a video must be (frames, height, width, 3), got {array.shape}")
    if video.shape[1:3] != reference.shape[1:3]:
        raise ValueError(f"the videos differ in size: {_size(video)} and {_size(reference)} pixels")
    if len(video) != len(reference):
        raise ValueError(f"the videos differ in length: {len(video)} and {len(reference)} frames")
    if min(reference.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels, got {_size(reference)}")


def _compare_frame(metrics: ModuleType, a: Tensor, b: Tensor, scales: int) -> tuple[float, float, float]:
    psnr = metrics.peak_signal_noise_ratio(a, b, data_range=1.0)
    _, whole = metrics.structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    within = whole[..., MARGIN : whole.shape[-2] - MARGIN, MARGIN : whole.shape[-1] - MARGIN]
    betas = tuple(beta * sum(BETAS) / sum(BETAS[:scales]) for beta in BETAS[:scales])
    multi: Callable = metrics.multiscale_structural_similarity_index_measure
    return psnr.item(), within.mean().item(), multi(a, b, data_range=1.0, betas=betas).item()


def _tensor(frame: np.ndarray) -> Tensor:
    """`(1, 3, height, width)` float32 from 0 to 1."""
    scale = 255 if frame.dtype == np.uint8 else 1
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / scale


def _size(video: np.ndarray) -> str:
    return f"{video.shape[2]}x{video.shape[1]}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _torchmetrics() -> ModuleType:
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise ImportError('comparing videos needs torchmetrics: pip install "diffattn[metrics]"') from error
    return image
