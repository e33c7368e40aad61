"""kNN accuracy of a checkpoint.

selfsup knn RUN [eval.knn.k=[5,20]] [eval.knn.temperatures=[0.07,0.1]] [key=value …]
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser, run_protocol


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    return run_protocol(arguments, "knn")
