"""Reads diffusers-style docstrings as Google-style ones, for the reference."""

from __future__ import annotations

import re

import griffe

PAGES = {  # what the reference documents, by the name that docstrings call it
    **{name: f"diffattn.integration.apply.{name}" for name in ("enable", "disable")},
    **{name: f"diffattn.functional.{name}" for name in ("make_plan", "sparse_attention")},
    "AttentionConfig": "diffattn.attention_config.AttentionConfig",
    **{name: f"diffattn.guidance.apply_guidance.{name}" for name in ("guide", "unguide")},
    **{name: f"diffattn.guidance.guided_run.{name}" for name in ("Guided", "guided")},
    "GuidanceConfig": "diffattn.guidance.guidance_config.GuidanceConfig",
    "HeadPerturbationGuidance": "diffattn.guidance.guider.HeadPerturbationGuidance",
    "HeadSet": "diffattn.guidance.head_set.HeadSet",
    **{name: f"diffattn.hunting.hunter.{name}" for name in ("estimate", "hunt")},
    "combine": "diffattn.guidance.formula.combine",
    "Plan": "kernels.plan.Plan",
    "Schedule": "diffattn.schedule.Schedule",
    "TileList": "kernels.plan.TileList",
    "TokenGrid": "diffattn.grid.TokenGrid",
    "attend": "kernels.attend.attend",
    "summary": "diffattn.analysis.summary.summary",
}
LINK = re.compile(r"\[`~?([\w.]+)`\](?![\[(])")
TYPE = re.compile(r"^(\s+[\w, ]+)\((.+?)\): ", re.MULTILINE)  # of an argument
RESULT = re.compile(r"^(\s+)`([^`]+)`: ", re.MULTILINE)  # of a return value
DOCTEST = re.compile(r"^( *)(>>> .*(?:\n *\S.*)*)", re.MULTILINE)


class DiffusersStyle(griffe.Extension):
    """`name (`int`, *optional*)` becomes `name (int, optional)`, and [`Plan`] a link."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Before the docstring is parsed."""
        if obj.docstring:
            obj.docstring.value = translate(obj.docstring.value)


def translate(text: str) -> str:
    """A docstring of this library, as Google's sections and with links that autorefs knows.

    >>> translate("    shift (`int` or [`Plan`], *optional*, defaults to 0): by which [`Plan`].")
    '    shift (int or Plan, optional): by which [`Plan`][kernels.plan.Plan].'
    """
    text = TYPE.sub(lambda found: f"{found[1]}({_plain(found[2])}): ", text)
    text = RESULT.sub(r"\1\2: ", text)
    fenced = text.split("```")
    fenced[::2] = [DOCTEST.sub(r"\1```pycon\n\1\2\n\1```", part) for part in fenced[::2]]
    text = "```".join(fenced)
    return LINK.sub(_link, text)


def _plain(kind: str) -> str:
    return re.sub(r", defaults to .*", "", re.sub(r"[`*\[\]]", "", kind))


def _link(found: re.Match) -> str:
    name = found[1].rsplit(".", 1)[-1]
    return f"[`{name}`][{PAGES[name]}]" if name in PAGES else f"`{name}`"
