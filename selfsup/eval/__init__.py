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
from selfsup.eval.features import FeatureSet, extract_features, raw_pixels
from selfsup.eval.knn import KnnResult, MultiLabelResult, knn, knn_grid, knn_loo, knn_multilabel
from selfsup.eval.linear_probe import ProbeResult, linear_probe
from selfsup.eval.neighbours import recall_of, search, search_others
from selfsup.eval.protocols import (
    PROTOCOLS,
    SplitFeatures,
    evaluate_all,
    evaluate_clustering,
    evaluate_diagnostics,
    evaluate_knn,
    evaluate_knn_loo,
    evaluate_linear_probe,
    evaluate_retrieval,
    evaluate_segmentation,
    extract_splits,
    pixel_splits,
)
from selfsup.eval.results import add_results, read_results
from selfsup.eval.retrieval import RetrievalResult, retrieval
from selfsup.eval.segmentation import SegmentationResult, segmentation_probe

__all__ = [
    "PROTOCOLS",
    "Audit",
    "CkaTable",
    "ClusteringResult",
    "EvalConfig",
    "FeatureSet",
    "KnnResult",
    "MultiLabelResult",
    "ProbeResult",
    "RetrievalResult",
    "SegmentationResult",
    "SplitFeatures",
    "Table",
    "add_results",
    "audit",
    "audit_dataset",
    "cka",
    "clustering",
    "compare",
    "evaluate_all",
    "evaluate_attention",
    "evaluate_clustering",
    "evaluate_diagnostics",
    "evaluate_invariance",
    "evaluate_knn",
    "evaluate_knn_loo",
    "evaluate_layers",
    "evaluate_linear_probe",
    "evaluate_retrieval",
    "evaluate_segmentation",
    "extract_features",
    "extract_splits",
    "knn",
    "knn_grid",
    "knn_loo",
    "knn_multilabel",
    "layer_features",
    "linear_probe",
    "pixel_splits",
    "raw_pixels",
    "read_results",
    "recall_of",
    "retrieval",
    "search",
    "search_others",
    "segmentation_probe",
]
