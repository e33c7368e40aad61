"""The commands: one file each, found by walking this folder. Here is what they share.

The docstring of a command's file is its help, and the first line of it stands in ``selfsup --help``.
``add_arguments(parser)`` declares its options, and ``run(arguments)`` does the work and returns the exit code; it
imports what takes long to import. Settings (``key=value``) come as ``arguments.settings``, other words, such as a run
folder, as ``arguments.words``. Every command has ``--help`` and ``--import``.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import json
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from selfsup import shortage
from selfsup.errors import UserError
from selfsup.eval.registry import PROTOCOLS
from selfsup.registry import REGISTRIES, find, nearest
from selfsup.settings.catalog import GROUPS, choices, listed, other_names, summaries
from selfsup.settings.checkpoints import check_words
from selfsup.settings.early import known, refuse_mistakes
from selfsup.settings.excerpts import excerpt
from selfsup.settings.meanings import meant_by, no_setting
from selfsup.wording import command as command_text
from selfsup.wording import word

#: Groups whose choices the help of commands that train, and of commands that evaluate, lists.
TRAINING, EVALUATION = GROUPS["train"], GROUPS["evaluate"]

#: What is a setting and not a path: ``runs/lr=0.1`` is one that holds an equals sign.
_SETTING = re.compile(r"[+~]*(hydra/)?[A-Za-z_][\w.@-]*=")


class Parser(argparse.ArgumentParser):
    """The arguments of a command, its options before, between or after the others.

    Attributes:
        groups: The groups of the configuration whose choices its help lists.
        names: Gives the words that may follow; None is paths.
    """

    groups: tuple[str, ...] = ()
    names: Callable[[], Iterable[str]] | None = None

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

    def options(self) -> list[argparse.Action]:
        """Return the options, each with its strings."""
        return [action for action in self._actions if action.option_strings]

    def error(self, message: str) -> NoReturn:
        """Raise what argparse complains about as a sentence.

        Raises:
            UserError: Always.
        """
        found = re.fullmatch(r"argument (?:-\w/)?(\S+): expected .*argument.*", message)
        if found:
            raise UserError(f"{found.group(1)} needs a value.")
        found = re.fullmatch(r"argument (?:-\w/)?(\S+): ignored explicit argument .*", message)
        raise UserError(f"{found.group(1)} takes no value." if found else f"{message[:1].upper()}{message[1:]}.")


def run(command: ModuleType, given: Sequence[str]) -> int:
    """Run a command with the words that follow its name, and return its exit code.

    Raises:
        UserError: An option that it does not have, or a mistake that the command finds.
    """
    parser = Parser(command)
    arguments, unknown = parser.parse_known_intermixed_args(list(given))
    if unknown:
        raise UserError(_no_option(unknown[0], given, parser))
    if arguments.own_files:
        from selfsup.imports import execute

        execute(arguments.own_files)
    arguments.settings = [word for word in arguments.words if _SETTING.match(word)]
    arguments.words = [word for word in arguments.words if not _SETTING.match(word)]
    if arguments.help or arguments.words[:1] == ["help"]:
        if arguments.settings and parser.groups:
            _print_settings(arguments, "train" if parser.groups == TRAINING else "evaluate")
        else:
            print(parser.format_help().strip())
            _print_choices(parser.groups)
        return 0
    less = {TRAINING: shortage.TRAINING, EVALUATION: shortage.EVALUATION}.get(parser.groups, shortage.OTHERWISE)
    with shortage.enough_memory("this command", less):
        result: int = command.run(arguments)
    return result


def _no_option(option: str, given: Sequence[str], parser: Parser) -> str:
    """Say that there is no such option, and the setting that it means: ``--gpus 2`` is ``trainer.devices=2``."""
    name, equals, text = option.lstrip("-").partition("=")
    if not equals:
        after = given[given.index(option) + 1 :]
        text = after[0] if after and not after[0].startswith("-") and not _SETTING.match(after[0]) else ""
    said = f"There is no option '{option.partition('=')[0]}' here"
    options = list(parser._option_string_actions)
    elsewhere = {"protocol": "--only", "protocols": "--only", "output": "--out", "o": "--out"}.get(name)
    close = difflib.get_close_matches(elsewhere or option.partition("=")[0], options, n=1, cutoff=0.8)
    if close:
        return f"{said}. Did you mean '{close[0]}'?"
    if parser.groups:
        there, key = known("train" if parser.groups == TRAINING else "evaluate"), name.replace("-", "_")
        if meant := meant_by(key, text, there):
            return f"{said}; settings are written key=value: {' or '.join(meant)}."
    return f"{said}; settings are written key=value, see --help."


def refuse_settings(arguments: argparse.Namespace) -> None:
    """Refuse settings, where a command takes none.

    Raises:
        UserError: There is one.
    """
    for setting in arguments.settings:
        raise UserError(f"'{setting}': this command takes no settings, see --help.")


#: Short forms of common settings.
SHORT = {"--epochs": "trainer.max_epochs", "--batch-size": "batch_size", "--lr": "optimizer.lr"}


def add_training(parser: Parser) -> None:
    """Add what every command that trains takes beside its settings; see :func:`training_settings`."""
    parser.groups = TRAINING
    for option, key in SHORT.items():
        parser.add_argument(option, dest=key, metavar="N", help=f"short for {key}=N")
    parser.add_argument("--data", metavar="DIR", help="a folder of images: short for data=image_folder data.root=DIR")


def training_settings(arguments: argparse.Namespace) -> list[str]:
    """Return the settings of a training, which may name a folder of images alone: ``selfsup train FOLDER``.

    Raises:
        UserError: A word that names no folder, or a run; a setting that there is not.
    """
    short = {key: value for key in SHORT.values() if (value := getattr(arguments, key)) is not None}
    for key in short:
        if any(setting.startswith(f"{key}=") for setting in arguments.settings):
            raise UserError(f"{key}= is also given in its short form; give only one of the two.")
    settings = [*(f"{key}={value}" for key, value in short.items()), *arguments.settings]
    words = [*arguments.words, *([] if arguments.data is None else [arguments.data])]
    if words:
        settings = [*_folder_settings(words, settings), *settings]
    if not (arguments.own_files or arguments.config or getattr(arguments, "multirun", False)):
        refuse_mistakes(settings)
    return settings


def _folder_settings(words: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Return the settings that name a folder of images, where it is one."""
    first, *more = words
    folder = Path(first).expanduser()
    if more or not folder.is_dir():
        raise UserError(f"{no_setting(more if folder.is_dir() else words, known())[:-1]}, or name a folder of images.")
    if (folder / "checkpoints").is_dir() or (folder / "config.yaml").is_file():
        go_on, judge = command_text("train", f"resume={first}"), command_text("evaluate", word(first))
        raise UserError(f"'{first}' is a run; {go_on} goes on with it, {judge} evaluates it.")
    if any(setting.startswith("data.root=") for setting in settings):
        raise UserError(f"data.root= and '{first}' both name the images; give one of them.")
    given = [] if any(setting.startswith("data=") for setting in settings) else ["data=image_folder"]
    given.append(f"data.root={folder}")
    print(f"training on the images of {folder}: {shlex.join(given)}", file=sys.stderr)
    return given


