"""List the protocols that evaluations run; with a name, tell what it measures and its settings.

selfsup protocols [NAME]
"""

from argparse import Namespace

from selfsup.commands import Parser, explain_choices


def add_arguments(parser: Parser) -> None:
    """Declare the options: there are none of its own."""


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    explain_choices("protocol", arguments)
    return 0
