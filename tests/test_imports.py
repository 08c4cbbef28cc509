"""Importing does little, and one way: seen in the running program. (test_rules.py reads the same off the source.)"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "weft").rglob("*.py")
}


def loaded_by(module: str) -> set[str]:
    """All modules that a fresh interpreter holds after importing one."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_importing_weft_loads_nothing_heavy() -> None:
    assert not {"torch", "numpy", "PIL", "pyarrow", "tokenizers", "soundfile", "rich", "typer"} & loaded_by("weft")


@pytest.mark.parametrize(
    ("module", "rooms"),
    [
        ("weft.core.topology", {"core", "errors"}),
        ("weft.families", {"core", "errors", "families"}),
        ("weft.model", {"core", "errors", "heads", "model"}),
        ("weft.objectives", {"core", "data", "errors", "heads", "model", "objectives", "recipe"}),
    ],
)
def test_a_room_loads_only_those_below_it(module: str, rooms: set[str]) -> None:
    loaded = {name.split(".")[1] for name in loaded_by(module) if name.startswith("weft.")}
    assert loaded == rooms


def edges(name: str) -> set[str]:
    """Modules of weft that `name` imports while it is itself imported."""
    found = set()
    pending = list(ast.parse(MODULES[name].read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("weft"):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inner or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(MODULES)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += node.body + node.orelse
        elif isinstance(node, ast.Try):
            pending += node.body
    return found & set(MODULES)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One import cycle, or none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_there_is_no_import_cycle() -> None:
    found = cycle({name: edges(name) for name in MODULES})
    assert not found, " -> ".join(found)


def test_a_cycle_would_be_seen() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
