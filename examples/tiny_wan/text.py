"""Teach the text encoder its vocabulary: every token's output tells what the caption says, after `bind` of its object.

A minute of training that spares the transformer from learning which word belongs to what.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from examples.tiny_wan.model import build_tokenizer
from examples.tiny_wan.sampling import sample_scene
from examples.tiny_wan.scenes import COLOURS, MOTIONS, PANS, SHAPES, SIZES, TEXTURES, Scene

LONGEST = 28  # tokens of a caption, at most
NONE = ("none",)
SECOND = 0.5  # how much the words of the second object differ from those of the first, in deviations
OBJECT = (tuple(SHAPES), tuple(COLOURS), tuple(MOTIONS), tuple(SIZES))
CLASSES = (tuple(COLOURS), TEXTURES, tuple(PANS), *OBJECT, *(NONE + choices for choices in OBJECT))


def labels(scene: Scene) -> list[int]:
    """What a caption says, as one index into each of `CLASSES`: background, texture, pan, then both objects."""
    said = [scene.background, scene.texture, scene.pan]
    for item in (*scene.items, None)[:2]:
        said += [item.shape, item.colour, item.motion, item.size] if item else [*NONE] * len(OBJECT)
    return [choices.index(word) for choices, word in zip(CLASSES, said, strict=True)]


_TOKENIZER = build_tokenizer()


def token_ids(captions: list[str]) -> Tensor:
    """(B, 28) token ids."""
    return _TOKENIZER(captions, padding="max_length", max_length=LONGEST, return_tensors="pt").input_ids


def phrase_slices(scene: Scene, wording: int) -> list[slice]:
    """Where in the caption each object's words are, in tokens."""
    slices, first = [], 0
    for phrase in scene.phrases(wording):
        slices.append(slice(first, first + len(phrase.split())))
        first = slices[-1].stop + 1  # an "and"
    return slices


def encode(encoder: UMT5EncoderModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) -> embeddings (B, L, C) and mask (B, L)."""
    mask = (ids != _TOKENIZER.pad_token_id).long()
    return encoder(ids, mask).last_hidden_state, mask


def encode_words(encoder: UMT5EncoderModel, ids: Tensor) -> Tensor:
    """Token ids (B, L) -> (B, L + 1, C) for `WordAttention`: zeros after a caption's own tokens."""
    embeddings, mask = encode(encoder, ids)
    return F.pad(embeddings * mask.unsqueeze(-1), (0, 0, 0, 1))


def _fit(encoder: UMT5EncoderModel, lr: float, losses: Iterator[Tensor], steps: int) -> float:
    """AdamW on `losses`, the rate falling to nothing; returns the last of them."""
    optimizer = torch.optim.AdamW(encoder.train().parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for loss in itertools.islice(losses, steps):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return loss.item()


def pretrain(encoder: UMT5EncoderModel, rng: np.random.Generator, steps: int) -> float:
    """Train `encoder` in place with throw-away linear heads; returns the last loss, summed over `CLASSES`."""
    heads = nn.Linear(encoder.config.d_model, sum(map(len, CLASSES)), bias=False).to(encoder.device)
    nn.init.orthogonal_(heads.weight)

    def losses() -> Iterator[Tensor]:
        while True:
            scenes = [sample_scene(rng) for _ in range(64)]
            truth = torch.tensor([labels(scene) for scene in scenes], device=encoder.device)
            captions = [scene.caption(int(rng.integers(3))) for scene in scenes]
            embeddings, mask = encode(encoder, token_ids(captions).to(encoder.device))
            targets = truth[:, None].expand(-1, mask.shape[1], -1)[mask.bool()]
            logits = heads(embeddings[mask.bool()]).split([len(choices) for choices in CLASSES], -1)
            yield sum(F.cross_entropy(piece, target) for piece, target in zip(logits, targets.unbind(-1), strict=True))

    return _fit(encoder, 3e-3, losses(), steps)


def bind(encoder: UMT5EncoderModel, rng: np.random.Generator, steps: int) -> float:
    """Train `encoder` in place to keep the words of two objects apart; returns the share of variance it explains.

    Its own outputs are the goal: for each object's words what they say in a caption without the other object, plus, of
    the second object, a mark; for the rest what they say now. Captions of one object keep their meaning, so a trained
    transformer still understands them.
    """
    teacher = copy.deepcopy(encoder).requires_grad_(False)

    def losses() -> Iterator[Tensor]:
        while True:
            scenes = [sample_scene(rng, objects=1 + index % 2) for index in range(64)]
            goal, ids = _apart(teacher, scenes, rng.integers(3, size=len(scenes)).tolist())
            embeddings, mask = encode(encoder, ids)
            goal, embeddings = goal[mask.bool()], embeddings[mask.bool()]
            yield F.mse_loss(embeddings, goal) / goal.var(0).mean()

    return 1 - _fit(encoder, 1e-3, losses(), steps)


@torch.no_grad()
def _apart(teacher: UMT5EncoderModel, scenes: list[Scene], wordings: list[int]) -> tuple[Tensor, Tensor]:
    """What the words should say (B, L, C), and the captions' token ids (B, L)."""
    pairs = list(zip(scenes, wordings, strict=True))
    ids = token_ids([scene.caption(wording) for scene, wording in pairs]).to(teacher.device)
    goal = encode(teacher, ids)[0]
    # Cross-attention does not know where in the caption a word is: the second object's words carry a mark.
    mark = SECOND * goal.std() * goal.new_tensor([-1.0, 1.0]).repeat(goal.shape[-1] // 2)
    for place in range(2):
        alone = [replace(scene, items=(scene.items[min(place, len(scene.items) - 1)],)) for scene in scenes]
        captions = [scene.caption(wording) for scene, (_, wording) in zip(alone, pairs, strict=True)]
        said = encode(teacher, token_ids(captions).to(teacher.device))[0]
        for row, pair in enumerate(pairs):
            for at in phrase_slices(*pair)[place : place + 1]:
                goal[row, at] = said[row, : at.stop - at.start] + place * mark
    return goal, ids
