"""Kill real trainings at many moments, resume them, and compare them with trainings that nobody touched.

    python benchmarks/trust/kills.py --kills 200 --out build/trust

A kill is at a random time, or at a moment that the uninterrupted run passes through (``moments.py``): a file is
opened, renamed or removed, half of a checkpoint is written, a step or an online evaluation begins or ends. It is
SIGKILL, SIGTERM or SIGINT, once or twice, to the training, to its whole process group (as a cluster or a terminal sends
it), or to a loader's worker or the second rank. The run goes on with the very command that started it (``resume=auto``)
or with ``resume=RUN``. In the end every tensor and value of its checkpoint, ``metrics.csv``, the steps of
``times.csv``, ``config.yaml``, the records of ``results.json`` and the figures must equal those of the uninterrupted
run; on the way no checkpoint may be unreadable, no process may stay, and no signal may end in a traceback.

Every run is drawn from ``--seed`` and its number. ``kills.json`` is written after each, and what it has is not done
again. Exit code 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any

import moments

HERE = Path(__file__).resolve().parent
#: One process, with loader workers, two ranks, and two ranks that are killed as they start and around a checkpoint.
CASES = ("single", "workers", "ddp", "twice")
RANKS = ("ddp", "twice")
TRAINING = [
    "data.image_size=32",
    "backbone=resnet_tiny",
    "backbone.width=4",
    "batch_size=16",
    "trainer.max_epochs=3",
    "trainer.log_every_steps=1",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "online.every_epochs=1",
    "online.bank=40",
    "online.queries=8",
    "online.stop_on_collapse=false",
]
PATIENCE = 120.0  # seconds that a training has to end after a signal
LINGER = (
    0.5  # part of them (a second rank may still import) after which a process of a run that has ended is a stray one
)
ENDED = {
    0,
    *(128 + n for n in (signal.SIGINT, signal.SIGTERM)),
    *(-n for n in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)),
}


@dataclasses.dataclass
class Kill:
    """One kill: when, by what, whom; and what was seen."""

    kind: str  # a moment, or "time"
    nth: int = 1
    seconds: float = 0.0
    signals: list[int] = dataclasses.field(default_factory=list)
    target: str = "main"  # or group, other
    rank: int = 0
    fired: bool = False
    code: int | None = None
    faults: list[str] = dataclasses.field(default_factory=list)


class SecondRank:
    """A process that is forked when the first rank begins, and becomes the second one when Lightning starts that.

    It stands for Lightning's ``subprocess.Popen``, and saves the second rank the seconds of its imports.
    """

    def __init__(self) -> None:
        told, self._tell = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._tell)
            self._wait(told)
        os.close(told)

    @staticmethod
    def _wait(told: int) -> None:
        code = 1
        try:
            with os.fdopen(told) as pipe:
                environment = pipe.read()
            if not environment:  # the first rank has ended before
                os._exit(0)
            from lightning_utilities.core.rank_zero import rank_zero_only

            os.environ.clear()
            os.environ.update(json.loads(environment))
            rank_zero_only.rank = 1  # which Lightning reads when it is imported
            code = moments.main(sys.argv[1:])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def start(self, command: list[str], env: dict[str, str], cwd: str | None) -> SecondRank:
        """Begin, as ``subprocess.Popen`` does."""
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._tell, "w") as pipe:  # it may have been killed
            pipe.write(json.dumps(env))
        return self

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class Process:
    """A training, in a session of its own: forked from this process, which has all imported, or started anew."""

    def __init__(self, arguments: list[str], log: Path, moment: dict[str, str], anew: bool = False) -> None:
        environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **moment}
        script = HERE / "moments.py"
        self._started: subprocess.Popen[bytes] | None = None
        self.code: int | None = None
        if anew:
            self._started = subprocess.Popen(
                [sys.executable, str(script), *arguments],
                stdout=log.open("ab"),
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **environment},
            )
            self.pid = self._started.pid
            return
        self.pid = os.fork()
        if self.pid == 0:
            _become([str(script), *arguments], log, environment)

    def ended(self) -> bool:
        """Return whether it has ended; ``code`` is how."""
        if self.code is None and self._started is not None:
            self.code = self._started.poll()
        elif self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it came."""
        limit = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < limit:
            time.sleep(0.01)
        return self.ended()

    def others(self) -> list[int]:
        """Return the living processes of its session but itself."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found


def _become(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    """Turn this forked process into a training."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(out, 1), os.dup2(out, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
        sys.__stderr__ = sys.stderr
        os.environ.update(environment)
        sys.argv = arguments
        sys.modules["__main__"].__spec__ = None  # Lightning starts the second rank as sys.argv says
        if "trainer.devices=2" in arguments:
            from pytorch_lightning.strategies.launchers import subprocess_script

            subprocess_script.subprocess = types.SimpleNamespace(Popen=SecondRank().start)  # type: ignore[assignment]
        code = moments.main(arguments[1:])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def smallest(method: str) -> list[str]:
    """Return the settings that make a method small: those of its own tests."""
    sys.path.insert(0, str(HERE.parents[1] / "tests"))
    from tiny import TINY_METHOD

    sys.path.pop(0)
    settings: list[str] = TINY_METHOD.get(method, [])
    return settings


