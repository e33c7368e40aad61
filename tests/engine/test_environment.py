"""What a run notes of the code that ran."""

import subprocess
from pathlib import Path

from selfsup.engine.environment import commit


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *own, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path: Path) -> None:
    package = tmp_path / "selfsup"
    package.mkdir()
    assert commit(package) is None
    (package / "a.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(package) == head
    (tmp_path / "new.txt").write_text("what git does not know changes nothing")
    assert commit(package) == head
    (package / "a.py").write_text("2")
    assert commit(package) == f"{head}-dirty"
    below = tmp_path / "venv" / "selfsup"
    below.mkdir(parents=True)
    assert commit(below) is None
