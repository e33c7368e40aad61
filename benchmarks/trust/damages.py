"""The damages that ``faults.py`` does: to the files of a run, to checkpoints, caches and images, and foreign input."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab import EVALUATION, Lab, refused

Change = Callable[[Path], object]
Tried = Iterator[tuple[str, Callable[[], list[str]]]]


def text(change: Callable[[str], str]) -> Change:
    """Return what changes the text of a file."""
    return lambda file: file.write_text(change(file.read_text()))


def put(content: str | bytes) -> Change:
    """Return what writes another content."""
    return lambda file: file.write_bytes(content if isinstance(content, bytes) else content.encode())


def gone(file: Path) -> None:
    """Delete a file."""
    file.unlink()


def pipe(file: Path) -> None:
    """Put a named pipe in its place, from which nobody ever reads a word."""
    file.unlink()
    os.mkfifo(file)


def folder(file: Path) -> None:
    """Put a folder in its place."""
    file.unlink()
    file.mkdir()


def endless(file: Path) -> None:
    """Put a link to a device without an end in its place."""
    file.unlink()
    file.symlink_to("/dev/zero")


ANY: dict[str, Change] = {
    "empty": put(""),
    "bytes": put(b"\xff\xfe\x00\n" * 30),
    "UTF-16": put('{"a": "b"}'.encode("utf-16")),
    "deleted": gone,
    "a pipe": pipe,
    "a folder": folder,
    "a link to /dev/zero": endless,
}


def _points(table: str) -> str:
    """As a spreadsheet saves whole numbers that it takes for decimals."""
    head, *rows = table.splitlines()
    place = head.split(",").index("step")
    cells = [row.split(",") for row in rows]
    return "\n".join([head, *(",".join([*row[:place], f"{row[place]}.0", *row[place + 1 :]]) for row in cells)]) + "\n"


METRICS: dict[str, Change] = {
    "its last row cut": text(lambda t: t[:-12]),
    "cut within its header": text(lambda t: t[:7]),
    "its header alone": text(lambda t: t.splitlines()[0] + "\n"),
    "no column of steps": text(lambda t: t.replace("step", "stop")),
    "a row written by hand": text(lambda t: t + "mean,of,all\n"),
    "semicolons of a spreadsheet": text(lambda t: t.replace(",", ";")),
    "commas for points": text(lambda t: t.replace(",", ";").replace(".", ",")),
    "steps as 5.0": text(_points),
    "blank lines and CRLF": text(lambda t: t.replace("\n", "\r\n") + "\r\n\r\n"),
    "a step of 10^400": text(lambda t: t + ",".join(["1" + "0" * 400] * len(t.splitlines()[0].split(","))) + "\n"),
    "a cell of 200 kB": text(lambda t: t + ",".join(["9" * 200_000] * len(t.splitlines()[0].split(","))) + "\n"),
    "text for numbers": text(lambda t: t + ",".join(["many"] * len(t.splitlines()[0].split(","))) + "\n"),
}

GOOD = {"protocol": "knn", "split": "test", "metric": "top1", "value": 0.5, "k": 20, "epoch": 3, "test_images": 40}


def _record(**changed: Any) -> Change:
    return put(json.dumps({"results": [GOOD | changed]}))


RESULTS: dict[str, Change] = {
    "cut": text(lambda t: t[: len(t) // 2]),
    "a list": put("[]"),
    "null": put("null"),
    "results that are a number": put('{"results": 3}'),
    "a record that is text": put('{"results": ["knn"]}'),
    "no value": put('{"results": [{"protocol": "knn", "split": "test", "metric": "top1"}]}'),
    "NaN": put('{"results": [{"protocol": "knn", "split": "test", "metric": "top1", "value": NaN}]}'),
    "infinity": put('{"results": [{"protocol": "knn", "split": "test", "metric": "top1", "value": 1e999}]}'),
    "100,000 levels": put('{"results": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "half a surrogate pair": put('{"results": [{"protocol":"knn","split":"\\ud800","metric":"top1","value":0.5}]}'),
    "a value that is text": _record(value="0.5"),
    "a value that is null": _record(value=None),
    "a value that is a list": _record(value=[1]),
    "a value that is true": _record(value=True),
    "a value of 10^400": _record(value=10**400),
    "a value of 50 of 1": _record(value=50.0),
    "an epoch that is text": _record(epoch="three"),
    "an epoch that is a list": _record(epoch=[3]),
    "a split that is a list": _record(split=["test"]),
    "a protocol that is a number": _record(protocol=5),
    "a metric that is an object": _record(metric={}),
    "data that is an object": _record(data={"a": 1}),
    "a k that is a list of lists": _record(k=[20, [1]]),
    "images that are text": _record(test_images="many"),
    "no images": _record(test_images=0),
    "a spectrum that is text": _record(protocol="diagnostics", metric="rank_me", spectrum={"rank": 5, "value": "x"}),
    "a spectrum that is a list": _record(protocol="diagnostics", metric="rank_me", spectrum=[1, 2]),
    "a layer that is a list": _record(protocol="layers", layer=["a"], depth="x"),
    "an operation that is null": _record(protocol="invariance", metric="invariance", operation=None),
    "seconds that are text": _record(protocol="training", metric="seconds", value="x", peak_memory_mb="y"),
}

ANCHORS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
CONFIGS: dict[str, Change] = {
    "a list": put("- 1\n"),
    "one word": put("hello"),
    "a bracket that stays open": put("a: [1"),
    "a method that is text, data that is a number": put("method: moco\ndata: 3\n"),
    "a method that is a list": put("method: [1]\ndata: {name: x}\n"),
    "an interpolation of what is not there": put("method: {name: '${nothing}'}\ndata: {name: shapes}\nseed: ${a.b}\n"),
    "an interpolation of itself": put("method: {name: byol}\ndata: {name: shapes}\nseed: ${seed}\n"),
    "an unknown resolver": put("method: {name: '${what:1}'}\ndata: {name: shapes}\n"),
    "an environment variable": put("method: {name: '${oc.env:HOME}'}\ndata: {name: shapes}\n"),
    "values that are missing": put("method: {name: ???}\ndata: {name: shapes}\nseed: ???\n"),
    "an object of Python": put("method: !!python/object/apply:os.system ['touch ran']\ndata: {}\n"),
    "keys that are numbers": put("1: 2\nmethod: {3: 4}\ndata: {name: shapes}\n"),
    "anchors that grow without end": put(ANCHORS),
    "2,000 levels": put("a: " + "[" * 2000 + "]" * 2000),
}

FILES: dict[str, dict[str, Change]] = {
    "metrics.csv": ANY | METRICS,
    "times.csv": ANY | {"semicolons": text(lambda t: t.replace(",", ";")), "its last row cut": text(lambda t: t[:-9])},
    "results.json": ANY | RESULTS,
    "config.yaml": ANY | CONFIGS,
    "environment.json": ANY | {"a list": put("[1]"), "100,000 levels": put("[" * 100_000 + "]" * 100_000)},
    "membership.npz": ANY | {"cut": lambda file: os.truncate(file, file.stat().st_size // 2)},
}
#: What reads each of them.
COMMANDS = {
    "metrics.csv": ("compare", "resume"),
    "times.csv": ("compare", "resume"),
    "results.json": ("compare", "knn"),
    "config.yaml": ("compare", "resume"),
    "environment.json": ("compare", "resume"),
    "membership.npz": ("knn", "resume"),
}


def content(change: Callable[[dict[str, Any]], object]) -> Change:
    """Return what changes the content of a checkpoint, which is then written as a whole one."""
    import torch

    def go(file: Path) -> None:
        held = torch.load(file, weights_only=True)
        change(held)
        torch.save(held, file)

    return go


def _at(held: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *folders, last = path.split("/")
    return functools.reduce(lambda inner, key: inner[key], folders, held), last


def without(path: str) -> Change:
    """Return what takes a key out of a checkpoint."""

    def change(held: dict[str, Any]) -> None:
        place, last = _at(held, path)
        del place[last]

    return content(change)


def holding(path: str, value: Any) -> Change:
    """Return what gives a key of a checkpoint another value."""

    def change(held: dict[str, Any]) -> None:
        place, last = _at(held, path)
        place[last] = value

    return content(change)


def flipped(file: Path) -> None:
    """Change one bit in its middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def _first_weight(change: Callable[[Any], Any]) -> Change:
    def go(held: dict[str, Any]) -> None:
        name = next(key for key, value in held["state_dict"].items() if value.ndim > 1)
        held["state_dict"][name] = change(held["state_dict"][name])

    return content(go)


