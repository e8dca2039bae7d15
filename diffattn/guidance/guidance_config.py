"""The options of guidance: how strong it is, when it is on, and what it perturbs."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .part_of_run import check_choice, check_number, is_in_part
from .targets import ROWS, TARGETS

SCALE = 3.0
APPLY_TO = ("cond", "uncond")
PHASE = ("scale", "rescale", "heads", "layers", "skip_blocks", "strength")


@dataclass(frozen=True)
class GuidanceConfig:
    """All options of guidance but the heads.

    Args:
        scale (`float`, *optional*, defaults to 3.0): w of `v_c + (g - 1)(v_c - v_u) + w (v_c - v_p)`.
        target (`str`, *optional*, defaults to `"identity"`): the output of a fully perturbed head: `"identity"`, the
            value of each token itself (PAG, SoftPAG); `"uniform"`, the mean value; `"seg"`, the attention output of
            the mean query; `"local"`, sparse attention to the neighbourhood of each token.
        rows (`str`, *optional*, defaults to `"all"`): the tokens whose output changes: `"all"` of the sequence,
            `"image"` (or video) tokens, or `"image_block"`: image tokens attend only to themselves and to the text.
            Tokens of the text and of reference images in the same sequence are not image tokens.
        apply_to (`str`, *optional*, defaults to `"cond"`): the perturbed pass: `"cond"`, an extra pass with the
            prompt; or `"uncond"`, the pass with the negative prompt, with no extra pass and no scale.
        start, stop (`float`, *optional*, default to 0.0 and 1.0): the part of the run in which guidance is on.
        rescale (`float`, *optional*, defaults to 0.0): phi of [`combine`], from 0 to 1.
        schedule (`list`, *optional*): `[(when, {"scale": ..., "rescale": ..., "heads": ...}), ...]` or
            `{when: scale}`; an entry holds until the next. `when` is a step (`int`), a part of the run (`float`), or
            a noise level. A scheduler of second order takes one step in two calls of the model.
        schedule_by (`str`, *optional*, defaults to `"step"`): `"step"`, or `"sigma"` for noise levels, which
            fall.
    """

    scale: float = SCALE
    target: str = "identity"
    rows: str = "all"
    apply_to: str = "cond"
    start: float = 0.0
    stop: float = 1.0
    rescale: float = 0.0
    schedule: tuple | None = None
    schedule_by: str = "step"

    def __post_init__(self) -> None:
        check_number("scale", self.scale)
        check_choice("target", self.target, TARGETS)
        check_choice("rows", self.rows, ROWS)
        check_choice("apply_to", self.apply_to, APPLY_TO)
        check_choice("schedule_by", self.schedule_by, ("step", "sigma"))
        check_number("rescale", self.rescale, 0, 1)
        check_number("start", self.start, 0, 1)
        check_number("stop", self.stop, self.start, 1)
        if self.rows == "image_block" and self.target != "identity":
            raise ValueError(f"rows='image_block' is a kind of target='identity', not of {self.target!r}")
        if self.apply_to == "uncond" and self.rescale:
            raise ValueError("rescale has nothing to rescale with apply_to='uncond'")
        object.__setattr__(self, "schedule", _check_schedule(self.schedule, self.schedule_by))

    def phase(self, step: int | None, steps: int | None, sigma: float | None = None) -> tuple[int, dict] | None:
        """`(number of the schedule's entry or -1, what it changes)`, or None where guidance is off in this step."""
        by_step = bool(self.schedule) and self.schedule_by == "step"
        if not is_in_part(self.start, self.stop, None if step is None else (step, steps), by_step):
            return None
        if not self.schedule:
            return -1, {}
        passed = [index for index, (when, _) in enumerate(self.schedule) if self._reached(when, step, steps, sigma)]
        return (passed[-1], self.schedule[passed[-1]][1]) if passed else None

    def _reached(self, when: float, step: int, steps: int, sigma: float | None) -> bool:
        if self.schedule_by == "step":
            return step >= (when if isinstance(when, int) else int(when * steps))
        if sigma is None:
            raise ValueError("the noise level is not known here, key the schedule by step")
        return sigma <= when + 1e-6  # sigmas are float32

    def to_dict(self) -> dict:
        """JSON-ready fields."""
        values = asdict(self)
        if self.schedule:
            values["schedule"] = [[when, dict(changes)] for when, changes in self.schedule]
        return values

    @classmethod
    def from_dict(cls, values: dict) -> GuidanceConfig:
        """From what `to_dict` returned; a ValueError names unknown fields."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"guidance has no option {', '.join(unknown)}; its options are: {', '.join(known)}")
        return cls(**values)

    def changed(self, **options: Any) -> GuidanceConfig:
        """A copy with other values for the options that are not None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


def takes_guidance_options(function: Callable) -> Callable:
    """Show the fields of [`GuidanceConfig`] as arguments of a function that takes them as `**options`."""
    signature = inspect.signature(function)
    *own, options = signature.parameters.values()
    added = [
        options.replace(
            name=field.name,
            kind=options.KEYWORD_ONLY,
            default=None,
            annotation=f"{field.type.removesuffix(' | None')} | None",
        )
        for field in fields(GuidanceConfig)
    ]
    signature = signature.replace(parameters=[*own, *added])

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return function(*args, **kwargs)

    checked.__signature__ = signature
    if function.__doc__:
        described = inspect.cleandoc(GuidanceConfig.__doc__).partition("Args:\n")[2] + "\n"
        checked.__doc__ = re.sub(r"(?m)^    options \(.*\n", lambda _: described, inspect.cleandoc(function.__doc__))
    return checked


def _check_schedule(schedule: Any, by: str) -> tuple | None:
    if schedule is None or len(schedule) == 0:
        return None
    entries = list(schedule.items()) if isinstance(schedule, dict) else list(schedule)
    entries_read = []
    for entry in entries:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise ValueError(f"a schedule's entries are (when, scale or options), got {entry!r}")
        when, changes = entry
        check_number("schedule", when, 0)
        changes = dict(changes) if isinstance(changes, dict) else {"scale": changes}
        unknown = sorted(set(changes) - set(PHASE))
        if unknown:
            raise ValueError(f"a schedule cannot change {', '.join(unknown)}, only {', '.join(PHASE)}")
        for name, low, high in (("scale", None, None), ("rescale", 0, 1)):
            if name in changes:
                check_number(name, changes[name], low, high)
        entries_read.append((when, changes))
    order = [when for when, _ in entries_read]
    if by == "step" and len({type(when) for when in order}) > 1:
        raise ValueError(f"a schedule's steps are all counts (int) or all parts of the run (float), got {order}")
    if order != sorted(set(order), reverse=by == "sigma"):
        raise ValueError(f"a schedule by {by} goes {'down' if by == 'sigma' else 'up'}, got {order}")
    return tuple(entries_read)
