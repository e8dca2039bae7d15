"""Which models the page may load: no name that a user types is read outside of the given folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..analysis.load import TINY
from ..assets import tiny_wan

HUB_ID = re.compile(r"[A-Za-z0-9][\w-]*(?:\.[\w-]+)*/[A-Za-z0-9][\w-]*(?:\.[\w-]+)*")
SUGGESTED = ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Lightricks/LTX-Video")


class Models:
    """Turns the text of the model box into a folder to load.

    Args:
        root (`Path`, *optional*): the folder whose pipeline folders may be named.
        hub (`bool`, *optional*, defaults to `True`): whether hub ids may be downloaded; safetensors only, and never
            code of the repository.
    """

    def __init__(self, root: Path | None = None, hub: bool = True) -> None:
        if root is not None and not Path(root).is_dir():
            raise ValueError(f"the folder of models does not exist: {root}")
        self.root = None if root is None else Path(root).resolve()
        self.hub = hub

    @property
    def choices(self) -> list[str]:
        """What the model box suggests."""
        names = [] if self.root is None else sorted(os.listdir(self.root))
        return [TINY, *filter(self._folder, names), *(SUGGESTED if self.hub else ())]

    def check(self, name: str) -> str:
        """The name, stripped, if it may be loaded; without a download.

        Raises:
            ValueError: it is neither `"tiny"`, nor a folder below `root`, nor a hub id where these are allowed.
        """
        name = name.strip() if isinstance(name, str) else ""
        if name == TINY or self._folder(name) is not None or (self.hub and HUB_ID.fullmatch(name)):
            return name
        allowed = [f"'{TINY}'", *(["a folder among the models of this demo"] if self.root else [])]
        allowed += ["a hub id such as 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'"] if self.hub else []
        raise ValueError(f"The model must be {' or '.join(allowed)}.")

    def resolve(self, name: str) -> str:
        """What [`load_pipeline`] is given: `"tiny"`, a folder below `root`, or the folder a hub id was downloaded to.

        Raises:
            ValueError: as [`check`].
            OSError: the hub has no such pipeline, or is out of reach.
        """
        name = self.check(name)
        if name == TINY:
            return name
        return self._folder(name) or self._download(name)

    def folder(self, name: str) -> str | None:
        """The folder of a model that may be loaded and is on this machine without asking the hub, or None."""
        return tiny_wan() if name == TINY else self._folder(name)

    def _folder(self, name: str) -> str | None:
        if self.root is None or not name or "\0" in name:
            return None
        path = os.path.normpath(self.root / name)
        # first by the name alone, so that nothing outside is even looked at; then links are followed
        if not Path(path).is_relative_to(self.root) or not Path(path).resolve().is_relative_to(self.root):
            return None
        return path if os.path.isfile(os.path.join(path, "model_index.json")) else None

    @staticmethod
    def _download(name: str) -> str:
        from diffusers import DiffusionPipeline

        # not from_pretrained(name), which would read a folder of that name in the working directory
        return str(DiffusionPipeline.download(name, use_safetensors=True))
