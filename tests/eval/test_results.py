import json
import math
import os

import pytest

from selfsup.errors import UserError
from selfsup.eval.results import add_results, peak_memory_mb, read_results


def record(value=0.5, **fields):
    return {"protocol": "knn", "split": "test", "metric": "top1", "value": value, "k": 20, **fields}


def test_the_file_is_a_list_under_results(tmp_path):
    path = add_results(tmp_path / "run", [record(0.25, data="digits")])
    assert path == tmp_path / "run" / "results.json"
    assert json.loads(path.read_text()) == {
        "results": [
            {"protocol": "knn", "split": "test", "metric": "top1", "value": 0.25, "k": 20, "data": "digits"},
        ]
    }
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_the_same_measurement_replaces_the_old_one(tmp_path):
    add_results(tmp_path, [record(0.1, seconds=3.0), record(0.2, k=200)])
    add_results(tmp_path, [record(0.3, seconds=4.0, peak_memory_mb=9.0)])
    assert [(r["k"], r["value"]) for r in read_results(tmp_path)] == [(20, 0.3), (200, 0.2)]
    assert read_results(tmp_path)[0]["seconds"] == 4.0


@pytest.mark.parametrize("detail", [{"k": 5}, {"split": "holdout"}, {"epoch": 3}, {"data": "other"}, {"protocol": "x"}])
def test_another_setting_is_another_measurement(tmp_path, detail):
    add_results(tmp_path, [record()])
    add_results(tmp_path, [record() | detail])
    assert len(read_results(tmp_path)) == 2


def test_the_order_of_the_fields_does_not_matter(tmp_path):
    add_results(tmp_path, [record(0.1, data="a")])
    add_results(tmp_path, [dict(reversed(record(0.2, data="a").items()))])
    assert [r["value"] for r in read_results(tmp_path)] == [0.2]


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.5"])
def test_a_value_is_a_finite_number(tmp_path, value):
    with pytest.raises(ValueError, match="finite"):
        add_results(tmp_path, [record(value)])
    assert not (tmp_path / "results.json").exists()


def test_a_record_needs_its_fields(tmp_path):
    with pytest.raises(ValueError, match="without split, metric"):
        add_results(tmp_path, [{"protocol": "knn", "value": 0.5}])


def test_a_failed_write_keeps_the_old_file(tmp_path):
    add_results(tmp_path, [record(0.1)])
    with pytest.raises(TypeError):
        add_results(tmp_path, [record(0.2, chosen=object())])
    assert [r["value"] for r in read_results(tmp_path)] == [0.1]


def one(**changed):
    return json.dumps({"results": [record() | changed]})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", '{"results": 3}', '{"results": [{"value": 1}]}', "[" * 100_000),
        *(one(value=value) for value in ("0.5", None, [1], 10**400)),
        *(one(metric={}), one(split=["test"]), one(protocol=5), one(found=3)),
    ],
    ids=range(15),
)
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    for use in (read_results, lambda run: add_results(run, [record()])):
        with pytest.raises(UserError, match=r"results\.json"):
            use(tmp_path)
    assert (tmp_path / "results.json").read_text() == text


def test_an_old_value_that_no_json_holds_is_named(tmp_path):
    old = '{"protocol": "knn", "split": "a", "metric": "b", "value": 1e999}'
    (tmp_path / "results.json").write_text(f'{{"results": [{old}]}}')
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(UserError, match=r"results\.json' is broken; delete it"):
        add_results(tmp_path, [record()])
    assert (tmp_path / "results.json").read_bytes() == before


def test_what_is_no_unicode_is_kept_as_its_escape(tmp_path):
    """As a folder is called whose name is in another encoding."""
    add_results(tmp_path, [record(data="caf\udce9")])
    add_results(tmp_path, [record(k=5)])
    assert b"caf\\udce9" in (tmp_path / "results.json").read_bytes()
    assert read_results(tmp_path)[0]["data"] == "caf\udce9"


def test_what_is_no_file_is_broken(tmp_path):
    os.mkfifo(tmp_path / "results.json")  # whose end nobody writes
    with pytest.raises(UserError, match=r"results\.json' is broken"):
        read_results(tmp_path)


def test_a_run_without_results(tmp_path):
    with pytest.raises(UserError, match="evaluate the run first"):
        read_results(tmp_path)


def test_peak_memory_is_in_megabytes():
    # an interpreter with torch in it holds more than 50 MB, and this machine less than 10 TB
    assert 50 < peak_memory_mb() < 1e7
