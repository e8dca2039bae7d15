"""Recording queries, keys and values of a running pipeline."""

import pytest
import torch
import wan
from torch.overrides import TorchFunctionMode

import diffattn
from diffattn.analysis.capture import capture


class SelfAttentionInputs(TorchFunctionMode):
    """Query, key and value of every square call of torch's attention, `(B, S, H, D)`: what there is to capture."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.note(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def note(self, query, key, value, *args, **kwargs):
        if query.shape == key.shape:
            self.calls.append([x.transpose(1, 2).clone() for x in (query, key, value)])


def test_records_what_the_model_attends_with_and_changes_nothing():
    pipe = wan.text_to_video()
    before = [block.attn1.processor for block in pipe.transformer.blocks]
    with SelfAttentionInputs() as watched:
        dense = wan.run(pipe, steps=2)
    with capture(pipe) as calls:
        captured = wan.run(pipe, steps=2)
    assert torch.equal(captured, dense)
    assert [block.attn1.processor for block in pipe.transformer.blocks] == before
    # two steps, two guidance passes, three layers
    assert [(call.step, call.layer) for call in calls] == [(step, i) for step in (0, 0, 1, 1) for i in range(3)]
    assert len(watched.calls) == len(calls)
    for call, tensors in zip(calls, watched.calls):
        assert (str(call.grid), call.name, call.key_mask) == ("3x9x10", f"blocks.{call.layer}.attn1", None)
        assert all(torch.equal(*pair) for pair in zip((call.query, call.key, call.value), tensors))


def test_keeps_only_what_is_asked_for():
    pipe = wan.text_to_video()
    with capture(pipe, keep=lambda layer, step: layer == 1 and step == 1) as calls:
        wan.run(pipe, steps=2)
    assert [(call.step, call.layer) for call in calls] == [(1, 1)] * 2


def test_refuses_a_pipeline_that_is_sparse_already():
    pipe = wan.text_to_video()
    diffattn.enable(pipe)
    with pytest.raises(ValueError, match=r"diffattn\.disable first"), capture(pipe):
        pass
    assert diffattn.summary(pipe).session is not None


def test_restores_the_pipeline_after_an_error():
    pipe = wan.text_to_video()
    before = [block.attn1.processor for block in pipe.transformer.blocks]
    with pytest.raises(KeyError), capture(pipe):
        raise KeyError
    assert [block.attn1.processor for block in pipe.transformer.blocks] == before
