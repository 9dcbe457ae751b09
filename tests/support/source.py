"""Packages of Python source, by the names that they define: ``module:Class.member``."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.syntax import Class, Member, Module, module_at

__all__ = ["Source"]


@dataclass(eq=False)
class Source:
    """The packages in some folders, by name."""

    roots: Mapping[str, Path]
    _modules: dict[str, Module | None] = field(default_factory=dict)
    _classes: dict[str, Class] = field(default_factory=dict)
    _orders: dict[str, list[Class]] = field(default_factory=dict)

    def module(self, name: str) -> Module | None:
        """A module by its full name; None if it does not exist."""
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
        return None if path is None else module_at(name, path)

    def find(self, target: str) -> Member | None:
        """The definition of ``module:name`` or ``module:Class.member``, even if inherited."""
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
        if cls.target not in self._orders:
            self._orders[cls.target] = self._order(cls)
        return self._orders[cls.target]

    def _order(self, cls: Class) -> list[Class]:
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
        """The definition of a module's name, followed through imports."""
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
