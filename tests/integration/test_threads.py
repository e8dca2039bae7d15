"""What a run knows belongs to its thread: requests at once give what they give one after the other."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from models.builders import case
from wan import TEXT, text_to_video, tiny_transformer

import diffattn
from diffattn import AutoConfig, NeighborhoodConfig, PyramidConfig, Schedule

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)
OWN = PyramidConfig(density=0.5)
ROUNDS = 4


@pytest.fixture(autouse=True)
def frequent_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*jobs):
    """The results of all jobs, each run in a thread of its own."""
    results, errors, start = [None] * len(jobs), [], threading.Barrier(len(jobs))

    def work(index, job):
        try:
            start.wait()
            results[index] = job()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=item) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return results


def request(transformer, height, width, seed):
    """One request of a server: a pipeline and a scheduler of its own around one shared transformer."""
    pipe = text_to_video(transformer=transformer)
    embeds = torch.randn(2, 1, 12, TEXT, generator=torch.Generator().manual_seed(seed))
    return pipe(
        prompt_embeds=embeds[0],
        negative_prompt_embeds=embeds[1],
        height=height,
        width=width,
        num_frames=5,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).frames


@pytest.mark.parametrize(
    "config", [NeighborhoodConfig(density=0.3), AutoConfig(density=0.3)], ids=["static", "dynamic"]
)
def test_eight_requests_of_mixed_sizes_share_one_transformer(config):
    transformer = tiny_transformer(2)
    diffattn.enable(transformer, config, schedule=ALWAYS, impl="torch")
    sizes = ((96, 160), (160, 96), (128, 128), (96, 96)) * 2
    jobs = [lambda size=size, seed=seed: request(transformer, *size, seed) for seed, size in enumerate(sizes)]
    alone = [job() for job in jobs]
    calls = [layer.sparse_calls for layer in diffattn.summary(transformer).models[0].layers]
    for _ in range(2):
        assert all(torch.equal(got, wanted) for got, wanted in zip(at_once(*jobs), alone))
    again = [layer.sparse_calls for layer in diffattn.summary(transformer).models[0].layers]
    assert calls == [8 * 3 * 2] * 2 and again == [3 * count for count in calls]  # no call is lost


def test_one_thread_is_at_a_dense_step_while_another_is_not():
    transformer = tiny_transformer(2)
    diffattn.enable(transformer, NeighborhoodConfig(density=0.3), schedule=Schedule(1, 0, 0), impl="torch")
    jobs = [lambda seed=seed: request(transformer, 96, 160, seed) for seed in range(4)]
    alone = [job() for job in jobs]
    assert all(torch.equal(got, wanted) for got, wanted in zip(at_once(*jobs), alone))


# a way of reaching attention each: a backend of the processor, torch's function, the dispatcher without a backend
@pytest.mark.parametrize("sparse", ["Wan", "SD3", "Mochi", "Cosmos"])
@pytest.mark.parametrize("plain", ["Wan", "Flux", "Cosmos"])
def test_a_sparse_model_beside_a_plain_one(sparse, plain):
    on, off = case(sparse), case(plain)
    enabled, other = on.build(), off.build()
    diffattn.enable(enabled, OWN, schedule=ALWAYS, impl="torch")
    inputs = []
    for at in (on, off):
        torch.manual_seed(1)
        inputs.append({**at.inputs(), "return_dict": False})

    def many(model, given):
        with torch.no_grad():
            return torch.stack([model(**given)[0] for _ in range(ROUNDS)])

    jobs = [lambda: many(enabled, inputs[0]), lambda: many(other, inputs[1])]
    alone = [job() for job in jobs]
    before = _AttentionBackendRegistry._active_backend
    assert all(torch.equal(got, wanted) for got, wanted in zip(at_once(*jobs), alone))
    assert _AttentionBackendRegistry._active_backend is before
