import csv
import itertools
import math

import pytest
import torch
from PIL import Image

from selfsup.data import load_splits
from selfsup.data.sources.image_folder import ImageFolderConfig
from selfsup.errors import UserError
from selfsup.eval import FeatureSet, raw_pixels
from selfsup.eval.auditing import COLUMNS, audit, audit_dataset
from selfsup.report import contact_sheet, save


def circle(*degrees):
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def by_loop(features, labels, k, temperature, least):
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    table = (unit @ unit.T).tolist()
    pairs, errors, shares = set(), {}, {}
    for i, row in enumerate(table):
        nearest = sorted((j for j in range(len(row)) if j != i), key=lambda j: (-row[j], j))[:k]
        pairs |= {(min(i, j), max(i, j)) for j in nearest if row[j] >= least}
        votes = {}
        for j in nearest:
            if labels[j] >= 0:
                votes[labels[j]] = votes.get(labels[j], 0) + math.exp(row[j] / temperature)
        total = sum(votes.values())
        if labels[i] < 0 or not total:
            continue
        shares[i] = {label: vote / total for label, vote in votes.items()}
    usual = {}
    for label in set(labels):
        own = [votes.get(label, 0) for i, votes in shares.items() if labels[i] == label]
        usual[label] = sum(own) / len(own) if own else 0
    ahead = 0
    for i, votes in shares.items():
        own, best = votes.get(labels[i], 0), min(votes, key=lambda c: (-votes[c], c))
        if own < 0.5 and votes[best] > own:
            ahead += 1
            if votes[best] >= usual[best]:
                errors[i] = (best, 1 - own, votes[best])
    return pairs, errors, 1 - ahead / len(shares)


@pytest.mark.parametrize("k", [1, 4, 200])
@pytest.mark.parametrize("seed", [0, 1])
def test_findings_are_those_of_a_loop(k, seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 3, (60,), generator=generator)
    features = 2 * torch.eye(4)[truth] + 0.6 * torch.randn(60, 4, generator=generator)
    labels = torch.tensor([2, 5, 9])[truth]
    wrong = torch.rand(60, generator=generator) < 0.3
    labels = torch.where(wrong, labels.roll(1), labels)
    labels[torch.rand(60, generator=generator) < 0.15] = -1
    found = audit(features, labels, k=k, temperature=0.2, duplicate_similarity=0.98)
    pairs, errors, agreement = by_loop(features, labels.tolist(), k, 0.2, 0.98)
    assert found.agreement == pytest.approx(agreement)
    assert {(d.first, d.second) for d in found.duplicates} == pairs
    assert [d.similarity for d in found.duplicates] == sorted((d.similarity for d in found.duplicates), reverse=True)
    for pair in found.duplicates:
        cosine = torch.cosine_similarity(features[pair.first], features[pair.second], dim=0).item()
        assert pair.similarity == pytest.approx(cosine, abs=1e-6)
    assert {e.row: e.suggested for e in found.label_errors} == {row: best for row, (best, *_) in errors.items()}
    for error in found.label_errors:
        assert (error.against, error.support) == pytest.approx(errors[error.row][1:], abs=1e-5)
        assert error.label == labels[error.row]
    assert [e.support for e in found.label_errors] == sorted((e.support for e in found.label_errors), reverse=True)
    assert pairs
    assert errors


def test_the_threshold_decides_what_is_a_duplicate():
    features = circle(0, 10, 90, 95)  # cosines 0.985 and 0.996
    assert [(d.first, d.second) for d in audit(features, None).duplicates] == [(2, 3), (0, 1)]
    assert [(d.first, d.second) for d in audit(features, None, duplicate_similarity=0.99).duplicates] == [(2, 3)]
    assert audit(features, None, duplicate_similarity=0.999).duplicates == []


def test_duplicates_are_much_nearer_than_neighbours_usually_are():
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    features[1] = features[0] + 0.01  # a copy
    collapsed = features + 30  # all alike: every cosine is above 0.9
    for given in (features, collapsed):
        found = audit(given, None, k=5)
        assert [(d.first, d.second) for d in found.duplicates] == [(0, 1)]
        assert found.duplicates[0].similarity > found.duplicate_similarity


def test_features_that_are_too_weak_to_call_labels_wrong_say_so():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (80,), generator=generator)
    good = audit(torch.eye(4)[labels] + 0.01 * torch.randn(80, 4, generator=generator), labels, k=5)
    weak = audit(torch.randn(80, 4, generator=generator), labels, k=5)
    assert (good.agreement, good.doubt) == (1, "")
    assert f"agree with the label of {100 * weak.agreement:.0f} %" in weak.doubt


def test_near_votes_count_more_than_far_ones():
    # the label of the first: one very near neighbour agrees, three far ones do not
    features, labels = circle(0, 2, 40, 42, 44), torch.tensor([1, 1, 0, 0, 0])
    assert 0 not in [e.row for e in audit(features, labels, k=4, temperature=0.07).label_errors]
    assert 0 in [e.row for e in audit(features, labels, k=4, temperature=50.0).label_errors]


