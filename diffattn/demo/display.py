"""Progress and numbers as HTML for the page."""

from __future__ import annotations

import math
from html import escape

from .worker import ComparisonReady, Progress, VideoReady

SHORT = 4096  # tokens up to which attention is a small part of the time


def show_progress(progress: Progress) -> str:
    """A line of text and a bar."""
    if not progress.steps:
        return _status("busy", f"{progress.stage} …", 0.0)
    text = f"{progress.stage}: step {progress.step} of {progress.steps}"
    if progress.seconds_left is not None and progress.seconds_left >= 0.5:
        text += f", about {_duration(progress.seconds_left)} of denoising left"
    return _status("busy", text, progress.step / progress.steps)


def show_message(text: str, kind: str = "idle") -> str:
    """A line of text; `kind` is a CSS class: idle, done, stopped."""
    return _status(kind, text)


def show_numbers(made: list[VideoReady], compared: ComparisonReady | None = None) -> str:
    """A table with a column for each video."""
    if not made:
        return '<p class="note">Times, densities and the distance between the two videos appear here.</p>'
    rows = {
        "Time": [f"{run.trial.seconds:.1f} s" for run in made],
        "Median step": [_step(run.step_seconds) for run in made],
        "Attention computed": [_share(run.trial.attention_computed) for run in made],
    }
    if len(made) > 1:
        rows["Density in sparse calls"] = ["", *(_share(run.trial.density) for run in made[1:])]
    if compared is not None:
        mean = compared.comparison.mean
        psnr = f"{mean['psnr']:.2f} dB" if math.isfinite(mean["psnr"]) else "identical"
        rows["PSNR to dense"] = ["", psnr]
        rows["SSIM to dense"] = ["", f"{mean['ssim']:.4f}"]
        rows["MS-SSIM to dense"] = ["", f"{mean['ms_ssim']:.4f}"]
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in made)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{value}</td>" for value in values)}</tr>'
        for name, values in rows.items()
    )
    table = f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<table class="numbers">{table}</table>{_note(compared)}'


def _note(compared: ComparisonReady | None) -> str:
    if compared is None or compared.tokens is None or compared.tokens > SHORT:
        return ""
    return (
        f'<p class="note">With {compared.tokens:,} tokens attention is a small part of the work and there is hardly '
        "any time to save: sparse attention saves time on long sequences.</p>"
    )


def _status(kind: str, text: str, share: float | None = None) -> str:
    bar = "" if share is None else f'<div class="bar"><span style="width:{share:.1%}"></span></div>'
    return f'<div class="status {kind}" role="status" aria-live="polite"><span>{escape(text)}</span>{bar}</div>'


def _share(share: float) -> str:
    return f"{share:.1%}"


def _step(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def waiting() -> str:
    """The status between the click and the start of the run."""
    return _status("busy", "Waiting for its turn …", 0.0)
