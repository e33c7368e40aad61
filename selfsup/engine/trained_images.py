"""Which images a run was trained on, against those that are there now: named on resume, left out of an evaluation."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from selfsup.config import from_values
from selfsup.data import DataConfig, Splits, load_splits
from selfsup.data.location import roots
from selfsup.data.membership import HOLDOUT, PRETRAIN, TEST, TRAIN, TRAINED, Membership, read_membership
from selfsup.errors import UserError
from selfsup.eval.results import FILE, read_results

#: Settings of the data that change no image's part.
BESIDE = frozenset(
    ("root", "download", "image_size", "mean", "std", "workers", "cache", "resident_limit_mb", "resident_on_device")
)
#: Those that say which images are drawn, and no more.
DRAWS = frozenset(("limit", "holdout", "membership", "subset_seed"))
#: Where choices are made without a hold-out (``data.holdout=0``), for records and the screen.
SEEN = "a part of the training images, which pretraining sees too, without their labels"
NOT_RECORDED = "which images this run was trained on was not recorded, or they have changed since"


def go_on(run_dir: Path, now: Membership, digest: str | None) -> str | None:
    """Keep the membership of a run that goes on, and return what changed since it stopped; None where nothing did.

    Args:
        run_dir: Its folder.
        now: The images that it goes on with.
        digest: That of the membership it had, as its checkpoint says; None where an earlier version wrote that.
    """
    before = read_membership(run_dir)
    if before is None:
        same = digest == now.digest or now.keyless
        dataclasses.replace(now, whole=same).save(run_dir)
        if same:
            return None
        return (
            "which images this run was trained on so far was not recorded, and is taken to be what its settings draw "
            "today; if images were added or removed since it began, some of its test images may have been trained on"
        )
    now.after(before).save(run_dir)
    if before.digest == now.digest:
        return None
    trained, now_trained = before.of(TRAINED), now.of(PRETRAIN)
    taken = int(torch.isin(now_trained, _kept_back(before)).sum())
    return (
        f"{_gone_and_new(before, now)}; it goes on with {len(now_trained):,} images, of which "
        f"{int(torch.isin(now_trained, trained).sum()):,} were trained on before and {taken:,} were hold-out or test "
        "images. The views of an image follow from its place among the others, so the result is not the one that the "
        "images as they were would have given"
    )


def rule_of_run(config: Mapping[str, Any], data: DataConfig) -> str:
    """Return how the parts of a run's own images were drawn; of any others, what ``data`` says.

    Args:
        config: The values of the run's configuration.
        data: Settings of the images that it is evaluated on.
    """
    saved = _settings(config, data)
    return saved.membership if saved is not None and _folders(data) == _folders(saved) else data.membership


def leave_out_trained(
    splits: Splits, data: DataConfig, run: Path, config: Mapping[str, Any], digest: str | None
) -> tuple[Splits, dict[str, Any]]:
    """Take the images that a run was trained on out of the test and hold-out images that it is evaluated on.

    What is found to differ is said in a warning. Data that has nothing to do with the run's is returned as it is.

    Args:
        splits: The parts that it is evaluated on.
        data: Their settings.
        run: The run's folder.
        config: The values of the run's configuration.
        digest: That of the membership it had, as its checkpoint says; None where an earlier version wrote that.

    Returns:
        The parts, and what every record must say of them.
    """
    now = splits.membership
    saved = _settings(config, data)
    if now is None or saved is None or (now.keyless and _differ(data, saved, BESIDE | DRAWS)):
        return splits, {}
    before = read_membership(run)
    if before is None:
        before = _drawn_again(now, data, saved, run, digest)
    if before is None:
        return splits, _unknown() if _folders(data) == _folders(saved) and not now.keyless else {}
    if now.keyless and len(now.keys) != len(before.keys):  # a dataset from Python that is another one
        return splits, {}
    trained = before.of(TRAINED)
    there = torch.isin(trained, now.keys)
    same_place = list(before.roots) == list(now.roots)
    if not same_place and 2 * int(there.sum()) < len(trained):  # a copy in another place holds most of them
        inside = [(a, b) for a in now.roots for b in before.roots if _one_in_the_other(a, b)]
        if inside:
            return splits, _unknown("data.root is {}, but the run was trained on images in {}".format(*inside[0]))
        return splits, {}
    test = torch.isin(now.of(TEST), trained)
    held = torch.isin(now.of(HOLDOUT), trained)
    left = {"test": int(test.sum()), "holdout": int(held.sum())}
    if any(left.values()) or (same_place and (not there.all() or _new(before, now))):
        said = [f"{left['test']:,} of the {len(test):,} test images were trained on"]
        if left["holdout"]:
            said.append(f"{left['holdout']:,} of the {len(held):,} hold-out images were trained on")
        out = "; these are left out" if any(left.values()) else ""
        warnings.warn(f"data.root: {'; '.join([_gone_and_new(before, now), *said])}{out}.", stacklevel=2)
    facts: dict[str, Any] = {} if before.whole else _unknown()
    if left["holdout"] == len(splits.holdout) and torch.isin(now.of(TRAIN), trained).any():
        facts["choices_on"] = SEEN
    if not any(left.values()):
        return splits, facts
    kept = None if splits.test is None or test.all() else splits.test.subset((~test).nonzero().flatten())
    holdout = splits.holdout.subset((~held).nonzero().flatten())
    return dataclasses.replace(splits, test=kept, holdout=holdout), facts | {"left_out_as_trained": left}


def _drawn_again(
    now: Membership, data: DataConfig, saved: DataConfig, run: Path, digest: str | None
) -> Membership | None:
    """Return the membership of a run that kept none, as its settings draw it today; None where it was another."""
    drawn: Membership | None = now
    if _differ(data, saved, BESIDE):
        try:
            drawn = load_splits(dataclasses.replace(saved, root=data.root)).membership
        except UserError:  # the images are not there
            return None
    assert drawn is not None
    if digest is not None:
        return drawn if drawn.digest == digest else None
    count = _images_trained_on(run)
    if count is None:
        return drawn if drawn.keyless else None
    return drawn if count == len(drawn.of(PRETRAIN)) else None


def _images_trained_on(run: Path) -> int | None:
    if not (run / FILE).exists():
        return None
    found = [record for record in read_results(run) if record["protocol"] == "training"]
    return int(found[-1]["images"]) if found and "images" in found[-1] else None


def _unknown(why: str = NOT_RECORDED) -> dict[str, Any]:
    warnings.warn(
        f"{why}, so some of the test images may have been trained on; evaluate it on a folder of other images "
        "(data=…) where the number matters.",
        stacklevel=3,
    )
    return {"trained_on": "unknown"}


def _kept_back(before: Membership) -> torch.Tensor:
    """Return the keys of hold-out and test images that have never been trained on."""
    return before.keys[((before.parts & (HOLDOUT | TEST)) > 0) & ((before.parts & TRAINED) == 0)]


def _new(before: Membership, now: Membership) -> int:
    return int((~torch.isin(now.keys, before.keys)).sum())


def _gone_and_new(before: Membership, now: Membership) -> str:
    trained = before.of(TRAINED)
    gone = int((~torch.isin(trained, now.keys)).sum())
    new = _new(before, now)
    return f"{gone:,} of the {len(trained):,} images this run was trained on are gone, {new:,} images are new"


def _settings(config: Mapping[str, Any], data: DataConfig) -> DataConfig | None:
    """Return the settings of a run's data, where that is the same source; its method need not be known here."""
    if config["data"]["name"] != data.name:
        return None
    found: DataConfig = from_values({"data": config["data"], "checkpoint": "run"}, kind="evaluate").data
    return found


def _differ(data: DataConfig, saved: DataConfig, apart_from: frozenset[str]) -> bool:
    return any(getattr(data, key) != value for key, value in vars(saved).items() if key not in apart_from)


def _folders(data: DataConfig) -> list[Path]:
    return [folder.resolve() for folder in roots(data)]


def _one_in_the_other(one: str, other: str) -> bool:
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)