def _weights(file: Path) -> None:
    import torch

    torch.save(torch.load(file, weights_only=True)["state_dict"], file)


CONFIG = "selfsup/config"
CHECKPOINTS: dict[str, Change] = {
    "empty": put(""),
    "cut at a half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "its last 30 bytes cut": lambda file: os.truncate(file, file.stat().st_size - 30),
    "one bit changed": flipped,
    "a text": put("no checkpoint"),
    "a folder": folder,
    "weights alone": _weights,
    **{
        f"without {path.replace('/', '.')}": without(path)
        for path in (
            *("optimizer_states", "lr_schedulers", "loops", "global_step", "epoch", "callbacks", "state_dict"),
            *("selfsup", CONFIG, "selfsup/epochs_done", "selfsup/mean", "selfsup/in_channels"),
            *(f"{CONFIG}/method", f"{CONFIG}/backbone", f"{CONFIG}/optimizer", f"{CONFIG}/trainer", f"{CONFIG}/data"),
            *("callbacks/Stopwatch", f"{CONFIG}/seed", f"{CONFIG}/batch_size"),
        )
    },
    **{
        f"{path.replace('/', '.')} that is {str(value)[:12]}": holding(path, value)
        for path, value in (
            *(("selfsup", None), (CONFIG, [1]), ("selfsup/epochs_done", "x"), ("global_step", 10**30)),
            *(
                ("global_step", "x"),
                ("global_step", -1),
                ("epoch", 10**9),
                ("state_dict", {}),
                ("optimizer_states", []),
            ),
            *(
                ("optimizer_states", [{}]),
                ("lr_schedulers", [{}]),
                ("loops", {}),
                ("callbacks", {}),
                ("callbacks", [1]),
            ),
            *((f"{CONFIG}/method/name", "dino"), (f"{CONFIG}/method/name", "nothing"), (f"{CONFIG}/data/name", "x")),
            *((f"{CONFIG}/backbone/width", 8), (f"{CONFIG}/backbone/width", "wide"), (f"{CONFIG}/seed", None)),
            *(("selfsup/in_channels", -5), ("selfsup/in_channels", 7), ("selfsup/std", [0, 0, 0])),
        )
    },
    "a weight of another shape": _first_weight(lambda weight: weight[:1].clone()),
    "a weight of NaN": _first_weight(lambda weight: weight * float("nan")),
    "a weight of whole numbers": _first_weight(lambda weight: weight.long()),
    "a weight that is missing": content(lambda held: held["state_dict"].popitem()),
}