def all_methods() -> list[str]:
    """Return the names of all registered methods."""
    import selfsup.methods  # noqa: F401  # they register themselves
    from selfsup.registry import methods

    return list(methods)


class Campaign:
    """Trainings to kill, in a scratch folder.

    Args:
        scratch: The folder; it is made.
        methods: Registered ones.
        cases: Of ``CASES``.
        seed: Of all that is drawn.
        patience: Seconds that a training has to end after a signal.
    """

    def __init__(
        self, scratch: Path, methods: list[str], cases: list[str], seed: int, patience: float = PATIENCE
    ) -> None:
        import selfsup.commands.train
        import selfsup.engine.training  # noqa: F401  # imported once, for all that are forked

        self.scratch, self.methods, self.cases, self.seed = scratch.resolve(), methods, cases, seed
        self.patience = patience
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._wholes: dict[tuple[str, str], tuple[Path, float, list[str]]] = {}

    def settings(self, method: str, case: str) -> list[str]:
        """Return the settings of a training. Every second pair saves at the last step of an epoch, too."""
        every = 3 + (len(method) + CASES.index(case)) % 2
        words = [f"method={method}", *TRAINING, *smallest(method), f"trainer.checkpoint_every_steps={every}"]
        if case == "workers":
            words += ["data=image_folder", f"data.root={self._images()}", "data.resident_limit_mb=0", "data.workers=2"]
            words += ["data.max_undecodable=0.05"]
        else:
            words += ["data=shapes", "data.train_size=72", "data.test_size=40"]
        return [*words, *(["trainer.devices=2", "trainer.strategy=ddp"] if case in RANKS else ["trainer.devices=1"])]

    def _images(self) -> Path:
        from PIL import Image

        folder = self.scratch / "images"
        if not folder.exists():
            for number in range(80):
                path = folder / f"c{number % 2}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.effect_noise((40, 36), 20 + number).convert("RGB").save(path)
            (folder / "c1" / "3.png").write_bytes(b"no image")
        return folder

    def whole(self, method: str, case: str) -> tuple[Path, float, list[str]]:
        """Return the folder of the uninterrupted run, its seconds, and the moments that it passes through."""
        if (method, case) not in self._wholes:
            folder = self.scratch / f"whole-{method}-{case}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            began, run, listing = time.monotonic(), folder / "run", folder / "moments.txt"
            command = ["train", *self.settings(method, case), f"run_dir={run}", "resume=auto"]
            process = Process(command, folder / "log.txt", {"TRUST_MOMENTS": str(listing)})
            if not process.wait(600) or process.code:
                raise SystemExit(f"the uninterrupted run fails: {(folder / 'log.txt').read_text()[-2000:]}")
            self._wholes[method, case] = run, time.monotonic() - began, listing.read_text().splitlines()
        return self._wholes[method, case]

    def trial(self, number: int) -> dict[str, Any]:
        """Kill one run once to four times and return what became of it."""
        rng = random.Random(f"{self.seed} {number}")
        pairs = [(m, c) for c in self.cases for m in self.methods]
        method, case = pairs[number % len(pairs)]
        whole, seconds, passed = self.whole(method, case)
        folder = self.scratch / f"{number:04d}-{method}-{case}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        run = folder / "run"
        first = ["train", *self.settings(method, case), f"run_dir={run}", "resume=auto"]
        kills: list[Kill] = []
        for nth in range(2 if case == "twice" else rng.choice([1, 1, 2, 3, 4])):
            if case == "twice":
                kill = self._start_or_checkpoint(rng, nth, seconds, passed)
            else:
                kill = self._draw(rng, case, seconds, passed)
            self.kill(kill, self._command(rng, run, first), folder, rng)
            kills.append(kill)
            if kill.code == 0 or kill.faults:
                break
        faults = [fault for kill in kills for fault in kill.faults]
        if not faults:
            faults = self.finish(self._command(rng, run, first), folder) or unlike(whole, run)
        if not faults:
            shutil.rmtree(folder)
        fired = [kill for kill in kills if kill.fired]
        row = {"number": number, "method": method, "case": case, "faults": faults, "folder": str(folder)}
        return {**row, "kills": [dataclasses.asdict(kill) for kill in fired]}

    @staticmethod
    def _command(rng: random.Random, run: Path, first: list[str]) -> list[str]:
        there = (run / "checkpoints" / "last.ckpt").exists()
        return ["train", f"resume={run}"] if there and rng.random() < 0.5 else first

    @staticmethod
    def _draw(rng: random.Random, case: str, seconds: float, passed: list[str]) -> Kill:
        once = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        signals = rng.choice([[once]] * 8 + [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGKILL]])
        kill = Kill("time", signals=[int(s) for s in signals], target=rng.choice(["main", "main", "group"]))
        if rng.random() < 0.4:
            kill.seconds = rng.uniform(0, seconds)
            if case != "single" and rng.random() < 0.3:
                kill.target = "other"
            return kill
        counts = collections.Counter(passed)
        kill.kind = rng.choice(sorted(counts))
        kill.nth = rng.randint(1, counts[kill.kind])
        kill.rank = int(case in RANKS and kill.kind.startswith(("a step", "an optimiser")) and rng.random() < 0.5)
        return kill

    @staticmethod
    def _start_or_checkpoint(rng: random.Random, nth: int, seconds: float, passed: list[str]) -> Kill:
        """SIGKILL to one rank or to all: first while they start, then when a checkpoint is written or was just now."""
        kill = Kill("time", signals=[int(signal.SIGKILL)], target=rng.choice(["main", "group", "other"]))
        if nth == 0:
            kill.seconds = rng.uniform(0, seconds / 2)
            return kill
        counts = collections.Counter(kind for kind in passed if "checkpoint" in kind or "last.ckpt" in kind)
        after = {"a step begins": counts["half of a checkpoint"]}  # what comes next when a checkpoint is in its place
        kill.kind, kill.target = rng.choice(sorted(counts | after)), rng.choice(["main", "group"])
        kill.nth = rng.randint(1, (counts | after)[kill.kind])
        return kill

    def kill(self, kill: Kill, command: list[str], folder: Path, rng: random.Random) -> None:
        log, mark = folder / "log.txt", folder / f"mark{time.monotonic_ns()}"
        begin = log.stat().st_size if log.exists() else 0
        moment = {}
        if kill.kind != "time":
            about = {"kind": kill.kind, "nth": kill.nth, "signals": kill.signals, "rank": kill.rank}
            moment = {"TRUST_MOMENT": json.dumps({**about, "group": kill.target == "group", "mark": str(mark)})}
        process = Process(command, log, moment, anew=rng.random() < 0.1)
        if kill.kind == "time" and not process.wait(kill.seconds):
            kill.fired = True
            for number in kill.signals:
                _send(process, number, kill.target, rng)
                time.sleep(rng.choice([0, 0.05]))
        hung = not self._ends(process, None if kill.kind == "time" else mark)
        kill.code, kill.fired = process.code, kill.fired or mark.exists()
        limit = time.monotonic() + LINGER * self.patience
        while (strays := process.others()) and time.monotonic() < limit:
            time.sleep(0.05)
        for pid in [*strays, *([process.pid] if hung else [])]:
            _end(pid)
        if hung:
            process.wait(10)
        said = log.read_bytes()[begin:].decode(errors="replace")
        if hung:
            kill.faults.append(f"hung after a {kill.kind}")
        if strays:
            kill.faults.append(f"{len(strays)} processes stayed")
        by_others = kill.target == "other" or kill.rank
        if not by_others and not hung and kill.code not in ENDED:
            kill.faults.append(f"exit code {kill.code}: {said.strip().splitlines()[-1][:300] if said.strip() else ''}")
        # what is killed otherwise than by SIGKILL says no more than a sentence; so does the rank that is left
        if "Traceback" in said and not by_others and signal.SIGKILL not in kill.signals:
            kill.faults.append("traceback")
        kill.faults += _unreadable(folder / "run")

    def _ends(self, process: Process, mark: Path | None) -> bool:
        """Wait for the end of a training, with patience from the moment on that leaves a mark."""
        began = last = time.monotonic()
        while not process.ended() and time.monotonic() - last < self.patience:
            waits = mark is not None and not mark.exists() and time.monotonic() - began < 5 * self.patience
            last = time.monotonic() if waits else last
            time.sleep(0.01)
        return process.ended()

    def finish(self, command: list[str], folder: Path) -> list[str]:
        log = folder / "log.txt"
        begin = log.stat().st_size
        process = Process(command, log, {})
        if not process.wait(600):
            _end(process.pid)
            return ["the last part hung"]
        said = log.read_bytes()[begin:].decode(errors="replace")
        # a run that was killed after its end has nothing to do
        if process.code == 0 or "nothing is missing" in said:
            return []
        return [f"does not go on, exit code {process.code}: {said.strip().splitlines()[-1][:300]}"]


