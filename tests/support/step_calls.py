"""Finds, in source text, what may make the host wait for a device: a test's list of exceptions."""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["found"]

WAITING = {
    "all", "allclose", "any", "argwhere", "bincount", "cpu", "equal", "is_nonzero", "item",
    "masked_select", "nonzero", "numpy", "repeat_interleave", "synchronize", "tolist", "unique",
    "unique_consecutive", "wait",
}  # fmt: skip
"""Methods and functions that read a tensor's values."""
COPYING = {"torch.as_tensor", "torch.asarray", "torch.from_numpy", "torch.tensor"}
"""They copy to a device from memory that is not pinned."""
MOVING = {"copy_", "cuda", "to"}
"""They do not wait only if they are not to block, and the memory of the host is pinned."""
MASKS = {
    "bool", "eq", "ge", "gt", "isfinite", "isin", "isinf", "isnan", "isneginf", "isposinf", "le",
    "logical_and", "logical_not", "logical_or", "logical_xor", "lt", "ne",
}  # fmt: skip
"""Methods and functions whose result is boolean; as an index, the device must count it."""
BITS = (ast.BitAnd, ast.BitOr, ast.BitXor)


def found(path: Path) -> set[str]:
    """Calls and indexes in a file that may wait, as ``file: source``.

    Boolean indexes are found where the index is a comparison, another boolean expression, or a
    variable of the file that one is assigned to.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    masks = _masks(tree)
    nodes = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and _waits(node))
        or (isinstance(node, ast.Subscript) and _is_mask(node.slice, masks))
    ]
    return {f"{path.name}: {ast.unparse(node)}" for node in nodes}


def _waits(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return False
    name, target = call.func.attr, ast.unparse(call.func)
    if name in ("all", "any") and (call.args or call.keywords):
        return False  # Of each row: the result is a tensor.
    return name in WAITING or target in COPYING or (name in MOVING and _moves(name, call))


def _moves(name: str, call: ast.Call) -> bool:
    """Whether it is about a device: ``to`` also changes dtypes."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    named = [keyword.arg for keyword in call.keywords]
    texts = [ast.unparse(one) for one in given]
    about = any("device" in text or "cuda" in text or "cpu" in text for text in texts)
    return name != "to" or about or "device" in named


def _masks(tree: ast.AST) -> set[str]:
    """Names of variables that a boolean expression is assigned to."""
    masks: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                masks |= _assigned(target, node.value, masks)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            masks |= _assigned(node.target, node.value, masks)
    return masks


def _assigned(target: ast.expr, value: ast.expr, masks: set[str]) -> set[str]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = zip(target.elts, value.elts, strict=True)
        return set().union(*(_assigned(one, of, masks) for one, of in pairs))
    return {target.id} if isinstance(target, ast.Name) and _is_mask(value, masks) else set()


def _is_mask(node: ast.expr, masks: set[str]) -> bool:
    """Whether an index, or one of several, is boolean."""
    if isinstance(node, ast.Tuple):
        return any(_is_mask(one, masks) for one in node.elts)
    if isinstance(node, ast.Compare):
        return not any(isinstance(op, ast.Is | ast.IsNot | ast.In | ast.NotIn) for op in node.ops)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Invert)
    if isinstance(node, ast.BinOp):
        parts = (node.left, node.right)
        return isinstance(node.op, BITS) and any(_is_mask(part, masks) for part in parts)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr in MASKS
    return isinstance(node, ast.Name) and node.id in masks
