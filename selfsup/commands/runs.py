"""List the runs below a folder: method, data, state, epochs, accuracy; or show them in a browser, trainings live.

  selfsup runs [FOLDER] [--serve [--port N]]

Without FOLDER it looks into runs/. The kNN accuracy is that of the evaluation; the online one watches a training. With
--serve the list, the page of each run and its files are shown at http://127.0.0.1:PORT/, which this machine alone can
open; a run that trains is read again every few seconds. Ctrl-C ends it.
"""

from argparse import Namespace

from selfsup.commands import Parser, refuse_settings
from selfsup.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("--serve", action="store_true", help="show the runs in a browser on this machine")
    parser.add_argument("--port", metavar="N", help="where --serve listens (default: 8000; 0 takes a free one)")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    refuse_settings(arguments)
    if len(arguments.words) > 1:
        raise UserError(f"One folder at a time, not {' and '.join(arguments.words)}; see --help.")
    port = "8000" if arguments.port is None else arguments.port
    if not port.isdecimal() or int(port) > 65535:
        raise UserError(f"--port: '{port}' is no port; give a number from 0 to 65535.")
    if arguments.port is not None and not arguments.serve:
        raise UserError("--port is where --serve listens; give both, or neither.")
    folder = arguments.words[0] if arguments.words else "runs"
    if arguments.serve:
        return _serve(folder, int(port))
    from selfsup.report.listing import COLUMNS, list_runs
    from selfsup.tables import console_table

    found = list_runs(folder)
    print(console_table(COLUMNS, [seen.cells() for seen in found]) if found else f"There is no run below {folder}.")
    return 0


def _serve(folder: str, port: int) -> int:
    from selfsup.report.serving import RunsServer

    with RunsServer(folder, port) as server:
        print(f"{server.address} shows the runs of {folder}, on this machine alone; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
