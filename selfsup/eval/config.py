"""Settings of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
RIDGE_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
LOGISTIC_C = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0)
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
        probe_features: Features the linear probe chooses from: ``pooled`` (the backbone's own), ``last_N`` (the last N
            blocks or stages side by side; class tokens where there are any) and ``last_N_mean`` (with the mean of the
            last patch tokens besides).
        probe_protocol: Run the linear probe as a paper did, with augmentation and no grid: ``simclr``, ``moco``, … (see
            ``PROBE_PROTOCOLS``); None is the grid on cached features.
        probe_protocol_epochs: Passes of that protocol over the images; None is the paper's.
        label_fraction: Share of the training labels that ``linear_probe``, ``logistic``, ``ridge`` and ``fine_tune``
            see: the same number of images of every class, drawn with the seed.
        seeds: Runs of each of these, with seeds from ``seed`` on; records tell their mean and standard deviation.
        ridge_penalties: Penalties of the ridge regression, for each training image.
        logistic_c: Inverse penalties of the logistic regression, as scikit-learn's ``C``.
        logistic_iterations: Most iterations of L-BFGS.
        few_shot_ways: Classes of an episode.
        few_shot_shots: Labelled images of each; one measurement for every entry.
        few_shot_queries: Images of each class to be classified.
        few_shot_episodes: Number of episodes.
        fine_tune_learning_rates: Learning rates of the full fine-tuning, for the head; each is a training of its own.
        fine_tune_layer_decay: Factor by which the learning rate falls from a layer to the one below.
        fine_tune_weight_decay: Weight decay of the fine-tuning.
        fine_tune_epochs: Passes of the fine-tuning over the training images.
        fine_tune_batch_size: Images in a step of the fine-tuning.
        segmentation_images: Most training images of the segmentation probe; their feature maps are kept in memory.
        segmentation_learning_rates: Learning rates of the segmentation probe.
        segmentation_epochs: Passes of the segmentation probe over the training maps.
        segmentation_batch_size: Images in a step of the segmentation probe.
        segmentation_k, segmentation_temperature: Neighbours that vote on the classes of a cell, and the temperature of
            their vote, in segmentation by neighbours.
        segmentation_cells: Most training cells among which they are looked for.
        invariance_images: Most images whose features are compared before and after each augmentation.
        batch_size: Images in a forward pass of the backbone. It changes the speed, not the result.
        precision: Of the forward pass that extracts pooled features: ``32``, ``bf16`` or ``16`` by autocast, or
            ``auto``: bf16 on a GPU that has it, 32 elsewhere. Records of another one than 32 tell it.
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
    probe_features: list[str] = field(default_factory=lambda: ["pooled"])
    probe_protocol: str | None = None
    probe_protocol_epochs: int | None = None
    label_fraction: float = 1.0
    seeds: int = 1
    ridge_penalties: list[float] = field(default_factory=lambda: list(RIDGE_PENALTIES))
    logistic_c: list[float] = field(default_factory=lambda: list(LOGISTIC_C))
    logistic_iterations: int = 1000
    few_shot_ways: int = 5
    few_shot_shots: list[int] = field(default_factory=lambda: [1, 5])
    few_shot_queries: int = 15
    few_shot_episodes: int = 600
    fine_tune_learning_rates: list[float] = field(default_factory=lambda: [1e-3])
    fine_tune_layer_decay: float = 0.75
    fine_tune_weight_decay: float = 0.05
    fine_tune_epochs: int = 30
    fine_tune_batch_size: int = 128
    segmentation_images: int = 2000
    segmentation_learning_rates: list[float] = field(default_factory=lambda: list(SEGMENTATION_RATES))
    segmentation_epochs: int = 10
    segmentation_batch_size: int = 32
    segmentation_k: int = 30
    segmentation_temperature: float = 0.02
    segmentation_cells: int = 20_000
    invariance_images: int = 512
    batch_size: int = 256
    precision: str = "auto"
    cache: bool = True
    figures: bool = True
