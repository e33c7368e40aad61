"""List the sources of images; with a name, show what it reads and its settings, or measure the images.

  selfsup data [NAME]
  selfsup data NAME|FOLDER --statistics [--write FILE] [data.key=value …]

--statistics measures the mean and the standard deviation of each channel over the training images, and prints them as
the settings data.mean and data.std.
"""

from argparse import Namespace
from pathlib import Path

from selfsup.commands import Parser, explain_choices
from selfsup.errors import UserError
from selfsup.settings.catalog import summaries


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.names = lambda: summaries("data")
    parser.add_argument("--statistics", action="store_true", help="measure data.mean and data.std of the source")
    parser.add_argument(
        "--write", metavar="FILE", help="also set both in a configuration file (its comments beyond the head are lost)"
    )


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    if not arguments.statistics:
        if arguments.write is not None:
            raise UserError("--write goes with --statistics.")
        explain_choices("data", arguments)
        return 0
    if len(arguments.words) > 1:
        raise UserError("Write: selfsup data NAME --statistics, or selfsup data FOLDER --statistics.")
    name = arguments.words[0] if arguments.words else None
    chosen = [] if name is None else [f"data={name}"]
    if name is not None and name not in summaries("data") and Path(name).is_dir():
        chosen = ["data=image_folder", f"data.root={name}"]
    from selfsup.config import load_config
    from selfsup.data import load_splits
    from selfsup.data.statistics import measure
    from selfsup.data.workers import worker_count

    data = load_config(["checkpoint=raw_pixels", *chosen, *arguments.settings], kind="evaluate").data
    splits = load_splits(data)
    if splits.found is not None:
        print(*splits.found.lines(), sep="\n", flush=True)
    found = measure(splits.pretrain, worker_count(data))
    std = [value or 1.0 for value in found.std]
    constant = [channel for channel, value in enumerate(found.std) if not value]
    print(
        f"{found.images:,} training images of {len(std)} channels, values between {min(found.least):.6g} and "
        f"{max(found.most):.6g} where black is 0 and white 1"
    )
    if constant:
        print(f"note: channels {', '.join(map(str, constant))} (from 0) hold one value only, and get a deviation of 1.")
    print(f"data.mean={_setting(found.mean)} data.std={_setting(std)}")
    if arguments.write is not None:
        _write(Path(arguments.write).expanduser(), found.mean, std)
        print(f"saved: {arguments.write}")
    return 0


def _setting(values: list[float]) -> str:
    return f"[{','.join(f'{value:.6g}' for value in values)}]"


def _write(path: Path, mean: list[float], std: list[float]) -> None:
    """Set both in a configuration file, which is made where there is none."""
    from selfsup.settings.values import read_yaml, write_yaml
    from selfsup.writing import replace_text

    values = read_yaml(path) if path.exists() else {}
    if not isinstance(values, dict) or not isinstance(values.setdefault("data", {}), dict):
        raise UserError(f"--write: {path} is no configuration, which has a section data; name another file.")
    values["data"] |= {"mean": [float(f"{v:.6g}") for v in mean], "std": [float(f"{v:.6g}") for v in std]}
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    head = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    replace_text(path, "".join(lines[:head]) + write_yaml(values))
