"""Evaluation of frozen features: neighbours, probes, diagnostics. One file a protocol, in ``protocols/``."""

from typing import TYPE_CHECKING

from selfsup.offered import offered

if TYPE_CHECKING:
    from selfsup.eval.auditing import Audit, audit, audit_dataset
    from selfsup.eval.config import EvalConfig, eval_config
    from selfsup.eval.encoder import Encoder, extract_features, raw_pixels
    from selfsup.eval.feature_choices import ChosenFeatures
    from selfsup.eval.features import FeatureSet
    from selfsup.eval.kernel_alignment import CkaTable, cka
    from selfsup.eval.linear import linear_probe
    from selfsup.eval.neighbours import recall_of, search, search_others
    from selfsup.eval.patches import PatchMatches, retrieve_patches
    from selfsup.eval.pixels import segment
    from selfsup.eval.probing import ProbeResult, labelled_positions
    from selfsup.eval.protocols import PROTOCOLS
    from selfsup.eval.protocols.clustering import ClusteringResult, clustering
    from selfsup.eval.protocols.few_shot import FewShotResult, few_shot
    from selfsup.eval.protocols.fine_tune import FineTuneResult, FineTuneSettings, fine_tune
    from selfsup.eval.protocols.logistic import logistic_probe
    from selfsup.eval.protocols.multilabel_knn import MultiLabelResult, knn_multilabel
    from selfsup.eval.protocols.multilabel_probe import MultilabelProbeResult, multilabel_probe
    from selfsup.eval.protocols.regression import RegressionResult, regression
    from selfsup.eval.protocols.retrieval import RetrievalResult, retrieval
    from selfsup.eval.protocols.ridge import ridge_probe
    from selfsup.eval.protocols.segmentation import SegmentationResult, SegmentationSettings, segmentation_probe
    from selfsup.eval.protocols.segmentation_fine_tune import (
        SegmentationFineTuneResult,
        SegmentationFineTuneSettings,
        segmentation_fine_tune,
    )
    from selfsup.eval.protocols.segmentation_knn import (
        CellBank,
        SegmentationKnnResult,
        SegmentationKnnSettings,
        segmentation_knn,
    )
    from selfsup.eval.published import PROBE_PROTOCOLS, ProbeProtocol, paper_probe
    from selfsup.eval.record import Record, Spread
    from selfsup.eval.registry import protocol
    from selfsup.eval.results import add_results, read_results
    from selfsup.eval.runner import measure
    from selfsup.eval.selecting import select_images
    from selfsup.eval.subject import SplitFeatures, Subject, choice_splits, extract_splits
    from selfsup.eval.targets import average_precision, with_targets
    from selfsup.eval.voting import KnnResult, KnnSettings, knn, knn_grid, knn_loo
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "PROBE_PROTOCOLS",
    "PROTOCOLS",
    "Audit",
    "CellBank",
    "ChosenFeatures",
    "CkaTable",
    "ClusteringResult",
    "Encoder",
    "EvalConfig",
    "FeatureSet",
    "FewShotResult",
    "FineTuneResult",
    "FineTuneSettings",
    "KnnResult",
    "KnnSettings",
    "MultiLabelResult",
    "MultilabelProbeResult",
    "PatchMatches",
    "ProbeProtocol",
    "ProbeResult",
    "Record",
    "RegressionResult",
    "RetrievalResult",
    "SegmentationFineTuneResult",
    "SegmentationFineTuneSettings",
    "SegmentationKnnResult",
    "SegmentationKnnSettings",
    "SegmentationResult",
    "SegmentationSettings",
    "SplitFeatures",
    "Spread",
    "Subject",
    "add_results",
    "audit",
    "audit_dataset",
    "average_precision",
    "choice_splits",
    "cka",
    "clustering",
    "eval_config",
    "extract_features",
    "extract_splits",
    "few_shot",
    "fine_tune",
    "knn",
    "knn_grid",
    "knn_loo",
    "knn_multilabel",
    "labelled_positions",
    "linear_probe",
    "logistic_probe",
    "measure",
    "multilabel_probe",
    "paper_probe",
    "protocol",
    "raw_pixels",
    "read_results",
    "recall_of",
    "regression",
    "retrieval",
    "retrieve_patches",
    "ridge_probe",
    "search",
    "search_others",
    "segment",
    "segmentation_fine_tune",
    "segmentation_knn",
    "segmentation_probe",
    "select_images",
    "with_targets",
]
