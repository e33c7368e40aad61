"""Choose the part of a folder of images that stands best for all of them, as a list that training takes.

  selfsup select RUN [data=image_folder data.root=DIR] --share 0.2 --out list.txt [--clusters N] [key=value …]

The features of RUN (any checkpoint) put the training images into clusters, and in each those are chosen that most
others are like (SAS). Without data= the images are those of the run. Images of the hold-out and the test stay in the
list, so that results can be compared: selfsup train data=image_folder data.root=DIR data.files=list.txt …
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from selfsup.commands import EVALUATION, Parser, checkpoint_settings
from selfsup.errors import UserError
from selfsup.wording import command, counted
from selfsup.writing import check_output, replacing

if TYPE_CHECKING:
    from selfsup.config import EvaluateConfig


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION
    parser.add_argument("--share", metavar="SHARE", help="of the training images that are kept, such as 0.2")
    parser.add_argument("--clusters", metavar="N", help="about as many as there are kinds of images; 10 by default")
    parser.add_argument("--out", metavar="FILE", help="the list, a path a line; it does not exist yet")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    if arguments.share is None or arguments.out is None:
        raise UserError("Write: selfsup select RUN --share 0.2 --out list.txt.")
    share, clusters = _number(arguments.share, "--share"), _number(arguments.clusters or "10", "--clusters")
    kept, of, root = select(checkpoint_settings(arguments), arguments.out, share, int(clusters))
    print(f"saved: {arguments.out}, with {kept:,} of {counted(of, 'training image')} and all others")
    print(f"next: {command('train', 'data=image_folder', f'data.root={root}', f'data.files={arguments.out}')}")
    return 0


def select(
    what: EvaluateConfig | Sequence[str], out: str | Path, share: float, clusters: int = 10, progress: bool = True
) -> tuple[int, int, Path]:
    """Write the list of the chosen training images of a source of files, and of all its other images.

    Args:
        what: Whose features, of which images, as for ``selfsup.evaluate``; ``seed`` is that of k-means.
        out: The list, with paths relative to the folder of the images.
        share: Of the training images.
        clusters: See ``selfsup.eval.select_images``.
        progress: Show progress bars.

    Returns:
        How many training images were chosen, of how many, and the folder that the paths are relative to.

    Raises:
        UserError: The images are no files, the list exists, or as ``selfsup.eval.select_images``.
    """
    from selfsup.data import load_splits
    from selfsup.data.files import FileDataset
    from selfsup.engine.evaluation import announce, build_encoder, images_of, opened_evaluation
    from selfsup.eval import select_images
    from selfsup.eval.features import positions_of

    path = Path(out).expanduser()
    if path.exists():
        raise UserError(f"--out: {path} exists and is not overwritten; choose another name.")
    check_output(path.parent, "--out")
    config, opened = opened_evaluation(what)
    splits = load_splits(replace(config.data, resident_limit_mb=0))
    train = splits.train
    if not isinstance(train, FileDataset):
        raise UserError(
            f"data={config.data.name} holds no files of images, which a list could name; choose other data."
        )
    if progress:
        announce(opened, images_of(config))
    encoder = replace(build_encoder(config, opened.network, progress), precision="32")
    features = encoder.features(train)
    chosen = positions_of(
        train, features.index[select_images(features.features, share, clusters, config.seed, progress)]
    )
    listed = [train.path(position) for position in chosen.tolist()]
    for part in (splits.holdout, splits.test):
        if isinstance(part, FileDataset):
            listed += [part.path(position) for position in range(len(part))]
    names = [file.relative_to(train.root).as_posix() for file in listed]
    if odd := next((name for name in names if name.splitlines() != [name.strip()]), None):
        raise UserError(f"{odd!r} cannot stand in a list of one path a line; rename it.")
    with replacing(path) as draft:
        draft.write_text("".join(f"{name}\n" for name in names), "utf-8")
    return len(chosen), len(features), train.root


def _number(text: str, option: str) -> float:
    try:
        return float(text) if option == "--share" else int(text)
    except ValueError as error:
        raise UserError(f"{option}={text} is no {'' if option == '--share' else 'whole '}number.") from error
