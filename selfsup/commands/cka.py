"""Compare what networks make of the same images: linear CKA, 1 for features equal up to rotation and scale.

  selfsup cka RUN RUN … [--layers] [--align] [--out DIR] [key=value …]

A RUN is whatever `selfsup evaluate` takes; the images are the first one's training images, unless data= says
otherwise. --align also rotates the features of each network onto those of each other, fitted in closed form on
training images, and says how often a test image finds itself.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from selfsup.commands import EVALUATION, Parser
from selfsup.errors import UserError
from selfsup.settings.checkpoints import check_words
from selfsup.settings.early import refuse_mistakes
from selfsup.writing import check_output

if TYPE_CHECKING:
    from selfsup.data import Splits
    from selfsup.eval import CkaTable, Encoder


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION
    parser.add_argument(
        "--layers", action="store_true", help="compare every stage of every network, not the pooled features alone"
    )
    parser.add_argument(
        "--align", action="store_true", help="rotate each network's features onto each other's, and judge the rotation"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="runs/cka",
        help="folder for cka.csv, align.csv and pictures (default: runs/cka)",
    )


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    if not arguments.own_files:
        refuse_mistakes(arguments.settings, "evaluate")
    check_output(arguments.out, "--out")
    _check_names(arguments.words)
    check_words([f"checkpoint={arguments.words[0]}", *arguments.settings])
    from selfsup.eval import cka
    from selfsup.eval.feature_alignment import align
    from selfsup.report import save_aligned, save_cka

    networks, splits = open_networks(arguments.words, arguments.settings)
    table = cka(networks, splits.train, layers=arguments.layers)
    save_cka(table, arguments.out)
    print(table)
    print(f"\nlinear CKA, {table.images} images; saved: {arguments.out}/cka.csv, .png")
    if arguments.align:
        found = align(networks, splits)
        save_aligned(found, arguments.out)
        for one in found:
            print(
                f"{one.source} -> {one.target}: cosine {one.cosine:.3f} (other images {one.other:.3f}), "
                f"{100 * one.matched:.1f} % find themselves among {one.images}"
            )
        print(f"\nrotations fitted on {found[0].fitted_on} images; saved: {arguments.out}/align.csv, .png")
    return 0


def _check_names(runs: Sequence[str]) -> None:
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise UserError("cka: name at least two runs, each once.")


def compare_networks(
    runs: Sequence[str], overrides: Sequence[str] = (), *, layers: bool = False, progress: bool = True
) -> CkaTable:
    """Return the linear CKA of networks on the same images, the first one's training images.

    Args:
        runs: What ``checkpoint`` takes, at least two; raw pixels are no network. ``untrained`` has the architecture of
            the first.
        overrides: Settings of the evaluation, such as ``data=…``, which networks from elsewhere need.
        layers: Compare every stage of every network.
        progress: Show progress bars.

    Raises:
        UserError: As ``selfsup.load_evaluate_config`` and ``selfsup.eval.cka``, or a run is named twice.
    """
    from selfsup.eval import cka

    networks, splits = open_networks(runs, overrides, progress=progress)
    return cka(networks, splits.train, layers=layers)


def open_networks(
    runs: Sequence[str], overrides: Sequence[str] = (), *, progress: bool = True
) -> tuple[dict[str, Encoder], Splits]:
    """Return networks by name, ready to run, and the images of the first one; see :func:`compare_networks`."""
    from selfsup.data import load_splits
    from selfsup.engine.evaluation import announce, build_encoder, check_network, open_evaluation, open_for

    _check_names(runs)
    config, opened = open_evaluation([f"checkpoint={runs[0]}", *overrides])
    splits = load_splits(config.data)
    images = splits.train
    networks: dict[str, Encoder] = {}
    for run in runs:
        if run != runs[0]:
            opened = open_for(replace(config, checkpoint=run), images.facts)
            if any(override.startswith(("data.mean=", "data.std=")) for override in overrides):
                opened.normalize(config.data.mean, config.data.std)
            check_network(opened, images.facts)
        if opened.network is None:
            raise UserError(f"cka: {run} is not a network; name runs, checkpoints or networks.")
        networks[run] = build_encoder(config, opened.network, progress)
        if progress:
            announce(opened, images.facts)
    return networks, splits
