"""Train a method; the run goes to a folder of its own.

selfsup train [--config FILE] [key=value …]
selfsup train FOLDER [key=value …]           the images of a folder: data=image_folder data.root=FOLDER
selfsup train resume=RUN [key=value …]       go on where a run stopped
selfsup train run_dir=RUN resume=auto …      start a run, or go on with it: the same line every time
selfsup train --multirun method=simclr,moco seed=0,1   a sweep: each run in a folder named by what differs
"""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfsup.commands import Parser, add_training, training_settings
from selfsup.errors import UserError
from selfsup.imports import recall


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_training(parser)
    parser.add_argument("--config", metavar="FILE", help="start from a run's config.yaml in place of the defaults")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration, and do not train")
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="train every combination of comma-separated values; hydra/launcher=submitit_slurm makes each a job of a "
        "cluster (docs/clusters.md)",
    )


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    settings = training_settings(arguments)
    if arguments.multirun:
        return _sweep(settings, arguments.own_files)
    if arguments.config is not None:
        recall(Path(arguments.config).parent)
    from selfsup.config import load_config, to_yaml
    from selfsup.engine.training import load_resumed_config

    if any(setting.startswith("resume=") and setting not in ("resume=null", "resume=auto") for setting in settings):
        config = load_resumed_config(settings)
    else:
        config = load_config(settings, file=arguments.config)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return 0
    return _train(config)


def _train(config: Any) -> int:
    from selfsup.engine.run_folder import is_first_process
    from selfsup.engine.stop import Interrupted
    from selfsup.engine.training import train

    try:
        train(config)
    except Interrupted as stop:
        if is_first_process():
            print(stop, file=sys.stderr)
        return 128 + stop.signal
    return 0


def _sweep(settings: Sequence[str], own_files: Sequence[str]) -> int:
    """Train every combination; Hydra sweeps, so its launchers and sweepers work too."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from selfsup import configs
    from selfsup.engine.sweeps import job_config, job_folder, sweep_table, sweep_words, swept_keys
    from selfsup.imports import execute
    from selfsup.settings.composing import explain
    from selfsup.settings.values import hydra_quoted
    from selfsup.wording import command, word

    own_files = [str(Path(file).resolve()) for file in own_files]
    # a launcher's processes import what they unpickle, by the name of its file
    folders = [str(Path(file).parent) for file in own_files]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (*folders, os.environ.get("PYTHONPATH"))))

    keys = swept_keys(settings)
    named = [word.partition("=")[2] for word in settings if word.startswith("run_dir=")]
    folder = Path(named[-1] if named else f"runs/sweep-{time.strftime('%Y%m%d-%H%M%S')}")

    def job(composed: DictConfig) -> None:
        execute(own_files)  # in a process of its own it has to be recorded there
        config = job_config(composed)
        if "run_dir" not in keys:
            config.run_dir = str(job_folder(folder, keys))
        code = _train(config)
        if code:
            raise KeyboardInterrupt

    words = sweep_words(settings)
    place = [] if "run_dir" in keys else [f"hydra.sweep.dir={hydra_quoted(str(folder))}"]
    sys.argv = [sys.argv[0], "--multirun", *place, *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving
    sweep = hydra.main(config_path=str(Path(configs.__path__[0])), config_name="train", version_base="1.3")(job)
    try:
        sweep()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    if "run_dir" not in keys:
        print(f"\n{sweep_table(folder)}\n\nsaved: {folder}\nnext: {command('compare', word(folder))}")
    return 0
