"""Linear probe of a checkpoint.

  selfsup probe RUN [eval.linear_probe.epochs=100] [key=value …]

eval.seeds=5 gives mean and deviation, eval.label_fraction=0.01 trains on 1 % of the labels, and
eval.linear_probe.features=[pooled,last_4] chooses among features. eval.linear_probe.paper=moco (simclr, dino, …)
runs a paper's probe, with augmented images, in place of the grid.
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser, run_protocol


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    return run_protocol(arguments, "linear_probe")
