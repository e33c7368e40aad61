"""List the protocols that evaluations run; with a name, show what it measures and its settings.

selfsup protocols [NAME]
"""

from argparse import Namespace

from selfsup.commands import Parser, explain_choices
from selfsup.settings.catalog import summaries


def add_arguments(parser: Parser) -> None:
    """Declare the words that may follow; there are no options of its own."""
    parser.names = lambda: summaries("protocol")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    explain_choices("protocol", arguments)
    return 0
