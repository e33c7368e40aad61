"""What was probably meant: by a setting or a command that there is not, or by a word that is neither."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfsup.registry import find, nearest
from selfsup.settings.catalog import GROUPS, choices, listed, other_names, written

#: What settings are called elsewhere, by what they are here: the last part of a key, a section, or a whole setting.
_ELSEWHERE = {
    "method": "algorithm algo approach ssl pretext model",
    "objective": "loss criterion loss_fn",
    "backbone": "model arch architecture network net encoder",
    "data": "dataset datasets ds",
    "augment": "augmentation augmentations aug augs transform transforms recipe",
    "optimizer": "optim opt optimiser",
    "experiment": "exp preset recipe",
    "logger": "log logging logs tracker",
    "max_epochs": "epochs epoch n_epochs num_epochs",
    "batch_size": "batch bs batchsize",
    "lr": "learning_rate base_lr",
    "eval.linear_probe.learning_rates": "lr learning_rate base_lr",
    "weight_decay": "wd decay l2",
    "weight_decays": "weight_decay wd",
    "momentum": "ema",
    "schedule": "scheduler sched lr_schedule lr_scheduler",
    "warmup_epochs": "warmup warm_up",
    "devices": "gpus gpu num_gpus n_gpus ngpus gpu_id gpu_ids device num_devices",
    "accelerator": "device gpu gpus",
    "num_nodes": "nodes",
    "trainer.strategy=ddp": "ddp distributed",
    "trainer.precision=16-mixed": "amp fp16 mixed_precision half",
    "trainer.precision=bf16-mixed": "bf16 bfloat16",
    "workers": "num_workers n_workers",
    "root": "data_dir data_path dataset_path path folder dir directory train_dir images",
    "image_size": "size img_size crop_size input_size resolution res",
    "limit": "subset max_images num_images num_samples n_samples max_samples samples",
    "counts": "crops num_crops n_crops views num_views n_views",
    "temperature": "tau temp t",
    "temperatures": "temperature tau temp t",
    "output_dim": "dim out_dim feature_dim proj_dim projection_dim",
    "gradient_clip": "grad_clip clip_grad clip clip_norm max_grad_norm",
    "accumulate": "accumulate_grad_batches gradient_accumulation grad_accum accum",
    "checkpoint_every_epochs": "save_every save_freq save_interval checkpoint_every",
    "log_every_steps": "log_every log_freq log_interval print_freq",
    "every_epochs": "eval_every eval_freq val_every",
    "progress": "progress_bar bar verbose",
    "seed": "random_seed random_state",
    "run_dir": "out out_dir output output_dir save_dir save_path log_dir logdir work_dir results_dir name run_name",
    "checkpoint": "ckpt run weights load load_from init init_from pretrained_weights model_path model",
    "resume": "checkpoint ckpt resume_from restore continue",
    "backbone.from": "checkpoint ckpt weights load load_from init init_from pretrained_weights pretrained",
}

#: What commands are called elsewhere, by how they are called here; RUN stands for the word that follows.
_COMMANDS = {
    "--version": "version -v -V",
    "methods": "method models model algorithms list ls",
    "data": "dataset datasets source sources",
    "protocols": "protocol metrics tasks",
    "train": "pretrain fit run",
    "train resume=RUN": "resume continue",
    "evaluate": "eval test validate score",
    "probe": "linear linear_eval",
    "segmentation": "segment seg",
    "embed": "features extract encode predict infer embeddings",
    "export": "convert save onnx",
    "neighbours": "neighbors duplicates",
    "compare": "report plot table visualize visualise",
    "doctor": "profile benchmark speed diagnose",
}

_OFF = ("false", "no", "off", "0")

#: Sections of the settings of ``selfsup train`` and of ``selfsup evaluate`` that the other has not.
_SECTIONS = {
    "train": {"method", "objective", "negatives", "augment", "optimizer", "trainer", "online", "logger", "experiment"},
    "evaluate": {"eval"},
}


@dataclass(frozen=True)
class Known:
    """The settings that there are.

    Attributes:
        kind: What they configure, ``train`` or ``evaluate``.
        keys: Each with its type as text.
        sections: What some of them are grouped in, such as ``method``.
        others: Of a section whose choice is known: the settings of each of its choices.
    """

    kind: str
    keys: Mapping[str, str]
    sections: Collection[str]
    others: Mapping[str, Mapping[str, Collection[str]]] = field(default_factory=dict)

    def holds(self, key: str) -> bool:
        """Whether there is such a setting, such a section, or a dictionary that may have such an entry."""
        parts = key.split(".")
        above = (self.keys.get(".".join(parts[:count]), "") for count in range(1, len(parts)))
        entry = any("dict" in type_ or "Any" in type_ for type_ in above)
        return key in self.keys or entry or any(name.startswith(f"{key}.") for name in self.keys)


def misspelt(key: str, text: str, known: Known) -> str:
    """Say that there is no such setting, and what was probably meant.

    Args:
        key: What was written before ``=``.
        text: What was written behind it, "" where that is not known.
        known: The settings that there are.
    """
    section, _, last = key.rpartition(".")
    owners = [name for name, settings in known.others.get(section, {}).items() if last in settings]
    if owners:
        return f"The chosen {section} has no setting '{key}'; these have one: {', '.join(owners)}."
    said = f"There is no setting '{key}'"
    for command, sections in _SECTIONS.items():
        if command != known.kind and key.partition(".")[0] in sections:
            return f"{said} here; it is one of selfsup {command}."
    if key == "config":
        return f"{said}; write --config {text or 'FILE'} to start from a file."
    if meant := meant_by(key, text, known):
        return f"{said}. Did you mean {' or '.join(map(repr, meant))}?"
    there = [name.rpartition(".")[2] for name in known.keys if name.rpartition(".")[0] == section]
    return f"{said}; {section} has {', '.join(there)}." if section and 0 < len(there) <= 20 else f"{said}; see --help."


def meant_by(key: str, text: str, known: Known) -> list[str]:
    """Return what to write in place of ``key=text``, the likeliest first; at most three, and nothing far-fetched."""
    section, _, last = key.rpartition(".")
    ends: dict[str, list[str]] = {}
    for name in (*known.keys, *known.sections):
        ends.setdefault(name.rpartition(".")[2], []).append(name)
    found = ends.get(last, []) if len(ends.get(last, [])) <= 3 else []
    if key in known.keys:
        found = [key]
    for here, elsewhere in _ELSEWHERE.items():
        if last.lower() in elsewhere.split():
            target, names = here.partition("=")[0], ends.get(here, [])
            whole = target in known.keys or target in GROUPS[known.kind]
            found = [*found, *([here] if whole else names if len(names) <= 3 else [])]
    if "checkpoint" in found:  # an evaluation has its weights from there alone
        found = ["checkpoint"]
    if not found:  # the name is like the end of a key, rather than like a key
        near = [end for end, names in ends.items() if not section or any(n.startswith(f"{section}.") for n in names)]
        close = difflib.get_close_matches(last, near, n=1, cutoff=0.6 if section else 0.75)
        found = [name for end in close for name in ends[end] if name.startswith(section)][:1]
        if not (found or section in known.sections):  # which is misspelt, too
            found = difflib.get_close_matches(key, known.keys, n=1, cutoff=0.8)
    return [line for line in dict.fromkeys(_write(name, last, text, known) for name in found) if line][:3]


def _write(key: str, word: str, text: str, known: Known) -> str:
    """Write a setting with the value that ``word=text`` means by it; without it where that is not clear, or ""."""
    if "=" in key:
        return key.partition("=")[0] if text.lower() in _OFF else key
    if key in GROUPS[known.kind]:
        exact = _choices(text, (key, *GROUPS[known.kind])) if text else []
        return exact[0] if exact else (text and written(key, text)) or f"{key}=NAME"
    if key in known.sections:
        return _in_section(key, text, known) or key
    if known.keys[key] == "bool":
        return f"{key}={'false' if text.lower() in _OFF else 'true'}"
    end = key.rpartition(".")[2]
    if end == "devices":
        if not re.fullmatch(r"[\d,]+|\[[\d,]+\]|auto", text):
            return "" if word == "device" else key
        which = text.isdecimal() and word in ("gpu", "gpu_id", "gpu_ids", "device")  # and not how many
        text = f"[{text}]" if which or ("," in text and text[0] != "[") else text
    elif end == "accelerator":
        if known.kind == "train" and text.isdecimal():
            return ""  # which, or how many
        text = "gpu" if text.startswith("cuda") or text.isdecimal() else text
    elif key == "checkpoint" and word == "model" and re.fullmatch(r"\w+", text):
        text = f"timm:{text}"
    elif end == "run_dir" and word.endswith("name"):
        text = f"runs/{text}"
    elif key == "backbone.from" and text.lower() == "true":
        text = "timm:NAME"
    return f"{key}={text}" if text else key


def _in_section(section: str, text: str, known: Known) -> str:
    """Return the setting that is switched on by ``section=text``, or ""."""
    return f"{section}.{text}=true" if known.keys.get(f"{section}.{text}") == "bool" else ""


def of_section(section: str, text: str, known: Known) -> str:
    """Say that ``section=text`` sets nothing, as a section holds several settings."""
    first = next(key for key in known.keys if key.startswith(f"{section}."))
    meant = _in_section(section, text, known)
    advice = f"write {meant}" if meant else f"set one of them, such as {first}=…"
    return f"{section}={text}: {section} holds several settings; {advice}."


def no_setting(words: Sequence[str], known: Known) -> str:
    """Say that words without ``=`` are no setting, and how what they mean is written."""
    first, *rest = words
    key, _, text = first.partition(":")
    text = text or next((word for word in rest if word != "="), "")
    found = _choices(first, GROUPS[known.kind])
    if not found and known.holds(key):
        found = [f"{key}={text or ('NAME' if key in GROUPS[known.kind] else 'VALUE')}"]
    elif not found:
        found = [line if "=" in line else f"{line}=VALUE" for line in meant_by(key, text, known)]
    return f"'{first}' is not a setting; write key=value{f', here {found[0]}' if found else ''}."


def no_command(words: Sequence[str], commands: Collection[str]) -> str:
    """Say that there is no such command, and how what was meant is written."""
    name, *rest = words
    meant = [
        line.replace("RUN", rest.pop(0)) if rest and "RUN" in line else line
        for line, others in _COMMANDS.items()
        if name in others.split()
    ]
    protocol = find(name, listed("protocol"))
    if not meant and protocol in listed("protocol"):
        meant = [f"evaluate {rest.pop(0) if rest else 'RUN'} --only {protocol}"]
    if not meant and (chosen := _choices(name, ("method", "data"))):
        meant = [f"train {chosen[0]}"]
    if not meant and os.path.isdir(name):
        meant = [f"{'evaluate' if (Path(name) / 'checkpoints').is_dir() else 'train'} {name}"]
    if not meant and "=" in name:
        meant = [f"train {name}"]
    near = f" Did you mean 'selfsup {' '.join([*meant[:1], *rest])}'?" if meant else nearest(name, commands)
    return f"There is no command '{name}'.{near}"


def _choices(name: str, groups: Sequence[str]) -> list[str]:
    """Return ``group=name`` for each group that has a choice of this name, as it is called there."""
    named = {group: find(name, choices(group), other_names(group)) for group in groups}
    return [f"{group}={found}" for group, found in named.items() if found in choices(group)]
