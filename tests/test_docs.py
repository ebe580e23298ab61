"""The pages say where things are: the places must exist."""

import ast
import re
from pathlib import Path

import pytest

from spaces.errors import ExitCode

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WAY = ARCHITECTURE.partition("## The way of a budget")[2].partition("\n## ")[0]
STATION = re.compile(r"^\d\. `([\w/]+\.py): ([\w.]+)`", re.MULTILINE)


def way(direction: str) -> list[tuple[str, str]]:
    down, _, up = WAY.partition("And the result on its way back")
    return STATION.findall(down if direction == "down" else up)


@pytest.mark.parametrize(("direction", "most"), [("down", 9), ("up", 6)])
def test_the_way_of_a_budget_has_few_stations(direction: str, most: int) -> None:
    assert 0 < len(way(direction)) <= most


@pytest.mark.parametrize(("file", "place"), [*way("down"), *way("up")])
def test_every_station_exists(file: str, place: str) -> None:
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for name in place.split("."):
        found = [
            node
            for node in body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        ]
        assert found, f"{file} has no {place}"
        body = found[0].body


def test_the_glossary_has_at_most_30_terms() -> None:
    glossary = ARCHITECTURE.partition("## Glossary")[2].partition("\n## ")[0]
    assert 0 < len(re.findall(r"^\| (?!term|---)", glossary, re.MULTILINE)) <= 30


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_files_named_by_pages_exist(page: Path) -> None:
    """Paths of the project in backticks or commands, such as `search/cli.py` and `python tests/studies/methods.py`."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:search|configs|runners|pruning|spaces|tests)/[\w/]+\.py)\b", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_page_on_searching_lists_every_exit_code() -> None:
    table = (ROOT / "docs" / "search.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(ExitCode)
