"""What other programs read: a trained backbone, in one file a format (``formats/``), and the features of images."""

from selfsup.exporting.backbone import export
from selfsup.exporting.embedding import Embeddings, embed, read_embeddings
from selfsup.exporting.format import FORMATS
from selfsup.exporting.formats.detectron2 import from_detectron2, to_detectron2

__all__ = ["FORMATS", "Embeddings", "embed", "export", "from_detectron2", "read_embeddings", "to_detectron2"]
