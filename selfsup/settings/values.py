"""Text and YAML to values of the type that a setting has, and back; text is taken as it stands."""

from __future__ import annotations

import itertools
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, cast, get_args, get_origin

import yaml

from selfsup.errors import UserError
from selfsup.settings.ranges import OneOrTwo, TextOrList

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: Largest configuration file, and most values in one: more than any configuration, and read in a moment.
MOST_BYTES, MOST_VALUES = 1_000_000, 100_000

_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "y", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "0"), False),
}
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.X,
)


def from_text(text: str, hint: Any, key: str) -> Any:
    """Return the value of a setting from the text behind ``key=``.

    Text is taken as it stands by a setting that is text; one that may be a list of text too takes ``[a, b]`` for that.
    Where a setting may be none, ``null`` is none. Only lists (``[1, 2]``, or their entries with commas), dictionaries
    (``{a: 1}``) and settings of any type are parsed.

    Args:
        text: What was written, whatever is in it.
        hint: Type of the setting, from its dataclass.
        key: Name of the setting, for the message.

    Raises:
        UserError: The text is not a value of this type.
    """
    kind, optional = split_optional(hint)
    if optional and (text == "null" if kind in (str, TextOrList) else text.lower() == "null"):
        return None
    if kind is Any:
        return _guess(text)
    if kind is str or (kind is TextOrList and not (text.startswith("[") and text.endswith("]"))):
        return text
    if text.startswith(("[", "{")):
        return from_value(_structure(text, key), hint, key)
    if get_origin(kind) is list:
        entry = get_args(kind)[0]
        return [from_text(part, entry, key) for part in split(text)]
    return from_value(text, hint, key)


def from_value(value: Any, hint: Any, key: str) -> Any:
    """Return a value as one of the type that a setting has: a whole number as a float, a single value as a list.

    Args:
        value: From YAML, a checkpoint or Python.
        hint: Type of the setting.
        key: Name of the setting, for the message.

    Raises:
        UserError: It is none of this type.
    """
    kind, optional = split_optional(hint)
    if kind is Any or (value is None and optional):
        return value
    if kind is TextOrList:
        kind = list[str] if isinstance(value, list | tuple) else str
    if kind is OneOrTwo:
        found = _sides(value)
        if found is not None:
            return found
    if get_origin(kind) is list and value is not None:
        entry = get_args(kind)[0]
        values = value if isinstance(value, list | tuple) else [value]
        return [from_value(item, entry, key) for item in values]
    if get_origin(kind) is dict and isinstance(value, dict):
        return {str(name): item for name, item in value.items()}
    if kind in (bool, int, float, str):
        found = _scalar(value, kind)
        if found is not None:
            return found
    shown = "null" if value is None else repr(value)
    raise UserError(f"{key} is {shown}; it must be {_describe(kind)}{', or null' if optional else ''}.{_hint(value)}")


def _sides(value: Any) -> int | list[int] | None:
    """Return the side of a square, or height and width where they differ; None where the value is neither."""
    if not isinstance(value, list | tuple):
        return cast("int | None", _scalar(value, int))
    sides = [_scalar(side, int) for side in value]
    if len(sides) != 2 or None in sides:
        return None
    return cast(int, sides[0]) if sides[0] == sides[1] else sides


def _scalar(value: Any, kind: type[Any]) -> Any:
    """Return the value as a bool, int, float or str, or None."""
    if kind is str:
        return str(value) if isinstance(value, str | int | float) else None
    if kind is bool:
        return _WORDS.get(str(value).strip().lower()) if isinstance(value, str | int) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if kind is int and isinstance(value, float):
        return None
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return None


def _describe(kind: Any) -> str:
    names = {
        OneOrTwo: "one whole number, or two as [height, width]",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
    }
    if get_origin(kind) is list:
        return "a list, such as [a, b]"
    return names.get(kind, "a dictionary, such as {name: value}")


def _hint(value: Any) -> str:
    if isinstance(value, str) and "," in value:
        return " Commas separate values with --multirun alone."
    return ""


def split_optional(hint: Any) -> tuple[Any, bool]:
    """Return the type without its None, and whether it has one."""
    if get_origin(hint) is Annotated:
        if OneOrTwo in get_args(hint):
            return OneOrTwo, False
        return TextOrList if TextOrList in get_args(hint) else Any, True
    if get_origin(hint) in (Union, types.UnionType):
        others = [kind for kind in get_args(hint) if kind is not type(None)]
        return (others[0], True) if len(others) == 1 else (Any, True)
    return hint, False


