"""Settings of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
SEGMENTATION_RATES = (0.1, 1.0, 10.0)


@dataclass
class EvalConfig:
    """How a checkpoint is evaluated.

    The kNN accuracy that is reported as *the* kNN accuracy is that of the first of ``knn_k`` and the first of
    ``temperatures``: fixed in advance, so that nothing is chosen on the test images. The other combinations are
    recorded beside it and need no further search.

    Attributes:
        knn_k: Numbers of neighbours.
        temperatures: Temperatures of the kNN vote.
        index: How neighbours are searched: ``flat`` (exact), ``ivf``, ``hnsw`` or ``half`` (see ``search``). Records of
            another one than ``flat`` tell its recall, the share of the true neighbours it finds.
        index_effort: How much of an approximate index is visited; more raises its recall and takes longer.
        search_memory_mb: Most memory of an index; a larger bank is searched in blocks.
        retrieval_k: The k of recall@k.
        clusters: Number of k-means clusters; None is the number of classes.
        duplicate_similarity: Cosine similarity from which ``selfsup neighbours`` calls two images near-duplicates.
        probe_learning_rates: Learning rates of the linear probe; each is paired with every weight decay.
        probe_weight_decays: Weight decays of the linear probe.
        probe_epochs: Passes of the linear probe over the training features.
        probe_batch_size: Features in a step of the linear probe.
        segmentation_images: Most training images of the segmentation probe; their feature maps are kept in memory.
        segmentation_learning_rates: Learning rates of the segmentation probe.
        segmentation_epochs: Passes of the segmentation probe over the training maps.
        segmentation_batch_size: Images in a step of the segmentation probe.
        invariance_images: Most images whose features are compared before and after each augmentation.
        batch_size: Images in a forward pass of the backbone. It changes the speed, not the result.
        cache: Keep the features in the run folder, so that a second evaluation of the same weights skips extraction.
        figures: Draw the figures.
    """

    knn_k: list[int] = field(default_factory=lambda: [20, 200])
    temperatures: list[float] = field(default_factory=lambda: [0.07])
    index: str = "flat"
    index_effort: float = 1.0
    search_memory_mb: int = 512
    retrieval_k: list[int] = field(default_factory=lambda: [1, 5, 10])
    clusters: int | None = None
    duplicate_similarity: float = 0.97
    probe_learning_rates: list[float] = field(default_factory=lambda: list(LEARNING_RATES))
    probe_weight_decays: list[float] = field(default_factory=lambda: list(WEIGHT_DECAYS))
    probe_epochs: int = 100
    probe_batch_size: int = 256
    segmentation_images: int = 2000
    segmentation_learning_rates: list[float] = field(default_factory=lambda: list(SEGMENTATION_RATES))
    segmentation_epochs: int = 10
    segmentation_batch_size: int = 32
    invariance_images: int = 512
    batch_size: int = 256
    cache: bool = True
    figures: bool = True
