"""A page of the documentation as what it is made of: files and commands, which its test writes out and runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from selfsup import imports

DOCS = Path(__file__).parents[1] / "docs"


class Page:
    """A page of ``docs``.

    Attributes:
        files: Its Python blocks, by the name in their first line.
        commands: Its lines of shell, those that go on in the next one joined.
    """

    def __init__(self, name: str) -> None:
        blocks = re.findall(r"```(\w+)\n(.*?)```", (DOCS / name).read_text("utf-8"), re.DOTALL)
        python = [text for kind, text in blocks if kind == "python"]
        self.files = {text.splitlines()[0].removeprefix("# "): text for text in python}
        shell = "".join(text for kind, text in blocks if kind == "sh")
        self.commands = re.sub(r"\\\n\s*", "", shell).splitlines()

    def write(self, folder: Path) -> None:
        """Write its files into a folder."""
        for name, text in self.files.items():
            (folder / name).write_text(text, "utf-8")

    def forget(self) -> None:
        """Make this process one that has imported none of its files, or its next runs would keep them."""
        for name in self.files:
            sys.modules.pop(name.removesuffix(".py"), None)
            imports._executed.pop(name.removesuffix(".py"), None)


class _Outcomes:
    """Plugin that keeps how each test went."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            (self.passed if report.passed else self.failed).append(report.nodeid.partition("::")[2])


def run_tests(file: Path) -> tuple[list[str], list[str]]:
    """Run the tests of a file in this process, and return the names of those that passed, and of all others.

    Another process would take seconds to import what is here already.
    """
    outcomes = _Outcomes()
    without = [word for plugin in ("cacheprovider", "faulthandler", "xdist") for word in ("-p", f"no:{plugin}")]
    try:
        pytest.main([str(file), f"--rootdir={file.parent}", "-q", *without], plugins=[outcomes])
    finally:
        sys.modules.pop(file.stem, None)
    return outcomes.passed, outcomes.failed