def split(text: str) -> list[str]:
    """Split at the commas outside brackets and outside parts in quotes; parts of several lose the spaces around."""
    parts, begin, depth, quote = [], 0, 0, ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not text[begin:at].strip():
            quote = character if character in text[at + 1 :] else ""
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth = max(0, depth - 1)
        elif character == "," and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [*parts, text[begin:].strip()] if parts else [text]


def unquote(text: str) -> str:
    """Take away the quotes around a text, if there are any."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def parse(word: str) -> Override:
    """Read an override by Hydra's grammar.

    Raises:
        ValueError: It cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser  # takes longer than all else here
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ValueError(str(error)) from error


def _guess(text: str) -> Any:
    """Return what a setting of any type means: a number, true, false, null, a list, a dictionary, else the text."""
    try:
        override = parse(f"key={text}")
    except ValueError:
        return _structure(text, "") if text.startswith(("[", "{")) else text
    value = override.value()
    quoted = unquote(text) != text
    return text if override.is_sweep_override() or (isinstance(value, str) and not quoted) else value


def _structure(text: str, key: str) -> Any:
    """Read a list or a dictionary: as Hydra does, or, where its grammar knows a character not, as YAML."""
    try:
        return parse(f"key={text}").value()
    except ValueError:
        pass
    try:
        return _bounded(yaml.load(text, Loader=_Loader))  # noqa: S506 a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if not key:
            return text
        raise UserError(
            f"{key} is {text!r}, which cannot be read as a list or a dictionary; write [a, b] or {{name: value}}, "
            "with quotes around text that holds commas, colons or brackets."
        ) from error


def hydra_word(value: Any) -> str:
    """Write a value in Hydra's grammar for a sweep, such that :func:`from_hydra` returns it in the job."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{hydra_word(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra_word, value)) + "]"
    if value is None:
        return "null"
    if not isinstance(value, str):
        return str(value)
    # OmegaConf would take ${…} for an interpolation and ??? for a value that is missing
    text = value.replace("%", "%25").replace("$", "%24").replace("?", "%3F")
    return hydra_quoted(text)


def hydra_quoted(text: str) -> str:
    """Put a text in quotes as Hydra's grammar reads them: backslashes count double before a quote, and nowhere else."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda end: end[1] * 2 + end[2].replace("'", "\\'"), text) + "'"


def from_hydra(value: Any) -> Any:
    """Return the value that :func:`hydra_word` wrote, from what Hydra read."""
    if isinstance(value, dict):
        return {name: from_hydra(item) for name, item in value.items()}
    if isinstance(value, list):
        return [from_hydra(item) for item in value]
    return re.sub("%(24|25|3F)", lambda code: chr(int(code[1], 16)), value) if isinstance(value, str) else value


#: YAML's implicit types, but 1e-3 is a number and a date is text. Reading and writing share them.
_IMPLICIT = {
    first: [(tag, form) for tag, form in forms if not tag.endswith((":timestamp", ":float"))]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+0123456789.":
    _IMPLICIT.setdefault(_first, []).append(("tag:yaml.org,2002:float", _FLOAT))


class _Loader(yaml.SafeLoader):
    """Plain values alone; no key twice, and no merging of mappings into larger ones than any configuration."""

    yaml_implicit_resolvers = _IMPLICIT

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what ``<<`` names."""
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1 and name != "<<"}:
            raise ValueError(f"the key '{min(twice)}' stands in it twice")
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values")


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _IMPLICIT

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # in other styles PyYAML reads these ends of lines as \n
        style = '"' if any(end in data for end in "\r\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def read_yaml(path: Path) -> Any:
    """Read a file of plain values; nothing in it is executed, resolved or taken from the environment.

    Raises:
        UserError: It is missing, no YAML, or too large, which a small file of aliases can be as well.
    """
    try:
        if path.exists() and not path.is_file():  # of a pipe nobody may ever write the end
            raise OSError("it is no file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it holds more than {MOST_BYTES} bytes")
        return _bounded(yaml.load(content.decode("utf-8"), Loader=_Loader))  # noqa: S506 a SafeLoader
    except FileNotFoundError as error:
        raise UserError(f"There is no configuration file {path}.") from error
    except RecursionError as error:
        raise UserError(f"{path} cannot be read as a configuration: it is nested too deeply.") from error
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a configuration: {' '.join(str(error).split())}.") from error


def _bounded(value: Any, count: Iterator[int] | None = None) -> Any:
    """Return a copy without aliases, if it is not too large then."""
    count = itertools.count() if count is None else count
    if next(count) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES} values")
    if isinstance(value, dict):
        return {name: _bounded(item, count) for name, item in value.items()}
    return [_bounded(item, count) for item in value] if isinstance(value, list) else value


def write_yaml(values: dict[str, Any]) -> str:
    """Return plain values as YAML, which :func:`read_yaml` reads back as they were."""
    return yaml.dump(values, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
