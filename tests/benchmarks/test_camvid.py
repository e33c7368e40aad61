"""The comparison of dense methods on photographs: what is there is not repeated, and a rehearsal runs whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def camvid(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import camvid

    yield camvid
    for name in ("camvid", "standard", "setups", "measure", "tiny_images"):
        sys.modules.pop(name, None)


def test_a_rehearsal_runs_whole_and_goes_on_where_it_stopped(
    camvid: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tiny_images import write_images, write_scenes

    write_images(tmp_path, "imagenette", 4, 1, size=(40, 52))
    write_scenes(tmp_path)
    out, page = tmp_path / "out", tmp_path / "page.md"
    page.write_text("<!-- camvid -->\n<!-- end of camvid -->\n")
    (tmp_path / "images").mkdir()
    words = ["--networks", "resnet", "--methods", "densecl", "--epochs", "1", "--root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["camvid.py", *words, "--out", str(out), "--rehearse", "--threads", "1"])
    ran: list[list[str]] = []

    def here(words: list[str]) -> int:
        """Run what would be a process of its own in this one."""
        ran.append(words)
        with monkeypatch.context() as inner:
            inner.setattr(sys, "argv", ["camvid.py", *words])
            camvid.main()
        return 0

    monkeypatch.setattr(camvid, "launch", here)
    judged = camvid.judged

    def stopped(judge: str, *rest: Any) -> Any:
        if judge == "fine_tuned":
            raise RuntimeError("killed")
        return judged(judge, *rest)

    monkeypatch.setattr(camvid, "judged", stopped)
    with pytest.raises(RuntimeError, match="killed"):
        camvid.main()
    result = out / "resnet" / "densecl-seed0.json"
    assert set(json.loads(result.read_text())) >= {"linear", "cells"}
    monkeypatch.setattr(camvid, "judged", lambda judge, *rest: judged(judge, *rest) if judge == "fine_tuned" else None)
    monkeypatch.setattr(camvid.selfsup, "train", None)  # what was trained is not trained again
    camvid.main()
    saved = json.loads(result.read_text())
    assert saved["done"]
    assert saved["frames"] == [8, 8, 8]
    assert saved["training"]["epochs"] == 1
    for judge in camvid.JUDGES:
        assert 0 <= saved[judge]["miou"] <= 1
        assert [len(saved[judge]["shown"]), len(saved[judge]["shown"][0])] == [4, 24]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--page", str(page)])
    camvid.main()
    assert len(ran) == 2, "nothing is done again"
    assert "REHEARSAL" in page.read_text()
    assert (tmp_path / "images" / "camvid.png").exists()
    (mean,) = json.loads((out / "camvid.json").read_text())["rows"]
    assert mean["linear, mIoU %"] == pytest.approx(100 * saved["linear"]["miou"])
    assert len(json.loads((out / "camvid_classes.json").read_text())["rows"]) == 3
