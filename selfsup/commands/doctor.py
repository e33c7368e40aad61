"""Run a few steps of a training; show where their time goes, and measure which settings would help.

  selfsup doctor [--config FILE] [--steps N] [--compile] [--json FILE] [key=value …]

It takes what `selfsup train` takes and leaves nothing behind. docs/doctor.md explains the page that it prints.
"""

from argparse import Namespace
from pathlib import Path

from selfsup.commands import Parser, add_training, training_settings
from selfsup.errors import UserError
from selfsup.imports import recall


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_training(parser)
    parser.add_argument("--config", metavar="FILE", help="look at a run's config.yaml in place of the defaults")
    parser.add_argument(
        "--steps",
        metavar="N",
        default="20",
        help="steps that are timed by phase (default: 20); a setting is tried for a fifth as many, in five rounds",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="try trainer.compile too, which can take minutes, and leave numbers of threads alone",
    )
    parser.add_argument("--json", metavar="FILE", help="also write all numbers to a file that does not exist yet")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    settings = training_settings(arguments)
    if not arguments.steps.isdecimal():
        raise UserError(f"--steps={arguments.steps} must be a whole number, such as 20.")
    if arguments.json is not None and Path(arguments.json).exists():
        raise UserError(f"--json: {arguments.json} exists and is not overwritten; choose another.")
    if arguments.config is not None:
        recall(Path(arguments.config).parent)
    from selfsup.config import load_config
    from selfsup.doctor import doctor

    config = load_config(settings, file=arguments.config)
    report = doctor(config, int(arguments.steps), compile=arguments.compile)
    print(report)
    if arguments.json is not None:
        report.save(arguments.json)
        print(f"\nsaved: {arguments.json}")
    return 0
