"""A trimmed plan computes the same, and holds nothing that is never read."""

from dataclasses import replace

import pytest
import torch
from diffattn.kernels.plan.trim import trim

import diffattn
from diffattn import AutoConfig, NeighborhoodConfig, Plan, TileList, TokenGrid
from diffattn.analysis.synthetic import structured_qkv

GRID = TokenGrid(5, 9, 10, text=7)


def widened(plan):
    """The plan with four entries more in each row, which nobody reads."""

    def wide(entries):
        return None if entries is None else torch.nn.functional.pad(entries, (0, 4), value=1)

    lists = [replace(part, indices=wide(part.indices), partial=wide(part.partial)) for part in plan.lists]
    return replace(plan, lists=tuple(lists))


@pytest.mark.parametrize(
    "config", [AutoConfig(density=0.3), NeighborhoodConfig(window=(3, 4, 5))], ids=lambda c: c.method
)
def test_a_trimmed_plan_computes_the_same(config):
    query, key, value = structured_qkv(GRID, heads=2, dim=16)
    plan = config.plan(GRID, query, key, value=value)
    trimmed = trim(widened(plan))
    for lists in trimmed.lists:
        assert lists.indices.shape[-1] == max(int(lists.counts.max()), 1)
        assert lists.partial is None or lists.partial.shape == lists.indices.shape
    assert torch.equal(*(diffattn.attend(query, key, value, made, impl="torch") for made in (plan, trimmed)))


def test_a_list_without_entries_keeps_one_column():
    lists = TileList(torch.zeros(1, 1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 3, dtype=torch.int16), 64)
    assert trim(Plan(128, torch.arange(128)[None, None], (lists,), 64)).lists[0].indices.shape == (1, 1, 2, 1)
