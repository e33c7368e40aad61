"""Evaluate a network on several datasets and print one table.

  selfsup transfer RUN data=NAME,NAME [--only PROTOCOL,PROTOCOL] [key=value …]

Each dataset gives its own training part to the probes. The tables go to transfer/ in the checkpoint's run, the
records and figures of a dataset to a folder of its name there.
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser, add_only, checkpoint_settings, chosen_protocols


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION
    add_only(parser, "run these protocols (default: knn,linear_probe)")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    protocols = chosen_protocols(arguments)
    settings = checkpoint_settings(arguments)
    from selfsup.transfer import PROTOCOLS, transfer

    table = transfer(settings, protocols or PROTOCOLS)
    print(table)
    print(f"\nsaved: {table.folder}/transfer.md, .csv")
    return 0
