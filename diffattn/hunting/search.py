"""The search: which heads are tried on which prompts, and which are chosen. It knows no model and no pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

SCREENS = (None, "gradient")
Scores = dict[tuple[str, int], float]
Score = Callable[[Sequence[str], Sequence[str], Sequence[int]], Scores]
Screen = Callable[[Sequence[str]], dict[str, float]]
BASELINE = ""  # no candidate: the heads that are selected already, and no other


@dataclass(frozen=True)
class Settings:
    """The settings of a search.

    Args:
        rounds (`int`, *optional*, defaults to 5): R of arXiv 2506.10978, Algorithm 1.
        top_k (`int`, *optional*, defaults to 3): k, heads that a round adds.
        screen (`str`, *optional*): `"gradient"` ranks the heads first and tries only the best of them; None tries all.
        keep (`float` or `int`, *optional*, defaults to 0.25): what the screen keeps, a share of all heads or a number.
        halving (`bool`, *optional*, defaults to `True`): try all heads on few prompts and fewer on more, instead of
            all on all.
        first (`int`, *optional*, defaults to 2): prompts of the first rung of halving.
        eta (`int`, *optional*, defaults to 2): each rung has this many times more prompts and fewer heads.
    """

    rounds: int = 5
    top_k: int = 3
    screen: str | None = None
    keep: float | int = 0.25
    halving: bool = True
    first: int = 2
    eta: int = 2

    def __post_init__(self) -> None:
        for name, low in (("rounds", 1), ("top_k", 1), ("first", 1), ("eta", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
        if self.screen not in SCREENS:
            raise ValueError(f"screen must be one of {', '.join(map(repr, SCREENS))}, got {self.screen!r}")
        number = isinstance(self.keep, (int, float)) and not isinstance(self.keep, bool)
        if not number or self.keep <= 0 or (isinstance(self.keep, float) and self.keep > 1):
            raise ValueError(f"keep must be a share above 0 and at most 1.0, or a number of heads, got {self.keep!r}")

    def to_dict(self) -> dict:
        """JSON-ready fields."""
        return asdict(self)

    def kept(self, pool: int) -> int:
        """Heads of `pool` that are tried after the screen."""
        if self.screen is None:
            return pool
        wanted = math.ceil(self.keep * pool) if isinstance(self.keep, float) else self.keep
        return min(pool, max(wanted, self.top_k))

    def rungs(self, candidates: int, pairs: int) -> list[tuple[int, int]]:
        """`(candidates, pairs)` of every rung of a round; the last one has all pairs."""
        if not self.halving:
            return [(candidates, pairs)]
        made = [(candidates, min(self.first, pairs))]
        while made[-1][1] < pairs:
            left = max(3 * self.top_k, math.ceil(made[-1][0] / self.eta))
            made.append((min(left, made[-1][0]), min(made[-1][1] * self.eta, pairs)))
        return made

    def check_pool(self, pool: int) -> None:
        """Raise where the rounds would run out of heads."""
        if self.rounds * self.top_k > pool:
            raise ValueError(f"{self.rounds} rounds of {self.top_k} heads need more than the {pool} heads there are")


@dataclass(frozen=True)
class Round:
    """The result of a round.

    Args:
        chosen (`tuple[str, ...]`): heads it added, best first.
        gains (`dict[str, float]`): by head, mean gain over the heads selected before, on the pairs it was tried on.
        tried (`dict[str, int]`): by head, number of pairs it was tried on.
        baseline (`float`): mean score of the heads selected before, on all pairs.
        screened (`dict[str, float]`, *optional*): what the screen gave for all heads.
    """

    chosen: tuple[str, ...]
    gains: dict[str, float]
    tried: dict[str, int]
    baseline: float
    screened: dict[str, float] | None = None


def search(settings: Settings, pool: Sequence[str], pairs: int, score: Score, screen: Screen) -> Iterator[Round]:
    """Greedy search (arXiv 2506.10978, Algorithm 1), one round at a time.

    Args:
        settings ([`Settings`]): without a screen and halving, the algorithm as it was published.
        pool (`list[str]`): all heads; of equally good ones the first wins.
        pairs (`int`): M, pairs of a prompt and a seed.
        score (`Callable`): `(selected, candidates, pairs)` to the score of `selected` and one candidate more for every
            candidate and pair.
        screen (`Callable`): `selected` to a rough gain for every head.
    """
    selected: tuple[str, ...] = ()
    for _ in range(settings.rounds):
        left = [head for head in pool if head not in selected]
        screened = screen(selected) if settings.screen else None
        if screened is not None:
            kept = best(left, screened, settings.kept(len(pool)))
            left = [head for head in left if head in kept]
        found = try_heads(settings, left, pairs, lambda *what: score(selected, *what))  # noqa: B023
        found = Round(found.chosen, found.gains, found.tried, found.baseline, screened)
        selected += found.chosen
        yield found


def try_heads(
    settings: Settings, candidates: list[str], pairs: int, score: Callable[[Sequence[str], Sequence[int]], Scores]
) -> Round:
    """One round: successive halving (arXiv 1502.07943) on gains over the baseline of the same pair."""
    gains: dict[str, float] = {}
    tried: dict[str, int] = {}
    scores: Scores = {}
    done = 0
    for count, seen in settings.rungs(len(candidates), pairs):
        keep = best(candidates, gains, count) if gains else candidates
        candidates = [head for head in candidates if head in keep]
        scores.update(score([BASELINE, *candidates], range(done, seen)))
        lost = [pair for pair in range(done, seen) if not math.isfinite(scores[BASELINE, pair])]
        if lost:
            raise ValueError(
                f"prompt {lost[0]} has no finite score even without another head: gains over it mean nothing"
            )
        for head in candidates:
            gains[head] = sum(scores[head, pair] - scores[BASELINE, pair] for pair in range(seen)) / seen
            tried[head] = seen
        done = seen
    baseline = sum(scores[BASELINE, pair] for pair in range(pairs)) / pairs
    return Round(tuple(best(candidates, gains, settings.top_k)), gains, tried, baseline)


def best(heads: Sequence[str], values: dict[str, float], count: int) -> list[str]:
    """The `count` heads of the largest values, in falling order; the order of `heads` decides between equals."""
    return sorted(heads, key=lambda head: -values[head])[:count]


@dataclass(frozen=True)
class Estimate:
    """The cost of a search.

    Args:
        clips (`int`): videos or images that are generated, screening runs among them.
        passes (`int`): passes of the transformer at most: without what perturbed passes save by starting late, and
            with a backward pass counted as two.
    """

    clips: int
    passes: int

    def __str__(self) -> str:
        return f"{self.clips:,} clips, at most {self.passes:,} passes of the transformer"


def estimate_cost(settings: Settings, pool: int, pairs: int, steps: int, passes: float) -> Estimate:
    """Cost of a search.

    Args:
        settings ([`Settings`]): of the search.
        pool, pairs, steps (`int`): heads, prompt-seed pairs and denoising steps.
        passes (`float`): of the transformer in a step of an unguided run, 2 with classifier-free guidance.
    """
    tried = baselines = screened = 0
    for number in range(settings.rounds):
        candidates = min(settings.kept(pool), pool - number * settings.top_k)
        done = 0
        for count, seen in settings.rungs(candidates, pairs):
            tried += count * (seen - done)
            done = seen
        baselines += pairs
        screened += pairs if settings.screen else 0
    clips = tried + baselines + pairs + screened
    return Estimate(clips, math.ceil(steps * (clips * (passes + 1) + 2 * screened)))
