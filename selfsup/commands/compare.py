"""Put runs side by side: print a table, save it with a chart and a page of all that was measured.

selfsup compare RUN RUN … [--out DIR]

A folder of runs, such as a sweep's, stands for all runs in it. Runs that differ in the seed alone are also averaged.
"""

import sys
from argparse import Namespace

from selfsup.commands import Parser, refuse_settings


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="runs/comparison",
        help="folder for comparison.md, .csv, .png and .html (default: runs/comparison); the last opens in a browser",
    )


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    refuse_settings(arguments)
    from selfsup.report import read_table, save_comparison, seeds_table

    table = read_table(arguments.words)
    print(table)
    if means := seeds_table(table):
        print(f"\n{means}")
    sys.stdout.flush()  # before the charts, which take longer
    save_comparison(table, arguments.out)
    print(f"\nsaved: {arguments.out}/comparison.md, .csv, .html, and .png where there are accuracies")
    return 0