def checkpoint_settings(arguments: argparse.Namespace) -> list[str]:
    """Return the settings of an evaluation, whose checkpoint may stand alone: ``selfsup knn RUN``.

    Raises:
        UserError: More than one checkpoint or none, no data where it has none, or a setting that there is not.
    """
    named = [f"checkpoint={word}" for word in arguments.words]
    named += [setting for setting in arguments.settings if setting.startswith("checkpoint=")]
    if len(named) > 1:
        raise UserError(
            f"One checkpoint at a time, not {' and '.join(n.partition('=')[2] for n in named)}; see --help."
        )
    settings = named + [setting for setting in arguments.settings if not setting.startswith("checkpoint=")]
    if not arguments.own_files:
        refuse_mistakes(settings, "evaluate")
    check_words(settings)
    return settings


def chosen_protocols(arguments: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the protocols that ``--only`` names, or None without it.

    Raises:
        UserError: There is no such protocol.
    """
    if arguments.only is None:
        return None
    known = {*listed("protocol"), *PROTOCOLS}
    names = tuple(arguments.only.split(","))
    for name in names:
        if name not in known:
            raise UserError(f"--only: there is no protocol '{name}'.{nearest(name, known)}")
    return names


def run_protocol(arguments: argparse.Namespace, protocol: str) -> int:
    """Run a protocol on a checkpoint, print what it finds, and return the exit code."""
    settings = checkpoint_settings(arguments)
    from selfsup.engine.evaluation import evaluate
    from selfsup.report import record_line

    for record in evaluate(settings, [protocol]):
        print(record_line(record))
    return 0


#: How a name of each kind is given.
_TAKEN = {
    "method": "selfsup methods NAME shows its settings; selfsup train method=NAME trains it.",
    "objective": "selfsup methods NAME shows its settings; selfsup train method=simclr objective=NAME trains with it.",
    "negatives": "selfsup methods NAME shows its settings; selfsup train method=moco negatives=NAME trains with it.",
    "data": "selfsup data NAME shows its settings; selfsup train data=NAME trains on it.",
    "protocol": "selfsup protocols NAME shows its settings; selfsup evaluate RUN --only NAME runs it.",
}


def explain_choices(group: str, arguments: argparse.Namespace) -> str | None:
    """Print the names of a kind, or the one that is named with its settings, and return that one's name.

    Raises:
        UserError: There is no such name.
    """
    refuse_settings(arguments)
    if len(arguments.words) > 1:
        raise UserError(f"One name at a time, not {' and '.join(arguments.words)}.")
    own: Any = PROTOCOLS if group == "protocol" else REGISTRIES[group]  # what --import has brought, not more
    known = summaries(group) | {name: own[name].summary for name in own}
    if not arguments.words:
        for name, summary in sorted(known.items()):
            print(f"{name:16s} {summary}")
        print(f"\n{_TAKEN[group]}")
        return None
    word = arguments.words[0]
    name = find(word, known, other_names(group))
    if name not in known:
        raise UserError(f"There is no {group} '{word}'.{nearest(word, known)}")
    config: type[Any] | None
    if name in listed(group):
        entry = listed(group)[name]
        text, key = entry.text, entry.key
        config = excerpt(entry.module, entry.settings) if entry.settings else None
    elif group == "protocol":
        text, key, config = inspect.getdoc(own[name].run) or "", own[name].key, own[name].settings
    else:
        text, key, config = inspect.getdoc(sys.modules[own[name].target.__module__]) or "", name, own[name].config
    print(f"{name}: {text}" if group == "protocol" else f"{text}\n\n{group}={name}: {known[name]}")
    if config is not None:
        print("\nSettings:\n")
        _print_described(config(), f"eval.{key}" if group == "protocol" else group)
    return name


def _print_settings(arguments: argparse.Namespace, kind: str) -> None:
    """Print the sections of a configuration that settings belong to, each setting with its value and its meaning."""
    given = arguments.settings
    named = {setting.lstrip("+").partition("=")[0].partition(".")[0] for setting in given}
    needed = ["checkpoint=RUN"] if kind == "evaluate" and "checkpoint" not in named else []
    if arguments.own_files or "selfsup.config" in sys.modules:
        from selfsup.config import load_config

        config = load_config([*given, *needed], kind=kind)
    else:
        from selfsup.settings.composing import config_for_help

        config = config_for_help([*given, *needed], kind)
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        if dataclasses.is_dataclass(section) and ("experiment" in named or field.name in named):
            _print_described(section, field.name)
    _print_described(config, "", nested=False)
    others = [f.name for f in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, f.name))]
    others = [name for name in others if name not in named]
    if others and "experiment" not in named:
        print(f"\nMore settings are in {', '.join(others)}; name one of a section, or its choice, to see them here.")


def _print_described(config: Any, key: str, nested: bool = True) -> None:
    from selfsup.settings.described import settings

    width = max(60, min(120, shutil.get_terminal_size().columns))
    for name, value, sentence in settings(config, key, nested):
        print(f"  {name}={value if isinstance(value, str) else json.dumps(value)}")
        print(textwrap.fill(sentence, width, initial_indent=" " * 6, subsequent_indent=" " * 6))


def _print_choices(groups: Sequence[str]) -> None:
    if not groups:
        return
    print("\nChoices (group=name):")
    width = max(60, shutil.get_terminal_size().columns)
    for group in groups:
        names = ", ".join(sorted(choices(group)))
        print(textwrap.fill(f"{group:10s} {names}", width, initial_indent="  ", subsequent_indent=" " * 13))
    print("\nWith settings, --help explains those of the sections they are in: selfsup train method=moco --help")