def _send(process: Process, number: int, target: str, rng: random.Random) -> None:
    others = process.others()
    try:
        if target == "group":
            os.killpg(process.pid, number)
        elif not process.ended():
            os.kill(rng.choice(others) if target == "other" and others else process.pid, number)
    except ProcessLookupError:
        pass  # it has just ended


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _unreadable(run: Path) -> list[str]:
    from selfsup.checkpoint import read_checkpoint
    from selfsup.errors import UserError

    for file in sorted((run / "checkpoints").glob("*.ckpt")):
        try:
            read_checkpoint(file)
        except UserError as error:
            return [f"unreadable: {error}"]
    return []


def unlike(whole: Path, run: Path) -> list[str]:
    """Return in what a run differs from the uninterrupted one; times and their own paths apart."""
    if not run.exists():
        return ["there is no run folder"]
    found = []
    one, other = (dict(_leaves(_checkpoint(folder))) for folder in (whole, run))
    for key in sorted(one.keys() | other.keys()):
        if not _same(one.get(key), other.get(key)):
            found.append(f"checkpoint {key}: {str(one.get(key))[:60]} and {str(other.get(key))[:60]}")
    for name in ("metrics.csv", "figures/views.png", "figures/training.png"):
        if not (run / name).exists() or (whole / name).read_bytes() != (run / name).read_bytes():
            found.append(f"{name} differs")
    if _config(whole) != _config(run):
        found.append("config.yaml differs")
    if _steps(whole) != _steps(run):
        found.append(f"times.csv has the steps {_steps(run)}")
    if _records(whole) != _records(run):
        found.append(f"results.json: {_records(run)}")
    names, right = ({p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file()} for d in (run, whole))
    found += [f"{name} is missing" for name in sorted(right - names)]
    return found + [f"{name} is left over" for name in sorted(names - right)]


