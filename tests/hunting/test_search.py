import json
import random

import pytest

from diffattn.hunting.log import SearchLog
from diffattn.hunting.search import BASELINE, Settings, best, estimate_cost, search

HEADS = [f"blocks.{layer}.attn1:{head}" for layer in range(6) for head in range(4)]
PAIRS = 8


class Table:
    """A toy score: every head has a worth, two of them only together; prompts differ, and so do head and prompt."""

    def __init__(self, spread: float = 0.0) -> None:
        rng = random.Random(0)
        self.worth = {head: rng.uniform(-1, 1) for head in HEADS}
        self.prompt = [rng.uniform(-50, 50) for _ in range(PAIRS)]
        self.noise = {(head, pair): spread * rng.uniform(-1, 1) for head in HEADS for pair in range(PAIRS)}
        self.together = {HEADS[3], HEADS[17]}
        self.worth[HEADS[3]], self.worth[HEADS[17]] = 2.0, -0.5
        self.clips = 0

    def total(self, heads, pair):
        both = 4.0 if self.together <= set(heads) else 0.0
        return self.prompt[pair] + both + sum(self.worth[head] + self.noise[head, pair] for head in heads)

    def __call__(self, selected, candidates, pairs):
        self.clips += len(candidates) * len(pairs)
        return {
            (head, pair): self.total([*selected, *([head] if head else [])], pair)
            for head in candidates
            for pair in pairs
        }

    def screen(self, selected):
        return {head: self.total([*selected, head], 0) for head in HEADS}


def run(settings, table):
    return list(search(settings, HEADS, PAIRS, table, table.screen))


def brute_force(table, rounds, top_k):
    """Algorithm 1 word for word."""
    selected, pool = [], list(HEADS)
    for _ in range(rounds):
        scores = {h: sum(table.total([*selected, h], j) for j in range(PAIRS)) / PAIRS for h in pool}
        selected += sorted(pool, key=lambda h: -scores[h])[:top_k]
        pool = [h for h in pool if h not in selected]
    return selected


@pytest.mark.parametrize("rounds, top_k", [(1, 1), (1, 24), (3, 2), (5, 3)])
def test_without_screen_and_halving_it_is_the_published_algorithm(rounds, top_k):
    table = Table(spread=0.3)
    found = run(Settings(rounds, top_k, halving=False), table)
    assert [head for r in found for head in r.chosen] == brute_force(table, rounds, top_k)
    assert table.clips == sum((len(HEADS) + 1 - top_k * r) * PAIRS for r in range(rounds))


def test_a_later_round_finds_what_is_worth_nothing_alone():
    first, second = run(Settings(2, 1, halving=False), Table())
    assert first.chosen == (HEADS[3],) and second.chosen == (HEADS[17],)
    assert second.gains[HEADS[17]] == pytest.approx(3.5) and first.gains[HEADS[17]] == pytest.approx(-0.5)
    assert second.baseline - first.baseline == pytest.approx(2.0)


def test_halving_finds_the_same_heads_with_fewer_clips_where_prompts_agree():
    exact, halved = Table(spread=0.02), Table(spread=0.02)
    a, b = run(Settings(2, 2, halving=False), exact), run(Settings(2, 2), halved)
    assert [r.chosen for r in a] == [r.chosen for r in b]
    assert halved.clips <= 0.6 * exact.clips
    assert {b[0].tried[head] for head in b[0].chosen} == {PAIRS} and min(b[0].tried.values()) == 2


def test_gains_are_paired_so_that_prompts_of_another_level_do_not_matter():
    table = Table()
    found = run(Settings(1, 1), table)[0]
    assert all(found.gains[head] == pytest.approx(table.worth[head]) for head in HEADS)


@pytest.mark.parametrize(
    "candidates, pairs, rungs",
    [
        (24, 8, [(24, 2), (12, 4), (6, 8)]),
        (24, 1, [(24, 1)]),
        (24, 5, [(24, 2), (12, 4), (6, 5)]),
        (4, 4, [(4, 2), (4, 4)]),
    ],
)
def test_rungs(candidates, pairs, rungs):
    assert Settings(1, 2).rungs(candidates, pairs) == rungs
    assert Settings(1, 2, halving=False).rungs(candidates, pairs) == [(candidates, pairs)]


def test_the_screen_keeps_the_best_in_the_order_of_the_pool():
    table = Table()
    found = run(Settings(1, 2, screen="gradient", keep=0.25, halving=False), table)[0]
    assert set(found.gains) == set(best(HEADS, table.screen(()), 6))
    assert list(found.gains) == [head for head in HEADS if head in found.gains]
    assert table.clips == 7 * PAIRS
    assert Settings(1, 3, screen="gradient", keep=1).kept(24) == 3 and Settings(keep=0.25).kept(24) == 24


@pytest.mark.parametrize(
    "settings",
    [
        Settings(1, 24, halving=False),
        Settings(3, 2),
        Settings(2, 3, screen="gradient", keep=10, halving=False),
        Settings(5, 1, screen="gradient", keep=0.5),
    ],
)
def test_the_estimate_counts_what_is_run(settings):
    table = Table()
    run(settings, table)
    screened = settings.rounds * PAIRS if settings.screen else 0
    found = estimate_cost(settings, len(HEADS), PAIRS, steps=10, passes=2)
    assert found.clips == table.clips + PAIRS + screened  # and the final heads, once on every pair
    assert found.passes == 10 * (3 * found.clips + 2 * screened)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rounds": 0}, "rounds must be an integer of at least 1, got 0"),
        ({"top_k": 1.5}, "top_k must be"),
        ({"eta": 1}, "eta must be an integer of at least 2"),
        ({"screen": "magic"}, "screen must be one of None, 'gradient', got 'magic'"),
        ({"keep": 0}, "keep must be a share above 0"),
        ({"keep": 1.5}, "keep must be a share above 0 and at most 1.0"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_a_baseline_without_a_score_ends_the_search():
    table = Table()
    table.prompt[1] = -float("inf")
    with pytest.raises(ValueError, match="prompt 1 has no finite score even without another head"):
        run(Settings(1, 1), table)


def test_more_heads_than_there_are():
    with pytest.raises(ValueError, match="5 rounds of 5 heads need more than the 24 heads"):
        Settings(5, 5).check_pool(24)


def test_the_log_outlives_the_process_but_for_a_torn_line(tmp_path):
    log = SearchLog(tmp_path, {"a": 1})
    log.add([((0, "x", 0), 0.1), ((0, "x", 1), 0.1 + 0.2)])
    with log.file.open("a") as file:
        file.write('[[0, "y", 0], 0.')
    again = SearchLog(tmp_path, {"a": 1})
    assert again.values == log.values  # floats to the last bit
    again.add([((0, BASELINE, 0), [1.0, 2.0])])
    other = SearchLog(tmp_path, {"a": 1}, rank=1)
    other.add([((1, "z", 0), 3.0)])
    assert len(SearchLog(tmp_path, {"a": 1}).values) == 4
    assert all(json.loads(line) for line in log.file.read_text().splitlines())


def test_a_folder_of_another_search_is_refused(tmp_path):
    SearchLog(tmp_path, {"objective": "sharpness", "steps": 5})
    with pytest.raises(ValueError, match="another search: objective was 'sharpness', is 'motion'"):
        SearchLog(tmp_path, {"objective": "motion", "steps": 5})
