"""Evaluation of frozen features: neighbours, probes, diagnostics, figures and comparison of runs."""

from selfsup.eval.audit import Audit, audit, audit_dataset
from selfsup.eval.clustering import ClusteringResult, clustering
from selfsup.eval.compare import Table, compare
from selfsup.eval.config import EvalConfig
from selfsup.eval.diagnostics import (
    CkaTable,
    cka,
    evaluate_attention,
    evaluate_invariance,
    evaluate_layers,
    layer_features,
)
from selfsup.eval.feature_choices import ChosenFeatures
from selfsup.eval.features import FeatureSet, extract_features, raw_pixels
from selfsup.eval.few_shot import FewShotResult, few_shot
from selfsup.eval.fine_tune import FineTuneResult, fine_tune
from selfsup.eval.knn import KnnResult, MultiLabelResult, knn, knn_grid, knn_loo, knn_multilabel
from selfsup.eval.linear_probe import ProbeResult, labelled_positions, linear_probe
from selfsup.eval.logistic import logistic_probe
from selfsup.eval.neighbours import recall_of, search, search_others
from selfsup.eval.paper_probe import PROBE_PROTOCOLS, ProbeProtocol, paper_probe
from selfsup.eval.patches import PatchMatches, patches_picture, retrieve_patches
from selfsup.eval.protocols import (
    BY_NAME,
    PROTOCOLS,
    SplitFeatures,
    choice_splits,
    evaluate_all,
    evaluate_clustering,
    evaluate_diagnostics,
    evaluate_few_shot,
    evaluate_fine_tune,
    evaluate_knn,
    evaluate_knn_loo,
    evaluate_linear_probe,
    evaluate_logistic,
    evaluate_paper_probe,
    evaluate_retrieval,
    evaluate_ridge,
    evaluate_segmentation,
    evaluate_segmentation_knn,
    extract_splits,
    pixel_splits,
)
from selfsup.eval.results import add_results, read_results
from selfsup.eval.retrieval import RetrievalResult, retrieval
from selfsup.eval.ridge import ridge_probe
from selfsup.eval.segmentation import (
    CellBank,
    SegmentationKnnResult,
    SegmentationResult,
    segment,
    segmentation_knn,
    segmentation_probe,
)

__all__ = [
    "BY_NAME",
    "PROBE_PROTOCOLS",
    "PROTOCOLS",
    "Audit",
    "CellBank",
    "ChosenFeatures",
    "CkaTable",
    "ClusteringResult",
    "EvalConfig",
    "FeatureSet",
    "FewShotResult",
    "FineTuneResult",
    "KnnResult",
    "MultiLabelResult",
    "PatchMatches",
    "ProbeProtocol",
    "ProbeResult",
    "RetrievalResult",
    "SegmentationKnnResult",
    "SegmentationResult",
    "SplitFeatures",
    "Table",
    "add_results",
    "audit",
    "audit_dataset",
    "choice_splits",
    "cka",
    "clustering",
    "compare",
    "evaluate_all",
    "evaluate_attention",
    "evaluate_clustering",
    "evaluate_diagnostics",
    "evaluate_few_shot",
    "evaluate_fine_tune",
    "evaluate_invariance",
    "evaluate_knn",
    "evaluate_knn_loo",
    "evaluate_layers",
    "evaluate_linear_probe",
    "evaluate_logistic",
    "evaluate_paper_probe",
    "evaluate_retrieval",
    "evaluate_ridge",
    "evaluate_segmentation",
    "evaluate_segmentation_knn",
    "extract_features",
    "extract_splits",
    "few_shot",
    "fine_tune",
    "knn",
    "knn_grid",
    "knn_loo",
    "knn_multilabel",
    "labelled_positions",
    "layer_features",
    "linear_probe",
    "logistic_probe",
    "paper_probe",
    "patches_picture",
    "pixel_splits",
    "raw_pixels",
    "read_results",
    "recall_of",
    "retrieval",
    "retrieve_patches",
    "ridge_probe",
    "search",
    "search_others",
    "segment",
    "segmentation_knn",
    "segmentation_probe",
]
