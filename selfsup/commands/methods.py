"""List the methods; with a name, show its idea and its settings.

selfsup methods [NAME]
"""

from argparse import Namespace

from selfsup.commands import Parser, explain_choices
from selfsup.settings.catalog import choices, summaries


def add_arguments(parser: Parser) -> None:
    """Declare the words that may follow; there are no options of its own."""
    parser.names = lambda: summaries("method")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    name = explain_choices("method", arguments)
    presets = [preset for preset in sorted(choices("experiment")) if preset.endswith(f"/{name}")]
    if presets:
        print("\nPresets:")
    for preset in presets:
        print(f"  selfsup train experiment={preset}")
    return 0
