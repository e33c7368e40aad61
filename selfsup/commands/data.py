"""List the sources of images; with a name, show what it reads and its settings.

selfsup data [NAME]
"""

from argparse import Namespace

from selfsup.commands import Parser, explain_choices
from selfsup.settings.catalog import summaries


def add_arguments(parser: Parser) -> None:
    """Declare the words that may follow; there are no options of its own."""
    parser.names = lambda: summaries("data")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    explain_choices("data", arguments)
    return 0
