"""Save the features of images with their paths, as NumPy or Parquet.

  selfsup embed RUN data=image_folder data.root=FOLDER --out features.npz [key=value …]

RUN is whatever `selfsup evaluate` takes: a run, timm:NAME and so on. Without data= the images are those of the run.
Images are brought to the size the run used unless data.image_size says otherwise.
"""

from argparse import Namespace

from selfsup.commands import EVALUATION, Parser, checkpoint_settings
from selfsup.errors import UserError
from selfsup.wording import counted


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION
    parser.add_argument("--out", metavar="FILE", help="ends in .npz or .parquet, and does not exist yet")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    if len(arguments.words) > 1 or arguments.out is None:
        raise UserError("Write: selfsup embed RUN data=image_folder data.root=FOLDER --out features.npz.")
    settings = checkpoint_settings(arguments)
    from selfsup.exporting import embed

    path, count = embed(settings, arguments.out)
    print(f"saved: {path}, {counted(count, 'image')}; read it with selfsup.read_embeddings({str(path)!r})")
    return 0
