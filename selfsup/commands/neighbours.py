"""Look through images for near-duplicates and probable label errors; write a table and a contact sheet.

  selfsup neighbours RUN [data=image_folder data.root=DIR] [key=value …]

All images of the data are looked at, training and test together; without data= they are those of the run.
Two images whose features have a cosine similarity of eval.duplicate_similarity or more are near-duplicates. A label
is probably wrong when most of the votes of the nearest images (eval.knn.k, the first) are for other labels.
The findings go to neighbours/ in run_dir: by default the checkpoint's run, or runs/ where it has none.
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser, checkpoint_settings


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    settings = checkpoint_settings(arguments)
    from selfsup.evaluation import find_neighbours

    found, table, sheet = find_neighbours(settings)
    images = len({row for pair in found.duplicates for row in (pair.first, pair.second)})
    print(f"near-duplicates        {len(found.duplicates)} pairs of {images} images")
    print(f"probable label errors  {len(found.label_errors)}")
    print(f"\nsaved: {table}, {sheet}")
    return 0
