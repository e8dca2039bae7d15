"""A search of an offloaded pipeline finds what it finds without offload, and leaves offload in place."""

import accelerate
import pytest
import torch
from hunting_inputs import SMALL
from torch import nn

import diffattn


def offload_model(pipe):
    for part in modules(pipe):
        accelerate.cpu_offload_with_hook(part, "cpu")


def offload_sequentially(pipe):
    for part in modules(pipe):
        accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=bool(part._parameters))


def modules(pipe):
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


@pytest.mark.parametrize("screen", [None, "gradient"])
@pytest.mark.parametrize("offload", [offload_model, offload_sequentially])
def test_an_offloaded_search_finds_the_same_heads(pipe, prompts, offload, screen):
    settings = {"rounds": 1, "top_k": 2, "screen": screen, "progress": False, **SMALL}
    wanted = diffattn.hunt(pipe, "sharpness", prompts[:1], **settings)
    offload(pipe)
    hooks = [(part._hf_hook, part.forward) for part in modules(pipe)]
    found = diffattn.hunt(pipe, "sharpness", prompts[:1], **settings)
    assert found.heads == wanted.heads and found.search == wanted.search
    assert [(part._hf_hook, part.forward) for part in modules(pipe)] == hooks
