"""What the package carries besides code."""

import os


def tiny_wan() -> str:
    """Path of the embedded text-to-video model, a `WanPipeline` folder of a few megabytes.

    >>> pipe = WanPipeline.from_pretrained(tiny_wan())  # doctest: +SKIP
    """
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "tiny_wan")
