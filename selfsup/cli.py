"""The command line: ``selfsup COMMAND …``."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selfsup import __version__
from selfsup.errors import UserError

Arguments = list[str]

OVERVIEW = """\
selfsup {version}: learn visual representations without labels, and prove how good they are

  selfsup train [key=value …]             train a method; the run goes to a folder of its own
  selfsup train resume=RUN                go on where a run stopped
  selfsup train --multirun method=simclr,moco seed=0,1
                                          train every combination
  selfsup knn checkpoint=RUN              kNN accuracy of a checkpoint
  selfsup probe checkpoint=RUN            linear probe of a checkpoint
  selfsup segmentation checkpoint=RUN     linear segmentation probe, for data with masks
  selfsup evaluate checkpoint=RUN         every protocol, with figures
  selfsup transfer checkpoint=RUN data=digits,fashion_mnist
                                          kNN and linear probe on several datasets, in one table
  selfsup neighbours checkpoint=RUN data=image_folder data.root=DIR
                                          near-duplicates and probable label errors of a folder
  selfsup compare RUN RUN … [--out DIR]   one table, chart and page over runs
  selfsup cka RUN RUN … [--layers]        how alike networks represent the same images
  selfsup export RUN --format F --out FILE
                                          the backbone for timm, torchvision, ONNX and others
  selfsup embed RUN --out FILE data=…     features of a folder of images, as a file
  selfsup methods [NAME]                  the methods there are; the settings of one
  selfsup doctor [key=value …]            where the time of a training step goes, and what would help

`selfsup COMMAND --help` tells more. A first run that takes two minutes on two cores:

  selfsup train experiment=demo run_dir=runs/first
  selfsup evaluate checkpoint=runs/first
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for a mistake that the message explains, 128 + signal."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(OVERVIEW.format(version=__version__))
        return 0
    if given[0] == "--version":
        print(__version__)
        return 0
    name, rest = given[0], given[1:]
    usual = warnings.formatwarning
    warnings.formatwarning = _sentence
    try:
        if name not in COMMANDS:
            from selfsup.registry import nearest

            raise UserError(f"There is no command '{name}'.{nearest(name, COMMANDS)}")
        return COMMANDS[name](rest)
    except UserError as error:
        print(f"selfsup {name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            print(
                f"selfsup {name}: {error.filename or 'a file'} could not be written: {error.strerror}.", file=sys.stderr
            )
            return 2
        raise
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        warnings.formatwarning = usual


def _train(arguments: Arguments) -> int:
    """Train a method.

    selfsup train [--import FILE] [--config FILE] [key=value …] [--multirun]

    --import FILE   load a Python file first, such as one that registers a method of your own
    --config FILE   start from a run's config.yaml in place of the defaults
    --multirun      train every combination of comma-separated values; hydra/launcher=submitit_slurm makes each a job
                    of a cluster (docs/clusters.md)
    """
    given, arguments = arguments, _import_files(arguments)
    file, arguments = _option(arguments, "--config")
    if _asks_help(arguments):
        return _help(_train, "train", ("experiment", "method", "data", "backbone", "augment", "optimizer", "trainer"))
    if "--multirun" in arguments or "-m" in arguments:
        _let_jobs_import(given)
        return _sweep([a for a in arguments if a not in ("--multirun", "-m")])
    _refuse_options(arguments)
    from selfsup.config import load_config
    from selfsup.engine.training import load_resumed_config

    if any(a.startswith("resume=") and a != "resume=null" for a in arguments):
        return _run_training(load_resumed_config(arguments))
    return _run_training(load_config(arguments, file=file))


def _run_training(config: Any) -> int:
    from selfsup.engine.callbacks import Interrupted
    from selfsup.engine.training import is_first_process, train

    try:
        run_dir = train(config)
    except Interrupted as stop:
        run_dir = stop.checkpoint.parent.parent
        print(f"\nStopped. Everything up to here is saved; go on with: selfsup train resume={run_dir}", file=sys.stderr)
        return 128 + stop.signal
    if is_first_process():
        print(f"\nTrained: {run_dir}\nnext: selfsup evaluate checkpoint={run_dir}")
    return 0


