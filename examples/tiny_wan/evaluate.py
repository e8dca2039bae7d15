"""Judge generated clips without a human: background, count, colours, shapes and motions, read off the frames.

python -m examples.tiny_wan.evaluate diffattn/assets/tiny_wan --prompts 100 --json result.json

On a GPU, --batch prompts go through the pipeline at once, and --workers processes judge the batch before.
"""

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from torch import Tensor
from tqdm import tqdm

import diffattn
from examples.tiny_wan.judge import CHANCE, hits
from examples.tiny_wan.judging import Judging, judge_here, judges
from examples.tiny_wan.latents import analytic_latents
from examples.tiny_wan.sampling import combinations, sample_scene
from examples.tiny_wan.scene_batch import render_rows, scene_rows
from examples.tiny_wan.scenes import Scene, frame_times
from examples.tiny_wan.vae import decode, prefer_fast_convolutions


def held_out_scenes(count: int, seed: int, objects: int = 1) -> list[Scene]:
    """Scenes of combinations that training never shows; each first object once before any comes twice."""
    rng = np.random.default_rng(seed)
    pool = list(combinations(held_out=True))
    order = [pool[i] for _ in range(-(-count // len(pool))) for i in rng.permutation(len(pool))]
    return [sample_scene(rng, attributes, objects, held_out=True) for attributes in order[:count]]


def score(clips: list[Tensor], scenes: list[Scene], judging: Judging = judge_here) -> dict[str, float]:
    """Mean hits of clips (T, 3, H, W) per attribute, and of all of them at once."""
    return average([hits(verdict, scene) for verdict, scene in zip(judging(clips, scenes), scenes, strict=True)])


def average(tables: list[dict[str, float]]) -> dict[str, float]:
    """Mean per key."""
    return {name: float(np.mean([table[name] for table in tables])) for name in tables[0]}


@torch.no_grad()
def calibrate(pipe: WanPipeline, scenes: list[Scene], args: argparse.Namespace, judging: Judging) -> dict:
    """The judge's own accuracy: on rendered truth, and on truth through the VAE."""
    times, truth, decoded = frame_times(args.frames).to(args.device), [], []
    for rows in scene_rows(scenes).split(args.batch):
        clips = render_rows(rows, times, args.side, args.side)
        truth += clips.cpu()
        decoded += decode(pipe.vae, analytic_latents(clips)).cpu()
    return {"truth": score(truth, scenes, judging), "truth through the VAE": score(decoded, scenes, judging)}


@torch.no_grad()
def generate(pipe: WanPipeline, cases: list[tuple[int, Scene]], args: argparse.Namespace) -> list[Tensor]:
    """Clips (T, 3, side, side) through the stock pipeline; a case's index seeds its noise and picks its wording."""
    options = {"height": args.side, "width": args.side, "num_frames": args.frames, "output_type": "pt"}
    options |= {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    noise = [torch.Generator().manual_seed(1000 + index) for index, _ in cases]
    captions = [scene.caption(index) for index, scene in cases]
    return list(2 * pipe(captions, generator=noise, **options).frames.float().cpu() - 1)


def contact_sheet(clips: list[Tensor], path: Path, columns: int = 4) -> None:
    """Save a PNG: per clip its first, middle and last frame, `columns` clips to a row."""
    from PIL import Image

    strips = [torch.cat([clip[0], clip[len(clip) // 2], clip[-1]], 2) for clip in clips]
    strips += [torch.ones_like(strips[0])] * (-len(strips) % columns)
    rows = [torch.cat(strips[i : i + columns], 2) for i in range(0, len(strips), columns)]
    pixels = ((torch.cat(rows, 1) + 1) * 127.5).round().clamp(0, 255).byte()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def summarise(rows: list[dict], args: argparse.Namespace) -> dict:
    """Accuracy over judged rows {"prompt", "verdict", "hits", "seconds"}, with the sampler's settings."""
    return {
        "accuracy": average([row["hits"] for row in rows]),
        "chance": CHANCE,
        "prompts": len(rows),
        "objects": args.objects,
        "frames": args.frames,
        "side": args.side,
        "steps": args.steps,
        "guidance": args.guidance,
        "seconds per clip": round(float(np.mean([row["seconds"] for row in rows])), 3),
    }


def rows_of(cases: list[tuple[int, Scene]], verdicts: Iterable[dict], seconds: float) -> list[dict]:
    """What `summarise` sums up, of clips that took `seconds` each to generate."""
    return [
        {"prompt": scene.caption(index), "verdict": verdict, "hits": hits(verdict, scene), "seconds": seconds}
        for (index, scene), verdict in zip(cases, verdicts, strict=True)
    ]


def evaluate(pipe: WanPipeline, args: argparse.Namespace, judging: Judging) -> list[dict]:
    """Generate and judge this shard's prompts; --json and --sheet are rewritten as clips arrive."""
    first, stride = map(int, args.shard.split("/"))
    rows, clips, judged = [], [], None
    cases = list(enumerate(held_out_scenes(args.prompts, args.seed, args.objects)))[first::stride]
    for at in tqdm(range(0, len(cases), args.batch), unit="batch", mininterval=5):
        part, start = cases[at : at + args.batch], time.monotonic()
        made = generate(pipe, part, args)
        seconds = round((time.monotonic() - start) / len(part), 3)
        # Processes judge this batch while the next one is generated.
        judged, last = (part, judging(made, [scene for _, scene in part]), seconds), judged
        rows += rows_of(*last) if last else []
        if args.sheet and len(clips) < 24:
            clips = [*clips, *made][:24]
            contact_sheet(clips, args.sheet)
        if args.json and rows:
            write_report(rows, summarise(rows, args), args.json)
    return rows + (rows_of(*judged) if judged else [])


def write_report(rows: list[dict], report: dict, path: Path) -> None:
    """The accuracies and every clip's verdict."""
    path.write_text(json.dumps(report | {"clips": rows}, indent=1) + "\n")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--frames", type=int, default=33, help="65: the same scenes, twice as many frames")
    parser.add_argument("--side", type=int, default=128, help="pixels; 192: 5,184 tokens")
    parser.add_argument("--batch", type=int, default=1, help="prompts to a call of the pipeline")
    parser.add_argument("--dtype", default="float32", help="of the transformer: float32 or bfloat16")
    parser.add_argument("--workers", type=int, default=0, help="processes that judge")
    parser.add_argument("--lora", type=Path, help="a folder that finetune.py wrote")
    parser.add_argument("--sparse", type=Path, help="the folder of a diffattn_config.json; default: dense")
    parser.add_argument("--objects", type=int, default=1, choices=(1, 2), help="objects to a scene")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th prompt from the i-th on, for n processes")
    parser.add_argument("--merge", type=Path, nargs="+", help="only sum up the --json files of several shards")
    parser.add_argument("--calibrate", type=int, default=0, help="also judge this many rendered and decoded clips")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first 24 clips")
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> WanPipeline:
    """The pipeline, with the LoRA and the sparse method asked for."""
    dtype = getattr(torch, args.dtype)
    options = {} if dtype == torch.float32 else {"dtype": {"transformer": dtype, "default": torch.float32}}
    pipe = WanPipeline.from_pretrained(args.folder, **options).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    if pipe.device.type == "cpu":
        prefer_fast_convolutions(pipe.vae)
    if args.lora:
        pipe.load_lora_weights(args.lora)
    if args.sparse:
        diffattn.enable(pipe, args.sparse)
    return pipe


def main(argv: list[str] | None = None) -> None:
    """Generate and judge, or merge; print the accuracies as JSON."""
    args = parse_args(argv)
    with judges(args.workers) as judging:
        pipe = load(args)
        if args.merge:
            rows = [row for path in args.merge for row in json.loads(path.read_text())["clips"]]
        else:
            rows = evaluate(pipe, args, judging)
        report = summarise(rows, args) if rows else {}
        if args.calibrate:
            report |= calibrate(pipe, held_out_scenes(args.calibrate, args.seed + 1, args.objects), args, judging)
    print(json.dumps(report, indent=2))
    if args.json:
        write_report(rows, report, args.json)


if __name__ == "__main__":
    main()
