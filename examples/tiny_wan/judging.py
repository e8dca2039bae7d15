"""Judge many clips, if asked in processes of their own: a clip may take longer to judge than to make."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from examples.tiny_wan.judge import judge, judged_frames
from examples.tiny_wan.scenes import Scene

Judging = Callable[[list[Tensor], list[Scene]], Iterable[dict]]


def _judge_array(frames: np.ndarray, pan: str) -> dict:
    return judge(torch.from_numpy(frames), pan)


def judge_here(clips: list[Tensor], scenes: list[Scene]) -> Iterable[dict]:
    """Verdicts on clips (T, 3, H, W), one when it is asked for."""
    return (judge(clip, scene.pan) for clip, scene in zip(clips, scenes, strict=True))


@contextmanager
def judges(workers: int) -> Iterator[Judging]:
    """`judge_here`, or its like that starts at once in `workers` processes.

    Those are fresh, for a process must not fork once it uses a GPU.
    """
    if not workers:
        yield judge_here
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:

        def judge_there(clips: list[Tensor], scenes: list[Scene]) -> Iterable[dict]:
            arrays = [np.ascontiguousarray(judged_frames(clip).numpy()) for clip in clips]
            return pool.map(_judge_array, arrays, [scene.pan for scene in scenes])

        yield judge_there
