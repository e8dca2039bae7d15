"""Whole videos of the embedded model: how near a method's is to the dense one of the same prompt and seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffattn.kernels.attend import choose_impl
from torch import Tensor
from tqdm.auto import tqdm

import diffattn
from diffattn import Schedule

from ..tiny import PROMPTS, load, run
from .contenders import CONTENDERS, contender
from .measures import Result


def end_to_end(densities: Iterable[float], seeds: int, schedule: Schedule) -> list[Result]:
    """PSNR and SSIM to the dense video, of every contender, density, prompt and seed."""
    pipe, results = load(), []
    cases = [(name, density) for density in densities for name in CONTENDERS]
    progress = tqdm(total=seeds * len(cases), unit="batch")
    for seed in range(seeds):
        exact = run(pipe, PROMPTS, seed)
        for name, density in cases:
            progress.set_description(f"{name} at {density}")
            results += _compare(pipe, exact, name, density, seed, schedule)
            progress.update()
    progress.close()
    return results


def _compare(pipe: Any, exact: Tensor, name: str, density: float, seed: int, schedule: Schedule) -> list[Result]:
    diffattn.enable(pipe, contender(name, density), schedule=schedule, impl=choose_impl(pipe.device)[0])
    videos, reached = run(pipe, PROMPTS, seed), diffattn.summary(pipe).density
    diffattn.disable(pipe)
    return [
        Result(name, density, reached, similarity(video, dense), {"prompt": i, "seed": seed})
        for i, (video, dense) in enumerate(zip(videos, exact))
    ]


def similarity(video: Tensor, exact: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM of a video `(T, 3, H, W)` in [0, 1]."""
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise SystemExit('PSNR and SSIM need torchmetrics: pip install "diffattn[metrics]"') from error
    psnr = image.peak_signal_noise_ratio(video, exact, data_range=1.0)
    ssim = image.structural_similarity_index_measure(video, exact, data_range=1.0)
    return {"psnr": float(psnr), "ssim": float(ssim)}