def pictures(root: Path, count: int = 96) -> Path:
    """Draw images in two classes."""
    from PIL import Image

    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 36), 20 + number % 60).convert("RGB").save(path)
    return root


def _each(change: Change, part: slice) -> Callable[[Path], None]:
    def go(root: Path) -> None:
        for file in sorted(root.rglob("*.png"))[part]:
            change(file)

    return go


#: What may be undecodable, the change, and what the sentence names; nothing where the training goes on.
IMAGES: dict[str, tuple[float, Callable[[Path], None], tuple[str, ...]]] = {
    "three images deleted, allowed": (0.1, _each(gone, slice(3)), ()),
    "three images cut, allowed": (0.1, _each(lambda file: os.truncate(file, 40), slice(3)), ()),
    "three images turned to folders, allowed": (0.1, _each(folder, slice(3)), ()),
    "half of the images deleted": (0.1, _each(gone, slice(0, None, 2)), ("data.max_undecodable",)),
    "the whole folder deleted": (0.1, shutil.rmtree, ("images",)),
}

DIES = '''
"""Lets a rank die at its eighth step."""
import os, signal
from selfsup.methods import Method

usual, seen = Method.training_step, 0


def step(self, *arguments):
    global seen
    seen += 1
    if seen == 8 and os.environ.get("TRUST_DIES") == os.environ.get("LOCAL_RANK", "0"):
        if os.environ["TRUST_DEATH"] == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("the rank dies here")
    return usual(self, *arguments)


Method.training_step = step
'''