def _let_jobs_import(arguments: Arguments) -> None:
    """Put the folders of ``--import`` on the path of the processes of a launcher: they import what they unpickle."""
    while (found := _option(arguments, "--import"))[0] is not None:
        folder, arguments = str(Path(str(found[0])).resolve().parent), found[1]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))


def _sweep(arguments: Arguments) -> int:
    """Train every combination; Hydra sweeps, so its launchers and sweepers work too."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from selfsup import configs
    from selfsup.config import explain, finish, open_dicts

    def job(config: DictConfig) -> None:
        code = _run_training(finish(config))
        if code:
            raise KeyboardInterrupt

    stamp = time.strftime("%Y%m%d-%H%M%S")
    sys.argv = [sys.argv[0], "--multirun", f"hydra.sweep.dir=runs/sweep-{stamp}", *open_dicts(arguments)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving
    sweep = hydra.main(config_path=str(Path(configs.__path__[0])), config_name="train", version_base="1.3")(job)
    try:
        sweep()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, "train")) from error
    return 0


def _evaluate(arguments: Arguments) -> int:
    """Run every protocol on a checkpoint: kNN, linear probe, segmentation where there are masks, diagnostics, figures.

    selfsup evaluate checkpoint=RUN [--only PROTOCOL,PROTOCOL] [key=value …]

    checkpoint is a run folder, a .ckpt file, timm:NAME, a file of weights with backbone=NAME, module:FILE.py:NAME, or
    one of the two baselines: raw_pixels, untrained.

    Left out unless --only names them, as they take longest: logistic, fine_tune.

    --only NAMES   run these protocols alone: diagnostics, knn, knn_loo (leave one out), retrieval, clustering, ridge,
                   few_shot, linear_probe, logistic, fine_tune, segmentation, segmentation_knn (by neighbouring
                   cells), layers (where information is lost), invariance (to each augmentation), attention (vision
                   transformers). What cannot run is named, the rest goes on, and the exit code is 2.
    """
    names, arguments = _protocols(arguments)
    return _run_evaluation(arguments, _evaluate, names)


def _knn(arguments: Arguments) -> int:
    """kNN accuracy of a checkpoint.

    selfsup knn checkpoint=RUN [eval.knn_k=[5,20]] [eval.temperatures=[0.07,0.1]] [key=value …]
    """
    return _run_evaluation(arguments, _knn, ("knn",))


def _probe(arguments: Arguments) -> int:
    """Linear probe of a checkpoint.

    selfsup probe checkpoint=RUN [eval.probe_epochs=100] [key=value …]

    eval.seeds=5 tells mean and deviation, eval.label_fraction=0.01 trains on 1 % of the labels, and
    eval.probe_features=[pooled,last_4] chooses among features. eval.probe_protocol=moco (simclr, dino, …) runs a
    paper's protocol, with augmented images, in place of the grid.
    """
    return _run_evaluation(arguments, _probe, ("linear_probe",))


def _segmentation(arguments: Arguments) -> int:
    """Linear segmentation probe of a checkpoint: mean IoU on data with masks.

    selfsup segmentation checkpoint=RUN [eval.segmentation_images=2000] [key=value …]
    """
    return _run_evaluation(arguments, _segmentation, ("segmentation",))


def _transfer(arguments: Arguments) -> int:
    """Evaluate a network on several datasets and print one table.

    selfsup transfer checkpoint=RUN data=NAME,NAME [--only PROTOCOL,PROTOCOL] [key=value …]

    Each dataset gives its own training part to the probes. The tables go to transfer/ in the checkpoint's run, the
    records and figures of a dataset to a folder of its name there.

    --only NAMES   run these protocols (default: knn,linear_probe)
    """
    if _asks_help(arguments):
        return _help(_transfer, "evaluate", ("data", "backbone"))
    names, arguments = _protocols(arguments)
    _refuse_options(arguments)
    from selfsup.transfer import PROTOCOLS, transfer

    table = transfer(arguments, names or PROTOCOLS)
    print(table)
    print(f"\nsaved: {table.folder}/transfer.md, .csv")
    return 0


def _neighbours(arguments: Arguments) -> int:
    """Look through images for near-duplicates and probable label errors; write a table and a contact sheet.

    selfsup neighbours checkpoint=RUN [data=image_folder data.root=DIR] [key=value …]

    All images of the data are looked at, training and test together; without data= they are those of the run.
    Two images whose features have a cosine similarity of eval.duplicate_similarity or more are near-duplicates. A label
    is probably wrong when most of the votes of the nearest images (eval.knn_k, the first) are for other labels.
    The findings go to neighbours/ in run_dir: by default the checkpoint's run, or runs/ where it has none.
    """
    if _asks_help(arguments):
        return _help(_neighbours, "evaluate", ("data", "backbone"))
    _refuse_options(arguments)
    from selfsup.evaluation import find_neighbours

    found, table, sheet = find_neighbours(arguments)
    images = len({row for pair in found.duplicates for row in (pair.first, pair.second)})
    print(f"near-duplicates        {len(found.duplicates)} pairs of {images} images")
    print(f"probable label errors  {len(found.label_errors)}")
    print(f"\nsaved: {table}, {sheet}")
    return 0


def _run_evaluation(
    arguments: Arguments, command: Callable[[Arguments], int], protocols: tuple[str, ...] | None
) -> int:
    if _asks_help(arguments):
        return _help(command, "evaluate", ("data", "backbone"))
    _refuse_options(arguments)
    from selfsup.evaluation import evaluate

    records = evaluate(arguments, protocols)
    for record in records:
        approximate = ("index", "recall") if record.get("index", "flat") != "flat" else ()
        told = ("layer", "operation", "k", "temperature", *approximate, "ways", "shots", "classifier", "probe_protocol")
        told += ("labelled_images", "selected_on") if record.get("label_fraction", 1) < 1 else ("selected_on",)
        details = ", ".join(f"{key}={record[key]}" for key in told if key in record)
        fraction = record["metric"] in ("top1", "miou")
        value = f"{100 * record['value']:.2f} %" if fraction else f"{record['value']:.4g}"
        spread = record.get("std", record.get("interval"))
        value += f" ± {100 * spread:.2f}" if fraction and isinstance(spread, float) else ""
        what = record["protocol"] if fraction else record["metric"]
        print(f"{what:14s} {value:>9s}  on {record['split']}{f' ({details})' if details else ''}")
    # what was asked for by name and could not run has been told, and a script has to know
    return 2 if set(protocols or ()) - {record["protocol"] for record in records} else 0


def _compare(arguments: Arguments) -> int:
    """Put runs side by side: print a table, save it with a chart and a page of all that was measured.

    selfsup compare RUN RUN … [--out DIR]

    --out DIR   folder for comparison.md, .csv, .png and .html (default: runs/comparison); the last opens in a browser
    """
    folder, runs = _option(arguments, "--out")
    if _asks_help(runs):
        return _help(_compare)
    _refuse_options(runs)
    from selfsup.eval import compare

    output = folder or "runs/comparison"
    print(compare(runs, output))
    print(f"\nsaved: {output}/comparison.md, .csv, .png, .html")
    return 0


def _cka(arguments: Arguments) -> int:
    """Compare what networks make of the same images: linear CKA, 1 for features equal up to rotation and scale.

    selfsup cka RUN RUN … [--layers] [--out DIR] [key=value …]

    A RUN is whatever `selfsup evaluate` takes as checkpoint; the images are the first one's training images, unless
    data= says otherwise.

    --layers    compare every stage of every network, not the pooled features alone
    --out DIR   folder for cka.csv and cka.png (default: runs/cka)
    """
    folder, rest = _option(arguments, "--out")
    if _asks_help(rest):
        return _help(_cka)
    layers = "--layers" in rest
    rest = [argument for argument in rest if argument != "--layers"]
    _refuse_options(rest)
    from selfsup.evaluation import compare_networks

    runs = [argument for argument in rest if "=" not in argument]
    table = compare_networks(runs, [argument for argument in rest if "=" in argument], layers=layers)
    output = folder or "runs/cka"
    table.save(output)
    print(table)
    print(f"\nlinear CKA, {table.images} images; saved: {output}/cka.csv, .png")
    return 0


def _export(arguments: Arguments) -> int:
    """Write the backbone of a run for other programs; the file is read back and its features compared.

    selfsup export RUN --format FORMAT --out PATH

    --format FORMAT   timm, torchvision, detectron2 (state dicts under their keys), safetensors (a folder with a model
                      card), onnx, torchscript, exported (with the computation)
    --out PATH        file, or folder for safetensors, that does not exist yet
    """
    form, rest = _option(arguments, "--format")
    out, rest = _option(rest, "--out")
    if _asks_help(rest):
        return _help(_export)
    _refuse_options(rest)
    if len(rest) != 1 or form is None or out is None:
        raise UserError("Write: selfsup export RUN --format FORMAT --out PATH; --help lists the formats.")
    from selfsup.exporting import export

    path, code = export(rest[0], form, out)
    print(f"saved: {path}; read back, it gives the same features. To use it:\n")
    print(textwrap.indent(code, "    "))
    return 0


def _embed(arguments: Arguments) -> int:
    """Save the features of images with their paths, as NumPy or Parquet.

    selfsup embed RUN data=image_folder data.root=FOLDER --out features.npz [key=value …]

    RUN is what checkpoint= takes: a run, timm:NAME and so on. Without data= the images are those of the run. Images
    are brought to the size the run used unless data.image_size says otherwise.

    --out FILE   ends in .npz or .parquet, and does not exist yet
    """
    out, rest = _option(arguments, "--out")
    if _asks_help(rest):
        return _help(_embed, "evaluate", ("data", "backbone"))
    _refuse_options(rest)
    named = [a for a in rest if "=" not in a or a.startswith(("timm:", "module:"))]
    if len(named) > 1 or out is None:
        raise UserError("Write: selfsup embed RUN data=image_folder data.root=FOLDER --out features.npz.")
    from selfsup.embedding import embed

    settings = [*(f"checkpoint={name}" for name in named), *(a for a in rest if a not in named)]
    path, count = embed(settings, out)
    print(f"saved: {path}, {count} images; read it with selfsup.read_embeddings({str(path)!r})")
    return 0


def _doctor(arguments: Arguments) -> int:
    """Run a few steps of a training; tell where their time goes, and measure which settings would help.

    selfsup doctor [--import FILE] [--config FILE] [--steps N] [--compile] [--json FILE] [key=value …]

    It takes what `selfsup train` takes and leaves nothing behind. docs/doctor.md explains the page that it prints.

    --import FILE   load a Python file first, such as one that registers a method of your own
    --config FILE   look at a run's config.yaml in place of the defaults
    --steps N       steps that are timed phase by phase (default: 20); a setting is tried for a fifth as many, in five
                    rounds
    --compile       try trainer.compile too, which can take minutes, and leave numbers of threads alone
    --json FILE     also write all numbers to a file that does not exist yet
    """
    arguments = _import_files(arguments)
    file, arguments = _option(arguments, "--config")
    steps, arguments = _option(arguments, "--steps")
    output, arguments = _option(arguments, "--json")
    compiling, arguments = "--compile" in arguments, [a for a in arguments if a != "--compile"]
    if _asks_help(arguments):
        return _help(_doctor, "train", ("experiment", "method", "data", "backbone", "augment", "optimizer", "trainer"))
    _refuse_options(arguments)
    if steps is not None and not steps.isdecimal():
        raise UserError(f"--steps={steps} must be a whole number, such as 20.")
    if output is not None and Path(output).exists():
        raise UserError(f"--json: {output} exists and is not overwritten; choose another.")
    from selfsup.config import load_config
    from selfsup.diagnosis import doctor

    report = doctor(load_config(arguments, file=file), 20 if steps is None else int(steps), compile=compiling)
    print(report)
    if output is not None:
        report.save(output)
        print(f"\nsaved: {output}")
    return 0


def _methods(arguments: Arguments) -> int:
    """List the methods; with a name, tell its settings.

    selfsup methods [--import FILE] [NAME]
    """
    arguments = _import_files(arguments)
    if _asks_help(arguments):
        return _help(_methods)
    _refuse_options(arguments)
    import selfsup.methods  # noqa: F401 - fills the registry
    from selfsup.config import choices
    from selfsup.registry import methods

    if not arguments:
        for name in methods:
            print(f"{name:14s} {methods[name].summary}")
        print("\nselfsup methods NAME tells the settings; selfsup train method=NAME trains it.")
        return 0
    entry = methods[arguments[0]]
    module = sys.modules[entry.target.__module__]
    print(textwrap.dedent(module.__doc__ or "").strip(), "\n")
    print(textwrap.dedent(entry.config.__doc__ or "").strip())
    print("\nDefaults:")
    default = entry.config()
    for key, value in vars(default).items():
        print(f"  method.{key}={value}")
    presets = [name for name in sorted(choices("experiment")) if name.endswith(f"/{arguments[0]}")]
    if presets:
        print("\nPresets:")
    for name in presets:
        print(f"  selfsup train experiment={name}")
    return 0


COMMANDS: dict[str, Callable[[Arguments], int]] = {
    "train": _train,
    "probe": _probe,
    "knn": _knn,
    "segmentation": _segmentation,
    "transfer": _transfer,
    "evaluate": _evaluate,
    "neighbours": _neighbours,
    "compare": _compare,
    "cka": _cka,
    "export": _export,
    "embed": _embed,
    "methods": _methods,
    "doctor": _doctor,
}


def _help(command: Callable[[Arguments], int], kind: str | None = None, groups: tuple[str, ...] = ()) -> int:
    print(textwrap.dedent(" " * 4 + (command.__doc__ or "")).strip())
    if kind is not None:
        from selfsup.config import choices, load_config, to_yaml

        print("\nChoices (group=name):")
        width = max(60, shutil.get_terminal_size().columns)
        for group in groups:
            names = ", ".join(sorted(choices(group)))
            print(textwrap.fill(f"{group:10s} {names}", width, initial_indent="  ", subsequent_indent=" " * 13))
        needed = ["checkpoint=RUN"] if kind == "evaluate" else []
        print("\nSettings (key.key=value) and their defaults:\n")
        print(textwrap.indent(to_yaml(load_config(needed, kind=kind)), "  "))
    return 0


def _sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning of this package as its sentence, and others with their place, as Python does."""
    if category is UserWarning and Path(__file__).parent in Path(filename).parents:
        return f"note: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _asks_help(arguments: Arguments) -> bool:
    return "--help" in arguments or "-h" in arguments


