"""The commands: one file each, found by walking this folder. Here is what they share.

The docstring of a command's file is its help, and the first line of it stands in ``selfsup --help``.
``add_arguments(parser)`` declares its options, and ``run(arguments)`` does the work and returns the exit code; it
imports what takes long to import. Settings (``key=value``) come as ``arguments.settings``, other words, such as a run
folder, as ``arguments.words``. Every command has ``--help`` and ``--import``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from selfsup.errors import UserError

#: Groups whose choices the help of commands that train, and of commands that evaluate, lists.
TRAINING = ("experiment", "method", "data", "backbone", "augment", "optimizer", "trainer")
EVALUATION = ("data", "backbone")

#: What is a setting and not a path: ``runs/lr=0.1`` is one that holds an equals sign.
_SETTING = re.compile(r"[+~]*(hydra/)?[A-Za-z_][\w.@-]*=")


class Parser(argparse.ArgumentParser):
    """The arguments of a command, its options before, between or after the others.

    Attributes:
        groups: The groups of the configuration whose choices its help lists.
    """

    groups: tuple[str, ...] = ()

    def __init__(self, command: ModuleType) -> None:
        super().__init__(
            description=command.__doc__,
            usage=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        self.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        command.add_arguments(self)
        self.add_argument(
            "--import",
            action="append",
            default=[],
            dest="own_files",
            metavar="FILE",
            help="execute a Python file of your own first, such as one that registers a method",
        )
        self.add_argument("-h", "--help", action="store_true", help="show this")

    def error(self, message: str) -> NoReturn:
        """Raise what argparse complains about as a sentence.

        Raises:
            UserError: Always.
        """
        found = re.fullmatch(r"argument (?:-\w/)?(\S+): expected .*argument.*", message)
        raise UserError(f"{found.group(1)} needs a value." if found else f"{message[:1].upper()}{message[1:]}.")


def run(command: ModuleType, given: Sequence[str]) -> int:
    """Run a command with the words that follow its name, and return its exit code.

    Raises:
        UserError: An option that it does not have, or a mistake that the command finds.
    """
    parser = Parser(command)
    arguments, unknown = parser.parse_known_intermixed_args(list(given))
    if unknown:
        raise UserError(f"There is no option '{unknown[0]}' here; settings are written key=value, see --help.")
    if arguments.help or arguments.words[:1] == ["help"]:
        print(parser.format_help().strip())
        _print_choices(parser.groups)
        return 0
    if arguments.own_files:
        from selfsup.imports import execute

        execute(arguments.own_files)
    arguments.settings = [word for word in arguments.words if _SETTING.match(word)]
    arguments.words = [word for word in arguments.words if not _SETTING.match(word)]
    result: int = command.run(arguments)
    return result


def refuse_settings(arguments: argparse.Namespace) -> None:
    """Refuse settings, where a command takes none.

    Raises:
        UserError: There is one.
    """
    for setting in arguments.settings:
        raise UserError(f"'{setting}': this command takes no settings, see --help.")


def training_settings(arguments: argparse.Namespace) -> list[str]:
    """Return the settings of a training, which may name a folder of images alone: ``selfsup train FOLDER``.

    Raises:
        UserError: A word that names no folder, or a run.
    """
    settings: list[str] = arguments.settings
    if not arguments.words:
        return settings
    first, *more = arguments.words
    folder = Path(first).expanduser()
    if more or not folder.is_dir():
        raise UserError(f"'{(more or [first])[0]}' is no folder of images and not a setting; write key=value.")
    if (folder / "checkpoints").is_dir() or (folder / "config.yaml").is_file():
        raise UserError(f"'{first}' is a run; go on with it by resume={first}, or evaluate it.")
    if any(setting.startswith("data.root=") for setting in settings):
        raise UserError(f"data.root= and '{first}' both name the images; give one of them.")
    given = [] if any(setting.startswith("data=") for setting in settings) else ["data=image_folder"]
    given.append(f"data.root={folder}")
    print(f"training on the images of {folder}: {' '.join(given)}", flush=True)
    return given + settings


def checkpoint_settings(arguments: argparse.Namespace) -> list[str]:
    """Return the settings of an evaluation, whose checkpoint may stand alone: ``selfsup knn RUN``.

    Raises:
        UserError: More than one checkpoint.
    """
    named = [f"checkpoint={word}" for word in arguments.words]
    named += [setting for setting in arguments.settings if setting.startswith("checkpoint=")]
    if len(named) > 1:
        raise UserError(
            f"One checkpoint at a time, not {' and '.join(n.partition('=')[2] for n in named)}; see --help."
        )
    return named + [setting for setting in arguments.settings if not setting.startswith("checkpoint=")]


def add_only(parser: Parser, text: str) -> None:
    """Add ``--only NAMES``, the protocols to run, explained by ``text``."""
    parser.add_argument("--only", metavar="NAMES", help=text)


def chosen_protocols(arguments: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the protocols that ``--only`` names, or None without it.

    Raises:
        UserError: There is no such protocol.
    """
    if arguments.only is None:
        return None
    from selfsup.eval import PROTOCOLS
    from selfsup.registry import nearest

    names = tuple(arguments.only.split(","))
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(f"--only: there is no protocol '{name}'.{nearest(name, PROTOCOLS)}")
    return names


def run_protocols(arguments: argparse.Namespace, protocols: tuple[str, ...] | None) -> int:
    """Run protocols on a checkpoint, print what they find, and return the exit code."""
    settings = checkpoint_settings(arguments)
    from selfsup.evaluation import evaluate

    records = evaluate(settings, protocols)
    for record in records:
        print(_line(record))
    # what was asked for by name and could not run has been told, and a script has to know
    return 2 if set(protocols or ()) - {record["protocol"] for record in records} else 0


def _line(record: dict[str, Any]) -> str:
    approximate = ("index", "recall") if record.get("index", "flat") != "flat" else ()
    told = ("layer", "operation", "k", "temperature", *approximate, "ways", "shots", "classifier", "probe_protocol")
    told += ("labelled_images", "selected_on") if record.get("label_fraction", 1) < 1 else ("selected_on",)
    details = ", ".join(f"{key}={record[key]}" for key in told if key in record)
    fraction = record["metric"] in ("top1", "miou")
    value = f"{100 * record['value']:.2f} %" if fraction else f"{record['value']:.4g}"
    spread = record.get("std", record.get("interval"))
    value += f" ± {100 * spread:.2f}" if fraction and isinstance(spread, float) else ""
    what = record["protocol"] if fraction else record["metric"]
    return f"{what:14s} {value:>9s}  on {record['split']}{f' ({details})' if details else ''}"


def _print_choices(groups: Sequence[str]) -> None:
    if not groups:
        return
    from selfsup.catalog import choices

    print("\nChoices (group=name):")
    width = max(60, shutil.get_terminal_size().columns)
    for group in groups:
        names = ", ".join(sorted(choices(group)))
        print(textwrap.fill(f"{group:10s} {names}", width, initial_indent="  ", subsequent_indent=" " * 13))
