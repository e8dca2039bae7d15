import explicit
import pytest
import torch
from explicit import Matrices, interpolate

from diffattn.guidance.strengths import Strengths
from diffattn.guidance.targets import LayerCall, perturb

TOKENS, HEADS, IMAGE = 13, 4, (3, 11)
STRENGTHS = torch.tensor([[0.0, 0.3, 1.0, 0.75], [0.5, 0.0, 1.0, 1.0]], dtype=torch.float64)
VALID = torch.arange(TOKENS) < torch.tensor([TOKENS, TOKENS - 2])[:, None]
TARGETS = {"identity": explicit.identity, "uniform": explicit.uniform, "seg": explicit.seg}


def dense(query, key, value, mask):
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)


def make_call(mask=None, heads=HEADS, attention=dense):
    torch.manual_seed(0)
    query = torch.randn(2, TOKENS, HEADS, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, TOKENS, heads, 8, dtype=torch.float64)
    return LayerCall(query, key, value, mask, "keys", None, attention, IMAGE)


def wanted(call, change):
    repeats = HEADS // call.key.shape[2]
    key, value = (tensor.repeat_interleave(repeats, 2).transpose(1, 2) for tensor in (call.key, call.value))
    probs = change(Matrices.of(call.query.transpose(1, 2), key, call.mask, None))
    return (probs @ value).transpose(1, 2)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", [None, VALID[:, None, None]], ids=["all", "masked"])
@pytest.mark.parametrize("heads", [HEADS, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_an_interpolated_matrix_is_an_interpolated_output(target, heads, mask):
    call = make_call(mask, heads)
    close(perturb(call, Strengths(STRENGTHS), target), wanted(call, interpolate(STRENGTHS, TARGETS[target])))


@pytest.mark.parametrize("target", TARGETS)
def test_image_rows_leave_the_text_as_it_is(target):
    call = make_call()
    rows = slice(*IMAGE)
    got = perturb(call, Strengths(STRENGTHS), target, "image")
    close(got, wanted(call, interpolate(STRENGTHS, TARGETS[target], rows)))
    plain = call.run()
    assert torch.equal(got[:, : IMAGE[0]], plain[:, : IMAGE[0]]) and torch.equal(
        got[:, IMAGE[1] :], plain[:, IMAGE[1] :]
    )


@pytest.mark.parametrize("mask", [None, VALID[:, None, None]], ids=["all", "masked"])
def test_image_block_is_the_masked_softmax_of_pag_for_sd3(mask):
    call = make_call(mask)
    change = interpolate(STRENGTHS, explicit.image_block(*IMAGE), slice(*IMAGE))
    close(perturb(call, Strengths(STRENGTHS), rows="image_block"), wanted(call, change))


def test_image_block_in_chunks(monkeypatch):
    call = make_call()
    whole = perturb(call, Strengths(STRENGTHS), rows="image_block")
    monkeypatch.setattr("diffattn.guidance.targets.CHUNK", 3)
    close(perturb(call, Strengths(STRENGTHS), rows="image_block"), whole)


def test_strength_zero_and_one_are_exact_in_half_precision():
    call = make_call()
    call = LayerCall(*(t.bfloat16() for t in (call.query, call.key, call.value)), None, "keys", None, dense, IMAGE)
    values = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    got, plain = perturb(call, Strengths(values)), call.run()
    for sample in range(2):
        for head in range(HEADS):
            source = call.value if values[sample, head] else plain
            assert torch.equal(got[sample, :, head], source[sample, :, head])


@pytest.mark.parametrize("rows,heads_run", [("all", 3), ("image", 4)])
def test_heads_replaced_in_every_sample_take_no_part_in_the_attention(rows, heads_run):
    seen = []

    def attention(query, key, value, mask):
        seen.append(query.shape[2])
        return dense(query, key, value, mask)

    call = make_call(attention=attention)
    perturb(call, Strengths(STRENGTHS), rows=rows)
    assert seen == [heads_run]
    perturb(call, Strengths(torch.ones(1, HEADS)))
    assert seen == [heads_run]


def test_a_known_output_is_used_and_not_changed():
    call = make_call()
    known = call.run()
    kept = known.clone()
    blind = make_call(attention=None)
    assert torch.equal(perturb(blind, Strengths(STRENGTHS), unperturbed=known), perturb(call, Strengths(STRENGTHS)))
    assert torch.equal(known, kept)


def test_gradient_reaches_every_strength_and_is_the_finite_difference():
    call = make_call()
    values = torch.zeros(1, HEADS, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, TOKENS, HEADS, 8, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((perturb(call, Strengths(values)) * weight).sum(), values)
    for head in range(HEADS):
        step = torch.zeros(1, HEADS, dtype=torch.float64)
        step[0, head] = 1e-3
        moved = ((perturb(call, Strengths(step)) - call.run()) * weight).sum() / 1e-3
        torch.testing.assert_close(gradient[0, head], moved, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_perturbed_says_so():
    call = make_call()
    cross = LayerCall(call.query, call.key[:, :5], call.value[:, :5], None, "keys", None, dense)
    with pytest.raises(NotImplementedError, match="only self-attention"):
        perturb(cross, Strengths(STRENGTHS))
    lost = LayerCall(call.query, call.key, call.value, None, "keys", None, dense)
    with pytest.raises(NotImplementedError, match="place of the visual tokens"):
        perturb(lost, Strengths(STRENGTHS), rows="image")
    scores = make_call(torch.zeros(2, 1, TOKENS, TOKENS, dtype=torch.float64))
    with pytest.raises(NotImplementedError, match="a mask that adds to the scores"):
        perturb(scores, Strengths(STRENGTHS), "uniform")