def _checkpoint(run: Path) -> dict[str, Any]:
    from selfsup.checkpoint import read_checkpoint

    content = read_checkpoint(run)
    content["callbacks"].pop("Stopwatch")
    for key in ("run_dir", "resume"):
        content["selfsup"]["config"].pop(key)
    content.pop("loops")  # Lightning's own counters of parts, which differ where nothing else does
    return content


def _leaves(value: Any, key: str = "") -> Any:
    if isinstance(value, dict | list | tuple) and len(value):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{key}.{name}")
    else:
        yield key, value


def _same(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return one.numpy().tobytes() == other.numpy().tobytes()
    return type(one) is type(other) and one == other


def _config(run: Path) -> list[str]:
    lines = (run / "config.yaml").read_text().splitlines()
    return [line for line in lines if not line.startswith(("run_dir:", "resume:"))]


def _steps(run: Path) -> list[str]:
    path = run / "times.csv"
    return [row[0] for row in csv.reader(path.open(newline=""))] if path.exists() else []


def _records(run: Path) -> list[dict[str, Any]]:
    if not (run / "results.json").exists():
        return []
    records = json.loads((run / "results.json").read_text())["results"]
    return [{k: v for k, v in record.items() if k not in ("value", "peak_memory_mb")} for record in records]


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each kind of moment: kills by signal, and in how many the run was lost."""
    lines: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in rows:
        for kill in row["kills"]:
            words = kill["kind"].removesuffix(" begins").removesuffix(" ends")
            kind = "a random time" if words == "time" else words
            kind = (
                "a change of another file"
                if kind.split()[0] in ("rename", "open", "remove", "mkdir", "link", "truncate")
                and "last.ckpt" not in kind
                else kind
            )
            kind = "before or after a checkpoint takes its place" if "last.ckpt" in kind else kind
            for name in (kind, "all"):
                line = lines[name]
                line["kills"] += 1
                line[signal.Signals(kill["signals"][0]).name] += 1
                line["to the group"] += kill["target"] == "group"
                line["to a worker or rank 1"] += kill["target"] == "other" or kill["rank"] > 0
                line["in runs that lost something"] += bool(row["faults"])
    columns = (
        "kills",
        "SIGKILL",
        "SIGTERM",
        "SIGINT",
        "to the group",
        "to a worker or rank 1",
        "in runs that lost something",
    )
    order = sorted(lines, key=lambda name: (name == "all", name))
    return [{"moment": name, **{column: lines[name][column] for column in columns}} for name in order]


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--methods", help="default: all registered ones")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds that an end may take; more when busy")
    parser.add_argument("--out", type=Path, default=Path("build/trust"))
    parser.add_argument("--scratch", type=Path, help="for the runs; those that lost something stay there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file, began = options.out / "kills.json", time.monotonic()
    rows: list[dict[str, Any]] = json.loads(file.read_text())["runs"] if file.exists() else []
    scratch = options.scratch or options.out / "runs"
    methods = options.methods.split(",") if options.methods else all_methods()
    campaign = Campaign(scratch, methods, options.cases.split(","), options.seed, options.patience)
    while sum(len(row["kills"]) for row in rows) < options.kills and time.monotonic() - began < 60 * options.minutes:
        row = campaign.trial(len(rows))
        rows.append(row)
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps({"seed": options.seed, "runs": rows}, indent=1))
        draft.replace(file)
        ways = ", ".join(f"{k['kind']}#{k['nth']} {k['signals']} to {k['target']}" for k in row["kills"])
        state = "LOST" if row["faults"] else "ok"
        print(
            f"{state:4s} {row['number']} {row['method']} {row['case']} [{ways}] {'; '.join(row['faults'])[:600]}",
            flush=True,
        )
    sys.path.insert(0, str(HERE.parent))
    from measure import write

    lost = sum(bool(row["faults"]) for row in rows)
    protocol = f"{len(rows)} trainings of {len({row['method'] for row in rows})} methods; {lost} lost something"
    print(write(options.out, "kills-table", table(rows), protocol))
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
