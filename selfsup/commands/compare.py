"""Put runs side by side: print a table, and with --out save it with a chart and a page of all that was measured.

  selfsup compare RUN RUN …             the table, at once
  selfsup compare RUN RUN … --out DIR   the same, and DIR/comparison.html, .md, .csv, .png

The page opens in a browser, from disk. A folder of runs, such as a sweep's, stands for all runs in it. Runs that differ
in the seed alone are also averaged.
"""

import sys
from argparse import Namespace

from selfsup.commands import Parser, refuse_settings


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for comparison.html, .md, .csv and .png; those of an earlier comparison there are replaced",
    )


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    refuse_settings(arguments)
    from selfsup.report import read_table, save_comparison, seeds_table
    from selfsup.wording import command

    table = read_table(arguments.words)
    print(table)
    if means := seeds_table(table):
        print(f"\n{means}")
    if arguments.out is None:
        print(f"\nnext, a page with curves and charts: {command('compare', *arguments.words, '--out', 'comparison')}")
        return 0
    sys.stdout.flush()  # before the charts, which take longer
    save_comparison(table, arguments.out)
    chart = ", .png" if table.has_accuracies else ""
    print(f"\nsaved: {arguments.out}/comparison.html, which opens in a browser, and .md, .csv{chart}")
    return 0
