import json
import multiprocessing
import os
import re
import signal

import pytest
import torch
from hunting_inputs import SMALL
from models.pipeline_builders import PIPELINES

import diffattn
from diffattn.guidance import GuidanceConfig, HeadSet
from diffattn.guidance.guidance_hook import find_guidance
from diffattn.hunting import Objective, Sharpness, estimate, hunt
from diffattn.hunting.prompts import make_pairs
from diffattn.hunting.runner import Runner

ONE_ROUND = {"rounds": 1, "top_k": 2, "progress": False, **SMALL}
TWO_ROUNDS = {"rounds": 2, "top_k": 1, "screen": "gradient", "keep": 4, "progress": False, **SMALL}
LATENTS = {"output_type": "latent", "num_inference_steps": 1}


def names(heads):
    return [f"{head.layer}:{head.head}" for head in heads]


class Counted(Objective):
    """A score of latents that counts its calls and may end the process at one of them."""

    def __init__(self, last=None):
        super().__init__(self.score, "energy")
        self.calls, self.last = 0, last

    def score(self, latents, prompts):
        self.calls += 1
        if self.calls == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return latents.square().flatten(1).mean(1)


def test_the_exhaustive_search_is_a_loop_over_guided_pipelines(pipe, prompts):
    found = hunt(pipe, "sharpness", prompts, halving=False, batch_size=4, **ONE_ROUND)
    scores = {}
    for layer in range(3):
        for head in range(2):
            diffattn.guide(pipe, heads=[(layer, head)], scale=3.0)
            clips = [
                pipe(**inputs, generator=torch.Generator().manual_seed(seed), output_type="pt", **SMALL).frames
                for seed, inputs in enumerate(prompts)
            ]
            scores[f"blocks.{layer}.attn1:{head}"] = sum(float(Sharpness()(clip, [])) for clip in clips) / 2
    diffattn.unguide(pipe)
    assert names(found) == sorted(scores, key=scores.get, reverse=True)[:2]
    assert found.search["clips"] == (6 + 1) * 2 + 2 and len(found.search["scores"]) == 1
    assert found.guidance == GuidanceConfig(scale=3.0) and found.search["objective"] == "sharpness"
    diffattn.guide(pipe, found)
    assert find_guidance(pipe.transformer) is not None


def test_scores_do_not_depend_on_what_else_is_in_the_batch(pipe, prompts):
    runner = Runner(pipe, Sharpness(), make_pairs(prompts), batch_size=3, options=SMALL)
    head, other = ["blocks.1.attn1:1"], ["blocks.0.attn1:0", "blocks.2.attn1:1"]
    alone = runner.scores(0, [head])
    assert runner.scores(0, [head, other, []])[0] == runner.scores(0, [head, head, other])[0] == alone[0]
    unguided = pipe(**prompts[0], generator=torch.Generator().manual_seed(0), output_type="pt", **SMALL).frames
    assert runner.scores(0, [[]]) == pytest.approx(Sharpness()(unguided, []).tolist(), rel=1e-5)


def test_the_search_ends_as_it_began(pipe, prompts):
    before = dict(pipe.transformer.attn_processors), pipe._progress_bar_config
    hunt(pipe, "sharpness", prompts, **{**TWO_ROUNDS, "rounds": 1})
    assert (dict(pipe.transformer.attn_processors), pipe._progress_bar_config) == before
    assert find_guidance(pipe.transformer) is None and "step" not in vars(pipe.scheduler)


def killed(folder, pipe, prompts):
    hunt(pipe, Counted(last=9), prompts, resume=folder, **{**TWO_ROUNDS, **LATENTS})


def test_killed_and_resumed_it_returns_the_same_heads(pipe, prompts, tmp_path):
    options = {**TWO_ROUNDS, **LATENTS}
    whole = Counted()
    wanted = hunt(pipe, whole, prompts, resume=tmp_path / "whole", **options)
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "run", pipe, prompts))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    done = len((tmp_path / "run/log-00000.jsonl").read_text().splitlines()) // 2
    rest = Counted()
    found = hunt(pipe, rest, prompts, resume=tmp_path / "run", **options)
    assert found == wanted  # heads, scores, passes, clips
    assert done > 2 and rest.calls < whole.calls
    again = Counted()
    assert hunt(pipe, again, prompts, resume=tmp_path / "run", **options) == wanted and again.calls == 0
    check_report(tmp_path / "run", wanted)
    with pytest.raises(ValueError, match="another search: seeds was \\[0, 1\\], is \\[0, 7\\]"):
        hunt(pipe, Counted(), prompts, seeds=[0, 7], resume=tmp_path / "run", **options)
    pipe.transformer.proj_out.bias.data.add_(1)
    with pytest.raises(ValueError, match="another search: weights was"):
        hunt(pipe, Counted(), prompts, resume=tmp_path / "run", **options)


