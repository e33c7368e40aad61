"""Look through images for near-duplicates and probable label errors; write a table and a contact sheet.

  selfsup neighbours RUN [data=image_folder data.root=DIR] [key=value …]

All images of the data are looked at, training and test together; without data= they are those of the run.
Two images are near-duplicates when they are ten times nearer than neighbours usually are, or have a cosine similarity
of eval.duplicate_similarity or more where that is set. A label is probably wrong when most of the votes of the nearest
images (eval.knn.k, the first) are against it, and another has as many as its own images usually give it.
The findings go to neighbours/ in run_dir: by default the checkpoint's run, or runs/ where it has none.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from selfsup.commands import EVALUATION, Parser, checkpoint_settings
from selfsup.errors import UserError
from selfsup.wording import counted
from selfsup.writing import check_output

if TYPE_CHECKING:
    from selfsup.config import EvaluateConfig
    from selfsup.eval import Audit


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    found, table, sheet = find_neighbours(checkpoint_settings(arguments))
    images = len({row for pair in found.duplicates for row in (pair.first, pair.second)})
    pairs = f"{counted(len(found.duplicates), 'pair')} of {counted(images, 'image')}"
    print(f"near-duplicates        {pairs}, cosine similarity {found.duplicate_similarity:.4f} or more")
    print(f"probable label errors  {len(found.label_errors)}")
    if found.doubt:
        print(f"note: {found.doubt}")
    print(f"\nsaved: {table}, {sheet}")
    return 0


def find_neighbours(what: EvaluateConfig | Sequence[str], progress: bool = True) -> tuple[Audit, Path, Path]:
    """Look for near-duplicates and probable label errors over all parts of a source, the test images included.

    ``neighbours.csv`` and ``contact_sheet.png`` go to the folder ``neighbours`` of ``run_dir``, of the checkpoint's own
    run, or of ``runs`` where there is neither.

    Args:
        what: Whose features, of which images, as for ``selfsup.evaluate``; of ``eval`` the first of ``knn.k`` and of
            ``knn.temperatures``, ``duplicate_similarity`` and how neighbours are searched.
        progress: Show progress bars.

    Returns:
        What was found, the table and the contact sheet.

    Raises:
        UserError: As ``selfsup.evaluate`` and ``selfsup.eval.audit``.
    """
    from selfsup.data import load_splits
    from selfsup.engine.evaluation import announce, build_encoder, images_of, opened_evaluation
    from selfsup.eval import audit_dataset, extract_splits
    from selfsup.report import contact_sheet, save

    config, opened = opened_evaluation(what)
    settings, votes = config.eval, config.eval.of("knn")
    if not votes.k or not votes.temperatures:
        raise UserError("eval.knn.k and eval.knn.temperatures: give at least one of each; neighbours takes the first.")
    folder = Path(config.run_dir or opened.run or "runs").expanduser() / "neighbours"
    check_output(folder, "run_dir")
    if progress:
        announce(opened, images_of(config))
    # Read from their files, which the findings name; images in memory have forgotten them
    splits = load_splits(replace(config.data, resident_limit_mb=0))
    encoder = replace(build_encoder(config, opened.network, progress), precision="32")
    found = extract_splits(encoder, splits, folder / "features" if settings.cache else None)
    parts = ((found.train, splits.train), (found.holdout, splits.holdout), (found.test, splits.test))
    audit, pictures, table = audit_dataset(
        [(features, images) for features, images in parts if features is not None and images is not None],
        folder,
        k=votes.k[0],
        temperature=votes.temperatures[0],
        duplicate_similarity=settings.duplicate_similarity,
        index=settings.index,
        effort=settings.index_effort,
        memory_mb=settings.search_memory_mb,
        progress=progress,
    )
    return audit, table, save(contact_sheet(audit, pictures), folder / "contact_sheet.png")
