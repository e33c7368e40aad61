"""The command line: ``selfsup COMMAND …``. Each command is a file of ``selfsup/commands``."""

from __future__ import annotations

import errno
import os
import pkgutil
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from selfsup import __version__, commands
from selfsup.errors import UserError
from selfsup.settings.meanings import no_command
from selfsup.tables import printable

#: What a system says of a file that it does not let grow, or be written.
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM)

OVERVIEW = """\
selfsup {version}: learn visual representations without labels, and prove how good they are

{commands}

`selfsup COMMAND --help` says more. A first run that takes two minutes on two cores:

  selfsup train experiment=demo run_dir=runs/first
  selfsup evaluate runs/first
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for a mistake that the message explains, 128 + signal."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    usual = warnings.formatwarning
    warnings.formatwarning = sentence
    try:
        code = _run(given)
        sys.stdout.flush()  # what a pipe's reader no longer wants comes to light here, not when Python ends
        return code
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # some other pipe: a worker's, a logger's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python's last flush may go
        return 128 + signal.SIGPIPE
    finally:
        warnings.formatwarning = usual


def _run(given: list[str]) -> int:
    names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    if given[:1] == ["help"] and len(given) > 1:
        given = [given[1], "--help"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(OVERVIEW.format(version=__version__, commands="\n".join(map(_overview, names))), end="")
        return 0
    if given[0] == "--version":
        print(__version__)
        return 0
    name = given[0]
    try:
        if name not in names:
            raise UserError(no_command(given, names))
        return commands.run(import_module(f"selfsup.commands.{name}"), given[1:])
    except UserError as error:
        said = f"selfsup {name}: {str(error).removeprefix(f'{name}: ')}"
        print("\n".join(map(printable, said.split("\n"))), file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (*NOT_WRITTEN, errno.ENAMETOOLONG):
            raise
        what = "could not be written" if error.errno in NOT_WRITTEN else "cannot be a file"
        print(printable(f"selfsup {name}: {error.filename or 'a file'} {what}: {error.strerror}."), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _overview(name: str) -> str:
    first = (import_module(f"selfsup.commands.{name}").__doc__ or "").partition("\n")[0]
    return f"  {name:14s} {first}"


def _reader_is_gone() -> bool:
    """Whether the reader of the standard output has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning of this package as its sentence, and others with their place, as Python does."""
    if category is UserWarning and Path(__file__).parent in Path(filename).parents:
        return f"note: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


if __name__ == "__main__":
    sys.exit(main())
