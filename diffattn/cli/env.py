"""`diffattn env`: versions, device and the kernels that would run."""

from __future__ import annotations

import json
from typing import Annotated

import torch
import typer


def env(
    models: Annotated[bool, typer.Option("--models", help="Print the table of supported transformers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print versions, device and the kernel implementation that would run."""
    from ..analysis.summary import versions
    from ..attention_config import METHODS
    from ..kernels.attend import choose_impl
    from ..models import supported_models
    from ..models.table import support_table

    if models and not as_json:
        typer.echo(support_table())
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    impl, reason = choose_impl(device)
    found = {
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "impl": impl,
        "impl_reason": reason,
        "methods": sorted(METHODS),
        "models": supported_models(),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {text}" for key, text in value.items())
        typer.echo(f"{name:<12} {', '.join(value) if isinstance(value, list) else value}")
