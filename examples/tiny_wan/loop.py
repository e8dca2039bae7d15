"""What the training loops share: their options, pace, learning rate, log, and files that are never half written."""

import argparse
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser, minutes: float, lr: float) -> None:
    """The options of every loop."""
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many, however long they took")
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--log", type=Path, help="a CSV of losses, continued where it exists; see curves.py")
    parser.add_argument("--bf16", action="store_true", help="only where the processor has bf16 arithmetic")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes, and render for a CPU")
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


def pace(batches: Iterable[T], args: argparse.Namespace, save: Callable[[], None]) -> Iterator[tuple[int, float, T]]:
    """(step, progress from 0 to 1, batch) for `args.minutes`; calls `save` every `args.save_minutes`."""
    start, saved, total = time.monotonic(), 0.0, 60 * args.minutes
    with tqdm(total=round(total), unit="s", mininterval=20) as bar:
        for step, batch in enumerate(batches):
            elapsed = time.monotonic() - start
            bar.update(min(elapsed, bar.total) - bar.n)
            if (elapsed > total and step) or step == args.steps:
                return
            if elapsed - saved > 60 * args.save_minutes:
                save()
                saved = elapsed
            yield step, min(elapsed / total, 1.0), batch


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

    Between those lines it never asks the device for a number, so that the host need not wait.
    """

    COLUMNS = "seconds,step,name,clips,loss,rate"

    def __init__(self, log: Path | None = None, every: int = 50) -> None:
        self.log, self.every, self.steps, self.clips = log, every, 0, {}
        self._smooth: dict[str, Tensor] = {}
        self._recent: set[str] = set()
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start of the first phase."""
        return time.monotonic() - self._start

    def state_dict(self) -> dict:
        """What a later phase continues from."""
        return {"seconds": self.seconds, "steps": self.steps, "clips": self.clips}

    def load_state_dict(self, state: dict) -> None:
        """Continue counting."""
        self._start = time.monotonic() - state["seconds"]
        self.steps, self.clips = state["steps"], dict(state["clips"])

    def add(self, name: str, loss: Tensor, clips: int, rate: float) -> None:
        """Count one step of `clips` clips at a learning rate."""
        self.note(name, loss)
        self.clips[name] = self.clips.get(name, 0) + clips
        self.steps += 1
        if self.steps % self.every == 0:
            for recent in sorted(self._recent):
                self.write(recent, float(self._smooth[recent]), rate)
            self._recent.clear()

    def note(self, name: str, loss: Tensor) -> None:
        """Smooth what is to be written with the next line, under a name of its own."""
        loss = loss.detach().float()
        self._smooth[name] = self._smooth[name].lerp(loss, 0.05) if name in self._smooth else loss
        self._recent.add(name)

    def write(self, name: str, loss: float, rate: float) -> None:
        """One line, in the log and on the terminal."""
        line = f"{self.seconds:.1f},{self.steps},{name},{self.clips.get(name, 0)},{loss:.5f},{rate:.3g}"
        tqdm.write(line)
        if self.log:
            new = not self.log.exists()
            with self.log.open("a") as file:
                file.write(f"{self.COLUMNS}\n{line}\n" if new else f"{line}\n")
