"""AutoencoderKLWan wired by hand: the encoder *is* `analytic_latents`, the decoder a smooth upsampling.

The decoder is then trained (`python -m examples.tiny_wan.decoder`); the encoder stays as it is. Two tricks make a
nonlinear network exact: a large constant channel dominates the RMS norms, whose gamma undoes the scale, and every
signal is carried with both signs because silu(x) - silu(-x) = x.
"""

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from examples.tiny_wan.latents import CHANNELS, LATENTS_MEAN, LATENTS_STD

ENCODER_CONSTANT = 1000.0
DECODER_CONSTANT = 32.0
LOG_VARIANCE = -30.0
SMOOTHING = 0.5  # 0 is nearest upsampling, 1 bilinear; between them lies the best PSNR
SIGNED = {(c + 3 * i, c): sign for c in range(3) for i, sign in enumerate((1.0, -1.0))}


@torch.no_grad()
def wired_vae(decoder_dim: int = 8) -> AutoencoderKLWan:
    """4x in space and time, 6 channels, both halves wired; nothing is trained."""
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=decoder_dim, z_dim=CHANNELS, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[True, True], latents_mean=LATENTS_MEAN, latents_std=LATENTS_STD, is_residual=True,
        scale_factor_temporal=4, scale_factor_spatial=4,
    )  # fmt: skip
    _wire_encoder(vae)
    _wire_decoder(vae)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _set(conv, {(i, i): 1.0 for i in range(conv.in_channels)})
    return vae.eval()


def _set(conv: nn.Module, taps: dict[tuple[int, int], float], bias: dict[int, float] | None = None) -> None:
    """Zero a convolution but for its centre taps {(out, in): value}; causal ones are centred on the present frame."""
    conv.weight.zero_()
    conv.bias.zero_()
    size = conv.weight.shape[2:]
    centre = [s // 2 for s in size]
    if len(size) == 3:
        centre[0] = size[0] - 1
    for (out, into), value in taps.items():
        conv.weight[(out, into, *centre)] = value
    for out, value in (bias or {}).items():
        conv.bias[out] = value


def _make_identity(module: nn.Module) -> None:
    """Silence the residual branches of all residual and attention blocks below `module`."""
    for name, child in module.named_modules():
        if name.rpartition(".")[2] in ("conv2", "proj"):
            _set(child, {})


def _wire_encoder(vae: AutoencoderKLWan) -> None:
    """Channels after conv_in: r g b, -r -g -b, constant. The first AvgDown pools 2x2x2, the second leaves the two
    halves of a chunk in channels 2c and 2c + 1. AvgDown halves a lone first frame; the main path adds the rest.
    """
    encoder = vae.encoder
    _make_identity(encoder)
    _set(encoder.conv_in, SIGNED, {6: ENCODER_CONSTANT})
    first, second, _ = encoder.down_blocks
    _wire_pool(first.downsampler, range(8), 0.5)
    _set(second.resnets[0].conv_shortcut, {(2 * c, c): 1.0 for c in range(8)})
    _wire_pool(second.downsampler, range(0, 16, 2), 1.0)
    # The constant fills channels 12 and 13: norm = sqrt(2) x constant x 2 (the last block doubles) over sqrt(16).
    encoder.norm_out.gamma.fill_(ENCODER_CONSTANT * 2**0.5 / 4)
    taps = {}
    for c in range(3):
        for half, sign in ((0, -1.0), (1, 1.0)):
            for carried, polarity in ((2 * c, 1.0), (2 * (3 + c), -1.0)):
                taps[c, carried + half] = 0.5 * polarity
                taps[3 + c, carried + half] = 0.5 * polarity * sign
    _set(encoder.conv_out, taps, dict.fromkeys(range(CHANNELS, 2 * CHANNELS), LOG_VARIANCE))


def _wire_pool(resample: nn.Module, channels: range, gain: float) -> None:
    """2x2 average pooling of `channels` for the first frame; the temporal convolution mutes all later ones."""
    _set(conv := resample.resample[1], {})
    for c in channels:
        conv.weight[c, c, :2, :2] = gain / 4
    _set(resample.time_conv, {})


def _wire_decoder(vae: AutoencoderKLWan) -> None:
    """Channels: mean r g b (0-2), difference r g b (3-5), the difference in time (6-8), constant (last)."""
    decoder = vae.decoder
    _make_identity(decoder)
    width = decoder.conv_in.out_channels
    constant = width - 1
    _set(decoder.conv_in, {(c, c): 1.0 for c in range(CHANNELS)}, {constant: DECODER_CONSTANT})
    first, second, last = decoder.up_blocks
    # Frame 0 of the pair gets mean - difference, frame 1 mean + difference; the lone first frame skips time_conv.
    pairs = [(half, c) for half in (0, 1) for c in range(3)]
    through = {(half * width + c, c): 1.0 for half, c in pairs}
    _set(first.upsampler.time_conv, through | {(half * width + 6 + c, 3 + c): 2.0 * half - 1 for half, c in pairs})
    _set(second.upsampler.time_conv, through)
    for block in (first, second):
        _wire_smoothing(block.upsampler.resample[1])
    narrow = last.resnets[0].conv_shortcut.out_channels
    _set(last.resnets[0].conv_shortcut, {**SIGNED, (narrow - 1, constant): 1.0})
    for block in [m for m in decoder.modules() if hasattr(m, "conv1")]:
        _undo_norm(block.norm1.gamma)
    _undo_norm(decoder.norm_out.gamma)
    _set(decoder.conv_out, {(colour, carried): sign for (carried, colour), sign in SIGNED.items()})


def _wire_smoothing(conv: nn.Module) -> None:
    """On nearest-upsampled frames: what turns the shortcut's colours (0-2) into a blend of nearest and bilinear,
    and adds the blended difference (6-8).
    """
    tent = torch.tensor([1.0, 2.0, 1.0])
    here = torch.zeros(3, 3)
    here[1, 1] = 1.0
    blurred = torch.outer(tent, tent) / 16
    _set(conv, {})
    for c in range(3):
        conv.weight[c, c] = SMOOTHING * (blurred - here)
        conv.weight[c, 6 + c] = SMOOTHING * blurred + (1 - SMOOTHING) * here


def _undo_norm(gamma: Tensor) -> None:
    """Scale signals back to their size after an RMS norm that the constant channel dominates."""
    gamma.fill_(DECODER_CONSTANT / gamma.numel() ** 0.5)
    gamma[-1] = 1 / gamma.numel() ** 0.5


def prefer_fast_convolutions(vae: AutoencoderKLWan) -> None:
    """Lay 3D kernels out channels-last: a CPU then convolves single clips with oneDNN, three times faster."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Unnormalised latents (B, 6, n, h, w) -> (B, T, 3, 4h, 4w) in [-1, 1]."""
    return vae.decode(latents).sample.transpose(1, 2)
