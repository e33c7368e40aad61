"""The table of transformers: a row that is stopped goes on, one that is done is done once, and all rows are alike."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from selfsup.config import load_config

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("TIMM_FUSED_ATTN", "0")
    import transformers

    monkeypatch.setattr(transformers, "KEPT", Path("no results are kept"))
    yield transformers
    for name in ("transformers", "standard", "setups", "measure", "tiny_images"):
        sys.modules.pop(name, None)


def test_a_row_goes_on_and_is_done_once_and_stands_beside_the_untrained_network(
    transformers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tiny_images import write_images

    write_images(tmp_path, "imagenette", train=20, size=(80, 80))
    out = tmp_path / "out"
    out.mkdir()
    options = argparse.Namespace(out=out, root=tmp_path, more=[], rehearse=True)
    once = transformers.Clock.on_train_epoch_end

    def stopped(clock: Any, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("killed")
        once(clock, trainer, module)
        clock.known["processor_seconds"] = 1000.0

    with monkeypatch.context() as patch:
        patch.setattr(transformers.Clock, "on_train_epoch_end", stopped)
        with pytest.raises(RuntimeError, match="killed"):
            transformers.work("mae", options)
    assert not list(out.glob("*.json"))
    for method in ("mae", "untrained, mean of the patches"):
        transformers.work(method, options)
    found = list(transformers.results([*transformers.BASELINES, "mae"], out))
    assert [result["method"] for result in found] == ["untrained, mean of the patches", "mae"]
    assert found[1]["training"]["processor_seconds"] > 1000
    assert found[1]["training"]["epochs"] == 2
    assert all(result["how"]["knn"]["test_images"] == 30 for result in found)
    assert all(result["how"]["knn"]["image_size"] == 64 for result in found)
    with monkeypatch.context() as patch:
        patch.setattr(transformers, "load_config", None)
        transformers.work("mae", options)  # nothing is done again
    text = transformers.table(["untrained, mean of the patches", "mae", "dino"], out)
    assert "REHEARSAL" in text
    assert "Not measured yet: dino." in text
    rows = json.loads((out / "transformers.json").read_text())["rows"]
    assert rows[1]["kNN, k = 20, %"] == f"{100 * found[1]['knn']:.1f}"


def test_all_rows_train_one_network_on_the_same_images_as_often(transformers: Any) -> None:
    seen = set()
    for method in transformers.METHODS:
        words = [*transformers.settings(method), *transformers.images(Path("photographs"))]
        config = load_config(words)
        assert config.method.name == method
        kwargs = {key: config.backbone.kwargs[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}
        images = (config.data.name, config.data.image_size, config.data.source_size, config.data.limit)
        how_often = (config.trainer.max_epochs, config.batch_size, config.trainer.precision)
        seen.add((config.backbone.name, *kwargs.items(), *images, *how_often))
        pooled = config.backbone.kwargs.get("global_pool")
        assert pooled == ("avg" if method in transformers.MEAN else None)
    assert len(seen) == 1
