"""The helper of the benchmarks: who runs when, what counts, and what is written."""

import importlib.util
import json
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("measure", Path(__file__).parents[2] / "benchmarks" / "measure.py")
measure = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(measure)


def test_rivals_take_turns_and_the_warm_up_does_not_count(monkeypatch):
    calls = []
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def rival(name, cost):
        def run():
            calls.append(name)
            # what the first call builds takes long
            clock[0] += 100.0 if calls.count(name) == 1 else cost

        return run

    seconds = measure.alternate({"a": rival("a", 1.0), "b": rival("b", 2.0)}, repeats=3, warmup=1)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_summary_is_the_median_and_the_range():
    assert measure.summary([5.0, 1.0, 2.0]) == (2.0, 1.0, 5.0)


def test_both_files_hold_the_rows_the_protocol_and_the_machine(tmp_path):
    rows = [{"side": 32, "ours": 12345.6, "ratio": 4.321}, {"side": 96, "ours": 0.01234, "note": "slow"}]
    markdown = measure.write(tmp_path / "new", "views", rows, "Two views.")
    assert (tmp_path / "new" / "views.md").read_text() == markdown
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line[0:1] == "|"]
    assert cells[0] == ["side", "ours", "ratio", "note"]
    assert cells[2:] == [["32", "12346", "4.32", "–"], ["96", "0.0123", "–", "slow"]]
    content = json.loads((tmp_path / "new" / "views.json").read_text())
    assert content["rows"] == rows
    assert content["protocol"] == "Two views."
    assert markdown.startswith("Two views.\n")
    for key in ("processor", "GPU", "torch", "threads", "date"):
        assert str(content["machine"][key]) in markdown


@pytest.mark.parametrize("value", [999.6, 1000.4])
def test_large_numbers_have_no_exponent(tmp_path, value):
    assert "| 1000 |" in measure.write(tmp_path, "x", [{"v": value}], "")
