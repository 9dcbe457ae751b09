"""Python source read without importing it: modules, classes and definitions.

Modules are parsed, never imported: vLLM's require a GPU, a compiler or half a minute.
"""

from __future__ import annotations

import ast
import hashlib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeAlias

__all__ = ["Class", "Member", "Module", "module_at"]

Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Node: TypeAlias = ast.stmt


@dataclass(frozen=True)
class Module:
    """One file."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        """Its text."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def lines(self) -> list[str]:
        """Its lines."""
        return self.text.splitlines()

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return ast.parse(self.text)

    @cached_property
    def attributes(self) -> list[tuple[str, ast.Attribute]]:
        """All uses of attributes, each with the source of the object that has it."""
        return [
            (ast.unparse(node.value), node)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Attribute)
        ]

    @cached_property
    def package(self) -> str:
        """The package that its relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @cached_property
    def names(self) -> dict[str, Node]:
        """Statements that define a name of the module, conditional ones included."""
        found: dict[str, Node] = {}
        for node in _statements(self.tree.body):
            for name in _defined(node):
                found.setdefault(name, node)
        return found

    def imported(self, node: ast.ImportFrom) -> str:
        """The full name of the module that a statement imports from."""
        if not node.level:
            return node.module or ""
        parts = self.package.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1])
        return f"{base}.{node.module}" if node.module else base


@cache
def module_at(name: str, path: Path) -> Module:
    """The module of a file; a file is parsed only once."""
    return Module(name, path)


@dataclass(frozen=True)
class Member:
    """A function, a class, or an assigned name."""

    target: str
    module: Module
    node: Node

    @property
    def signature(self) -> str:
        """Arguments and result of a function, bases of a class, type or value of a variable."""
        node = self.node
        if isinstance(node, Function):
            marks = "".join(f"@{_short(mark)} " for mark in node.decorator_list)
            kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            result = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
            return f"{marks}{kind} ({ast.unparse(node.args)}){result}"
        if isinstance(node, ast.ClassDef):
            return f"class ({', '.join(map(ast.unparse, node.bases))})"
        if isinstance(node, ast.AnnAssign):
            return ast.unparse(node.annotation)
        return f"= {_short(node.value)}" if isinstance(node, ast.Assign) else ""

    @property
    def source(self) -> str:
        """Hash of the source of a function; empty for anything else."""
        if not isinstance(self.node, Function):
            return ""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @property
    def text(self) -> str:
        """The source, with its decorators."""
        marks = getattr(self.node, "decorator_list", None) or [self.node]
        lines = self.module.lines[marks[0].lineno - 1 : self.node.end_lineno]
        return textwrap.dedent("\n".join(lines)) + "\n"


@dataclass(frozen=True)
class Class:
    """A class and what is defined in its own body."""

    target: str
    module: Module
    node: ast.ClassDef

    @cached_property
    def members(self) -> dict[str, Member]:
        """Methods, class variables and attributes that its methods assign to ``self``."""
        found: dict[str, Node] = {}
        for node in _statements(self.node.body):
            found |= dict.fromkeys(_defined(node), node)
        for method in [node for node in found.values() if isinstance(node, Function)]:
            for inner in ast.walk(method):
                for name in _assigned_to_self(inner):
                    # A type is more informative than a value.
                    if name not in found or isinstance(inner, ast.AnnAssign):
                        assert isinstance(inner, ast.stmt)
                        found[name] = inner
        return {
            name: Member(f"{self.target}.{name}", self.module, node) for name, node in found.items()
        }

    @property
    def overriding(self) -> list[str]:
        """Members that override those of a base: methods, and variables with a value."""
        return [
            name
            for node in _statements(self.node.body)
            for name in _defined(node)
            if not (isinstance(node, ast.AnnAssign) and node.value is None)
        ]


def _short(node: ast.expr) -> str:
    """The source of an expression; for a call, only what is called."""
    return f"{ast.unparse(node.func)}(…)" if isinstance(node, ast.Call) else ast.unparse(node)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, including those under its conditions."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _statements([*node.body, *(s for h in node.handlers for s in h.body)])
        else:
            yield node


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, (*Function, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return []


def _assigned_to_self(node: ast.AST) -> list[str]:
    """The attributes of ``self`` that a statement assigns."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [
        t.attr
        for t in flat
        if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id == "self"
    ]
