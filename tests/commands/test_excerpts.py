"""What help tells of settings without importing the code beside them is what the code has."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import selfsup.methods  # noqa: F401 - fills the registry
from selfsup.config import load_config
from selfsup.eval import PROTOCOLS
from selfsup.registry import REGISTRIES
from selfsup.settings.described import settings

TOLD = """
import json, sys
from selfsup.settings.catalog import listed
from selfsup.settings.composing import config_for_help
from selfsup.settings.described import settings
from selfsup.settings.excerpts import excerpt

found = {}
for group in ("method", "data", "objective", "negatives", "protocol"):
    for name, entry in listed(group).items():
        if entry.settings:
            found[f"{group}={name}"] = list(settings(excerpt(entry.module, entry.settings)(), entry.key))
for kind, words in (("train", WORDS), ("evaluate", ["checkpoint=RUN", "eval.knn.k=[3]"])):
    found[kind] = list(settings(config_for_help(words, kind)))
assert not {"torch", "numpy"} & set(sys.modules), "this takes seconds"
print(json.dumps(found))
"""
WORDS = ["experiment=demo_moco", "method.queue_size=512", "optimizer.lr=0.1", "data.image_size=64"]


def plain(found: Any) -> Any:
    return json.loads(json.dumps(list(found)))


def test_excerpts_tell_what_the_code_has() -> None:
    code = TOLD.replace("WORDS", repr(WORDS))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for group, registry in REGISTRIES.items():
        names = [name for name in registry if registry[name].target.__module__.startswith("selfsup.")]
        assert {f"{group}={name}" for name in names} == {key for key in told if key.startswith(f"{group}=")}
        for name in names:
            assert told[f"{group}={name}"] == plain(settings(registry[name].config(), name)), name
    for name, entry in PROTOCOLS.items():
        if entry.settings is not None and entry.run.__module__.startswith("selfsup."):
            assert told[f"protocol={name}"] == plain(settings(entry.settings(), entry.key)), name
    assert told["train"] == plain(settings(load_config(WORDS)))
    evaluated = plain(settings(load_config(["checkpoint=RUN", "eval.knn.k=[3]"], kind="evaluate")))
    assert all(setting in evaluated for setting in told["evaluate"])
