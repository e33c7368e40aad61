"""The diagnostics from the command line: the head of a checkpoint, ``--only`` and ``selfsup cka``."""

import csv
import warnings
from pathlib import Path

import pytest
import torch
from tiny import TINY

import selfsup
from selfsup.checkpoint import INFO, read_checkpoint
from selfsup.cli import main, sentence
from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.engine.training import train
from selfsup.eval import Encoder, read_results
from selfsup.opened import load_backbone, open_network


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny finished SimCLR run."""
    return train(load_config([*TINY, "trainer.max_epochs=1", f"run_dir={tmp_path_factory.mktemp('run') / 'one'}"]))


def test_the_head_is_the_trained_one(finished):
    before = torch.random.get_rng_state()
    head = open_network(finished).head()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not head.training
    content = read_checkpoint(finished)
    saved = {k.removeprefix("head."): v for k, v in content["state_dict"].items() if k.startswith("head.")}
    assert saved.keys() == head.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in head.state_dict().items())
    backbone = load_backbone(finished)
    data = load_splits(load_config(TINY).data).train
    found = Encoder(backbone, progress=False).layers(data, head)
    # SimCLR's head has three linear layers
    assert list(found)[-3:] == ["head.1", "head.2", "head.3"]
    assert found["head.3"].features.shape[1] == 128


def test_a_head_that_cannot_be_built_is_left_out(finished, tmp_path):
    content = read_checkpoint(finished)
    content[INFO]["config"]["method"]["name"] = "somebodys_own"
    torch.save(content, tmp_path / "own.ckpt")
    with pytest.warns(UserWarning, match="The head cannot be built again"):
        assert open_network(tmp_path / "own.ckpt").head() is None


def test_only_some_protocols(finished, tmp_path, capsys):
    code = main(["evaluate", f"checkpoint={finished}", "--only", "layers,diagnostics", f"run_dir={tmp_path}"])
    assert code == 0
    records = read_results(tmp_path)
    assert {r["protocol"] for r in records} == {"layers", "diagnostics"}
    assert "head.3" in {r.get("layer") for r in records}
    assert "rank_me" in capsys.readouterr().out
    assert main(["evaluate", f"checkpoint={finished}", "--only", "lyers"]) == 2
    assert "Did you mean 'layers'" in capsys.readouterr().err
    assert main(["evaluate", f"checkpoint={finished}", "--only", "attention", f"run_dir={tmp_path}"]) == 2
    assert "choose a ViT" in capsys.readouterr().err


def test_what_cannot_run_is_a_sentence_the_rest_is_printed_and_kept_and_the_code_says_so(finished, tmp_path, capsys):
    with warnings.catch_warnings():  # pytest would take them
        code = main(["evaluate", f"checkpoint={finished}", "--only", "attention,knn", f"run_dir={tmp_path}"])
    assert code == 2
    assert {r["protocol"] for r in read_results(tmp_path)} == {"knn"}
    assert sum(line.startswith("knn ") for line in capsys.readouterr().out.splitlines()) == 1


def test_warnings_of_ours_are_printed_as_sentences():
    place = str(Path(selfsup.__file__).parent / "eval" / "protocols.py")
    assert sentence("Left out.", UserWarning, place, 3) == "note: Left out.\n"
    assert sentence("Old.", UserWarning, "/elsewhere/timm.py", 3) == "/elsewhere/timm.py:3: UserWarning: Old.\n"
    assert "DeprecationWarning" in sentence("Old.", DeprecationWarning, place, 3)


def test_cka_of_a_run_and_the_untrained_network(finished, tmp_path, capsys):
    assert main(["cka", str(finished), "untrained", "--align", "--out", str(tmp_path / "cka")]) == 0
    assert "find themselves among" in capsys.readouterr().out
    pairs = [row[:2] for row in csv.reader((tmp_path / "cka" / "align.csv").open())][1:]
    assert pairs == [[str(finished), "untrained"], ["untrained", str(finished)]]
    rows = list(csv.reader((tmp_path / "cka" / "cka.csv").open()))
    assert rows[0] == ["", str(finished), "untrained"]
    assert float(rows[1][1]) == 1
    assert float(rows[1][2]) < 0.999
    assert (tmp_path / "cka" / "cka.png").exists()
    assert main(["cka", str(finished), "untrained", "--layers", "--out", str(tmp_path / "layers")]) == 0
    assert "untrained: layer2" in capsys.readouterr().out
    assert main(["cka", str(finished)]) == 2
    assert "two runs" in capsys.readouterr().err
    assert main(["cka", str(finished), "raw_pixels"]) == 2
    assert "raw_pixels is not a network" in capsys.readouterr().err
