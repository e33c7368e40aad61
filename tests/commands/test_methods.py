"""What ``selfsup methods`` tells: methods, objectives and negatives, and what goes with what, as it is registered."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from selfsup.cli import main
from selfsup.config import load_config
from selfsup.registry import fits, methods, negatives, objectives


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 0
    return capsys.readouterr().out


def test_the_list_says_which_methods_take_what(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "methods").splitlines()
    for registry in (objectives, negatives):
        for name in registry:
            entry = registry[name]
            if entry.over and entry.target.__module__.startswith("selfsup."):
                goes = [m for m in methods if fits(methods[m].over, entry.over)]
                own = [m for m in goes if methods[m].target.__module__.startswith("selfsup.")]
                (line,) = (line for line in lines if line.startswith(f"{name} "))
                assert line.endswith(f"{entry.summary} ({', '.join(own)})"), name
    assert not any(line.startswith("none ") for line in lines)


def test_a_method_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "methods", "moco")
    (taken,) = re.findall(r"Takes objective=([\w, ]+);", text)
    assert taken.split(", ") == [name for name in objectives if fits(methods["moco"].over, objectives[name].over)]
    assert "Takes negatives=feature_transformation, mochi;" in text
    assert "Takes" not in told(capsys, "methods", "byol")
    assert "Takes negatives" not in told(capsys, "methods", "simclr")


@pytest.mark.parametrize(
    ("name", "setting", "goes"),
    [
        ("Debiased", "objective.prior=0.1", "method=moco, method=moco_v1, method=simclr"),
        ("mochi", "negatives.hardest=1024", "method=moco, method=moco_v1"),
        ("hcl", "objective.concentration=1.0", "method=moco, method=moco_v1, method=simclr"),
    ],
)
def test_an_objective_is_explained_as_a_method_is(
    name: str, setting: str, goes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "methods", name)
    assert setting in text
    assert f"Goes with {goes}." in text
    assert "Deviations:" in text


def test_help_explains_the_one_that_was_chosen_without_torch() -> None:
    code = (
        "import sys; from selfsup.cli import main\n"
        "assert main(['train', 'method=simclr', 'objective=isogclr', '--help']) == 0\n"
        "assert main(['methods', 'dcl']) == main(['methods']) == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'this takes seconds'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "objective.rho=0.3" in done.stdout


def test_a_name_that_there_is_not_is_met_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for written, meant in {"simclrr": "method", "dcll": "objective", "mochii": "negatives"}.items():
        assert main(["methods", written]) == 2
        said = f"There is no {meant} '{written}'. Did you mean '{written[:-1]}'?"
        assert said in capsys.readouterr().err


def test_a_run_is_called_by_all_that_it_learns_with() -> None:
    assert load_config([]).scheme == "simclr"
    assert load_config(["objective=dcl"]).scheme == "simclr+dcl"
    assert load_config(["method=moco", "negatives=mochi", "objective=macl"]).scheme == "moco+mochi+macl"
