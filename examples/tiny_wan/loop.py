"""The training loop: its options, pace, learning rate, log, and folders that are never half written."""

import argparse
import csv
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.tiny_wan.optim import Average, Optimizers

SAVE_SECONDS, WARMUP = 300, 50
COLUMNS = ("seconds", "step", "name", "clips", "loss", "rate")


def add_arguments(parser: argparse.ArgumentParser, minutes: float, lr: float) -> None:
    """The options of every loop."""
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many, however long they took")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--log", type=Path, help="a CSV of losses, continued where it exists")
    parser.add_argument("--bf16", action="store_true", help="only where the processor has bf16 arithmetic")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)


def set_up(args: argparse.Namespace) -> None:
    """Seed torch; denormals count as zero; on a GPU, fp32 products in TF32."""
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    if torch.device(args.device).type == "cuda":
        torch.set_float32_matmul_precision("high")


def learning_rate_factor(progress: float, step: int, warmup: int, decay_from: float) -> float:
    """Linear warmup over `warmup` steps, constant, then linear to 2 % from `decay_from` of the phase on."""
    decay = 1 - 0.98 * max(0.0, progress - decay_from) / max(1 - decay_from, 1e-9)
    return min(1.0, (step + 1) / warmup) * min(decay, 1.0)


def pace(args: argparse.Namespace, save: Callable[[], None]) -> Iterator[tuple[int, float]]:
    """(step, progress from 0 to 1) for `args.minutes` or `args.steps`; calls `save` every `SAVE_SECONDS`."""
    start, saved, total = time.monotonic(), 0.0, 60 * args.minutes
    with tqdm(total=round(total), unit="s", mininterval=20) as bar:
        for step in itertools.count():
            elapsed = time.monotonic() - start
            bar.update(min(elapsed, bar.total) - bar.n)
            if (elapsed > total and step) or step == args.steps:
                return
            if elapsed - saved > SAVE_SECONDS:
                save()
                saved = elapsed
            yield step, min(elapsed / total, 1.0)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or folder to, which takes its place when all is written."""
    part = path.with_name(path.name + ".part")
    yield part
    if path.is_dir():
        shutil.rmtree(path)
    part.rename(path)


class Meter:
    """Counts clips and smooths losses by name (a grid); writes a line for each to a CSV every `every` steps.

    It counts on from the last line of a log that exists. Between two lines it never asks the device for a number.
    """

    def __init__(self, log: Path | None = None, every: int = 50) -> None:
        self.log, self.every, self.steps, self.clips = log, every, 0, {}
        self._smooth: dict[str, Tensor] = {}
        self._start = time.monotonic()
        if log and log.exists():
            rows = list(csv.DictReader(log.read_text().splitlines()))
            self._start -= float(rows[-1]["seconds"])
            self.steps, self.clips = int(rows[-1]["step"]), {row["name"]: int(row["clips"]) for row in rows}

    def add(self, name: str, loss: Tensor, clips: int, rate: float) -> None:
        """Count one step of `clips` clips at a learning rate."""
        loss = loss.detach().float()
        self._smooth[name] = self._smooth[name].lerp(loss, 0.05) if name in self._smooth else loss
        self.clips[name] = self.clips.get(name, 0) + clips
        self.steps += 1
        if self.steps % self.every == 0:
            for recent in sorted(self._smooth):
                self._write(recent, float(self._smooth[recent]), rate)

    def _write(self, name: str, loss: float, rate: float) -> None:
        """One line, in the log and on the terminal."""
        seconds = time.monotonic() - self._start
        line = f"{seconds:.1f},{self.steps},{name},{self.clips[name]},{loss:.5f},{rate:.3g}"
        tqdm.write(line)
        if self.log:
            head = "" if self.log.exists() else ",".join(COLUMNS) + "\n"
            with self.log.open("a") as file:
                file.write(f"{head}{line}\n")


def fit(
    args: argparse.Namespace, modules: list[nn.Module], optimizers: Optimizers, average: Average,
    losses: Iterator[tuple[str, int, Tensor]], save: Callable[[], None], decay_from: float, clip: float,
) -> None:  # fmt: skip
    """Train `modules` on `losses`, each (name, clips, loss) and computed when asked for; saves now and then."""
    meter, kind = Meter(args.log), torch.device(args.device).type
    for step, progress in pace(args, save):
        factor = learning_rate_factor(progress, step, WARMUP, decay_from)
        with torch.autocast(kind, torch.bfloat16, enabled=args.bf16):
            name, clips, loss = next(losses)
        loss.backward()
        for module in modules:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizers.step(factor)
        average.update()
        meter.add(name, loss, clips, args.lr * factor)
    save()
