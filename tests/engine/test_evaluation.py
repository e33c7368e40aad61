"""What is evaluated of images that are labelled in part."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from selfsup.data import ResidentDataset, Splits
from selfsup.engine.evaluation import evaluate, leave_out_unlabelled, open_evaluation
from selfsup.types import ImageFacts, Normalization


def part(labels: list[int]) -> ResidentDataset:
    facts = ImageFacts("folder", "train", 3, 2, Normalization((0.5,) * 3, (0.5,) * 3), ("a", "b"))
    return ResidentDataset(torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8), torch.tensor(labels), facts)


def test_images_without_a_label_are_left_out_with_their_numbers() -> None:
    train, holdout, test = part([0, -1, 1, -1, 0]), part([1, 1]), part([-1, -1])
    with pytest.warns(UserWarning, match=r"^2 of 5 train images have no label and are left out of the evaluation\.$"):
        kept = leave_out_unlabelled(Splits(train, train, holdout, test))
    assert kept.train.index.tolist() == [0, 2, 4]
    assert kept.holdout is holdout
    assert kept.test is test  # it has no label at all, which whatever needs one says
    assert kept.pretrain is train


def test_a_table_with_missing_rows_can_be_evaluated(tmp_path: Path) -> None:
    rows = ["file,label"]
    for number in range(60):
        Image.new("RGB", (8, 8), (4 * number, 250 - 4 * number, 7)).save(tmp_path / f"{number:02}.png")
        rows += [f"{number:02}.png,{'low' if number < 30 else 'high'}"] if number % 3 else []
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    words = [
        "checkpoint=raw_pixels",
        "data=image_folder",
        f"data.root={tmp_path}",
        f"data.labels={tmp_path}/labels.csv",
    ]
    with pytest.warns(UserWarning, match="have no label and are left out of the evaluation"):
        records = evaluate([*words, "data.image_size=8", "eval.knn.k=[1]", "accelerator=cpu"], ["knn"], progress=False)
    (top1,) = (record.flat() for record in records if record["metric"] == "top1")
    assert top1["train_images"] + top1["holdout_images"] + top1["test_images"] == 40, json.dumps(top1)
    assert top1["value"] > 0.8  # the colours tell the classes apart


def test_an_old_name_of_a_setting_is_told_once(recwarn: pytest.WarningsRecorder) -> None:
    config, _ = open_evaluation(
        ["checkpoint=raw_pixels", "data=shapes", "data.train_size=40", "data.test_size=9", "eval.knn_k=3"]
    )
    assert config.eval.knn.k == [3]
    assert [str(note.message) for note in recwarn if "goes on working" in str(note.message)] == [
        "eval.knn_k is eval.knn.k now; the old name goes on working."
    ]
