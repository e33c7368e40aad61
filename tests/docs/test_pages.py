"""What the pages name exists: files that they link to, sections, tests, settings and presets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import selfsup.methods  # noqa: F401 - fills the registry
from selfsup.registry import find, methods
from selfsup.settings.catalog import choices

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
SHARED = {"moco_v1": "moco", "pmsn": "msn"}  # pages of two methods
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.fixture(scope="module")
def tests() -> str:
    return "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_tests_that_a_page_names_exist(page: Path, tests: str) -> None:
    text = page.read_text("utf-8")
    for name in re.findall(r"(?<![\w/.])(test_\w+)(?![\w.])", text):
        setting = f"\n    {name}: " in text  # of a dataclass on the page
        assert setting or f"def {name}(" in tests + text, name
    for path in re.findall(r"`(tests/[\w/.]+\.py)`", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_presets_and_methods_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for preset in re.findall(r"(?<!\w)experiment=([\w/]*\w)", text):
        assert preset in choices("experiment") or preset in ("small/NAME", "imagenet/NAME", "cifar10/NAME"), preset
    named = re.findall(r"method=(\w+)", text)
    own = re.findall(r'methods\.register\("(\w+)"', text)  # defined on the page itself
    known = [*methods, *own, "NAME"]
    assert {name for name in named if find(name, known, methods.other_names) not in known} == set()


@pytest.mark.parametrize("name", list(methods))
def test_every_method_has_a_page(name: str) -> None:
    page = ROOT / "docs" / "methods" / f"{SHARED.get(name, name)}.md"
    text = page.read_text("utf-8")
    wanted = ("What flows where", "Loss", "Defaults", "What people get wrong", "Published figures", "Our figures")
    assert [title for title in wanted if f"\n## {title}\n" not in text] == []
    assert f"method={name}`" in text
