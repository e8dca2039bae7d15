"""The formula of normalised attention guidance, and its options."""

import math

import pytest
import torch

from diffattn import NAGConfig
from diffattn.guidance.nag.formula import normalised_guidance

OPTIONS = {"scale": 5.0, "tau": 2.5, "alpha": 0.25}


def token(*values):
    """One token of one head, in double."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def loop(positive, negative, scale, tau, alpha, norm):
    """Token by token, in plain Python."""
    size = {"l1": lambda x: sum(map(abs, x)), "l2": lambda x: math.sqrt(sum(v * v for v in x))}[norm]
    out = []
    for plus, minus in zip(positive.flatten(0, 1).flatten(1).tolist(), negative.flatten(0, 1).flatten(1).tolist()):
        guided = [scale * p - (scale - 1) * m for p, m in zip(plus, minus)]
        ratio = size(guided) / size(plus)
        guided = [g * min(ratio, tau) / ratio for g in guided]
        out.append([alpha * g + (1 - alpha) * p for g, p in zip(guided, plus)])
    return torch.tensor(out, dtype=torch.float64).view(positive.shape)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_golden_value_is_the_same_under_both_norms(norm):
    out = normalised_guidance(token(3, 4), token(0, 0), **OPTIONS, norm=norm)
    assert torch.equal(out, token(4.125, 5.5))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_it_is_the_loop_over_tokens_with_one_norm_for_all_heads(norm):
    torch.manual_seed(0)
    positive, negative = torch.randn(2, 2, 5, 3, 4, dtype=torch.float64)
    negative[:, 0] = positive[:, 0] * 0.9  # a token whose growth stays below tau
    for options in (OPTIONS, {"scale": 11.0, "tau": 1.0, "alpha": 1.0}):
        out = normalised_guidance(positive, negative, **options, norm=norm)
        assert (out - loop(positive, negative, **options, norm=norm)).abs().max() < 1e-12


def test_no_scale_no_share_and_the_same_prompt_leave_every_bit():
    torch.manual_seed(0)
    positive, negative = torch.randn(2, 1, 7, 2, 4)
    for off in ({"scale": 1.0}, {"alpha": 0.0}):
        assert torch.equal(normalised_guidance(positive, negative, **{**OPTIONS, **off}), positive)
    assert torch.equal(normalised_guidance(positive, positive.clone(), **OPTIONS), positive)


def test_a_token_of_norm_zero_stays_zero_and_no_token_is_nan():
    positive, negative = token(0, 0), token(3, 4)
    assert torch.equal(normalised_guidance(positive, negative, **OPTIONS), token(0, 0))
    assert torch.equal(normalised_guidance(token(0, 0), token(0, 0), **OPTIONS), token(0, 0))
    plus, minus = token(4, 4).requires_grad_(), token(5, 5)  # the guided output is zero
    out = normalised_guidance(plus, minus, scale=5.0, tau=2.5, alpha=0.25)
    assert torch.equal(out, token(3, 3))
    out.sum().backward()
    assert plus.grad.isfinite().all()


def test_half_precision_is_computed_in_single():
    out = normalised_guidance(token(300, 400).half(), token(-300, -400).half(), scale=200.0, tau=2.5, alpha=0.25)
    assert out.dtype == torch.float16 and torch.equal(out, token(412.5, 550).half())


@pytest.mark.parametrize(
    "options, why",
    [
        ({}, "give either negative= "),
        ({"negative": "red", "negative_embeds": torch.zeros(1, 1, 1)}, "give either negative= "),
        ({"negative": 3}, "must be a text or a list of texts, got 3"),
        ({"negative": []}, r"must be a text or a list of texts, got \[\]"),
        ({"negative": "red", "scale": 0.5}, "scale must be a number of at least 1, got 0.5"),
        ({"negative": "red", "tau": 0.9}, "tau must be a number of at least 1, got 0.9"),
        ({"negative": "red", "alpha": 1.5}, "alpha must be a number from 0 to 1, got 1.5"),
        ({"negative": "red", "norm": "l3"}, "norm must be one of l1, l2, got 'l3'"),
        ({"negative": "red", "start": 0.5, "stop": 0.2}, "stop must be a number from 0.5 to 1, got 0.2"),
        ({"negative": "red", "max_sequence_length": 0}, "max_sequence_length must be an int of at least 1, got 0"),
    ],
)
def test_bad_options_are_named(options, why):
    with pytest.raises(ValueError, match=why):
        NAGConfig(**options)
