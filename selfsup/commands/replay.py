"""Take the step again at which a run's numbers stopped being finite, and name the first place.

  selfsup replay RUN_OR_FILE

It reads the not_finite.pt that the run has left, alone: no data and no GPU. The step is taken on the CPU, with the same
weights, images and views, in the run's precision and without trainer.compile. It shows the parts of the step in their
order up to the first that is not finite, each with its largest number. Exit code 1: not finite again; 0: all is finite
here; 2: there is no such file.
"""

from argparse import Namespace

from selfsup.commands import Parser, refuse_settings
from selfsup.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Declare the options: there are none."""


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    refuse_settings(arguments)
    if len(arguments.words) != 1:
        raise UserError("Name one run folder, or the not_finite.pt of one; see --help.")
    from selfsup.engine.replaying import replay

    found = replay(arguments.words[0])
    print(found)
    return 1 if found.trace.place is not None else 0
