"""Threads that run one transformer at the same time give what they give one after the other."""

import copy
import sys
import threading

import pytest
import torch
import wan
from models.builders import case
from models.pipeline_builders import PIPELINES

import diffattn
from diffattn import HeadPerturbationGuidance
from diffattn.guidance import guided

CASES = {case.name: case for case in PIPELINES}
HEADS = {(0, 1): 0.6, (1, 0): 1.0}
SIZES = [{"height": 96, "width": 128}, {"height": 128, "width": 96}, {"height": 64, "width": 64}]


@pytest.fixture(autouse=True)
def many_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(jobs):
    """The results of functions that start together, each in a thread."""
    results, start = [None] * len(jobs), threading.Barrier(len(jobs))

    def run(at):
        start.wait()
        try:
            results[at] = jobs[at]()
        except BaseException as error:
            results[at] = error

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def request(pipe, name, size, steps):
    """A call with a scheduler of its own, as servers do."""
    own = copy.copy(pipe)
    own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    if name == "Wan":
        return wan.run(own, steps, **size, num_frames=5)
    seed = torch.Generator().manual_seed(size["height"])  # threads share the global one
    embeds = {key: torch.randn(shape, generator=seed) for key, shape in CASES[name].embeds.items()}
    options = {"num_inference_steps": steps, "generator": seed, "output_type": "latent", "return_dict": False}
    return own(**size, **embeds, **options)[0]


@pytest.mark.parametrize("rows", ["all", "image"])
@pytest.mark.parametrize("name", ["Wan", "StableDiffusion3Pipeline"])
def test_requests_of_several_sizes(name, rows):
    pipe = wan.text_to_video() if name == "Wan" else CASES[name].build()
    jobs = [lambda size=size: request(pipe, name, size, 3) for size in (*SIZES, SIZES[0])]
    processors = [module.processor for module in pipe.transformer.modules() if hasattr(module, "processor")]
    with guided(pipe, HEADS, rows=rows, rescale=0.3, cfg_scale=3.0 if name == "Wan" else 7.0) as guidance:
        wanted = [job() for job in jobs]
        passes = guidance.passes
        for _ in range(3):
            assert all(map(torch.equal, at_once(jobs), wanted))
        assert guidance.passes == 4 * passes
    after = [module.processor for module in pipe.transformer.modules() if hasattr(module, "processor")]
    assert all(a is b for a, b in zip(processors, after, strict=True))
    assert not any("forward" in vars(module) for module in pipe.transformer.modules())


def test_guiders_in_two_threads_and_no_guidance_in_another():
    model = case("Wan").build()
    torch.manual_seed(1)
    inputs = {**case("Wan").inputs(), "return_dict": False}
    prompts = (inputs["encoder_hidden_states"], torch.randn_like(inputs["encoder_hidden_states"]))

    @torch.no_grad()
    def plain():
        return torch.stack([model(**inputs)[0] for _ in range(10)])

    @torch.no_grad()
    def with_guider(skip_blocks=None):
        guider = HeadPerturbationGuidance(HEADS, skip_blocks=skip_blocks, scale=2.0)
        results = []
        for step in range(10):
            guider.set_state(step, 10, torch.tensor(500.0))
            batches = guider.prepare_inputs({"encoder_hidden_states": prompts})
            for batch in batches:
                guider.prepare_models(model)
                batch.noise_pred = model(**{**inputs, "encoder_hidden_states": batch.encoder_hidden_states})[0]
                guider.cleanup_models(model)
            results.append(guider(batches).pred)
        return torch.stack(results)

    jobs = [plain, with_guider, lambda: with_guider(skip_blocks=[1])]
    wanted = [job() for job in jobs]
    assert not any(torch.equal(wanted[at], wanted[at - 1]) for at in range(3))
    assert all(map(torch.equal, at_once(jobs), wanted))


def test_an_interrupted_forward_is_ended_by_the_next():
    pipe = wan.text_to_video()
    plain = wan.run(pipe, 2)
    diffattn.guide(pipe, HEADS)
    wanted = wan.run(pipe, 2)
    for passes in (1, 2):  # the conditional pass, the perturbed one
        count = iter(range(passes))

        def interrupt(*_, count=count, passes=passes):
            if next(count) == passes - 1:
                raise KeyboardInterrupt

        handle = pipe.transformer.blocks[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            wan.run(pipe, 2)
        handle.remove()
        assert torch.equal(at_once([lambda: wan.run(copy.copy(pipe), 2)])[0], wanted)
        assert torch.equal(wan.run(pipe, 2), wanted)
    handle = pipe.transformer.blocks[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        wan.run(pipe, 2)
    handle.remove()
    diffattn.unguide(pipe)
    assert torch.equal(wan.run(pipe, 2), plain)
    assert not any("forward" in vars(block) for block in pipe.transformer.blocks)
