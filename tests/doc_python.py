"""Python blocks of the documentation, resolved without running them."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from typing import Any

GIVEN = {"pipe", "prompt", "image", "model", "transformer", "query", "key", "value", "plan", "grid"}  # by the reader
UNKNOWN = object()


class Namespace:
    """What the blocks of one page have defined so far: names, and the objects behind those that were imported."""

    def __init__(self) -> None:
        self.names = set(GIVEN) | set(dir(builtins))
        self.objects: dict[str, Any] = {}

    def check(self, text: str) -> None:
        """Raise unless `text` compiles, its imports and attributes exist, and its keywords are taken.

        Lines of a session, with `>>>`, count as their code.
        """
        tree = ast.parse(_code(text))
        nodes = list(ast.walk(tree))
        for node in nodes:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node)
        self.names |= _defined(nodes)
        for node in nodes:
            if isinstance(node, ast.Name) and node.id not in self.names:
                raise AssertionError(f"line {node.lineno}: {node.id} is not defined on this page")
            if isinstance(node, ast.Attribute):
                self._resolve(node)
            if isinstance(node, ast.Call):
                self._check_keywords(node)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.Import):
                whole = importlib.import_module(alias.name)
                top = importlib.import_module(alias.name.split(".")[0])
                name, found = alias.asname or alias.name.split(".")[0], whole if alias.asname else top
            else:
                name, found = alias.asname or alias.name, getattr(importlib.import_module(node.module), alias.name)
            self.names.add(name)
            self.objects[name] = found

    def _resolve(self, node: ast.expr) -> Any:
        """The object that an expression of names and attributes stands for, or UNKNOWN."""
        if isinstance(node, ast.Name):
            return self.objects.get(node.id, UNKNOWN)
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        owner = self._resolve(node.value)
        if owner is UNKNOWN:
            return UNKNOWN
        if not hasattr(owner, node.attr):
            raise AssertionError(f"line {node.lineno}: {ast.unparse(node)} does not exist")
        return getattr(owner, node.attr)

    def _check_keywords(self, node: ast.Call) -> None:
        called = self._resolve(node.func)
        try:
            parameters = inspect.signature(called).parameters.values() if callable(called) else ()
        except ValueError:  # a builtin without a signature
            return
        if not parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return
        taken = {parameter.name for parameter in parameters}
        for keyword in node.keywords:
            if keyword.arg is not None and keyword.arg not in taken:
                raise AssertionError(f"line {node.lineno}: {ast.unparse(node.func)} takes no {keyword.arg}")


def _code(text: str) -> str:
    lines = text.splitlines()
    if not any(line.startswith(">>> ") for line in lines):
        return text
    return "\n".join(line[4:] for line in lines if line.startswith((">>> ", "... ")))


def _defined(nodes: list[ast.AST]) -> set[str]:
    names = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    names |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return names | {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
