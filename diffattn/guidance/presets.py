"""Settings that the community uses, by model; none of them was found by a search for heads.

A checkpoint may bring a head set of its own instead: in its folder, as `HeadSet.save(folder)` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from .guidance_config import GuidanceConfig
from .head_names import resolve_heads
from .head_set import FILE, HeadSet
from .model import map_model


@dataclass(frozen=True)
class Preset:
    """A named setting.

    Args:
        name (`str`): as [`guide`] takes it.
        model (`str`): class of the transformer.
        config (`dict`): values of its configuration that tell the checkpoint apart from others of the class.
        source (`str`): who uses it.
        options (`dict`): of [`GuidanceConfig`].
        layers, skip_blocks (`tuple[int, ...]`): whole layers to perturb, blocks to skip.
        strength (`float`): u.
        dual (`bool`): whether blocks have a second attention (SD3.5 medium).
    """

    name: str
    model: str
    config: dict
    source: str
    options: dict = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    skip_blocks: tuple[int, ...] = ()
    strength: float = 1.0
    dual: bool = False

    def fits(self, transformer: nn.Module) -> bool:
        """Whether it is for this checkpoint, as far as its configuration tells."""
        if self.model not in (cls.__name__ for cls in type(transformer).__mro__):
            return False
        config = transformer.config
        dual = bool(config.get("dual_attention_layers"))
        return dual == self.dual and all(config.get(name) == value for name, value in self.config.items())

    def heads(self, transformer: nn.Module) -> HeadSet:
        """As a head set of this transformer; a ValueError where it is for another."""
        if not self.fits(transformer):
            wanted = f"{self.model} with {self.config}"
            raise ValueError(f"preset {self.name!r} is for {wanted}, but {map_model(transformer).describe()}")
        heads = resolve_heads(
            map_model(transformer),
            layers=self.layers,
            skip_blocks=self.skip_blocks,
            strength=self.strength,
            guidance=GuidanceConfig(**self.options),
        )
        heads.search.update(note="community default", source=self.source)
        return heads


WAN = "WanTransformer3DModel"
PRESETS = (
    Preset(
        "sd3-medium",
        "SD3Transformer2DModel",
        {"num_layers": 24},
        "best single layers of SD3 in arXiv 2506.10978, with the strength of its Figure 11",
        {"scale": 3.0},
        layers=(9,),
        strength=0.5,
    ),
    Preset(
        "sd3.5-medium",
        "SD3Transformer2DModel",
        {"num_layers": 24},
        "skip layer guidance of Stability AI's sd3.5 repository",
        {"scale": 2.5, "start": 0.01, "stop": 0.2},
        skip_blocks=(7, 8, 9),
        dual=True,
    ),
    Preset(
        "wan2.1-14b",
        WAN,
        {"num_layers": 40},
        "Wan2GP, pull request 61",
        {"apply_to": "uncond", "start": 0.1, "stop": 0.9},
        skip_blocks=(9,),
    ),
    Preset(
        "wan2.1-1.3b",
        WAN,
        {"num_layers": 30, "num_attention_heads": 12},
        "Wan2GP, pull request 61",
        {"apply_to": "uncond", "start": 0.1, "stop": 0.9},
        skip_blocks=(8,),
    ),
    Preset(
        "cogvideox-5b",
        "CogVideoXTransformer3DModel",
        {"num_layers": 42},
        "STGuidance (arXiv 2411.18664)",
        {"scale": 1.0},
        skip_blocks=(11,),
    ),
    Preset(
        "ltx-video",
        "LTXVideoTransformer3DModel",
        {"num_layers": 28},
        "STG in Lightricks' LTX-Video",
        {"scale": 1.0, "rescale": 0.7},
        layers=(19,),
    ),
    Preset(
        "hunyuan-video",
        "HunyuanVideoTransformer3DModel",
        {"num_layers": 20, "num_single_layers": 40},
        "STGuidance (arXiv 2411.18664)",
        {"scale": 1.0},
        skip_blocks=(2,),
    ),
    Preset(
        "mochi",
        "MochiTransformer3DModel",
        {"num_layers": 48},
        "STGuidance (arXiv 2411.18664)",
        {"scale": 1.0},
        skip_blocks=(34,),
    ),
)


def preset_names() -> list[str]:
    """Names of all presets."""
    return [preset.name for preset in PRESETS]


def find_preset(name: str) -> Preset | None:
    """The preset of this name, None for something that looks like a file or a repository."""
    found = next((preset for preset in PRESETS if preset.name == name), None)
    if found is None and "/" not in name and not name.endswith(".json"):
        raise ValueError(
            f"unknown preset {name!r}, known are: {', '.join(preset_names())}. A head set of your own is named by "
            "its .json file or its repository 'user/name'"
        )
    return found


def preset_for(transformer: nn.Module) -> HeadSet:
    """The head set in the checkpoint's folder, else its preset; a ValueError that says what else can be given."""
    own = own_heads(transformer)
    if own is not None:
        return own
    found = next((preset for preset in PRESETS if preset.fits(transformer)), None)
    if found is None:
        model = map_model(transformer)
        blocks = len(model.blocks)
        raise ValueError(
            f"there is no preset for this checkpoint (presets: {', '.join(preset_names())}). Give heads=[(layer, "
            f"head), ...], layers=[...] or skip_blocks=[...]: {model.describe()}. An extra pass from block i on costs "
            f"about 1 - i/{blocks} of a whole one, {1 - 2 * blocks // 3 / blocks:.2f} from block {2 * blocks // 3}"
        )
    return found.heads(transformer)


def own_heads(transformer: nn.Module) -> HeadSet | None:
    """The head set in the local folder of the pipeline or model that this was loaded from, if there is one."""
    source = transformer.config.get("_name_or_path")
    if not source:
        return None
    folder = Path(source)
    folder = folder.parent if (folder.parent / "model_index.json").is_file() else folder
    return HeadSet.load(folder) if (folder / FILE).is_file() else None
