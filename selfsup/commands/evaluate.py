"""Judge a checkpoint in minutes: kNN, linear probe, diagnostics, figures; with --all by every other protocol, too.

  selfsup evaluate RUN [--all | --only PROTOCOL,PROTOCOL] [key=value …]

RUN is a run folder, a .ckpt file, timm:NAME, a file of weights with backbone=NAME, module:FILE.py:NAME, or one of the
two baselines: raw_pixels, untrained. It may also be written checkpoint=RUN.

Even --all leaves out what takes longest, logistic and fine_tune; --only runs them.
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser, checkpoint_settings, chosen_protocols
from selfsup.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION
    parser.add_argument("--all", action="store_true", help="run every protocol that the data and the network allow")
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help="run these protocols alone; selfsup protocols lists them. What cannot run is named, the rest goes on, and "
        "the exit code is 2.",
    )


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    named = chosen_protocols(arguments)
    if named and arguments.all:
        raise UserError("--all and --only both say what to run; give one of them.")
    settings = checkpoint_settings(arguments)
    from selfsup.engine.evaluation import evaluate_opened, open_evaluation, results_folder
    from selfsup.report import result_table
    from selfsup.wording import command, word

    config, opened = open_evaluation(settings)
    records = evaluate_opened(config, opened, named or ("all" if arguments.all else None))
    folder = results_folder(config, opened)
    print(f"\n{result_table(records)}\n")
    if folder is None:
        print("saved: nothing, as there is no run; name a folder with run_dir=DIR")
    else:
        print(f"saved: {folder}/results.json{', figures/' if config.eval.figures else ''}")
        more = "" if named or arguments.all else ", or every protocol: the same command with --all"
        print(f"next: {command('compare', word(folder))} OTHER_RUN{more}")
    # what was asked for by name and could not run has been named, and a script has to know
    return 2 if set(named or ()) - {record["protocol"] for record in records} else 0
