"""List the methods, their objectives and negatives; with a name, show its idea, its settings and what it goes with.

selfsup methods [NAME]
"""

import difflib
from argparse import Namespace

from selfsup.commands import Parser, explain_choices
from selfsup.registry import find, fits
from selfsup.settings.catalog import choices, listed, other_names, summaries

#: What a contrastive method can be given beside its settings.
GIVEN = ("objective", "negatives")


def add_arguments(parser: Parser) -> None:
    """Declare the words that may follow; there are no options of its own."""
    parser.names = lambda: {name for group in ("method", *GIVEN) for name in summaries(group)} - {"none"}


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    group = _group_of(*arguments.words[:1])
    name = explain_choices(group, arguments)
    if name is None:
        _list_given()
        return 0
    over = listed(group)[name].over if name in listed(group) else ()
    if group in GIVEN:
        print(f"\nGoes with {', '.join(f'method={method}' for method in _methods_of(over)) or 'every method'}.")
    for given in GIVEN if group == "method" else ():
        if fitting := [other for other, entry in listed(given).items() if fits(over, entry.over)]:
            print(f"\nTakes {given}={', '.join(fitting)}; each NAME is explained by selfsup methods NAME.")
    presets = [preset for preset in sorted(choices("experiment")) if preset.endswith(f"/{name}")]
    if presets:
        print("\nPresets:")
    for preset in presets:
        print(f"  selfsup train experiment={preset}")
    return 0


def _group_of(word: str = "") -> str:
    """Return what a word names, or nearly names: a method before anything else that is called so."""
    groups = {name: group for group in (*reversed(GIVEN), "method") for name in summaries(group)}
    for group in ("method", *GIVEN):
        if find(word, summaries(group), other_names(group)) in summaries(group):
            return group
    return next((groups[name] for name in difflib.get_close_matches(word, groups, n=1, cutoff=0.5)), "method")


def _list_given() -> None:
    for group in GIVEN:
        print(f"\n{group}=NAME, with the methods that take it:\n")
        for name, entry in listed(group).items():
            if entry.over:
                print(f"{name:22s} {entry.summary} ({', '.join(_methods_of(entry.over))})")


def _methods_of(over: tuple[str, ...]) -> list[str]:
    return [name for name, entry in listed("method").items() if fits(entry.over, over)]
