"""Reading videos and laying them side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BAND = 32  # pixels above a video, for its name; sizes stay multiples of 16, which the encoder wants
GAP = 16
BACKGROUND, INK = (255, 255, 255), (31, 41, 55)
LARGEST_GAIN = 16


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """The frames `(frames, height, width, 3)` uint8 and the frames per second of a video file.

    Raises:
        OSError: there is no such file.
        ValueError: the file is no video.
    """
    import imageio.v3 as iio

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with iio.imopen(path, "r", plugin="FFMPEG") as file:
            return file.read(), float(file.metadata()["fps"])
    except Exception as error:  # ffmpeg's reader raises whatever its parsing stumbles over
        raise ValueError(f"{path} is no video that ffmpeg reads") from error


def as_uint8(video: np.ndarray) -> np.ndarray:
    """The video in bytes, from bytes or from floats between 0 and 1."""
    return video if video.dtype == np.uint8 else (video.clip(0, 1) * 255).round().astype(np.uint8)


def side_by_side(videos: dict[str, np.ndarray]) -> list[Image.Image]:
    """Frames that show videos of one size and length next to each other, under their names."""
    return [_row(dict(zip(videos, frames))) for frames in zip(*map(as_uint8, videos.values()))]


def difference_strip(
    video: np.ndarray, reference: np.ndarray, names: tuple[str, str], columns: int = 6
) -> Image.Image:
    """Some frames of a video, of its reference and of their absolute difference, one row each.

    The difference is multiplied by 1, 2, 4, 8 or 16, the most that clips less than one value in a thousand; the factor
    is written beside it.
    """
    chosen = np.linspace(0, len(reference) - 1, min(columns, len(reference))).round().astype(int)
    a, b = as_uint8(video)[chosen], as_uint8(reference)[chosen]
    difference = np.abs(a.astype(int) - b.astype(int))
    gain = _gain(difference)
    amplified = (difference * gain).clip(0, 255).astype(np.uint8)
    rows = {names[1]: b, names[0]: a, f"absolute difference, times {gain}": amplified}
    return _stack([_strip(name, frames, chosen) for name, frames in rows.items()])


def _gain(difference: np.ndarray) -> int:
    largest, gain = max(np.quantile(difference, 0.999), 1), 1
    while gain < LARGEST_GAIN and largest * gain * 2 <= 255:
        gain *= 2
    return gain


def _row(pictures: dict[str, np.ndarray]) -> Image.Image:
    height, width = next(iter(pictures.values())).shape[:2]
    step = width + GAP
    canvas = Image.new("RGB", (_even(len(pictures) * step - GAP), _even(height + BAND)), BACKGROUND)
    for index, (name, picture) in enumerate(pictures.items()):
        _write(canvas, (index * step + 4, 8), name)
        canvas.paste(Image.fromarray(picture), (index * step, BAND))
    return canvas


def _strip(name: str, frames: np.ndarray, numbers: np.ndarray) -> Image.Image:
    row = _row({f"{number}": frame for number, frame in zip(numbers, frames)})
    canvas = Image.new("RGB", (row.width, row.height + BAND), BACKGROUND)
    _write(canvas, (4, 12), name)
    canvas.paste(row, (0, BAND))
    return canvas


def _stack(rows: list[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), BACKGROUND)
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def _write(canvas: Image.Image, at: tuple[int, int], text: str) -> None:
    ImageDraw.Draw(canvas).text(at, text, fill=INK, font=ImageFont.load_default(size=14))


def _even(size: int) -> int:
    return size + size % 2
