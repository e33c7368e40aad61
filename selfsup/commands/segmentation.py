"""Linear segmentation probe of a checkpoint: mean IoU on data with masks.

selfsup segmentation RUN [eval.segmentation.images=2000] [key=value …]
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser, run_protocol


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    return run_protocol(arguments, "segmentation")
