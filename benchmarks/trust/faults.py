"""Try faults on real commands: full disks, read-only folders, damaged files, signals, several at once, foreign input.

    python benchmarks/trust/faults.py --out build/trust                  all; what --out has already is not tried again
    python benchmarks/trust/faults.py --only "full disk:;signals: SIGINT"     of groups with such names, such faults
    python benchmarks/trust/faults.py --list

What must hold: a command ends in time, by itself, with exit code 2 and one sentence that names the file or setting, or
goes on where it can; never with a traceback, and leaving no half-written file and no process. A training that a fault
stopped goes on when the fault is gone, and ends as if there had been none (``kills.py``, ``unlike``).

A full disk is one on which no file grows from a chosen moment on (``RLIMIT_FSIZE``): every file that a command opens to
write is once the first that does not. Folders are read-only to this process as to any user: it gives up the
capabilities by which root overrides permissions. Exit code 1 when anything did not hold.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import damages
import kills
from lab import EVALUATION, Ended, Lab, Moment, Running, drafts, refused

HERE = Path(__file__).resolve().parent
Tried = Iterator[tuple[str, Callable[[], list[str]]]]
GROUPS: dict[str, Callable[[Lab], Tried]] = {}


def group(name: str) -> Callable[[Callable[[Lab], Tried]], Callable[[Lab], Tried]]:
    """Register a function that yields the names of faults, and what tries them and returns what did not hold."""

    def add(function: Callable[[Lab], Tried]) -> Callable[[Lab], Tried]:
        GROUPS[name] = function
        return function

    return add


def survived(lab: Lab, run: Path, ended: Ended) -> list[str]:
    """Return in what a training that was to end well did not, or is unlike one that nobody touched."""
    return refused(ended, codes=(0,)) or kills.unlike(lab.whole, run)


@group("full disk, training")
def full_training(lab: Lab) -> Tried:
    counts = collections.Counter(kind for kind in lab.moments if kind.startswith(("open ", "half ")))
    for kind, count in sorted(counts.items()):
        for nth in sorted({1, count}):
            yield f"{kind}, time {nth} of {count}", lambda kind=kind, nth=nth: _full_training(lab, kind, nth)


def _full_training(lab: Lab, kind: str, nth: int) -> list[str]:
    run = lab.folder() / "run"
    ended = lab.run(*lab.training(run), moment=Moment(kind, nth, run, full=True))
    if ended.code == 0:  # what was left to write was the log, which a run does without
        return survived(lab, run, ended)
    found = [*refused(ended, str(run)), *drafts(run)]
    return found or [f"then: {what}" for what in survived(lab, run, lab.run(*lab.training(run)))]


@group("full disk, other commands")
def full_commands(lab: Lab) -> Tried:
    from PIL import Image

    images = lab.folder() / "images"
    for number in range(40):
        (images / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 36), 20 + number).convert("RGB").save(images / "ab"[number % 2] / f"{number}.png")
    files = ["data=image_folder", f"data.root={images}", "data.image_size=32", "data.resident_limit_mb=0"]
    forms = {"safetensors": "model", "torchscript": "m.pt", "exported": "m.pt2", "timm": "timm", "torchvision": "m.pth"}
    commands: dict[str, Callable[[Path], list[str]]] = {
        "knn": lambda run: ["knn", f"checkpoint={run}", *EVALUATION],
        "evaluate": lambda run: ["evaluate", str(run), "--only=knn,ridge", "eval.knn_k=[5]"],
        "neighbours": lambda run: ["neighbours", str(run)],
        "compare": lambda run: ["compare", str(run), "--out", str(run / "comparison")],
        "embed, npz": lambda run: ["embed", str(run), "--out", str(run / "features.npz")],
        "embed, parquet": lambda run: ["embed", str(run), "--out", str(run / "features.parquet")],
        "data.cache": lambda run: ["knn", f"checkpoint={run}", *EVALUATION, *files, f"data.cache={run / 'cache'}"],
    }
    for form, name in forms.items():
        commands[f"export, {form}"] = lambda run, form=form, name=name: [
            *["export", str(run), "--format", form, "--out", str(run / name)]
        ]
    for name, command in commands.items():
        yield name, lambda command=command: _full_command(lab, command)


def _full_command(lab: Lab, command: Callable[[Path], list[str]]) -> list[str]:
    run, found = lab.finished(), []
    for kind, count in lab.opened(command(run), run).items():
        for nth in sorted({1, count}):
            run = lab.finished()
            before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
            ended = lab.run(*command(run), moment=Moment(kind, nth, run, full=True))
            # what a command can do without (a cache of features) may be left out with a word
            these = [*refused(ended, codes=(0, 2)), *drafts(run)]
            these += [f"{path.name} was changed" for path, old in before.items() if ended.code and _lost(path, old)]
            if not these and ended.code:
                these = [f"then: {what}" for what in refused(lab.run(*command(run)), codes=(0,))]
            found += [f"{kind}, time {nth}: {what}" for what in these]
    return found


def _lost(path: Path, old: bytes) -> bool:
    """Return whether a file is not what it was; records of protocols that were done before may have come to others."""
    if path.name != "results.json":
        return path.read_bytes() != old
    had, have = (json.loads(content)["results"] for content in (old, path.read_bytes()))
    return have[: len(had)] != had


@group("read-only folders")
def read_only(lab: Lab) -> Tried:
    commands: dict[str, Callable[[Path], list[str]]] = {
        "train": lambda run: ["train", *lab.settings, f"run_dir={run / 'new'}"],
        "train, resume": lambda run: ["train", f"resume={run}"],
        "knn": lambda run: ["knn", f"checkpoint={run}", *EVALUATION],
        "evaluate": lambda run: ["evaluate", str(run), "--only=knn", "eval.knn_k=[5]"],
        "compare": lambda run: ["compare", str(run), "--out", str(run / "comparison")],
        "embed": lambda run: ["embed", str(run), "--out", str(run / "features.npz")],
        "export": lambda run: ["export", str(run), "--format", "torchscript", "--out", str(run / "m.pt")],
    }
    for name, command in commands.items():
        yield (
            name,
            lambda command=command, name=name: _read_only(lab, command, lab.half if "resume" in name else lab.finished),
        )


def _read_only(lab: Lab, command: Callable[[Path], list[str]], made: Callable[[], Path]) -> list[str]:
    run = made()
    places = [run, *(path for path in run.rglob("*"))]
    for path in places:
        path.chmod(0o555 if path.is_dir() else 0o444)
    ended = lab.run(*command(run))
    for path in places:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return refused(ended, str(run))


@group("damaged files of a run")
def damaged(lab: Lab) -> Tried:
    for name, changes in damages.FILES.items():
        for what, change in changes.items():
            yield f"{name}: {what}", lambda name=name, change=change: _damaged(lab, name, change)


def _damaged(lab: Lab, name: str, change: damages.Change) -> list[str]:
    found = []
    commands: dict[str, tuple[Callable[[], Path], Callable[[Path], list[str]]]] = {
        "compare": (lab.finished, lambda run: ["compare", str(run), "--out", str(run.parent / "c")]),
        "knn": (lab.finished, lambda run: ["knn", f"checkpoint={run}", *EVALUATION]),
        "resume": (lab.half, lambda run: ["train", f"resume={run}"]),
    }
    for command in damages.COMMANDS[name]:
        made, words = commands[command]
        run = made()
        file = run / name
        change(file)
        # the sentence may name the file, or the run that it makes unfit
        found += [f"{command}: {what}" for what in refused(lab.run(*words(run)), run.name, codes=(0, 2))]
    return found


@group("damaged checkpoints")
def damaged_checkpoints(lab: Lab) -> Tried:
    for what, change in damages.CHECKPOINTS.items():
        yield what, lambda change=change: _damaged_checkpoint(lab, change)


def _damaged_checkpoint(lab: Lab, change: damages.Change) -> list[str]:
    found = []
    for command in ("train", "knn"):
        run = lab.half()
        change(run / "checkpoints" / "last.ckpt")
        words = ["train", f"resume={run}"] if command == "train" else ["knn", f"checkpoint={run}", *EVALUATION]
        found += [f"{command}: {what}" for what in refused(lab.run(*words), codes=(0, 2))]
    return found


@group("damaged caches and indexes")
def damaged_caches(lab: Lab) -> Tried:
    yield from damages.caches(lab)


@group("signals")
def signals(lab: Lab) -> Tried:
    for kind in ("open .config.yaml.new", "open .views.png.new", "rename training.png", "rename results.json"):
        for number in (signal.SIGTERM, signal.SIGINT):
            yield f"{number.name} at {kind}", lambda kind=kind, number=number: _signal(lab, kind, number, resumed=False)
    for kind in ("open .metrics.csv.new", "a step begins"):
        for number in (signal.SIGTERM, signal.SIGINT):
            name = f"{number.name} at {kind}, as a resumed run starts"
            yield name, lambda kind=kind, number=number: _signal(lab, kind, number, resumed=True)


def _signal(lab: Lab, kind: str, number: int, resumed: bool) -> list[str]:
    run = lab.half() if resumed else lab.folder() / "run"
    running = Running(lab, lab.training(run), Moment(kind, 1, run, signals=(number,)))
    if not running.reached():
        return [f"the moment never came: {running.end().last}"]
    ended = running.end()
    if ended.code == 0:  # it came when all steps were done, and the run did what was left
        return refused(ended, codes=(0,)) or kills.unlike(lab.whole, run)
    found = refused(ended, codes=(128 + number,))
    if not found and "Stopped" not in ended.said and "resume" not in ended.said:
        found = [f"says no word of going on: {ended.last}"]
    return found or [f"then: {what}" for what in survived(lab, run, lab.run(*lab.training(run)))]


@group("several at once")
def together(lab: Lab) -> Tried:
    yield "three trainings in one folder", lambda: _trainings_at_once(lab, lab.folder() / "run", resumed=False)
    yield "three resumes of one run", lambda: _trainings_at_once(lab, lab.half(), resumed=True)
    yield "four evaluations of one run", lambda: _evaluations_at_once(lab)
    yield "a run that is evaluated while it trains", lambda: _evaluated_while_training(lab)


def _trainings_at_once(lab: Lab, run: Path, resumed: bool) -> list[str]:
    words = ["train", f"resume={run}"] if resumed else ["train", *lab.settings, f"run_dir={run}"]
    ends = [running.end() for running in [Running(lab, words) for _ in range(3)]]
    codes = sorted(-1 if end.code is None else end.code for end in ends)
    found = [] if codes == [0, 2, 2] else [f"exit codes {codes}: {[end.last for end in ends]}"]
    found += [what for end in ends for what in refused(end, run.name, codes=(0, 2))]
    return found or kills.unlike(lab.whole, run)


def _evaluations_at_once(lab: Lab) -> list[str]:
    run = lab.finished()
    only = ("knn", "ridge", "diagnostics", "clustering")
    words = [["evaluate", str(run), f"--only={name}", "eval.knn_k=[5]"] for name in only]
    ends = [running.end() for running in [Running(lab, these) for these in words]]
    found = [what for end in ends for what in refused(end, codes=(0,))]
    have = {record["protocol"] for record in json.loads((run / "results.json").read_text())["results"]}
    return found + [f"the records of {name} are lost" for name in only if name not in have] + drafts(run)


def _evaluated_while_training(lab: Lab) -> list[str]:
    run = lab.folder() / "run"
    training = Running(lab, lab.training(run), Moment("a step begins", 7, run, signals=(signal.SIGSTOP,)))
    if not training.reached():
        return [f"the moment never came: {training.end().last}"]
    evaluation = lab.run("knn", f"checkpoint={run}", *EVALUATION)
    resumed = lab.run("train", f"resume={run}")
    os.kill(training.process.pid, signal.SIGCONT)
    found = [*refused(training.end(), codes=(0,)), *refused(evaluation, codes=(0,)), *refused(resumed, "by another")]
    have = {record["protocol"] for record in json.loads((run / "results.json").read_text())["results"]}
    return found + [f"the records of {name} are lost" for name in ("knn", "training") if name not in have]


@group("files that change during a run")
def changed(lab: Lab) -> Tried:
    for name, (limit, change, words) in damages.IMAGES.items():
        yield name, lambda limit=limit, change=change, words=words: _changed(lab, limit, change, words)
    yield "a cache cut short", lambda: _cut_cache(lab)
    yield "a shard cut short", lambda: _cut_shard(lab)


def _changed(lab: Lab, limit: float, change: Callable[[Path], None], words: tuple[str, ...], *more: str) -> list[str]:
    folder = lab.folder()
    root, run = folder / "images", folder / "run"
    damages.pictures(root)
    data = ["data=image_folder", f"data.root={root}", "data.resident_limit_mb=0", f"data.max_undecodable={limit}"]
    return _while_training(lab, run, [*data, *more], lambda: change(root), words)


def _cut_cache(lab: Lab) -> list[str]:
    cache = lab.folder() / "cache"

    def cut(_: Path) -> None:
        for file in cache.rglob("images*"):
            os.truncate(file, 100)

    return _changed(lab, 0, cut, ("data.cache",), f"data.cache={cache}")


def _cut_shard(lab: Lab) -> list[str]:
    folder = lab.folder()
    damages.pictures(folder / "images")
    shards = folder / "shards"
    shards.mkdir()
    with tarfile.open(shards / "train-0.tar", "w") as tar:
        for file in sorted((folder / "images").rglob("*.png")):
            tar.add(file, file.name)
    data = ["data=webdataset", f"data.root={shards}", "data.resident_limit_mb=0", "data.test_fraction=0"]
    change = lambda: os.truncate(shards / "train-0.tar", 5000)  # noqa: E731
    return _while_training(lab, folder / "run", data, change, ("train-0.tar",))


def _while_training(
    lab: Lab, run: Path, data: list[str], change: Callable[[], None], words: tuple[str, ...]
) -> list[str]:
    """Stop a training at a step, change its files, and let it go on: to its end where nothing need be named."""
    settings = [word for word in lab.settings if word.startswith("data.image") or not word.startswith("data")]
    command = ["train", *settings, *data, f"run_dir={run}"]
    training = Running(lab, command, Moment("a step begins", 5, run, signals=(signal.SIGSTOP,)))
    if not training.reached():
        return [f"the moment never came: {training.end().said[-600:]}"]
    change()
    os.kill(training.process.pid, signal.SIGCONT)
    found = refused(training.end(), *words, codes=(2,) if words else (0,))
    return found + ([] if (run / "checkpoints" / "last.ckpt").exists() else ["there is no checkpoint"])


@group("a rank that dies")
def ranks(lab: Lab) -> Tried:
    for rank in (0, 1):
        for death in ("an error", "SIGKILL"):
            yield f"rank {rank} by {death}", lambda rank=rank, death=death: _rank_dies(lab, rank, death)


def _rank_dies(lab: Lab, rank: int, death: str) -> list[str]:
    folder = lab.folder()
    run, own = folder / "run", folder / "dies.py"
    own.write_text(damages.DIES)
    devices = ["trainer.devices=2", "trainer.strategy=ddp"]
    settings = [word for word in lab.settings if not word.startswith("trainer.devices")]
    os.environ.update(TRUST_DIES=str(rank), TRUST_DEATH=death)
    running = Running(lab, ["train", "--import", str(own), *settings, *devices, f"run_dir={run}"])
    while not (run / "checkpoints" / "last.ckpt").exists() and not running.process.ended():
        time.sleep(0.05)
    began = time.monotonic()
    ended = running.end()
    seconds = time.monotonic() - began
    found = [f"it ended {seconds:.0f} s after the first checkpoint"] if seconds > 60 else []
    if ended.code in (None, 0):
        found.append(f"exit code {ended.code}: {ended.last}")
    if death == "an error" and "the rank dies here" not in ended.said:
        found.append(f"its own traceback is not on the screen: {ended.last}")
    if death == "SIGKILL" and "Traceback" in ended.said:
        found.append(f"a traceback of the other: {ended.last}")
    os.environ.pop("TRUST_DIES")
    again = lab.run("train", f"resume={run}")
    return found or [f"then: {what}" for what in refused(again, codes=(0,))]


@group("foreign input")
def foreign(lab: Lab) -> Tried:
    yield from damages.foreign(lab)


def obey_permissions() -> None:
    """Give up what lets root write where permissions say that nobody may."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, data) == 0:
        data[0] &= ~0b110  # effective CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        libc.capset(header, data)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line a group: the faults that were tried, and those that were survived."""
    lines = []
    for name in [*dict.fromkeys(row["group"] for row in rows), "all"]:
        these = [row for row in rows if name in (row["group"], "all")]
        lines.append({"faults": name, "tried": len(these), "survived": sum(not row["faults"] for row in these)})
    return lines


