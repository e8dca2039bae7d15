"""`diffattn demo`: the Gradio page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..analysis.errors import CommandError, user_errors
from ..analysis.load import device_and_dtype
from . import settings

LOCAL = ("127.0.0.1", "localhost", "::1")


def demo(
    host: Annotated[str, typer.Option(help="Address to serve; 0.0.0.0 serves the network.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="The first free one from 7860 on if not given.")] = None,
    share: Annotated[bool, typer.Option("--share", help="A public link through Gradio's servers.")] = False,
    models: Annotated[Path | None, typer.Option(help="Folder whose pipeline folders may be chosen.")] = None,
    hub: Annotated[
        bool | None, typer.Option(help="Whether hub ids may be downloaded; only for localhost if not given.")
    ] = None,
    device: settings.Device = None,
    dtype: settings.Dtype = None,
    max_side: Annotated[int | None, typer.Option(help="Largest width and height; 256 on a CPU, else 1280.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Most frames; 65 on a CPU, else 121.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Most steps; 50 on a CPU, else 60.")] = None,
    max_seconds: Annotated[int | None, typer.Option(help="Longest run; 900 on a CPU, else 3600.")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Most waiting runs; 8.")] = None,
) -> None:
    """Serve a page that generates a video dense and sparse, side by side, with the embedded model or another one."""
    with user_errors(ImportError):
        from ..demo import Limits, Models, Worker, build_demo, launch
    given = {"side": max_side, "frames": max_frames, "steps": max_steps, "seconds": max_seconds, "queue": max_queue}
    device, dtype = device_and_dtype(device, dtype)
    with user_errors(ValueError):
        limits = replace(Limits.of(device), **{name: value for name, value in given.items() if value is not None})
        local = host in LOCAL and not share
        page = build_demo(Worker(Models(models, local if hub is None else hub), limits, device, dtype))
    try:
        launch(page, host, port, share)
    except OSError as error:
        raise CommandError(" ".join(str(error).split())) from error
