"""Write a page of one run: its numbers with their protocols, curves, pictures; one file that opens from disk.

  selfsup report RUN [--out FILE]

Several runs side by side are: selfsup compare RUN RUN …
"""

from argparse import Namespace

from selfsup.commands import Parser, refuse_settings
from selfsup.errors import UserError
from selfsup.wording import command


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("--out", metavar="FILE", help="the page (default: report.html in the run's folder)")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    refuse_settings(arguments)
    if len(arguments.words) != 1:
        several = f"; several are compared by {command('compare', *arguments.words)}" if arguments.words else ""
        raise UserError(f"Name one run folder{several}.")
    from selfsup.report import report

    print(f"saved: {report(arguments.words[0], arguments.out)}")
    return 0
