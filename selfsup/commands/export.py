"""Write the backbone of a run for other programs; the file is read back and its features compared.

selfsup export RUN --format FORMAT --out PATH
"""

import textwrap
from argparse import Namespace

from selfsup.commands import Parser, refuse_settings
from selfsup.errors import UserError
from selfsup.settings.catalog import listed
from selfsup.settings.checkpoints import check_named


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    formats = (f"  {name:14s} {entry.summary}" for name, entry in listed("format").items())
    parser.epilog = "\n".join(["formats:", *formats])
    parser.add_argument("--format", metavar="NAME", help="one of the formats below")
    parser.add_argument("--out", metavar="PATH", help="file, or folder for safetensors, that does not exist yet")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    refuse_settings(arguments)
    if len(arguments.words) != 1 or arguments.format is None or arguments.out is None:
        raise UserError("Write: selfsup export RUN --format FORMAT --out PATH; --help lists the formats.")
    check_named(arguments.words[0], has_data=True)
    from selfsup.exporting import export

    path, code = export(arguments.words[0], arguments.format, arguments.out)
    print(f"saved: {path}; read back, it gives the same features. To use it:\n")
    print(textwrap.indent(code, "    "))
    return 0
