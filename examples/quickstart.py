"""A prompt becomes a video twice, dense and sparse, offline on a CPU with the embedded model."""

import argparse
import time
from pathlib import Path

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import diffattn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="a red circle moves right over a blue background")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("outputs"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    pipe = WanPipeline.from_pretrained(diffattn.tiny_wan())

    def generate(name: str) -> str:
        start = time.perf_counter()
        video = pipe(
            args.prompt,
            height=128,
            width=128,
            num_frames=33,
            num_inference_steps=args.steps,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
        ).frames[0]
        seconds = time.perf_counter() - start
        path = args.folder / f"{name}.mp4"
        export_to_video(video, str(path), fps=8)
        return f"{name:<8} {seconds:6.1f} s  {path.resolve()}"

    lines = [generate("dense")]
    diffattn.enable(pipe, args.method)
    lines.append(generate(args.method))
    print(diffattn.summary(pipe), *lines, sep="\n")
    diffattn.disable(pipe)


if __name__ == "__main__":
    main()
