"""Runs a model's answer to a coding question, when it is harmless: a short function of arithmetic, text and lists."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

_MAY_CALL = {"len": len, "max": max, "min": min, "sum": sum, "sorted": sorted, "abs": abs, "list": list, "str": str}
_MAY_USE_METHODS = {"upper", "lower", "strip", "count"}
_NODES = (
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Expr, ast.Assign, ast.If, ast.IfExp),
    *(ast.Name, ast.Load, ast.Store, ast.Constant, ast.List, ast.Tuple, ast.Subscript, ast.Slice, ast.Attribute),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Mod, ast.FloorDiv, ast.Div, ast.UnaryOp, ast.USub, ast.Not),
    *(ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn),
    *(ast.Call, ast.ListComp, ast.comprehension),
)
_LONGEST_CODE, _LARGEST_NUMBER, _MOST_LOOPS, _MOST_PRODUCTS = 400, 1000, 1, 2


def passes(code: str, name: str, cases: Sequence[tuple[tuple[Any, ...], Any]]) -> bool:
    """Whether `code` is one harmless function called `name` that returns what each case wants."""
    tree = _harmless(code)
    if tree is None or len(tree.body) != 1 or getattr(tree.body[0], "name", None) != name:
        return False
    scope: dict[str, Any] = {"__builtins__": dict(_MAY_CALL)}
    try:
        exec(compile(tree, "<answer>", "exec"), scope)
        return bool(cases) and all(_same(scope[name](*given), wanted) for given, wanted in cases)
    except Exception:  # whatever a wrong answer does, it is a wrong answer
        return False


def _same(got: Any, wanted: Any) -> bool:
    return type(got) is type(wanted) and bool(got == wanted)


def _harmless(code: str) -> ast.Module | None:
    """No imports, no attributes but a few methods, no loop but one over what is given, nothing that can grow large."""
    if len(code) > _LONGEST_CODE:
        return None
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes = list(ast.walk(tree))
    loops = sum(isinstance(node, ast.comprehension) for node in nodes)
    products = sum(isinstance(node, ast.Mult) for node in nodes)
    if loops > _MOST_LOOPS or products > _MOST_PRODUCTS or not all(_may_stand(node) for node in nodes):
        return None
    return tree


def _may_stand(node: ast.AST) -> bool:
    match node:
        case ast.FunctionDef(decorator_list=[_, *_]):
            return False
        case ast.Attribute(attr=attribute):
            return attribute in _MAY_USE_METHODS
        case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.arg(arg=name):
            return not name.startswith("_")
        case ast.Constant(value=value):
            is_small = isinstance(value, int) and abs(value) <= _LARGEST_NUMBER
            return is_small or value is None or (isinstance(value, str) and len(value) < 40)
        case ast.Call(func=ast.Name(id=name)):
            return name in _MAY_CALL
        case ast.Call(func=ast.Attribute()):
            return True
        case ast.Call():
            return False
    return isinstance(node, _NODES)
