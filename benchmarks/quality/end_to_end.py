"""Whole videos of the embedded model: how near a method's is to the dense one of the same prompt and seed."""

from __future__ import annotations

from collections.abc import Iterable

from diffattn.kernels.attend import choose_impl
from torch import Tensor
from tqdm.auto import tqdm

import diffattn
from diffattn import AttentionConfig, Schedule

from ..tiny import load, run
from .measures import Result


def end_to_end(
    cases: Iterable[tuple[str, float, AttentionConfig, Schedule]], prompts: tuple[str, ...], seeds: int
) -> list[Result]:
    """PSNR and SSIM to the dense video for every case (name, density, config, schedule), prompt and seed."""
    pipe, cases, results = load(), list(cases), []
    progress = tqdm(total=seeds * len(cases), unit="batch")
    for seed in range(seeds):
        exact = run(pipe, prompts, seed)
        for name, density, config, schedule in cases:
            progress.set_description(f"{name} at {density}")
            diffattn.enable(pipe, config, schedule=schedule, impl=choose_impl(pipe.device)[0])
            videos, summary = run(pipe, prompts, seed), diffattn.summary(pipe)
            diffattn.disable(pipe)
            made = [
                Result(name, density, summary.density, similarity(*pair), {"prompt": prompt, "seed": seed})
                for prompt, pair in enumerate(zip(videos, exact))
            ]
            found = ", ".join(f"{result.scores['psnr']:.2f}" for result in made)
            progress.write(f"{name} at {density}, seed {seed}: PSNR {found}")
            results += made
            progress.update()
    progress.close()
    return results


def similarity(video: Tensor, exact: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM of a video `(T, 3, H, W)` in [0, 1]."""
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise SystemExit('PSNR and SSIM need torchmetrics: pip install "diffattn[metrics]"') from error
    psnr = image.peak_signal_noise_ratio(video, exact, data_range=1.0)
    ssim = image.structural_similarity_index_measure(video, exact, data_range=1.0)
    return {"psnr": float(psnr), "ssim": float(ssim)}
