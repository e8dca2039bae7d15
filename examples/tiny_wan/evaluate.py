"""Judge generated clips without a human: background, count, colours, shapes and motions, read off the frames.

python -m examples.tiny_wan.evaluate diffattn/assets/tiny_wan --prompts 100 --json result.json
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from torch import Tensor
from tqdm import tqdm

import diffattn
from examples.tiny_wan.judge import CHANCE, hits, judge
from examples.tiny_wan.latents import analytic_latents
from examples.tiny_wan.scenes import Scene, combinations, frame_times, render, sample_scene
from examples.tiny_wan.vae import decode, prefer_fast_convolutions


def held_out_scenes(count: int, seed: int, objects: int = 1) -> list[Scene]:
    """Scenes of combinations that training never shows; each first object once before any comes twice."""
    rng = np.random.default_rng(seed)
    pool = list(combinations(held_out=True))
    order = [pool[i] for _ in range(-(-count // len(pool))) for i in rng.permutation(len(pool))]
    return [sample_scene(rng, attributes, objects, held_out=True) for attributes in order[:count]]


def score(clips: list[Tensor], scenes: list[Scene]) -> dict[str, float]:
    """Mean hits of clips (T, 3, H, W) per attribute, and of all of them at once."""
    return average([hits(judge(clip, scene.pan), scene) for clip, scene in zip(clips, scenes, strict=True)])


def average(tables: list[dict[str, float]]) -> dict[str, float]:
    """Mean per key."""
    return {name: float(np.mean([table[name] for table in tables])) for name in tables[0]}


@torch.no_grad()
def calibrate(pipe: WanPipeline, scenes: list[Scene], frames: int = 33) -> dict[str, dict[str, float]]:
    """The judge's own accuracy: on rendered truth, and on truth through the VAE."""
    clips = [render(scene, frame_times(frames), 128, 128) for scene in scenes]
    decoded = [decode(pipe.vae, analytic_latents(clip[None]))[0] for clip in clips]
    return {"truth": score(clips, scenes), "truth through the VAE": score(decoded, scenes)}


@torch.no_grad()
def generate(pipe: WanPipeline, scene: Scene, index: int, args: argparse.Namespace) -> Tensor:
    """One clip (T, 3, 128, 128) through the stock pipeline; `index` seeds its noise and picks its wording."""
    options = {"height": 128, "width": 128, "num_frames": args.frames, "output_type": "pt"}
    options |= {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    noise = torch.Generator().manual_seed(1000 + index)
    return 2 * pipe(scene.caption(index), generator=noise, **options).frames[0].float().cpu() - 1


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
        "steps": args.steps,
        "guidance": args.guidance,
        "seconds per clip": round(float(np.mean([row["seconds"] for row in rows])), 2),
    }


def evaluate(pipe: WanPipeline, args: argparse.Namespace) -> list[dict]:
    """Generate and judge this shard's prompts; --json and --sheet are rewritten as clips arrive."""
    first, stride = map(int, args.shard.split("/"))
    rows, clips = [], []
    scenes = list(enumerate(held_out_scenes(args.prompts, args.seed, args.objects)))[first::stride]
    for index, scene in tqdm(scenes, unit="clip", mininterval=5):
        start = time.monotonic()
        clip = generate(pipe, scene, index, args)
        verdict = judge(clip, scene.pan)
        row = {"prompt": scene.caption(index), "verdict": verdict, "hits": hits(verdict, scene)}
        rows.append(row | {"seconds": round(time.monotonic() - start, 2)})
        clips = [*clips, clip][:24]
        if args.json:
            args.json.write_text(json.dumps(summarise(rows, args) | {"clips": rows}, indent=1) + "\n")
        if args.sheet:
            contact_sheet(clips, args.sheet)
    return rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--frames", type=int, default=33, help="65: the same scenes, twice as many frames")
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
    pipe = WanPipeline.from_pretrained(args.folder).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    prefer_fast_convolutions(pipe.vae)
    if args.lora:
        pipe.load_lora_weights(args.lora)
    if args.sparse:
        diffattn.enable(pipe, args.sparse)
    return pipe


def main(argv: list[str] | None = None) -> None:
    """Generate and judge, or merge; print the accuracies as JSON."""
    args = parse_args(argv)
    pipe = load(args)
    if args.merge:
        rows = [row for path in args.merge for row in json.loads(path.read_text())["clips"]]
    else:
        rows = evaluate(pipe, args)
    report = summarise(rows, args) if rows else {}
    if args.calibrate:
        report |= calibrate(pipe, held_out_scenes(args.calibrate, args.seed + 1, args.objects), args.frames)
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report | {"clips": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