def main() -> int:
    """Try the faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=":", help="GROUP:FAULT, parts of the names of both, with semicolons between")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no fault after so many")
    parser.add_argument("--out", type=Path, default=Path("build/trust"))
    parser.add_argument("--scratch", type=Path, help="for the runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    obey_permissions()
    file, began = options.out / "faults.json", time.monotonic()
    rows: list[dict[str, Any]] = json.loads(file.read_text())["faults"] if file.exists() else []
    done = {(row["group"], row["fault"]) for row in rows}
    lab = Lab(options.scratch or options.out / "faults")
    only = [[word.strip() for word in part.partition(":")[::2]] for part in options.only.split(";")]
    for name, function in GROUPS.items():
        wanted = [fault for part, fault in only if part in name]
        for fault, attempt in function(lab) if wanted else ():
            if not any(part in fault for part in wanted) or (name, fault) in done:
                continue
            if options.list:
                print(f"{name}: {fault}")
                continue
            if time.monotonic() - began > 60 * options.minutes:
                break
            try:
                found = attempt()
            except Exception:
                found = [traceback.format_exc()]
            rows.append({"group": name, "fault": fault, "faults": found})
            file.write_text(json.dumps({"faults": rows}, indent=1))
            print(f"{'FAIL' if found else 'ok  '} {name}: {fault} {'; '.join(found)[:800]}", flush=True)
    if options.list:
        return 0
    sys.path.insert(0, str(HERE.parent))
    from measure import write

    lost = sum(bool(row["faults"]) for row in rows)
    print(write(options.out, "faults-table", table(rows), f"{len(rows)} faults on real commands; {lost} did harm"))
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
