"""How fast a machine trains: `python -m examples.tiny_wan.probe --grid 9x16x16:1:128 --bf16 --compile`.

Takes the options of train.py and, grid by grid, whatever their weights, times steps of a fresh model.
"""

import argparse
import time
from collections.abc import Iterator

import torch

from examples.tiny_wan import loop, train
from examples.tiny_wan.batches import Batch, GridSpec, load_batches
from examples.tiny_wan.model import build_pipeline
from examples.tiny_wan.vae import wired_vae

WARM = 3  # steps before the clock starts: compilation, the allocator, the processes that draw


def timed(trainer: train.Trainer, batches: Iterator[Batch], seconds: float) -> tuple[int, float, float]:
    """Steps taken, seconds they took, and seconds of these that the host spent on getting batches."""
    steps, waited, start = 0, 0.0, time.monotonic()
    while not steps or time.monotonic() - start < seconds:
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        trainer.step(batch, 1.0)
        steps += 1
    if trainer.live[0].device.type == "cuda":
        torch.cuda.synchronize()
    return steps, time.monotonic() - start, waited


def report(trainer: train.Trainer, spec: GridSpec, seconds: float) -> str:
    """One grid's rates in one line."""
    args = trainer.args
    batches = load_batches([spec], args.seed, args.workers, args.device)
    _, warm, _ = (sum(part) for part in zip(*(timed(trainer, batches, 0.0) for _ in range(WARM)), strict=True))
    steps, took, waited = timed(trainer, batches, seconds)
    line = f"{spec.name} x {spec.batch}: {steps * spec.batch / took:.0f} clips/s, {1000 * took / steps:.1f} ms a step"
    line += f", {1000 * waited / steps:.1f} ms of it for the batch; first {WARM} steps {warm:.1f} s"
    if torch.device(args.device).type == "cuda":
        line += f"; {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        torch.cuda.reset_peak_memory_stats()
    return line


def main(argv: list[str] | None = None) -> None:
    """Print a line for each grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="to time each grid for")
    options, rest = parser.parse_known_args(argv)
    args = train.parse_args(["--out", "unused", *rest])
    loop.set_up(args)
    trainer = train.Trainer(build_pipeline(wired_vae()), args)
    for spec in args.grid:
        print(report(trainer, spec, options.seconds), flush=True)


if __name__ == "__main__":
    main()
