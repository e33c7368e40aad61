"""Complete commands, choices, settings and run folders in the shell, with the Tab key.

selfsup completion bash|zsh|fish [--install]

Without --install the script is printed, for a place of your own.
"""

import dataclasses
import os
import pkgutil
import shlex
from argparse import Action, Namespace
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from selfsup import commands
from selfsup.commands import TRAINING, Parser, refuse_settings
from selfsup.errors import UserError
from selfsup.registry import REGISTRIES, find, nearest
from selfsup.settings import key_of, range_of
from selfsup.settings.catalog import choices, listed, other_names
from selfsup.settings.excerpts import configuration, excerpt

#: Settings that name a network: a folder, or a file.
_NETWORKS = ("checkpoint", "backbone.from", "method.teacher")

BASH = """\
# completion of selfsup for bash, written by `selfsup completion bash`
_selfsup() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" word start=""
    word="${line##*[[:space:]]}"
    # bash replaces what follows the last = or : alone
    [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && start="${word%"${word##*=}"}"
    [[ $COMP_WORDBREAKS == *:* && ${word#"$start"} == *:* ]] && start="${word%"${word##*:}"}"
    COMPREPLY=()
    while read -r word; do
        word="${word#"$start"}"
        [[ $word == *[[:space:]]* ]] && word="$(printf '%q' "$word")"
        COMPREPLY+=("$word")
    done < <("$1" completion --line="$line" 2>/dev/null)
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
}
complete -F _selfsup selfsup
"""

ZSH = """\
#compdef selfsup
# completion of selfsup for zsh, written by `selfsup completion zsh`
_selfsup() {
    local -a found
    found=("${(@f)$("${words[1]}" completion --line="${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    compadd -S '' -- ${(M)found:#*[=./]}
    compadd -- ${found:#*[=./]}
}
if [ "${funcstack[1]}" = _selfsup ]; then _selfsup "$@"; else compdef _selfsup selfsup; fi
"""

FISH = """\
# completion of selfsup for fish, written by `selfsup completion fish`
function __selfsup_complete
    set -l program (commandline -opc)[1]
    $program completion --line=(commandline -cp | string collect) 2>/dev/null
end
complete -c selfsup -f -a '(__selfsup_complete)'
"""


def _home(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / usual)


#: By shell: the script, where it goes, and what is left to do for those whose shell does not look there.
SHELLS: dict[str, tuple[str, Callable[[], Path], str]] = {
    "bash": (
        BASH,
        lambda: _home("XDG_DATA_HOME", ".local/share") / "bash-completion" / "completions" / "selfsup",
        "A new shell has it, where the package bash-completion is installed; else add to ~/.bashrc: source {file}",
    ),
    "zsh": (
        ZSH,
        lambda: _home("ZDOTDIR", "") / ".zfunc" / "_selfsup",
        "Add to ~/.zshrc, once: fpath=({folder} $fpath); autoload -Uz compinit; compinit",
    ),
    "fish": (
        FISH,
        lambda: _home("XDG_CONFIG_HOME", ".config") / "fish" / "completions" / "selfsup.fish",
        "A new shell has it.",
    ),
}


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.names = lambda: SHELLS
    parser.add_argument(
        "--install", action="store_true", help="put the script where the shell looks for it, and say where"
    )
    parser.add_argument(
        "--line", metavar="TEXT", help="print how the last word of a command line may go on; the scripts ask this"
    )


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    if arguments.line is not None:
        print(*completions(arguments.line), sep="\n")
        return 0
    refuse_settings(arguments)
    shell = arguments.words[0] if len(arguments.words) == 1 else Path(os.environ.get("SHELL", "")).name
    if len(arguments.words) > 1 or (not arguments.words and shell not in SHELLS):
        raise UserError(f"Name one shell: selfsup completion {'|'.join(SHELLS)}.")
    if shell not in SHELLS:
        raise UserError(f"There is no completion for '{shell}'.{nearest(shell, SHELLS)}")
    script, place, hint = SHELLS[shell]
    if not arguments.install:
        print(script, end="")
        return 0
    file = place()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(script, "utf-8")
    print(f"saved: {file}\n{hint.format(file=file, folder=file.parent)}")
    return 0


def completions(line: str) -> list[str]:
    """Return how the last word of a command line may go on, whole words, sorted.

    Args:
        line: From the name of the program up to where the person is.
    """
    *before, last = _words(line)
    return sorted({word for word in _candidates(before[1:], last) if word.startswith(last)})


