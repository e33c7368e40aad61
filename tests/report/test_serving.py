"""The list of runs, and the server that shows it: on this machine alone, and nothing outside of the folder."""

import fcntl
import http.client
import json
import os
import threading
from html.parser import HTMLParser

import pytest

from selfsup.cli import main
from selfsup.errors import UserError
from selfsup.eval import add_results
from selfsup.report.listing import list_runs
from selfsup.report.serving import RunsServer

HOSTILE = "<script>alert(1)<"


def make_run(folder, method="simclr", started="2026-01-02T03:04:05+00:00", epochs=None):
    folder.mkdir(parents=True)
    config = {"method": {"name": method}, "data": {"name": "digits"}, "trainer": {"max_epochs": 2}, "seed": 0}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps({"started": started}))
    (folder / "metrics.csv").write_text("epoch,online/knn,step,train/loss\n0,0.25,3,5.0\n1,0.125,7,4.0\n")
    common = {"split": "test", "data": "digits", "primary": True}
    records = [{"protocol": "knn", "metric": "top1", "value": 0.5, "k": 20, **common}]
    if epochs is not None:
        records.append({"protocol": "training", "metric": "seconds", "value": 3.0, **common, "epochs": epochs})
    add_results(folder, records)
    return folder


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "runs"
    make_run(folder / "sweep" / "a", epochs=2)
    make_run(folder / HOSTILE, "moco", started="2026-02-03T04:05:06+00:00")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "runs-other").mkdir()
    (tmp_path / "runs-other" / "secret.txt").write_text("secret")
    return folder


@pytest.fixture
def get(root):
    server = RunsServer(root)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def ask(path, host=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
        connection.putrequest("GET", path, skip_host=host is not None)
        if host is not None:
            connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    yield ask
    server.shutdown()
    server.server_close()


def test_the_list_says_what_there_is(root):
    (root / "broken").mkdir()
    (root / "broken" / "config.yaml").write_text("method: [")
    (root / "raw_pixels").mkdir()
    add_results(
        root / "raw_pixels", [{"protocol": "knn", "split": "test", "metric": "top1", "value": 0.1, "data": "x"}]
    )
    latest, *others = list_runs(root)
    assert {latest.name, *(seen.name for seen in others)} >= {"broken", "raw_pixels"}
    found = {seen.name: seen.cells()[1:-1] for seen in [latest, *others]}
    assert found["sweep/a"] == ["simclr", "digits", "finished", "2 of 2", "50.0 %", "25.0 %"]
    assert found[HOSTILE] == ["moco", "digits", "stopped", "2 of 2", "50.0 %", "25.0 %"]
    assert found["raw_pixels"][:4] == ["", "x", "evaluated", ""]
    assert found["broken"][2] == "unreadable"
    names = [seen.name for seen in [latest, *others]]
    assert names.index(HOSTILE) < names.index("sweep/a"), "the latest first"


def test_a_run_that_trains_is_running(root):
    descriptor = os.open(root / "sweep" / "a", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert {seen.state for seen in list_runs(root) if seen.name == "sweep/a"} == {"running"}
    finally:
        os.close(descriptor)
    assert {seen.state for seen in list_runs(root) if seen.name == "sweep/a"} == {"finished"}


class Parts(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name == "href"]


def test_the_list_leads_to_pages_and_files(get):
    status, headers, body = get("/")
    page = Parts(body.decode())
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert page.tags.count("script") == 1
    assert "<script>alert" not in body.decode()
    assert len(page.links) == 2
    for link in page.links:
        status, _, body = get(link)
        assert status == 200
        shown = Parts(body.decode())
        assert shown.tags.count("script") == 1
        (folder,) = [link for link in shown.links if link.startswith("/files/")]
        assert get(folder)[0] == 200
        status, headers, body = get(f"{folder}metrics.csv")
        assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert body.startswith(b"epoch,")
    status, _, body = get("/compare?run=sweep/a&run=%3Cscript%3Ealert(1)%3C")
    assert status == 200
    assert b"Comparison of 2 runs" in body


def test_a_page_follows_a_training(get, root):
    _, _, before = get("/page/sweep/a")
    assert b"data-refresh" not in before
    with (root / "sweep" / "a" / "metrics.csv").open("a") as file:
        file.write("2,0.875,11,3.0\n")
    descriptor = os.open(root / "sweep" / "a", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        _, _, after = get("/page/sweep/a")
    finally:
        os.close(descriptor)
    assert b"87.5" in after
    assert b"87.5" not in before
    assert b"data-refresh" in after


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.txt",
        "/files/%2e%2e/secret.txt",
        "/files/..%2fsecret.txt",
        "/files//etc/passwd",
        "/files/%2fetc%2fpasswd",
        "/files/sweep/../../secret.txt",
        "/files/../runs-other/secret.txt",
        "/files/link/secret.txt",
        "/files/%00",
        "/files/no/such/file",
        "/page/..",
        "/page/sweep",
        "/page/../runs-other",
        "/compare",
        "/compare?run=..",
        "/other",
    ],
)
def test_nothing_outside_of_the_folder_is_served(path, get, root):
    (root / "link").symlink_to(root.parent / "runs-other")
    status, _, body = get(path)
    assert status == 404
    assert b"secret" not in body
    assert b"root:" not in body


def test_it_answers_this_machine_alone(get, root):
    assert get("/", host="runs.example.org")[0] == 403
    assert get("/", host="127.0.0.1.example.org:80")[0] == 403
    assert get("/", host="localhost:80")[0] == 200
    with RunsServer(root) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_page_from_a_run_is_not_one_of_the_server(get, root):
    (root / "sweep" / "a" / "report.html").write_text("<script>1</script>")
    status, headers, _ = get("/files/sweep/a/report.html")
    assert status == 200
    assert "allow-same-origin" not in headers["Content-Security-Policy"]
    assert headers["Content-Security-Policy"].startswith("sandbox")


def test_a_port_that_is_taken(root):
    with RunsServer(root) as server, pytest.raises(UserError, match="--port"):
        RunsServer(root, server.server_address[1])


def test_the_commands(root, capsys, tmp_path, monkeypatch):
    assert main(["runs", str(root)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run ")
    assert "sweep/a" in out
    assert main(["report", str(root / "sweep" / "a")]) == 0
    assert (root / "sweep" / "a" / "report.html").is_file()
    assert main(["report", str(root / "sweep" / "a"), "--out", str(tmp_path / "deep" / "page.html")]) == 0
    text = (tmp_path / "deep" / "page.html").read_text("utf-8")
    assert 'href="../runs/sweep/a/"' in text
    assert "Results of a" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs", "there"], "There is no folder there"),
        (["runs", "a", "b"], "One folder at a time, not a and b"),
        (["runs", "--port", "80"], "--port is where --serve listens"),
        (["runs", "--serve", "--port", "x"], "--port: 'x' is no port"),
        (["runs", "--serve", "there"], "There is no folder there"),
        (["report"], "Name one run folder."),
        (["report", "a", "b"], "Name one run folder; several are compared by selfsup compare a b."),
        (["report", "there"], "'there' is not a run"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