def test_more_than_half_against_but_no_other_label_ahead_is_no_error():
    features, labels = circle(0, 1, -1, 2, -2, 3), torch.tensor([0, 0, 0, 1, 2, 3])
    assert 0 not in {e.row for e in audit(features, labels, k=5, temperature=99.0).label_errors}


def test_without_labels_only_duplicates_are_sought():
    features = circle(0, 1, 90)
    for labels in (None, torch.full((3,), -1)):
        found = audit(features, labels)
        assert [(d.first, d.second) for d in found.duplicates] == [(0, 1)]
        assert found.label_errors == []


@pytest.fixture
def folder(tmp_path):
    """Two classes of plain colours; one red lies with the blues, and one image is there twice."""
    for name, colours in {
        "red": [(250, 10 * i, 0) for i in range(8)],
        "blue": [*[(0, 10 * i, 250) for i in range(8)], (250, 35, 0)],
    }.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for place, colour in enumerate(colours):
            picture = Image.new("RGB", (12, 10), colour)
            picture.putpixel((place % 12, place // 2), (255, 255, 255))
            picture.save(tmp_path / "data" / name / f"{place}.png")
    source = tmp_path / "data" / "blue" / "3.png"
    (tmp_path / "data" / "blue" / "copy of 3.png").write_bytes(source.read_bytes())
    return tmp_path / "data"


@pytest.mark.parametrize("resident_limit_mb", [0, 100])
def test_a_folder_is_looked_through(folder, tmp_path, resident_limit_mb):
    config = ImageFolderConfig(
        root=str(folder), image_size=8, holdout=0.2, test_fraction=0.2, resident_limit_mb=resident_limit_mb, workers=0
    )
    splits = load_splits(config)
    parts = [(raw_pixels(part), part) for part in (splits.train, splits.holdout, splits.test)]
    found, images, path = audit_dataset(parts, tmp_path / "out", k=5, duplicate_similarity=0.99999)
    sheet = save(contact_sheet(found, images), tmp_path / "out" / "contact_sheet.png")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(found.duplicates) + len(found.label_errors)
    labels = [row for row in rows if row["finding"] == "label"]
    copies = [row for row in rows if row["finding"] == "duplicate"]
    assert [(row["label"], row["suggested_label"], row["other_label"]) for row in labels] == [("blue", "red", "red")]
    assert {(row["label"], row["other_label"]) for row in copies} == {("blue", "blue")}
    assert float(labels[0]["votes_against"]) > 0.5
    if resident_limit_mb == 0:  # the files have names
        assert [row["image"] for row in labels] == [str(folder / "blue" / "8.png")]
        pair = {str(folder / "blue" / "3.png"), str(folder / "blue" / "copy of 3.png")}
        assert [{row["image"], row["other_image"]} for row in copies] == [pair]
    else:
        assert labels[0]["image"] == f"{labels[0]['split']}/{labels[0]['index']}"
    picture = Image.open(sheet).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(maxcolors=1 << 24)}
    assert (250, 35, 0) in colours, "the image whose label is wrong is on the sheet"
    assert (0, 30, 250) in colours, "so is the one that is there twice"


def test_no_title_of_the_contact_sheet_is_clipped_or_runs_into_another(folder):
    for color in ("red", "blue"):  # of the widest letters
        (folder / color).rename(folder / f"{'W' * 25} {color}")
    for file in list(folder.rglob("*.png")):
        file.rename(file.with_name(f"{'M' * 30} {file.name}"))
    splits = load_splits(ImageFolderConfig(root=str(folder), image_size=8, holdout=0.2, test_fraction=0.2, workers=0))
    parts = [(raw_pixels(part), part) for part in (splits.train, splits.holdout, splits.test)]
    found, images, _ = audit_dataset(parts, folder.parent / "out", k=5, duplicate_similarity=0.99999)
    figure = contact_sheet(found, images)
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in (axes.title, *axes.texts) if text.get_text().strip()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) > 6
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_nothing_found_is_a_table_without_rows(folder, tmp_path):
    part = load_splits(ImageFolderConfig(root=str(folder), image_size=8, test_fraction=0.2)).test
    some = FeatureSet(torch.eye(len(part)), part.labels * 0, part.index)
    found, images, path = audit_dataset([(some, part)], tmp_path / "out")
    sheet = save(contact_sheet(found, images), tmp_path / "out" / "contact_sheet.png")
    assert (found.duplicates, found.label_errors) == ([], [])
    assert path.read_text().splitlines() == [",".join(COLUMNS)]
    assert sheet.exists()


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        (circle(0), {}, "at least two images"),
        (circle(0, math.nan), {}, "NaN"),
        (circle(0, 1), {"k": 0}, "eval.knn.k is 0"),
        (circle(0, 1), {"temperature": 0.0}, "eval.knn.temperatures"),
        (circle(0, 1), {"duplicate_similarity": 1.2}, "eval.duplicate_similarity is 1.2"),
        (circle(0, 1), {"index": "tree"}, "eval.index"),
    ],
)
def test_what_a_person_can_correct(features, settings, message):
    with pytest.raises(UserError, match=message):
        audit(features, None, **settings)