def _words(line: str) -> list[str]:
    """Split a command line, of which a quotation may be open; the last word is empty behind a space."""
    for closing in ("", '"', "'"):
        try:
            words = shlex.split(line + closing)
        except ValueError:
            continue
        return [*words, ""] if not words or (not closing and line[-1:].isspace()) else words
    return [line]


def _candidates(before: list[str], last: str) -> Iterable[str]:
    names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    if not before or before == ["help"]:
        return [*names, *([] if before else ["--help", "--version"])]
    if before[0] not in names:
        return []
    parser = Parser(import_module(f"selfsup.commands.{before[0]}"))
    options = {option: action for action in parser.options() for option in action.option_strings}
    option, equals, text = last.partition("=")
    if equals and option in options:
        return [f"{option}={value}" for value in _values_of(options[option], text)]
    if before[-1] in options and options[before[-1]].nargs != 0:
        return _values_of(options[before[-1]], last)
    if last.startswith("-"):
        return options
    if parser.names is not None:
        return parser.names()
    found: list[str] = []
    if parser.groups:
        found += _settings("train" if parser.groups == TRAINING else "evaluate", parser.groups, before, last)
    return [*found, *([] if "=" in last else _folders(last))]


def _values_of(option: Action, text: str) -> Iterable[str]:
    """Return what may follow an option: protocols, or a file."""
    return _one_more(text, listed("protocol")) if option.metavar == "NAMES" else _folders(text, files=True)


def _settings(kind: str, groups: tuple[str, ...], before: list[str], last: str) -> Iterator[str]:
    """Yield choices and settings, keys up to their next dot."""
    key, equals, text = last.partition("=")
    if equals and key in groups:
        yield from (f"{key}={value}" for value in _one_more(text, choices(key)))
        return
    given = dict(word.split("=", 1) for word in before if "=" in word)
    chosen = {group: find(name, choices(group), other_names(group)) for group, name in given.items() if group in groups}
    keys = _keys(kind, {} if "experiment" in chosen else chosen, key.partition(".")[0])
    if not equals:
        yield from (f"{group}=" for group in groups)
        for name in keys:
            dot = name.find(".", len(last)) if name.startswith(last) else -1
            yield name[: dot + 1] if dot >= 0 else f"{name}="
    elif key in (*_NETWORKS, "resume", "run_dir") or key.endswith("root"):
        yield from (f"{key}={value}" for value in _folders(text, files=key in _NETWORKS))
    elif key in keys:
        yield from (f"{key}={value}" for value in keys[key])


def _keys(kind: str, chosen: dict[str, str], section: str) -> dict[str, tuple[str, ...]]:
    """Return the settings there are, each with its values where these are words.

    Args:
        kind: ``train`` or ``evaluate``.
        chosen: What is chosen of each group.
        section: What the keys that matter begin with; without it those of methods and sources are left out.
    """
    if section not in REGISTRIES:
        return dict(_described(configuration(kind)(), ""))
    known = listed(section)
    entries = [known[chosen[section]]] if chosen.get(section) in known else list(known.values())
    configs = [excerpt(entry.module, entry.settings)() for entry in entries]
    found = {key: words for config in configs for key, words in _described(config, section)}
    return {key: words for key, words in found.items() if key != f"{section}.name"}  # which the choice says


def _described(config: Any, section: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), key_of(field.name)
        key = f"{section}.{name}" if section else name
        if dataclasses.is_dataclass(value):
            yield from _described(value, key)
        else:
            allowed = range_of(type(config), field.name)
            yield key, ("true", "false") if isinstance(value, bool) else () if allowed is None else allowed.choices


def _one_more(text: str, names: Iterable[str]) -> Iterator[str]:
    """Yield names behind those of a list with commas."""
    head, comma, _ = text.rpartition(",")
    yield from (f"{head}{comma}{name}" for name in names)


def _folders(text: str, files: bool = False) -> Iterator[str]:
    """Yield runs, folders on the way to some (with a / behind), and files; without a text also the runs in runs/."""
    head, slash, start = text.rpartition("/")
    places = [
        (f"{head}{slash}", Path(f"{head}{slash}" or ".").expanduser()),
        *([] if text else [("runs/", Path("runs"))]),
    ]
    for shown, folder in places:
        for entry in folder.iterdir() if os.access(folder, os.R_OK | os.X_OK) and folder.is_dir() else ():
            if entry.name.startswith(start or ".") != bool(start):  # what is hidden only where it is asked for
                continue
            if entry.is_dir():
                is_run = any((entry / name).is_file() for name in ("config.yaml", "results.json"))
                yield f"{shown}{entry.name}{'' if is_run else '/'}"
            elif files or entry.suffix == ".ckpt":
                yield f"{shown}{entry.name}"
