"""Compare what networks make of the same images: linear CKA, 1 for features equal up to rotation and scale.

  selfsup cka RUN RUN … [--layers] [--out DIR] [key=value …]

A RUN is whatever `selfsup evaluate` takes; the images are the first one's training images, unless data= says
otherwise.
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION
    parser.add_argument(
        "--layers", action="store_true", help="compare every stage of every network, not the pooled features alone"
    )
    parser.add_argument(
        "--out", metavar="DIR", default="runs/cka", help="folder for cka.csv and cka.png (default: runs/cka)"
    )


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    from selfsup.evaluation import compare_networks
    from selfsup.outputs import check_output
    from selfsup.report import save_cka

    check_output(arguments.out, "--out")
    table = compare_networks(arguments.words, arguments.settings, layers=arguments.layers)
    save_cka(table, arguments.out)
    print(table)
    print(f"\nlinear CKA, {table.images} images; saved: {arguments.out}/cka.csv, .png")
    return 0
