"""Linear probe of a checkpoint.

  selfsup probe RUN [eval.probe_epochs=100] [key=value …]

eval.seeds=5 tells mean and deviation, eval.label_fraction=0.01 trains on 1 % of the labels, and
eval.probe_features=[pooled,last_4] chooses among features. eval.probe_protocol=moco (simclr, dino, …) runs a
paper's protocol, with augmented images, in place of the grid.
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser, run_protocols


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    return run_protocols(arguments, ("linear_probe",))
