"""One request to the demo."""

from __future__ import annotations

from dataclasses import dataclass

from ..analysis.load import TINY
from ..attention_config import AttentionConfig
from ..guidance.guidance_config import SCALE
from ..methods import config
from ..schedule import Schedule


@dataclass(frozen=True)
class Request:
    """One run, dense and sparse; the fields are the controls of the page, in their order.

    Args:
        prompt (`str`): what the video shows.
        method (`str`): attention method.
        density (`float`): share of the products between visual tokens to compute in sparse calls.
        dense_start (`float`): share of the first steps that stay dense.
        steps (`int`): denoising steps.
        seed (`int`): of both runs.
        model (`str`): `"tiny"`, a hub id or a folder, see [`Models`].
        width, height (`int`): pixels.
        frames (`int`): frames of the video.
        guidance_scale (`float`): classifier-free guidance, 1 is off.
        heads (`tuple[str, ...]`): attention heads to guide both runs by, each as `"layer:head"`; none is off.
        head_scale (`float`): w of that guidance.
        head_strength (`float`): u, how far these heads are perturbed, 0 to 1.
        nag (`str`): negative prompt by attention (NAG) of both runs; empty is off.
    """

    prompt: str
    method: str = "auto"
    density: float = 0.2
    dense_start: float = 0.2
    steps: int = 20
    seed: int = 0
    model: str = TINY
    width: int = 128
    height: int = 128
    frames: int = 33
    guidance_scale: float = 3.0
    heads: tuple[str, ...] = ()
    head_scale: float = SCALE
    head_strength: float = 1.0
    nag: str = ""

    @property
    def config(self) -> AttentionConfig:
        """The method; raises ValueError where it is unknown or the density is out of range."""
        return config(self.method, density=self.density)

    @property
    def schedule(self) -> Schedule:
        """Which steps stay dense."""
        return Schedule(dense_start=float(self.dense_start))

    @property
    def inputs(self) -> dict:
        """Arguments of the pipeline."""
        return {
            "prompt": self.prompt,
            "width": self.width,
            "height": self.height,
            "num_frames": self.frames,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
        }
