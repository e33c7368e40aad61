"""Run every protocol on a checkpoint: kNN, linear probe, segmentation where there are masks, diagnostics, figures.

  selfsup evaluate RUN [--only PROTOCOL,PROTOCOL] [key=value …]

RUN is a run folder, a .ckpt file, timm:NAME, a file of weights with backbone=NAME, module:FILE.py:NAME, or one of the
two baselines: raw_pixels, untrained. It may also be written checkpoint=RUN.

Left out unless --only names them, as they take longest: logistic, fine_tune.
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser, add_only, chosen_protocols, run_protocols


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION
    add_only(
        parser,
        "run these protocols alone; selfsup protocols lists them. What cannot run is named, the rest goes on, and the "
        "exit code is 2.",
    )


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    return run_protocols(arguments, chosen_protocols(arguments))
