"""The comparison with authors' code: it sees a difference, and says what is not there."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from selfsup.lars import Lars

FILE = Path(__file__).parents[2] / "benchmarks" / "fidelity" / "compare.py"


@pytest.fixture
def compare(monkeypatch):
    spec = importlib.util.spec_from_file_location("compare", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.cuda)
    yield module
    torch.set_default_dtype(torch.float32)


def test_a_difference_shows_in_loss_and_gradient(compare):
    one = torch.ones(3, dtype=torch.float64)
    assert compare.both(lambda x: x.sum(), lambda x: x.sum(), one) == [("loss", 0.0), ("gradient", 0.0)]
    assert compare.both(lambda x: x.sum(), lambda x: 2 * x.sum(), one) == [("loss", 0.5), ("gradient", 0.5)]
    shifted = compare.both(lambda x: x.sum(), lambda x: x.sum() + 1, one)
    assert shifted == [("loss", 0.25), ("gradient", 0.0)]


def test_optimisers_that_differ_are_apart(compare):
    assert compare.stepped(compare.exempt(0.1), compare.exempt(0.1)) == 0
    for other in (
        compare.exempt(0.2),
        compare.exempt(0.1, norms_apart=True),
        compare.exempt(0.1, rate_in_momentum=True),
    ):
        assert compare.stepped(compare.exempt(0.1), other) > 1e-6
    assert compare.stepped(compare.exempt(0.1), lambda p: Lars(p, lr=1.0, weight_decay=0.1)) > 1e-6


def test_what_is_not_there_is_said_and_forgotten_code_leaves_nothing(compare, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "SupContrast"
    broken.mkdir()
    (broken / "losses.py").write_text("import nothing_of_this_name\n")
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path)])
    compare.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == len(compare.COMPARISONS)
    (failed,) = (line for line in lines if "not there" not in line)
    assert "supcon" in failed
    assert "failed: ModuleNotFoundError" in failed
    assert "losses" not in sys.modules
