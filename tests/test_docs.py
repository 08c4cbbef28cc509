"""The documentation runs: every block under a `<!-- run -->` line is executed, in order, in a folder of its page's own.

<!-- run -->                a python block is executed in this process, a bash block by bash; both must succeed
<!-- run: fails 2 -->       a bash block that is meant to end with that exit code
a diff block                is applied to a copy of the package; what follows in its section runs with that copy
# prints: ...               in a python block: what the line above it printed, checked word for word
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md"])
BLOCK = re.compile(r"<!-- run(?:: fails (\d+))? -->\n```(\w+)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Example:
    language: str
    code: str
    line: int
    exit_code: int = 0
    section: str = ""


def examples(text: str) -> list[Example]:
    """The runnable blocks of a page, with the line that each starts on and the heading that it stands under."""
    found = []
    for block in BLOCK.finditer(text):
        before = text[: block.start()]
        heading = re.findall(r"^## (.*)$", before, re.MULTILINE)
        found.append(
            Example(block[2], block[3], before.count("\n") + 3, int(block[1] or 0), heading[-1] if heading else "")
        )
    return found


def run_python(page: Path, example: Example, names: dict[str, object]) -> None:
    code = compile("\n" * (example.line - 1) + example.code, str(page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    promised(page, example, printed.getvalue())


def promised(page: Path, example: Example, printed: str) -> None:
    """What the block says that it prints must be among the lines printed."""
    lines = printed.splitlines()
    for line in re.findall(r"# prints: (.*)", example.code):
        assert line in lines, f"{page.name}:{example.line} promises {line!r}; printed was {lines}"


def run_process(page: Path, example: Example, folder: Path, *words: str, package: Path | None = None) -> str:
    """Run `words` and then the block in a process of its own; with `package`, the weft of that folder is imported."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    done = subprocess.run(
        [*words, example.code], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    told = f"{page.name}:{example.line} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == example.exit_code, told
    return done.stdout


def run_bash(page: Path, example: Example, folder: Path) -> None:
    run_process(page, example, folder, "bash", "-euo", "pipefail", "-c")


def changed_package(page: Path, example: Example, folder: Path) -> Path:
    """A copy of the package with the diff applied: the folder to import it from."""
    folder.mkdir()
    shutil.copytree(ROOT / "weft", folder / "weft", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        ["git", "apply", "-C1", "-"], cwd=folder, input=example.code, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page.name}:{example.line}: the diff does not apply any more\n{done.stderr}"
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examples(page.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    packages: dict[str, Path] = {}
    for example in found:
        if example.language == "diff":
            packages[example.section] = changed_package(page, example, tmp_path / f"changed-{example.line}")
        elif example.language == "python" and example.section in packages:
            printed = run_process(page, example, tmp_path, sys.executable, "-c", package=packages[example.section])
            promised(page, example, printed)
        elif example.language == "python":
            run_python(page, example, names)
        else:
            assert example.language == "bash", f"{page.name}:{example.line}: who runs {example.language}?"
            run_bash(page, example, tmp_path)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_menu_and_the_other_way_round() -> None:
    menu = re.findall(r"(\S+\.md)", (ROOT / "mkdocs.yml").read_text())
    assert sorted(menu) == sorted(p.name for p in (ROOT / "docs").glob("*.md"))


def test_what_is_not_marked_is_not_run_and_what_is_broken_is_seen(tmp_path: Path) -> None:
    text = "```python\n1/0\n```\n\n<!-- run -->\n```python\nprint(1 + 1)\n# prints: 3\n```\n"
    found = examples(text)
    assert [e.line for e in found] == [7]
    with pytest.raises(AssertionError, match="promises '3'"):
        run_python(tmp_path / "page.md", found[0], {})
    with pytest.raises(AssertionError, match="ended with 3"):
        run_bash(tmp_path / "page.md", Example("bash", "exit 3", 1), tmp_path)


def test_both_readmes_say_the_same():
    """Commands and figures are not translated."""
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    blocks = lambda text: re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks(english) == blocks(chinese) and len(blocks(english)) >= 2
    results = lambda text: text.split("<!-- results: begin -->")[1].split("<!-- results: end -->")[0]
    figures = lambda text: sorted(re.findall(r"\b0\.\d{3}\b", results(text)))
    assert figures(english) == figures(chinese) and len(figures(english)) > 20
