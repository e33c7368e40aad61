"""Exact weighted kNN for k = 20 and 200 together: ours against lightly's ``knn_predict``, called once for each k.

    python benchmarks/neighbours.py [--threads 2] [--repeats 5]
    python benchmarks/neighbours.py --memory

The first prints a Markdown table: median and range of the seconds over alternating repeats, the ratio of the medians,
and the accuracies, which have to agree. It needs lightly: ``pip install lightly``. Both start from the same features
in memory and both normalise them. The second prints the memory that a search of 500,000 features takes beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from selfsup.eval import FeatureSet, knn, search
from selfsup.eval.neighbours import MEMORY_MB
from selfsup.eval.results import peak_memory_mb

DIM, CLASSES, KS, TEMPERATURE = 512, 100, (20, 200), 0.1
BATCH = 256  # queries in a call of lightly's, which compares them with the whole bank at once


def made_features(count: int, seed: int) -> FeatureSet:
    """Return features around the centres of 100 classes, so far apart that neighbours are right about half the time."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    features = torch.randn(count, DIM, generator=generator).mul_(4.5).add_(centres[labels])
    return FeatureSet(features, labels, torch.arange(count))


def ours(train: FeatureSet, test: FeatureSet) -> dict[int, float]:
    """Return the accuracies by one search."""
    return knn(train, test, KS, TEMPERATURE)


def lightly_once_for_each_k() -> Callable[[FeatureSet, FeatureSet], dict[int, float]]:
    """Return the same by lightly's function, in batches as its own evaluation calls it."""
    try:
        from lightly.utils.benchmarking import knn_predict
    except ImportError as error:
        raise SystemExit("This comparison needs lightly; install it: pip install lightly") from error

    def run(train: FeatureSet, test: FeatureSet) -> dict[int, float]:
        assert train.labels is not None
        assert test.labels is not None
        bank, queries = F.normalize(train.features, dim=1).T.contiguous(), F.normalize(test.features, dim=1)
        accuracy = {}
        for k in KS:
            right = 0
            for feature, label in zip(queries.split(BATCH), test.labels.split(BATCH), strict=True):
                ranked = knn_predict(feature, bank, train.labels, CLASSES, k, TEMPERATURE)
                right += int((ranked[:, 0] == label).sum())
            accuracy[k] = right / len(test)
        return accuracy

    return run


def compare(repeats: int, bank: int, queries: int) -> None:
    """Time both in turn and print the table."""
    rivals = {"ours": ours, "lightly": lightly_once_for_each_k()}
    train, test = made_features(bank, 0), made_features(queries, 1)
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    found: dict[str, dict[int, float]] = {}
    for repeat in range(repeats + 1):
        for name, run in rivals.items():
            start = time.perf_counter()
            found[name] = run(train, test)
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    print(f"{queries} queries, bank {bank} × {DIM}, k = {' and '.join(map(str, KS))}, torch {torch.__version__}\n")
    print("| | seconds, median (range) | " + " | ".join(f"accuracy, k={k}" for k in KS) + " |")
    print("|---|---|" + "---|" * len(KS))
    for name, times in seconds.items():
        accuracies = " | ".join(f"{100 * found[name][k]:.2f} %" for k in KS)
        print(f"| {name} | {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) | {accuracies} |")
    ratio = statistics.median(seconds["lightly"]) / statistics.median(seconds["ours"])
    print(f"\nratio of the medians: {ratio:.1f}")


def memory(bank: int, queries: int) -> None:
    """Print how much the peak of the memory rises while a bank is searched."""
    features = torch.empty(bank, DIM).normal_(generator=torch.Generator().manual_seed(0))
    some = torch.empty(queries, DIM).normal_(generator=torch.Generator().manual_seed(1))
    search(features[:1000], some[:10], 10)  # loads the library
    before, start = peak_memory_mb(), time.perf_counter()
    search(features, some, max(KS), progress=True)
    taken = time.perf_counter() - start
    print(f"features {features.nbytes / 1e6:.0f} MB, stated workspace for the bank {MEMORY_MB} MB")
    answer = queries * max(KS) * 12 / 1e6
    print(f"peak rises by {peak_memory_mb() - before:.0f} MB, of which the answer is {answer:.0f} MB; {taken:.0f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch and faiss")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bank", type=int, help="default 60,000, with --memory 500,000")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--memory", action="store_true", help="measure memory in place of time")
    arguments = parser.parse_args()
    import faiss

    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    if arguments.memory:
        memory(arguments.bank or 500_000, arguments.queries)
    else:
        compare(arguments.repeats, arguments.bank or 60_000, arguments.queries)


if __name__ == "__main__":
    main()
