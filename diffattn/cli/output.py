"""Writing results so that a file is complete or absent."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..analysis.errors import CommandError


def check_output(path: Path, force: bool) -> None:
    """Raise unless `path` and its sidecar can be written, before any work is done."""
    if path.suffix.lower() != ".mp4":
        raise CommandError(f"the output must end in .mp4, got {str(path)!r}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise CommandError(f"the folder of the output does not exist: {folder}")
    if not os.access(folder, os.W_OK):
        raise CommandError(f"cannot write to the folder {folder}")
    for file in (path, sidecar_path(path)):
        if file.is_dir():
            raise CommandError(f"{file} is a folder")
        if file.exists() and not force:
            raise CommandError(f"{file} exists; --force overwrites it")


def sidecar_path(path: Path) -> Path:
    """The path of a video's JSON file: `clip.json` for `clip.mp4`."""
    return path.with_suffix(".json")


def write_video(path: Path, frames: list, fps: float, about: dict) -> None:
    """Write the video, then its sidecar; an interruption leaves neither half written."""
    from diffusers.utils import export_to_video

    write_atomically(path, lambda partial: export_to_video(frames, partial, fps=fps))
    text = json.dumps(about, indent=2) + "\n"
    write_atomically(sidecar_path(path), lambda partial: Path(partial).write_text(text, encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`."""
    handle, partial = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        write(partial)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_png(path: Path, force: bool) -> None:
    """Raise unless a PNG can be written at `path`."""
    if path.suffix.lower() != ".png":
        raise CommandError(f"the output must end in .png, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"the folder of the output does not exist: {path.absolute().parent}")
    if path.exists() and not force:
        raise CommandError(f"{path} exists; --force overwrites it")