def check_report(folder, heads):
    about = json.loads((folder / "report.json").read_text())
    assert [head for one in about["rounds"] for head in one["chosen"]] == names(heads)
    assert len(about["rounds"][0]["screened"]) == 6 and len(about["rounds"][0]["gains"]) == 4
    assert HeadSet.load(folder / "headset.json") == heads
    for picture in ("heads.png", "cost.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def worker(rank, port, folder, pipe, prompts):
    from accelerate import PartialState

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    objective = Counted()
    found = hunt(pipe, objective, prompts, resume=folder, **{**ONE_ROUND, **LATENTS})
    (folder / f"found-{rank}.json").write_text(json.dumps([names(found), objective.calls, found.search["scores"]]))


def test_two_processes_share_the_work(pipe, prompts, tmp_path, unused_port):
    whole = Counted()
    wanted = hunt(pipe, whole, prompts, **{**ONE_ROUND, **LATENTS})
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=worker, args=(r, unused_port, tmp_path, pipe, prompts)) for r in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert [one[0] for one in found] == [names(wanted)] * 2 and found[0][2] == wanted.search["scores"]
    assert sum(one[1] for one in found) == whole.calls and min(one[1] for one in found) >= whole.calls // 2 - 1


def test_an_image_pipeline_without_classifier_free_guidance():
    case = next(case for case in PIPELINES if str(case) == "FluxPipeline")
    torch.manual_seed(2)
    prompts = [{key: torch.randn(shape) for key, shape in case.embeds.items()}]
    found = hunt(
        case.build(),
        lambda latents, prompts: latents.square().flatten(1).mean(1),
        prompts,
        screen="gradient",
        keep=2,
        progress=False,
        **{**case.inputs, "rounds": 1, "top_k": 1, "num_inference_steps": 2, "output_type": "latent"},
    )
    assert len(found) == 1 and found.search["scores"][0] > found.search["unguided"]


def test_a_clip_without_a_score_counts_as_the_worst(pipe, prompts, caplog):
    calls = iter(range(100))
    found = hunt(
        pipe,
        lambda videos, prompts: videos.flatten(1).mean(1) * (torch.nan if next(calls) == 1 else 1),
        prompts[:1],
        **{**ONE_ROUND, "top_k": 5, "halving": False},
    )
    assert "blocks.0.attn1:1" not in names(found) and len(found) == 5


def test_the_estimate_knows_the_guidance_of_the_pipeline(pipe, prompts):
    exact = {"rounds": 1, "top_k": 2, "halving": False}
    assert str(estimate(pipe, prompts, **exact, **SMALL)) == "16 clips, at most 96 passes of the transformer"
    assert estimate(pipe, prompts, **exact, **{**SMALL, "guidance_scale": 1.0}).passes == 64


@pytest.mark.parametrize(
    "change, message",
    [
        ({"strength": 0}, "strength must be above 0"),
        ({"strength": 2}, "strength must be a number from 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"rounds": 4}, "4 rounds of 2 heads need more than the 6 heads"),
        ({"seeds": [1]}, "seeds must be as many as prompts, one for each: got 1 and 2"),
        ({"prompts": []}, "prompts must be strings or dicts of pipeline inputs, got none"),
        ({"objective": "beauty"}, "unknown objective 'beauty', known are: sharpness"),
        ({"guidance": GuidanceConfig(schedule={0: 1.0})}, "without a schedule"),
        ({"latents": None}, "a search sets latents itself"),
        ({"objective": lambda videos, prompts: videos.mean()}, r"must give a tensor \(1,\) of scores, got"),
    ],
)
def test_mistakes_are_named(pipe, prompts, change, message):
    arguments = {"objective": "sharpness", "prompts": prompts, **ONE_ROUND, **change}
    with pytest.raises(ValueError, match=message):
        hunt(pipe, **arguments)
    assert find_guidance(pipe.transformer) is None


def test_a_guided_pipeline_is_refused(pipe, prompts):
    diffattn.guide(pipe, heads=[(0, 0)])
    with pytest.raises(ValueError, match=re.escape("call diffattn.unguide(pipe) before")):
        hunt(pipe, "sharpness", prompts, **ONE_ROUND)
    assert find_guidance(pipe.transformer) is not None
