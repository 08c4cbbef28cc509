"""The rules of the house: who may import whom, how long a file may grow, and what may not stand in package code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "weft").rglob("*.py"))

# What a room may import of weft. errors.py and recipe.py are data that every room may read.
COMMON = {"errors", "recipe"}
ROOMS: dict[str, set[str]] = {
    "core": set(),
    "modalities": {"core"},
    "families": {"core", "modalities"},
    "arrows": {"modalities", "data.batch", "core.view"},
    "data": {"core", "modalities", "arrows"},
    "heads": {"core"},
    "model": {"core", "heads", "families"},
    "objectives": {"core", "heads", "model", "data.batch"},
    "run": {"core", "modalities", "families", "arrows", "data", "model", "heads", "adapt", "train.checkpoint"},
    "adapt": {"core", "modalities", "families", "arrows", "heads", "model", "convert", "run"},
    "convert": {"core", "modalities", "families", "heads", "model", "run"},
    "train": {
        "core",
        "modalities",
        "families",
        "arrows",
        "data",
        "heads",
        "model",
        "objectives",
        "run",
        "generate",
        "evaluate",
        "convert",
        "adapt",
    },
    "generate": {"core", "modalities", "arrows", "data", "model", "heads", "run", "convert", "adapt"},
    "evaluate": {
        "core",
        "modalities",
        "arrows",
        "data",
        "model",
        "heads",
        "objectives",
        "families",
        "run",
        "generate",
        "train",
        "convert",
    },
}
CORE_MAY_IMPORT = {
    "torch",
    "numpy",
    "math",
    "dataclasses",
    "collections",
    "typing",
    "__future__",
    "functools",
    "enum",
    "abc",
    "contextlib",
    "itertools",
    "re",
    "types",
}


def imports(tree: ast.AST) -> list[str]:
    """Every imported module's dotted name; `from weft.x import y` gives weft.x.y so that submodules are seen."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def broken(room: str, names: list[str]) -> list[str]:
    """The imports that `room` may not make."""
    if room not in ROOMS:
        return []
    out = []
    for name in names:
        parts = name.split(".")
        if parts[0] == "weft" and len(parts) > 1:
            allowed = ROOMS[room] | COMMON | {room}
            if not any(parts[1:][: len(a.split("."))] == a.split(".") for a in allowed):
                out.append(name)
        elif room == "core" and parts[0] not in CORE_MAY_IMPORT:
            out.append(name)
    return out


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "weft").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_keeps_the_rules(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert not broken(room_of(path), imports(tree)), f"{path}: imports run one way"
    assert len(source.splitlines()) <= 600, f"{path} has {len(source.splitlines())} lines; 600 at most"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            doc = ast.get_docstring(node, clean=False)
            length -= len(doc.splitlines()) if doc else 0
            assert length <= 50, (
                f"{path}:{node.lineno} {node.name} has {length} lines without its docstring; 50 at most"
            )
            arguments = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
            arguments -= bool(node.args.args) and node.args.args[0].arg in ("self", "cls")
            assert arguments <= 12, f"{path}:{node.lineno} {node.name} takes {arguments} arguments"
        if isinstance(node, ast.Assert):
            assert node.msg is not None, f"{path}:{node.lineno}: an assert without a message"
        if isinstance(node, ast.ExceptHandler):
            empty = all(isinstance(line, ast.Pass) for line in node.body)
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            assert not (empty and broad), f"{path}:{node.lineno}: a swallowed exception"
    for word in ("TODO", "FIXME", "NotImplementedError"):
        assert word not in source, f"{path} holds {word}"


def test_the_import_rule_sees_what_it_forbids() -> None:
    assert broken("core", ["weft.families.gpt"]) == ["weft.families.gpt"]
    assert broken("core", ["tokenizers"]) == ["tokenizers"]
    assert broken("arrows", ["weft.train.loop"]) == ["weft.train.loop"]
    assert broken("arrows", ["weft.data.loader"]) == ["weft.data.loader"]
    assert broken("arrows", ["weft.data.batch.Batch", "weft.errors"]) == []


def test_the_tree_was_found() -> None:
    assert len(FILES) > 10
    assert {"core", "arrows", "train"} <= {room_of(f) for f in FILES}
