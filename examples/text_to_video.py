"""Prompts become videos, with sparse attention in any video pipeline of diffusers.

python examples/text_to_video.py "a cat walks on the grass" --model wan2.1-1.3b --density 0.3
python examples/text_to_video.py "the cat jumps" --model wan2.2-i2v-14b --image cat.png --offload model
accelerate launch --num_processes 4 examples/text_to_video.py --prompts prompts.txt --model wan2.1-14b
"""

import argparse
import inspect
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
from accelerate import PartialState
from diffusers.utils import export_to_video, load_image

import diffattn

MODELS = {  # short name: hub id or folder, frames a second, pipeline class where the repository serves several
    "tiny": (diffattn.tiny_wan(), 8),
    "wan2.1-1.3b": ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 16),
    "wan2.1-14b": ("Wan-AI/Wan2.1-T2V-14B-Diffusers", 16),
    "wan2.1-i2v-14b": ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", 16),
    "wan2.2-14b": ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", 16),
    "wan2.2-i2v-14b": ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", 16),
    "wan2.2-5b": ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", 24),
    "wan2.2-i2v-5b": ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", 24, "WanImageToVideoPipeline"),
    "hunyuan": ("hunyuanvideo-community/HunyuanVideo", 15),
    "hunyuan-i2v": ("hunyuanvideo-community/HunyuanVideo-I2V", 15),
    "cogvideox-5b": ("THUDM/CogVideoX-5b", 8),
    "cogvideox-i2v-5b": ("THUDM/CogVideoX-5b-I2V", 8),
    "ltx": ("Lightricks/LTX-Video", 24),
    "ltx-i2v": ("Lightricks/LTX-Video", 24, "LTXImageToVideoPipeline"),
}
TINY = {"height": 128, "width": 128, "num_frames": 33, "num_inference_steps": 20, "guidance_scale": 3.0}


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    add = parser.add_argument
    add("prompt", nargs="?", help="what the video shows")
    add("--prompts", type=Path, help="a text file instead, one prompt a line")
    add("--model", default="wan2.1-1.3b", help=f"hub id, pipeline folder or one of: {', '.join(MODELS)}")
    add("--image", help="file or address of the first frame, for image-to-video models")
    add("--method", default="auto", help="auto, radial, pyramid, vmoba, rectified, sol, neighborhood or dense")
    add("--density", type=float, help="share of attention to compute, 0 to 1")
    add("--dense-start", type=json.loads, default=0.2, help="first steps that stay dense: 0.2 is a share, 12 a count")
    add("--dense-end", type=json.loads, default=0, help="last steps that stay dense")
    add("--dense-layers", type=json.loads, default=0, help="first layers that stay dense")
    add("--heads", help="guide by these heads: a preset of diffattn.guide, a head set file or a hub id")
    add("--heads-scale", type=float, help="how strongly; that of the head set if not given")
    add("--nag", help="negative prompt by attention (NAG), for models that run without classifier-free guidance")
    add("--nag-scale", type=float, help="how strongly; the default of the model if not given")
    add("--lora", help="hub id or file of a LoRA (needs diffattn[train])")
    add("--offload", choices=("none", "model", "group"), default="none", help="keep what does not run off the GPU")
    add("--vae-tiling", action="store_true", help="decode in tiles, which takes less memory")
    add("--compile", action="store_true", help="torch.compile the repeated blocks")
    add("--dtype", choices=("bfloat16", "float16", "float32"), help="bfloat16 on a GPU, float32 on a CPU if not given")
    add("--seed", type=int, default=0, help="of every video")
    for name in ("height", "width", "num-frames", "num-inference-steps", "fps"):
        add(f"--{name}", type=int, help="the model's own default if not given")
    add("--guidance-scale", type=float, help="classifier-free guidance; the model's own default if not given")
    add("--negative-prompt", help="what the video should not show")
    add("--output", type=Path, default=Path("outputs"), help="folder of the videos")
    return parser.parse_args()


