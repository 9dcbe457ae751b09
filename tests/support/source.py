"""Python source read without importing it: what a name is, its signature, and who defines it.

Names are written ``module:Class.member``. Modules are parsed, never imported: vLLM's need a GPU, a
compiler or half a minute.
"""

from __future__ import annotations

import ast
import hashlib
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

__all__ = ["Class", "Member", "Module", "Source"]

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
    def package(self) -> str:
        """What its relative imports start from."""
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
                    # A type says more than a value.
                    if name not in found or isinstance(inner, ast.AnnAssign):
                        assert isinstance(inner, ast.stmt)
                        found[name] = inner
        return {
            name: Member(f"{self.target}.{name}", self.module, node) for name, node in found.items()
        }

    @property
    def overriding(self) -> list[str]:
        """Members that stand in the way of a base's: methods, and variables with a value."""
        return [
            name
            for node in _statements(self.node.body)
            for name in _defined(node)
            if not (isinstance(node, ast.AnnAssign) and node.value is None)
        ]


@dataclass
class Source:
    """The packages below some folders, by name."""

    roots: Mapping[str, Path]
    _modules: dict[str, Module | None] = field(default_factory=dict)
    _classes: dict[str, Class] = field(default_factory=dict)

    def module(self, name: str) -> Module | None:
        """A module by its full name; None if there is none."""
        if name not in self._modules:
            self._modules[name] = self._find(name)
        return self._modules[name]

    def _find(self, name: str) -> Module | None:
        package, *rest = name.split(".")
        if package not in self.roots:
            return None
        base = self.roots[package].joinpath(*rest)
        found = (p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file())
        path = next(found, None)
        return None if path is None else Module(name, path)

    def find(self, target: str) -> Member | None:
        """What ``module:name`` or ``module:Class.member`` is, inherited members included."""
        module, _, path = target.partition(":")
        name, _, member = path.partition(".")
        found = self._named(module, name)
        if found is None or not member:
            return found
        cls = self._class(found)
        return None if cls is None else self.member(cls, member)

    def member(self, cls: Class, name: str) -> Member | None:
        """A member of a class or of the first of its bases that has it."""
        return next((c.members[name] for c in self.mro(cls) if name in c.members), None)

    def abstract(self, cls: Class) -> list[str]:
        """Members that a subclass must define."""
        names = {name for c in self.mro(cls) for name in c.members}
        found = ((name, self.member(cls, name)) for name in names)
        return sorted(n for n, m in found if m is not None and "@abstractmethod" in m.signature)

    def get_class(self, target: str) -> Class:
        """A class.

        Raises:
            LookupError: there is none of this name.
        """
        found = self.find(target)
        cls = None if found is None else self._class(found)
        if cls is None:
            raise LookupError(f"no class {target}")
        return cls

    def classes(self, module: Module) -> list[Class]:
        """The classes of a module."""
        members = (Member(f"{module.name}:{n}", module, node) for n, node in module.names.items())
        return [cls for member in members if (cls := self._class(member)) is not None]

    def mro(self, cls: Class) -> list[Class]:
        """The class and its bases in Python's order, as far as they can be found."""
        bases = self._bases(cls)
        lines = [*map(self.mro, bases), bases]
        order = [cls]
        while lines := [line for line in lines if line]:
            head = next(
                line[0]
                for line in lines
                if not any(line[0].target == c.target for other in lines for c in other[1:])
            )
            order.append(head)
            lines = [[c for c in line if c.target != head.target] for line in lines]
        return order

    def _bases(self, cls: Class) -> list[Class]:
        named = [ast.unparse(base).partition("[")[0] for base in cls.node.bases]
        members = [self._named(cls.module.name, name) for name in named]
        return [base for m in members if m is not None and (base := self._class(m)) is not None]

    def _class(self, member: Member) -> Class | None:
        if not isinstance(member.node, ast.ClassDef):
            return None
        made = Class(member.target, member.module, member.node)
        return self._classes.setdefault(member.target, made)

    def _named(self, module_name: str, name: str) -> Member | None:
        """What a name of a module is, followed through imports."""
        module = self.module(module_name)
        if module is None:
            return None
        node = module.names.get(name)
        if isinstance(node, ast.ImportFrom):
            asked = next(a.name for a in node.names if (a.asname or a.name) == name)
            return self._named(module.imported(node), asked)
        if node is not None:
            return Member(f"{module_name}:{name}", module, node)
        stars = [s for s in module.tree.body if isinstance(s, ast.ImportFrom)]
        for star in (s for s in stars if s.names[0].name == "*"):
            if (found := self._named(module.imported(star), name)) is not None:
                return found
        return None


def _short(node: ast.expr) -> str:
    """An expression; of a call only what is called."""
    return f"{ast.unparse(node.func)}(…)" if isinstance(node, ast.Call) else ast.unparse(node)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, and of its conditions."""
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
