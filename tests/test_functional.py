import pytest
import torch
from oracle import check_attention, mask_rows, structured

import diffattn
from diffattn import RadialConfig, TokenGrid
from diffattn.methods import METHODS

GRIDS = [(5, 9, 10), (7, 15, 13)]


def attention(grid, **options):
    def run(query, key, value):
        return diffattn.sparse_attention(query, key, value, grid=grid, config="radial", return_lse=True, **options)

    return run


@pytest.mark.parametrize("text, text_first", [(0, False), (37, False), (37, True)])
@pytest.mark.parametrize("dim", [32, 64, 80, 128])
@pytest.mark.parametrize("size", GRIDS)
def test_torch_equals_the_oracle_on_the_dense_mask(size, dim, text, text_first):
    grid = TokenGrid(*size, text=text, text_first=text_first)
    mask = diffattn.make_plan("radial", grid).to_dense_mask()
    assert not mask.all()
    check_attention(attention(grid, impl="torch"), *structured(grid, 2, 3, dim), mask)


@pytest.mark.parametrize("dim, text", [(32, 37), (128, 0)])
def test_torch_equals_the_oracle_at_480p(dim, text):
    grid = TokenGrid(21, 30, 52, text=text)
    rows = torch.arange(0, grid.tokens, 311)
    mask = mask_rows(diffattn.make_plan("radial", grid), rows)
    check_attention(attention(grid, impl="torch"), *structured(grid, 1, 2, dim), mask, rows)


@pytest.mark.parametrize("size, dim, text", [((5, 9, 10), 32, 37), ((5, 9, 10), 80, 0), ((7, 9, 11), 64, 37)])
def test_triton_equals_the_oracle_on_the_dense_mask(size, dim, text):
    grid = TokenGrid(*size, text=text)
    mask = diffattn.make_plan("radial", grid).to_dense_mask()
    assert not mask.all()
    check_attention(attention(grid, impl="triton"), *structured(grid, 1, 2, dim), mask)


def test_mask_rows_of_the_tests_agree_with_the_plan():
    plan = diffattn.make_plan("radial", TokenGrid(5, 9, 10, text=37, text_first=True))
    rows = torch.arange(0, plan.tokens, 7)
    assert torch.equal(mask_rows(plan, rows), plan.to_dense_mask()[:, :, rows])


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_each_sample_has_its_own_text_length(impl):
    grid = TokenGrid(3, 9, 10, text=37)
    query, key, value = structured(grid, 2, 2, 32)
    valid = torch.ones(2, grid.tokens, dtype=torch.bool)
    valid[1, -30:] = False
    mask = diffattn.make_plan("radial", grid).to_dense_mask() & valid[:, None, None]
    check_attention(attention(grid, impl=impl, key_mask=valid), query, key, value, mask)


def test_density_one_is_dense_attention():
    grid = TokenGrid(5, 9, 10, text=37)
    mask = diffattn.make_plan(RadialConfig(density=1.0), grid).to_dense_mask()
    assert mask.all()


def test_a_wrong_grid_is_named():
    query = torch.zeros(1, 451, 2, 16)
    with pytest.raises(ValueError, match=r"query must be \(B, 450, H, D\) for the grid 5x9x10, got \(1, 451, 2, 16\)"):
        diffattn.sparse_attention(query, query, query, grid=TokenGrid(5, 9, 10), config="radial")


def test_the_implementation_asked_for_is_never_exchanged():
    query = torch.zeros(1, 450, 2, 16)
    with pytest.raises(ValueError, match=r"impl must be one of auto, torch, triton, reference, got 'cuda'"):
        diffattn.sparse_attention(query, query, query, grid=TokenGrid(5, 9, 10), config="radial", impl="cuda")


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("batch, heads", [(0, 2), (2, 0)])
def test_no_batch_entries_or_no_heads_give_an_empty_result(method, batch, heads):
    grid = TokenGrid(5, 9, 10, text=7)
    leaves = [torch.empty(batch, grid.tokens, heads, 16, requires_grad=True) for _ in range(3)]
    out, lse = diffattn.sparse_attention(*leaves, grid=grid, config=method, return_lse=True)
    assert out.shape == leaves[0].shape and lse.shape == (batch, heads, grid.tokens)
    grads = torch.autograd.grad(out.sum() + lse.sum(), leaves)
    assert all(grad.shape == leaf.shape for grad, leaf in zip(grads, leaves))
