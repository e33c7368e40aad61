"""Print what setup.cfg allows at the least, as constraints for pip: ``torch>=2.11`` gives ``torch==2.11``."""

from __future__ import annotations

import configparser
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def lowest(requirements: str) -> Iterator[str]:
    """Give one line for each requirement of a list that holds on this machine.

    Raises:
        ValueError: A requirement has no lowest version.
    """
    for line in requirements.strip().splitlines():
        one = Requirement(line)
        if one.marker is not None and not one.marker.evaluate():
            continue
        floors = [bound.version for bound in one.specifier if bound.operator == ">="]
        if len(floors) != 1:
            raise ValueError(f"setup.cfg names no lowest version of {one.name}: {line}")
        yield f"{one.name}=={floors[0]}"


if __name__ == "__main__":
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    sys.stdout.writelines(f"{line}\n" for line in lowest(setup["options"]["install_requires"]))