def caches(lab: Lab) -> Tried:
    """Yield the damages of caches of features and images, and of the indexes of shards."""
    import numpy as np
    import torch

    made = lab.finished()
    knn = ["knn", f"checkpoint={made}", *EVALUATION]
    lab.run(*knn)
    features = sorted(path for path in (made / "features").rglob("*") if path.is_file())
    whole: dict[str, Change] = {
        "empty": put(""),
        "cut": lambda file: os.truncate(file, 100),
        "junk": put("junk"),
        "one bit changed": flipped,
        "a list": lambda file: torch.save([1], file),
        "without labels": lambda file: torch.save({"features": torch.ones(3)}, file),
        "a folder": folder,
    }
    for what, change in whole.items():
        yield f"features: {what}", lambda change=change: _changed_file(lab, made, features[0], change, knn)
    place = lab.folder()
    pictures(place / "images")
    data = ["data=image_folder", f"data.root={place / 'images'}", "data.resident_limit_mb=0", "data.image_size=32"]
    cached = ["knn", f"checkpoint={made}", *EVALUATION, *data, f"data.cache={place / 'cache'}", "eval.cache=false"]
    lab.run(*cached)
    for file in sorted(path for path in (place / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"):
        more: dict[str, Change] = {"deleted": gone} | {k: whole[k] for k in ("empty", "cut", "junk", "a folder")}
        if file.suffix == ".json":
            more |= {"no keys": put("{}"), "a list": put("[]"), "100,000 levels": put("[" * 10**5 + "]" * 10**5)}
            more |= {"other numbers": text(lambda t: t.replace("32", "16")), "rows out of range": text(_out_of_range)}
        for what, change in more.items():
            name = f"image cache, {file.parent.name.split('-')[1]}, {file.name}: {what}"
            yield name, lambda change=change, file=file: _changed_file(lab, place / "cache", file, change, cached)
    shards = place / "shards"
    shards.mkdir()
    with tarfile.open(shards / "train-0.tar", "w") as tar:
        for file in sorted((place / "images").rglob("*.png")):
            tar.add(file, file.name)
    os.environ["XDG_CACHE_HOME"] = str(place / "home")
    try:
        words = ["knn", f"checkpoint={made}", *EVALUATION, "data=webdataset", f"data.root={shards}", "eval.cache=false"]
        words += ["data.image_size=32", "data.resident_limit_mb=0", "data.test_fraction=0.2"]
        lab.run(*words)
        for index in sorted((place / "home").rglob("*.npz")):
            held = dict(np.load(index))
            arrays: dict[str, Change] = {k: whole[k] for k in ("empty", "cut", "junk")}
            arrays["another archive"] = lambda file: np.savez(file, a=np.zeros(2))
            for key in (key for key, value in held.items() if value.dtype.kind in "iu" and value.size):
                arrays[f"{key} negative"] = functools.partial(_other_numbers, key, lambda numbers: -1 - numbers)
                arrays[f"{key} huge"] = functools.partial(_other_numbers, key, lambda numbers: numbers + 2**40)
            for what, change in arrays.items():
                name = f"index of shards: {what}"
                yield name, lambda change=change, index=index: _changed_file(lab, place / "home", index, change, words)
    finally:
        os.environ.pop("XDG_CACHE_HOME")


def _other_numbers(key: str, change: Callable[[Any], Any], file: Path) -> None:
    import numpy as np

    held = dict(np.load(file))
    np.savez(file, **(held | {key: change(held[key])}))


def _out_of_range(about: str) -> str:
    held = json.loads(about)
    return json.dumps({key: [99_999] if isinstance(value, list) else value for key, value in held.items()})


def _changed_file(lab: Lab, around: Path, file: Path, change: Change, words: list[str]) -> list[str]:
    """Change a file, run a command, and put the folder around it back."""
    kept = Path(shutil.copytree(around, lab.folder() / "kept"))
    change(file)
    try:
        return refused(lab.run(*words), codes=(0, 2))
    finally:
        shutil.rmtree(around)
        shutil.copytree(kept, around)


def foreign(lab: Lab) -> Tried:
    """Yield files of other people's that are given to commands."""
    own: dict[str, str | bytes] = {
        "syntax.py": "def (",
        "raises.py": "raise ValueError('mine')",
        "exits.py": "import sys; sys.exit(3)",
        "missing.py": "import nothing_like_this",
        "binary.py": b"\0\1",
        "latin.py": b"# caf\xe9\n",
        "deep.py": "raise RecursionError",
        "data.txt": "x",
    }
    for name, text_of in own.items():
        yield f"--import {name}", lambda name=name, text_of=text_of: _import(lab, name, text_of)
    for name, words in {
        "--import without a file": ["train", "--import"],
        "--import of a folder": ["train", "--import", "."],
        "--config of a folder": ["train", "--config", "."],
        "--config of /dev/null": ["train", "--config", "/dev/null"],
        "compare of /": ["compare", "/"],
        "compare of /dev/zero": ["compare", "/dev/zero"],
        "knn of /dev/zero": ["knn", "checkpoint=/dev/zero"],
        "resume of /etc": ["train", "resume=/etc"],
        "compare into /dev/full": ["compare", str(lab.whole), "--out", "/dev/full"],
        "export into /dev/full": ["export", str(lab.whole), "--format", "torchscript", "--out", "/dev/full"],
        "export into a name of 300 letters": ["export", str(lab.whole), "--format", "torchscript", "--out", "x" * 300],
        "embed into /proc": ["embed", str(lab.whole), "--out", "/proc/x.npz"],
    }.items():
        yield name, lambda words=words: refused(lab.run(*words))
    for name in ("<script>alert(1)", "=cmd|' !A0", "a\nb", '"onload="x', "|pipe|", "$x_{", "-rf", "\x1b[31mred"):
        yield f"a run called {name!r}", lambda name=name: _named(lab, name)


def _import(lab: Lab, name: str, text_of: str | bytes) -> list[str]:
    file = lab.folder() / name
    put(text_of)(file)
    words = ["train", "--import", str(file), *lab.settings, f"run_dir={file.parent / 'run'}"]
    # a comment in another encoding does no harm
    return refused(lab.run(*words), name, codes=(0, 2) if name == "latin.py" else (2,))


def _named(lab: Lab, name: str) -> list[str]:
    run = lab.folder() / name
    shutil.copytree(lab.whole, run)
    record = GOOD | {"protocol": name, "split": name, "data": name, name: name}
    (run / "results.json").write_text(json.dumps({"results": [record]}))
    out = run.parent / "comparison"
    ended = lab.run("compare", str(run), "--out", str(out))
    found = refused(ended, codes=(0, 2))
    if "\x1b[31m" in ended.said:
        found.append("control characters reach the terminal")
    for file in (
        path for path in out.rglob("*") if path.suffix in (".html", ".md") and "<script>alert" in path.read_text()
    ):
        found.append(f"a script in {file.name}")
    for file in out.rglob("*.csv"):
        cells = [cell for line in file.read_text().splitlines() for cell in line.split(",")]
        found += [f"{file.name} has the formula {cell}" for cell in cells if cell.startswith("=")]
    return found
