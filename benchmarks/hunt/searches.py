"""Searches for heads on the embedded model, and the held-out scores of what they find."""

from __future__ import annotations

import argparse
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import diffattn
from diffattn import HeadSet
from diffattn.guidance.model import map_model
from diffattn.hunting import Objective
from diffattn.hunting.objectives import sharpness
from diffattn.hunting.prompts import make_pairs
from diffattn.hunting.runner import Runner
from examples.tiny_wan.evaluate import held_out_scenes
from examples.tiny_wan.sampling import combinations, sample_scene

from .likeness import likeness
from .objectives import of_pictures
from .report import EXHAUSTIVE, SCREENED, Row

OBJECTIVES = {"likeness": of_pictures(likeness, "likeness"), "sharpness": of_pictures(sharpness, "sharpness")}
SEARCHES = {
    EXHAUSTIVE: {"screen": None, "halving": False},
    "halving": {"screen": None, "halving": True},
    SCREENED: {"screen": "gradient", "halving": False},
    "gradient screen, halving": {"screen": "gradient", "halving": True},
}
RANDOM_SETS = 2
HEADS = Path(diffattn.tiny_wan()) / "headset.json"
HEAD_MAP = Path(__file__).parents[2] / "docs" / "images" / "head-map.png"
NOTE = "found by diffattn.hunt: python -m benchmarks.hunt --publish"


def training_captions(count: int) -> list[str]:
    """Captions of one object, of combinations that training shows, drawn with a fixed seed."""
    import numpy as np

    rng = np.random.default_rng(5)
    pool = list(combinations(held_out=False))
    return [sample_scene(rng, pool[i], objects=1).caption(n) for n, i in enumerate(rng.permutation(len(pool))[:count])]


def held_out_captions(count: int) -> list[str]:
    """Captions of combinations that training never shows."""
    return [scene.caption(n) for n, scene in enumerate(held_out_scenes(count, seed=7))]


@torch.no_grad()
def held_out_scores(pipe: Any, objective: Objective, heads: Sequence, args: argparse.Namespace) -> torch.Tensor:
    """Scores `(N,)` of held-out captions with seeds of their own."""
    captions = held_out_captions(args.held_out)
    pairs = make_pairs(captions, range(1000, 1000 + len(captions)))
    guidance = diffattn.GuidanceConfig(scale=args.scale)
    runner = Runner(pipe, objective, pairs, guidance, args.strength, options=call(args))
    return torch.tensor([runner.scores(pair, [heads])[0] for pair in range(len(pairs))])


def call(args: argparse.Namespace) -> dict:
    """Arguments of the pipeline."""
    size = {"height": args.size, "width": args.size, "num_frames": 33, "output_type": "latent"}
    return {**size, "num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}


def names(heads: HeadSet) -> list[str]:
    """Heads as `layer:head`."""
    return [f"{head.layer}:{head.head}" for head in heads]


def measure(
    pipe: Any, objective: Objective, args: argparse.Namespace, folder: Path
) -> tuple[list[Row], dict[str, HeadSet]]:
    """Every search, with no heads and random ones beside them, on the same held-out prompts and noise."""
    captions, sets = training_captions(args.prompts), {}
    rows = [Row("unguided", "", held_out_scores(pipe, objective, [], args))]
    rows.append(random_heads(pipe, objective, args))
    for name, how in SEARCHES.items():
        found = sets[name] = diffattn.hunt(
            pipe,
            objective,
            captions,
            rounds=args.rounds,
            top_k=args.top_k,
            keep=args.keep,
            scale=args.scale,
            strength=args.strength,
            resume=folder_of(folder, objective, name),
            **how,
            **call(args),
        )
        scores = held_out_scores(pipe, objective, names(found), args)
        short = ", ".join(name.replace("blocks.", "").replace(".attn1", "") for name in names(found))
        rows.append(Row(name, short, scores, found.search["clips"], found.search["passes"]))
    return rows, sets


def folder_of(folder: Path, objective: Objective, search: str) -> Path:
    """Where the log and the report of a search are."""
    return folder / re.sub(r"\W+", "-", f"{objective.name} {search}").strip("-")


def random_heads(pipe: Any, objective: Objective, args: argparse.Namespace) -> Row:
    """The mean over some random sets of as many heads."""
    rng, model = random.Random(0), map_model(pipe.transformer)
    pool = [f"{layer}:{head}" for layer, count in model.layers.items() for head in range(count)]
    sets = [rng.sample(pool, args.rounds * args.top_k) for _ in range(RANDOM_SETS)]
    scores = torch.stack([held_out_scores(pipe, objective, heads, args) for heads in sets])
    return Row(f"random heads, mean of {RANDOM_SETS} sets", "", scores.mean(0))


def check(pipe: Any, objective: Objective, heads: HeadSet, args: argparse.Namespace) -> list[Row]:
    """Unguided and guided where the model is used: the full size, more steps."""
    full = argparse.Namespace(**{**vars(args), "size": 128, "steps": args.check_steps, "held_out": args.check})
    return [Row("", "", held_out_scores(pipe, objective, chosen, full)) for chosen in ([], names(heads))]


def publish(heads: HeadSet, folder: Path) -> None:
    """Put the head set beside the weights, and the map of the exhaustive search into the documentation."""
    replace(heads, search={"note": NOTE, **heads.search}).save(HEADS)
    shutil.copy(folder / "heads.png", HEAD_MAP)
