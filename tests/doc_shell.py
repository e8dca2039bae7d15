"""Shell blocks of the documentation: run in this process, or parsed only."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import runpy
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from unittest import mock

import typer
from accelerate.commands.launch import launch_command_parser

from diffattn.cli import app

ROOT = Path(__file__).parents[1]
SETTING = re.compile(r"\w+=")
PARSE_ARGS = argparse.ArgumentParser.parse_args


class Parsed(BaseException):
    """Raised where a script has read its arguments and would start to work."""


def commands(text: str) -> list[list[str]]:
    """The words of every command, without comments, prompts and variables set for one command."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and SETTING.match(words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def check(words: list[str], run: bool = False) -> None:
    """Resolve a command, and with `run` do what it says; raises what is wrong with it."""
    match words:
        case ["diffattn", *args] | ["python" | "python3", "-m", "diffattn", *args]:
            _run_diffattn(args) if run else _parse_diffattn(args)
        case ["accelerate", "launch", *args]:
            launched = _strict(launch_command_parser().parse_args, args)
            check(["python", launched.training_script, *launched.training_script_args], run)
        case ["python" | "python3", "-m", "pytest", *args]:
            _need_paths(arg for arg in args if "/" in arg)
        case ["python" | "python3", "-m", "pip", *args] | ["pip", *args]:
            _check_pip(args)
        case ["python" | "python3", "-m", module, *args]:
            _script(module, _source(module), args, run)
        case ["python" | "python3", file, *args] if file.endswith(".py"):
            _need_paths([file])
            _script(file, ROOT / file, args, run)
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            _need(targets, known, "make has no target")
        case ["mkdocs", "build" | "serve", *_] | ["git", "clone", *_] | ["cd", _]:
            pass
        case ["ruff", *_]:
            _need([words[0]], [words[0]] if shutil.which(words[0]) else [], "not installed:")
        case _:
            raise AssertionError(f"nobody knows how to check {shlex.join(words)!r}")


def _parse_diffattn(args: list[str]) -> None:
    group = typer.main.get_command(app)
    above = group.context_class(group, info_name="diffattn")
    try:
        name, command, rest = group.resolve_command(above, list(args))
        command.make_context(name, rest, parent=above)
    except Exception as error:  # typer's usage errors have no public base that both its old and new versions share
        message = getattr(error, "format_message", error.__str__)()
        raise AssertionError(f"diffattn {shlex.join(args)}: {message}") from error


def _run_diffattn(args: list[str]) -> None:
    app(list(args), standalone_mode=False)


def _source(module: str) -> Path:
    """The file that `python -m` runs."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{module}.__main__")
    if spec is None:
        raise AssertionError(f"there is no module {module} to run")
    return Path(spec.origin)


def _script(name: str, source: Path, args: list[str], run: bool) -> None:
    """Start a script or module; without `run` only as far as its arguments."""

    def start() -> None:
        is_file = name.endswith(".py")
        runpy.run_path(str(source), run_name="__main__") if is_file else runpy.run_module(name, run_name="__main__")

    def parse(parser, *given, **options):
        PARSE_ARGS(parser, *given, **options)
        raise Parsed

    with mock.patch.object(sys, "argv", [name, *args]), mock.patch.object(sys, "path", [str(ROOT), *sys.path]):
        if run:
            _strict(start)
        elif "argparse" in source.read_text(encoding="utf-8"):
            with mock.patch.object(argparse.ArgumentParser, "parse_args", parse), suppress(Parsed):
                _strict(start)
                raise AssertionError(f"{name} did not read its arguments")
        elif any(arg.startswith("-") for arg in args):
            raise AssertionError(f"{name} reads no options, and was given {args}")


def _strict(call, *args):
    """A usage error, which argparse makes an exit, as an error."""
    try:
        return call(*args)
    except SystemExit as exit:
        if exit.code not in (0, None):
            raise AssertionError(f"exit code {exit.code}") from exit


def _check_pip(args: list[str]) -> None:
    assignments = (node for node in ast.parse((ROOT / "setup.py").read_text()).body if isinstance(node, ast.Assign))
    extras = next(node.value for node in assignments if node.targets[0].id == "EXTRAS")
    known = [key.value for key in extras.keys]
    for arg in args:
        if found := re.search(r"\[([\w,-]+)\]", arg):
            _need(found[1].split(","), known, "setup.py has no extra")


def _need_paths(paths) -> None:
    for path in paths:
        if not (ROOT / path.split("::")[0]).exists():
            raise AssertionError(f"there is no {path}")


def _need(wanted: list[str], known: list[str], complaint: str) -> None:
    for name in wanted:
        if name not in known:
            raise AssertionError(f"{complaint} {name}")