def _refuse_options(arguments: Arguments) -> None:
    for argument in arguments:
        if argument.startswith("-"):
            raise UserError(f"There is no option '{argument}' here; settings are written key=value, see --help.")


def _option(arguments: Arguments, name: str) -> tuple[str | None, Arguments]:
    """Take ``name VALUE`` or ``name=VALUE`` out of the arguments."""
    for at, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2], arguments[:at] + arguments[at + 1 :]
        if argument == name:
            if at + 1 == len(arguments):
                raise UserError(f"{name} needs a value.")
            return arguments[at + 1], arguments[:at] + arguments[at + 2 :]
    return None, arguments


def _protocols(arguments: Arguments) -> tuple[tuple[str, ...] | None, Arguments]:
    """Take ``--only NAME,NAME`` out of the arguments."""
    only, rest = _option(arguments, "--only")
    if only is None:
        return None, rest
    from selfsup.eval import PROTOCOLS
    from selfsup.registry import nearest

    names = tuple(only.split(","))
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(f"--only: there is no protocol '{name}'.{nearest(name, PROTOCOLS)}")
    return names, rest


def _import_files(arguments: Arguments) -> Arguments:
    """Execute the files of ``--import``, so that the methods in them register."""
    while (found := _option(arguments, "--import"))[0] is not None:
        path, arguments = Path(str(found[0])), found[1]
        if not path.is_file():
            raise UserError(f"--import: there is no file {path}.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise UserError(f"--import: {path} is not a Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
