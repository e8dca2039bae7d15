"""How strong normalised attention guidance is where nobody says, by model family."""

from __future__ import annotations

from typing import NamedTuple

from ...models.text_inputs import TextInputs


class NAGDefaults(NamedTuple):
    """s, tau, alpha and the norm of [`normalised_guidance`]."""

    scale: float
    tau: float
    alpha: float
    norm: str


# of the authors: README, attention_wan_nag.py and the demo of Wan 2.1 in four steps
WAN = NAGDefaults(11.0, 2.5, 0.25, "l1")
# of the authors: README, pipeline_flux_nag.py and attention_flux_nag.py
FLUX = NAGDefaults(5.0, 2.5, 0.25, "l2")
# of the authors: README and attention_joint_nag.py
SD3 = NAGDefaults(5.0, 2.5, 0.125, "l1")

OWN = {"SD3Transformer2DModel": SD3}


def defaults_for(text: TextInputs) -> NAGDefaults:
    """Those of the family, or else of Wan for text by cross-attention (as ComfyUI's nodes for LTX), of FLUX for joint
    sequences."""
    return OWN.get(text.model, FLUX if text.cross_attention is None else WAN)
