"""A checkpoint with weights that diffusers has no place for is named when sparse attention is turned on."""

from __future__ import annotations

import json
import os
import shutil
import socket

import pytest
import torch
from diffusers import WanTransformer3DModel
from huggingface_hub import constants
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from wan import text_to_video, tiny_transformer

import diffattn

GATES = {
    f"blocks.{block}.to_gate_compress.{part}": torch.zeros(2) for block in range(3) for part in ("weight", "bias")
}
WARNING = (
    "diffusers dropped 6 weights of {source}, for which WanTransformer3DModel has no place: "
    "blocks.*.to_gate_compress.bias, blocks.*.to_gate_compress.weight. "
)
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refused(*_):
        raise AssertionError("nothing is to be asked of the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)


def save(folder, sharded=False, extra=GATES):
    """A tiny Wan checkpoint with `extra` tensors in its files."""
    tiny_transformer().save_pretrained(folder, max_shard_size="40KB" if sharded else "1GB")
    *_, last = sorted(folder.glob("*.safetensors"))
    save_file({**load_file(last), **extra}, last, metadata={"format": "pt"})
    if sharded:
        index = folder / f"{WEIGHTS}.safetensors.index.json"
        known = json.loads(index.read_text())
        known["weight_map"] |= dict.fromkeys(extra, last.name)
        index.write_text(json.dumps(known))
        assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def warnings_of(model, caplog):
    caplog.clear()
    diffattn.enable(model, "radial")
    return caplog.messages


@pytest.mark.parametrize("sharded", [True, False], ids=["sharded", "one file"])
def test_dropped_weights_are_named_once(sharded, tmp_path, caplog):
    model = WanTransformer3DModel.from_pretrained(save(tmp_path, sharded))
    (message,) = warnings_of(model, caplog)
    assert message.startswith(WARNING.format(source=tmp_path))


def test_two_transformers_of_one_pipeline(tmp_path, caplog):
    save(tmp_path / "transformer")
    save(tmp_path / "transformer_2", extra={})
    parts = {name: WanTransformer3DModel.from_pretrained(tmp_path / name) for name in ("transformer", "transformer_2")}
    (message,) = warnings_of(text_to_video(**parts), caplog)
    assert message.startswith(WARNING.format(source=tmp_path / "transformer"))


def test_a_subfolder(tmp_path, caplog):
    save(tmp_path / "transformer")
    (message,) = warnings_of(WanTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer"), caplog)
    assert message.startswith(WARNING.format(source=tmp_path))


def test_the_cache_of_the_hub(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--owner--wan", "0" * 40
    folder = save(repository / "snapshots" / commit / "transformer")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = WanTransformer3DModel.from_pretrained(folder)
    model.register_to_config(_name_or_path="owner/wan")
    (message,) = warnings_of(model, caplog)
    assert message.startswith(WARNING.format(source="owner/wan"))


def test_nothing_is_said_where_nothing_was_dropped(tmp_path, caplog):
    known = {"blocks.0.attn2.norm_added_q.weight": torch.ones(2)}
    model = WanTransformer3DModel.from_pretrained(save(tmp_path, extra=known))
    assert warnings_of(model, caplog) == []  # diffusers expects to meet norm_added_q
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    assert warnings_of(model, caplog) == []
    model.fuse_qkv_projections()
    assert warnings_of(model, caplog) == []
    assert warnings_of(tiny_transformer(), caplog) == []


@pytest.mark.parametrize("harm", ["gone", "moved", "unreadable", "another class", "no such repository"])
def test_nothing_is_said_where_nothing_can_be_read(harm, tmp_path, caplog):
    folder = save(tmp_path / "model")
    model = WanTransformer3DModel.from_pretrained(folder)
    if harm == "gone":
        shutil.rmtree(folder)
    elif harm == "moved":
        os.remove(folder / f"{WEIGHTS}.safetensors")
    elif harm == "unreadable":
        (folder / f"{WEIGHTS}.safetensors").write_bytes(b"not a checkpoint")
    elif harm == "another class":
        (folder / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    else:
        model.register_to_config(_name_or_path="not a/name of/the Hub")
    assert warnings_of(model, caplog) == []
