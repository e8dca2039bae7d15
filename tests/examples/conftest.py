"""What several tests of the examples start from."""

import pytest
import torch

from examples.tiny_wan.model import build_pipeline, save_pipeline
from examples.tiny_wan.vae import wired_vae


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Makes the folder of an untrained pipeline; `std` is that of its output projection, which starts as zero."""

    def make(std):
        torch.manual_seed(0)
        pipe = build_pipeline(wired_vae())
        torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=std)
        path = tmp_path_factory.mktemp("tiny") / "pipeline"
        save_pipeline(pipe, path)
        return path

    return make