@contextmanager
def one_line(parser: argparse.ArgumentParser, *mistakes: type[Exception]) -> Iterator[None]:
    try:
        yield
    except mistakes as error:
        parser.error(str(error))


def load(args: argparse.Namespace, device: torch.device) -> diffusers.DiffusionPipeline:
    name, _, *cls = MODELS.get(args.model, (args.model, 16))
    dtype = getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    pipe = getattr(diffusers, *cls or ["DiffusionPipeline"]).from_pretrained(name, dtype=dtype)
    if args.lora:
        pipe.load_lora_weights(args.lora)
    if args.vae_tiling:
        pipe.vae.enable_tiling()
    if args.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif args.offload == "group":
        pipe.enable_group_offload(device, offload_type="leaf_level", use_stream=device.type == "cuda")
    else:
        pipe.to(device)
    return pipe


def inputs(args: argparse.Namespace, pipe: diffusers.DiffusionPipeline) -> dict:
    """What the pipeline is called with; an option that it does not take is a mistake, not ignored."""
    names = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "negative_prompt", "image")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    takes = inspect.signature(pipe.__call__).parameters
    for name in given:
        if name not in takes:
            raise ValueError(f"{type(pipe).__name__} of --model {args.model} takes no --{name.replace('_', '-')}")
    if "image" in takes and not args.image:
        raise ValueError(f"{type(pipe).__name__} of --model {args.model} makes a video from an image: give --image")
    return (TINY if args.model == "tiny" else {}) | given | ({"image": load_image(args.image)} if args.image else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse(parser)
    if (args.prompt is None) == (args.prompts is None):
        parser.error("give a prompt, or --prompts with a file of them")
    if args.method == "dense" and args.density is not None:
        parser.error(f"--method dense computes everything: leave --density {args.density} out")
    if args.nag is None and args.nag_scale is not None:
        parser.error("--nag-scale goes with --nag")
    state = PartialState(cpu=not torch.accelerator.is_available())
    if args.offload != "none" and state.device.type == "cpu":
        parser.error(f"--offload {args.offload} moves weights between a GPU and the CPU: there is no GPU")
    with one_line(parser, OSError, ValueError, TypeError):
        lines = [args.prompt] if args.prompts is None else args.prompts.read_text(encoding="utf-8").splitlines()
        prompts = [line for line in lines if line.strip()]
        density = {} if args.density is None else {"density": args.density}
        config = args.method != "dense" and diffattn.config(args.method, **density)
        schedule = diffattn.Schedule(args.dense_start, args.dense_end, args.dense_layers)
        pipe = load(args, state.device)
        options = inputs(args, pipe)
        if config:
            diffattn.enable(pipe, config, schedule=schedule)
        if args.heads:
            diffattn.guide(pipe, args.heads, scale=args.heads_scale)
        if args.nag is not None:
            diffattn.guide(pipe, diffattn.NAGConfig(negative=args.nag, scale=args.nag_scale))
        args.output.mkdir(parents=True, exist_ok=True)
    for part in (pipe.transformer, getattr(pipe, "transformer_2", None)) if args.compile else ():
        if part is not None:
            part.compile_repeated_blocks(fullgraph=True)

    with state.split_between_processes(list(enumerate(prompts))) as mine:
        for index, prompt in mine:
            start = time.perf_counter()
            with one_line(parser, ValueError):
                seed = torch.Generator("cpu").manual_seed(args.seed)
                frames = pipe(prompt=prompt, generator=seed, **options).frames[0]
            about = {"prompt": prompt, "seconds": time.perf_counter() - start, "process": state.process_index}
            about |= {"options": vars(args), "attention": diffattn.summary(pipe).to_dict()}
            path = args.output / f"{index:04d}.mp4"
            export_to_video(frames, str(path), fps=args.fps or MODELS.get(args.model, (None, 16))[1])
            path.with_suffix(".json").write_text(json.dumps(about, indent=2, default=str) + "\n", encoding="utf-8")
            print(f"{path}: {about['seconds']:.1f} s, {prompt}", flush=True)


if __name__ == "__main__":
    main()
