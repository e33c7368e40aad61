"""The runner of what needs a GPU: it goes on where it stopped, tells what fails, and every part runs on a CPU too."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    yield gpu
    for name in ("gpu", "measure", "tiny_images"):
        sys.modules.pop(name, None)


PROGRAM = """
import json, pathlib, sys, time
kind, out = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
print("about to", kind)
if kind == "sleep":
    time.sleep(60)
if kind == "fail":
    sys.exit(3)
if kind != "nothing":
    (out / "table.md").write_text("A protocol.")
    (out / "table.json").write_text(json.dumps({"rows": [{"images": 7}]}))
"""


@pytest.fixture
def parts(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    made = {
        kind: gpu.Part(kind, (str(program), kind), ("--real",), ("--tiny",), ("table",))
        for kind in ("fail", "work", "nothing", "sleep")
    }
    monkeypatch.setattr(gpu, "PARTS", made)
    return made


def test_a_part_that_fails_does_not_stop_the_others_and_is_taken_up_again(
    gpu: Any, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del parts["sleep"]
    page = tmp_path / "page.md"
    page.write_text("\n".join(f"<!-- {name} -->\nold\n<!-- end of {name} -->" for name in parts))
    words = ["gpu.py", "--rehearse", "--out", str(tmp_path / "out"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert "fail ended with code 3" in str(stopped.value)
    assert "about to fail" in str(stopped.value)
    assert "nothing left no table" in str(stopped.value)
    text = page.read_text()
    assert "A protocol." in text.split("<!-- work -->")[1].split("<!-- end of work -->")[0]
    assert text.count("Not measured yet.") == 2
    assert "old" not in text
    table = tmp_path / "out" / "work" / "table.json"
    assert json.loads(table.read_text())["rows"] == [{"images": 7}]
    before = table.stat().st_mtime_ns
    with pytest.raises(SystemExit):
        gpu.main()  # only what has no result
    assert table.stat().st_mtime_ns == before
    monkeypatch.setattr(sys, "argv", [*words, "work"])
    gpu.main()
    assert table.stat().st_mtime_ns > before


def test_a_part_that_takes_too_long_is_ended(gpu: Any, parts: Any, tmp_path: Path) -> None:
    start = time.perf_counter()
    said = gpu.run("sleep", tmp_path, True, seconds=3.0)
    assert said is not None
    assert "sleep took longer than 3 s" in said
    assert time.perf_counter() - start < 30


def test_without_a_gpu_it_says_how_to_rehearse(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--rehearse"):
        gpu.main()
    monkeypatch.setattr(sys, "argv", ["gpu.py", "vews"])
    with pytest.raises(SystemExit):
        gpu.main()


def test_the_page_has_a_place_for_every_part_and_an_unmeasured_one_says_so(gpu: Any, tmp_path: Path) -> None:
    copy = tmp_path / "gpu.md"
    copy.write_text((DOCS / "gpu.md").read_text())
    gpu.page(copy, tmp_path / "none", False)
    assert copy.read_text().count(gpu.NOT_YET) == len(gpu.PARTS)
    for part in gpu.PARTS.values():
        assert f"\n## {part.title}\n" in copy.read_text()
    (tmp_path / "bare.md").write_text("# Nothing\n")
    with pytest.raises(SystemExit, match="no place for"):
        gpu.page(tmp_path / "bare.md", tmp_path, False)


def test_the_arguments_of_every_part_are_taken(gpu: Any) -> None:
    """Each program's own parser knows every option of a real run, and of the rehearsal."""
    for name in gpu.PARTS:
        for rehearse in (False, True):
            _, program, *words = gpu.command(name, Path("out"), rehearse)
            text = Path(program).read_text()
            for word in words:
                assert not word.startswith("--") or f'"{word}"' in text, (name, word)


@pytest.mark.parametrize(
    "name",
    [
        "neighbours",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in (
                "tests",
                "views",
                "steps",
                "ways",
                "memory",
                "speedrun",
                "race",
                "row-simclr",
                "row-imagenette",
            )
        ),
    ],
)
def test_every_part_runs_on_a_cpu(name: str, gpu: Any, tmp_path: Path) -> None:
    assert gpu.run(name, tmp_path, True) is None
    for table in gpu.tables(gpu.PARTS[name], True):
        rows = json.loads((tmp_path / name / f"{table}.json").read_text())["rows"]
        assert rows
        if name == "ways":
            assert [row["way"] for row in rows] == list(gpu.WAYS)
            assert all(row["images/s"] > 0 for row in rows)
