"""Evaluation of frozen features: neighbours, probes, diagnostics, figures and comparison of runs."""

from selfsup.eval.compare import Table, compare
from selfsup.eval.config import EvalConfig
from selfsup.eval.features import FeatureSet, extract_features, raw_pixels
from selfsup.eval.knn import KnnResult, knn, knn_grid
from selfsup.eval.linear_probe import ProbeResult, linear_probe
from selfsup.eval.neighbours import search
from selfsup.eval.protocols import (
    PROTOCOLS,
    SplitFeatures,
    evaluate_all,
    evaluate_diagnostics,
    evaluate_knn,
    evaluate_linear_probe,
    extract_splits,
    pixel_splits,
)
from selfsup.eval.results import add_results, read_results

__all__ = [
    "PROTOCOLS",
    "EvalConfig",
    "FeatureSet",
    "KnnResult",
    "ProbeResult",
    "SplitFeatures",
    "Table",
    "add_results",
    "compare",
    "evaluate_all",
    "evaluate_diagnostics",
    "evaluate_knn",
    "evaluate_linear_probe",
    "extract_features",
    "extract_splits",
    "knn",
    "knn_grid",
    "linear_probe",
    "pixel_splits",
    "raw_pixels",
    "read_results",
    "search",
]
