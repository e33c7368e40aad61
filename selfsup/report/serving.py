"""The runs of a folder in a browser on this machine: a list, their pages, their files."""

from __future__ import annotations

import contextlib
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from selfsup.errors import UserError
from selfsup.report.comparison import read_table
from selfsup.report.listing import COLUMNS, is_training, list_runs
from selfsup.report.page import page_text, render

ADDRESS = "127.0.0.1"  # this machine alone
NAMES = ("127.0.0.1", "localhost")
LIST_SECONDS, PAGE_SECONDS = 15, 10  # after which the list, and the page of a run that trains, is read again
NUMBERS = ("epochs", "kNN", "best online kNN")
#: How files are sent, so that a browser shows them; others are offered to be saved.
TYPES = {
    ".png": "image/png",
    ".html": "text/html; charset=utf-8",
    **dict.fromkeys((".csv", ".json", ".yaml", ".md", ".py", ".log", ".txt"), "text/plain; charset=utf-8"),
}
#: A page from a run's folder may run the script that is in it, and nothing else: not as a page of this server.
SANDBOX = "sandbox allow-scripts allow-downloads allow-popups"


class RunsServer(ThreadingHTTPServer):
    """Serves the runs below a folder on 127.0.0.1.

    Args:
        folder: That holds the runs; no file outside of it is served.
        port: Where to listen; 0 takes one that is free.

    Raises:
        UserError: There is no such folder, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: str | Path, port: int = 0) -> None:
        list_runs(folder)  # whether it is there
        self.folder = Path(folder).resolve()
        self.pages: dict[tuple[str, ...], tuple[object, str]] = {}  # with the state of the files they were made from
        self.drawing = threading.Lock()  # matplotlib draws one figure at a time
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise UserError(f"--port: {port} cannot be used ({error.strerror}); choose another.") from error

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def inside(self, path: str) -> Path:
        """Return what a path below the folder names.

        Raises:
            LookupError: Nothing, or something outside of it.
        """
        try:
            found = (self.folder / path.strip("/")).resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise LookupError(path) from error
        if not found.is_relative_to(self.folder):
            raise LookupError(path)
        return found

    def list_page(self) -> str:
        """Return the page with the list of runs."""
        lines = [(f"/page/{quote(seen.name)}", seen.cells()) for seen in list_runs(self.folder)]
        title = f"Runs in {self.folder.name}"
        return render("runs.html", title=title, heads=COLUMNS, numbers=NUMBERS, lines=lines, refresh=LIST_SECONDS)

    def page(self, names: list[str]) -> str:
        """Return the page of one run or of several.

        Raises:
            LookupError: There is no such run.
            UserError: One of its files is broken.
        """
        folders = [self.inside(name) for name in names]
        if not folders or not all(any((f / n).is_file() for n in ("config.yaml", "results.json")) for f in folders):
            raise LookupError(names)
        refresh = PAGE_SECONDS if any(map(is_training, folders)) else 0
        read = [path for folder in folders for path in (*folder.glob("*.*"), *folder.glob("figures/*"))]
        state = (refresh, sorted((str(path), path.stat().st_mtime_ns) for path in read))
        key = tuple(map(str, folders))
        with self.drawing:
            known = self.pages.get(key)
            if known is None or known[0] != state:
                links = [f"/files/{quote(f.relative_to(self.folder).as_posix())}/" for f in folders]
                self.pages[key] = known = (state, page_text(read_table(folders), links, home="/", refresh=refresh))
        return known[1]


class _Handler(BaseHTTPRequestHandler):
    server: RunsServer
    server_version = "selfsup"

    def do_GET(self) -> None:
        """Answer: ``/``, ``/page/RUN``, ``/compare?run=RUN&run=RUN`` or ``/files/PATH``."""
        host = self.headers.get("Host") or ""
        if (host.rpartition(":")[0] or host) not in NAMES:
            # a site elsewhere whose name points here could read the runs
            self._send("This server answers on this machine alone.", HTTPStatus.FORBIDDEN, "text/plain")
            return
        url = urlsplit(self.path)
        kind, _, path = unquote(url.path).lstrip("/").partition("/")
        try:
            if kind == "":
                self._send(self.server.list_page())
            elif kind == "page":
                self._send(self.server.page([path]))
            elif kind == "compare":
                self._send(self.server.page(parse_qs(url.query).get("run", [])))
            elif kind == "files":
                self._send_file(self.server.inside(path))
            else:
                raise LookupError(path)
        except LookupError:
            self._send("There is nothing here.", HTTPStatus.NOT_FOUND, "text/plain")
        except UserError as error:
            self._send(str(error), HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8")

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: a line for each file would fill the console."""

    def _send_file(self, path: Path) -> None:
        if path.is_dir():
            entries = sorted(path.iterdir(), key=lambda entry: (entry.is_file(), entry.name))
            names = [entry.name + ("/" if entry.is_dir() else "") for entry in entries]
            here = f"/files/{path.relative_to(self.server.folder).as_posix()}".removesuffix("/.")
            links = [(quote(f"{here}/{name}"), name) for name in names]
            self._send(render("files.html", title=path.name, entries=links))
        else:
            self._send(path.read_bytes(), kind=TYPES.get(path.suffix.lower(), "application/octet-stream"), own=False)

    def _send(
        self,
        content: str | bytes,
        status: HTTPStatus = HTTPStatus.OK,
        kind: str = "text/html; charset=utf-8",
        own: bool = True,
    ) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
        }
        if not own:
            headers["Content-Security-Policy"] = SANDBOX
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the reader has gone on
            self.wfile.write(body)
