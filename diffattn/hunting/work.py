"""Shares the scoring of a search among processes, logs the scores and shows a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .gradient import GradientScreen
from .log import SearchLog
from .runner import Runner
from .search import BASELINE, Estimate, Scores


class Work(AbstractContextManager):
    """Provides scores: from the log, or from clips that are generated.

    A work item is a batch of candidates on one pair. Batches depend only on candidates and pairs, so that a resumed
    search makes the same batches as an uninterrupted one. Items go to processes in turn.

    Args:
        runner ([`Runner`]): makes and scores clips.
        screen ([`GradientScreen`], *optional*): ranks heads.
        pool (`list[str]`): all heads, in the order of layers.
        folder (`Path`, *optional*): of the log.
        config (`dict`): of the log.
        cost ([`Estimate`], *optional*): shown in a bar; no bar without it.
    """

    def __init__(
        self,
        runner: Runner,
        screen: GradientScreen | None,
        pool: Sequence[str],
        folder: Path | None,
        config: dict,
        cost: Estimate | None = None,
    ) -> None:
        self.state = PartialState(cpu=not torch.accelerator.is_available())
        self.rank = self.state.process_index
        self.runner, self.gradient = runner, screen
        self.place = {head: index for index, head in enumerate([*pool, BASELINE])}
        self.log = SearchLog(folder, config, self.rank)
        self.state.wait_for_everyone()
        total = None if cost is None else cost.clips
        self.bar = tqdm(total=total, desc="hunt", unit="clip", disable=cost is None or self.rank > 0)

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    @property
    def passes(self) -> float:
        """Passes of the transformer so far, of all processes and of runs before this one."""
        return sum(value for key, value in self.log.values.items() if key[0] == "passes")

    @property
    def clips(self) -> int:
        """Clips so far, screening runs among them."""
        return sum(key[0] != "passes" for key in self.log.values)

    def score(self, selected: Sequence[str], candidates: Sequence[str], pairs: Sequence[int]) -> Scores:
        """Scores of `selected` with each candidate; candidates of similar depth share a batch."""
        ordered, size = sorted(candidates, key=self.place.__getitem__), self.runner.batch_size
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        items = [[("score", len(selected), head, pair) for head in batch] for pair in pairs for batch in batches]

        def run(item: list[tuple]) -> list[float]:
            heads = [[*selected, key[2]] if key[2] else list(selected) for key in item]
            return self.runner.scores(item[0][3], heads)

        self._do(items, run)
        return {key[2:]: self.log[key] for item in items for key in item}

    def screened(self, selected: Sequence[str]) -> dict[str, float]:
        """Mean gradients over all pairs."""
        pairs = range(len(self.runner.pairs))
        heads = [head for head in self.place if head]
        items = [[("screen", len(selected), pair)] for pair in pairs]

        def run(item: list[tuple]) -> list[list[float]]:
            found = self.gradient.gradients(selected, item[0][2])
            return [[found[head] for head in heads]]

        self._do(items, run)
        rows = [self.log[item[0]] for item in items]
        return {head: sum(row[index] for row in rows) / len(rows) for index, head in enumerate(heads)}

    def _do(self, items: list[list[tuple]], run: Any) -> None:
        """Run the items of this process that are not in the log, and share their scores."""
        missing = [item for item in items if any(key not in self.log for key in item)]
        self.bar.update(sum(map(len, items)) - sum(map(len, missing)))
        own, mine = [], missing[self.rank :: self.state.num_processes]
        for item in mine:
            before = self.runner.passes
            found = list(zip(item, run(item)))
            found.append((("passes", *item[0]), self.runner.passes - before))
            self.log.add(found)
            own += found
            self.bar.set_postfix(passes=f"{self.passes:,.0f}", refresh=False)
            self.bar.update(len(item))
        self.log.merge(gather_object(own))
        self.bar.update(sum(map(len, missing)) - sum(map(len, mine)))
