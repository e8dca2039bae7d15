"""Errors that the user can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CommandError(Exception):
    """One line for the user; exit code 2."""


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn the named exceptions into a [`CommandError`] of one line."""
    try:
        yield
    except kinds as error:
        raise CommandError(" ".join(str(error).split())) from error
