"""List the methods; with a name, tell its idea and its settings.

selfsup methods [NAME]
"""

import sys
import textwrap
from argparse import Namespace

from selfsup.commands import Parser, refuse_settings
from selfsup.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Declare the options: there are none of its own."""


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    refuse_settings(arguments)
    if len(arguments.words) > 1:
        raise UserError("One name at a time: selfsup methods NAME.")
    if arguments.words:
        _explain(arguments.words[0])
        return 0
    from selfsup.catalog import summaries

    for name, summary in sorted(summaries("method").items()):
        print(f"{name:14s} {summary}")
    print("\nselfsup methods NAME tells the settings; selfsup train method=NAME trains it.")
    return 0


def _explain(name: str) -> None:
    import selfsup.methods  # noqa: F401 - fills the registry
    from selfsup.catalog import choices
    from selfsup.registry import methods

    entry = methods[name]
    module = sys.modules[entry.target.__module__]
    print(textwrap.dedent(module.__doc__ or "").strip(), "\n")
    print(textwrap.dedent(entry.config.__doc__ or "").strip())
    print("\nDefaults:")
    for key, value in vars(entry.config()).items():
        print(f"  method.{key}={value}")
    presets = [preset for preset in sorted(choices("experiment")) if preset.endswith(f"/{entry.name}")]
    if presets:
        print("\nPresets:")
    for preset in presets:
        print(f"  selfsup train experiment={preset}")
