"""Exact weighted kNN for k = 20 and 200 together, beside lightly's ``knn_predict`` called once for each k.

    python benchmarks/neighbours.py [--threads 2] [--repeats 5]
    python benchmarks/neighbours.py --memory
    python benchmarks/neighbours.py --kmeans

The first prints a Markdown table and saves it in ``--out``: ours, lightly's, faiss's exact search, and the matrix
product alone, without which none can do. Each row has the seconds (median and range of alternating repeats) and the
least processor seconds of a repeat, which other programs on the machine hardly change; the ratios are those of the
latter on a CPU, and of the median seconds where faiss searches on a GPU. The accuracies have to agree. lightly
is measured where it is installed. All start from the same features in memory and normalise them. The second prints the
memory that a search of 500,000 features takes beside them. The third times spherical k-means, one start of 20
iterations, ours beside faiss's: both begin at the same rows, and the objectives have to agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch.nn import functional as F

from selfsup.eval import FeatureSet, knn, search
from selfsup.eval.neighbours import MEMORY_MB, QUERIES_AT_ONCE
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


def lightly_once_for_each_k() -> Callable[[FeatureSet, FeatureSet], dict[int, float]] | None:
    """Return the same by lightly's function, in batches as its own evaluation calls it; None where it is not there."""
    try:
        from lightly.utils.benchmarking import knn_predict
    except ImportError:
        print("lightly is left out; to measure it: pip install lightly", flush=True)
        return None

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


def by_faiss(train: FeatureSet, test: FeatureSet) -> None:
    """Search by faiss on the CPU, without the vote."""
    import faiss

    bank, queries = (F.normalize(part.features, dim=1).numpy() for part in (train, test))
    faiss.knn(queries, bank, max(KS), metric=faiss.METRIC_INNER_PRODUCT)


def one_product(train: FeatureSet, test: FeatureSet) -> None:
    """Compare every query with the whole bank, and do nothing with it."""
    bank, queries = (F.normalize(part.features, dim=1) for part in (train, test))
    table = torch.empty(min(1024, len(queries)), len(bank))
    for some in queries.split(1024):
        torch.mm(some, bank.T, out=table[: len(some)])


def compare(repeats: int, bank: int, queries: int, out: str) -> None:
    """Time all in turn, print the table and save it."""
    import faiss

    train, test = made_features(bank, 0), made_features(queries, 1)
    contenders: dict[str, Callable[[FeatureSet, FeatureSet], dict[int, float] | None]] = {"ours": ours}
    if theirs := lightly_once_for_each_k():
        contenders["lightly"] = theirs
    contenders |= {"faiss on the CPU, the search alone": by_faiss, "one matrix product on the CPU": one_product}
    found: dict[str, dict[int, float]] = {}
    busy: dict[str, list[float]] = {name: [] for name in contenders}

    def timed(name: str) -> Callable[[], None]:
        def call() -> None:
            start = time.process_time()
            found[name] = contenders[name](train, test) or {}
            busy[name].append(time.process_time() - start)

        return call

    seconds = measure.alternate({name: timed(name) for name in contenders}, repeats)
    least = {name: min(values) for name, values in busy.items()}
    cost = least
    if faiss.get_num_gpus():
        cost = {name: measure.summary(values)[0] for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        median, low, high = measure.summary(values)
        row: dict[str, Any] = {"": name, "seconds": f"{median:.2f} ({low:.2f} to {high:.2f})"}
        row |= {"processor seconds": round(least[name], 2), "times ours": cost[name] / cost["ours"]}
        row |= {"times one product": cost[name] / cost["one matrix product on the CPU"]}
        rows.append(row | {f"accuracy, k={k}": f"{100 * value:.2f} %" for k, value in found[name].items()})
    protocol = (
        f"Exact weighted kNN of {queries:,} queries in a bank of {bank:,} × {DIM}, k = {' and '.join(map(str, KS))}: "
        f"one search for both, against knn_predict called for each; {repeats} alternating repeats."
    )
    print(measure.write(out, "neighbours", rows, protocol))


def kmeans(repeats: int, count: int, out: str) -> None:
    """Time k-means with 10 and 100 clusters by torch and by faiss in turn, print the table and save it."""
    import faiss

    from selfsup.eval.kmeans import lloyd

    iterations, rows = 20, []
    for clusters in (10, 100):
        features = F.normalize(made_features(min(count, 1024 * clusters), 0).features, dim=1)
        objectives: dict[str, float] = {}
        busy: dict[str, list[float]] = {"torch": [], "faiss": []}

        def by_torch(features: torch.Tensor = features, clusters: int = clusters) -> float:
            return lloyd(features, clusters, iterations, 1, len(features))[1]

        def by_faiss(features: torch.Tensor = features, clusters: int = clusters) -> float:
            settings = {"niter": iterations, "seed": 1, "spherical": True, "max_points_per_centroid": 1024}
            return float(faiss.Kmeans(DIM, clusters, **settings).train(features.numpy()))

        def timed(
            name: str, call: Callable[[], float], busy: Any = busy, found: Any = objectives
        ) -> Callable[[], None]:
            def run() -> None:
                start = time.process_time()
                found[name] = call()
                busy[name].append(time.process_time() - start)

            return run

        seconds = measure.alternate({"torch": timed("torch", by_torch), "faiss": timed("faiss", by_faiss)}, repeats)
        for name, values in seconds.items():
            median, low, high = measure.summary(values)
            row: dict[str, Any] = {"clusters": clusters, "by": name, "features": f"{len(features):,}"}
            row |= {
                "seconds": f"{median:.2f} ({low:.2f} to {high:.2f})",
                "processor seconds": round(min(busy[name]), 2),
            }
            row |= {"times torch": min(busy[name]) / min(busy["torch"]), "objective": f"{objectives[name]:.1f}"}
            rows.append(row)
    protocol = (
        f"Spherical k-means of features of {DIM} dimensions, one start of {iterations} iterations from the same rows; "
        f"{repeats} alternating repeats, the least processor seconds of them."
    )
    print(measure.write(out, "kmeans", rows, protocol))


def memory(bank: int, queries: int) -> None:
    """Print how much the peak of the memory rises while a bank is searched."""
    features = torch.empty(bank, DIM).normal_(generator=torch.Generator().manual_seed(0))
    some = torch.empty(queries, DIM).normal_(generator=torch.Generator().manual_seed(1))
    search(features[:1000], some[:10], 10)  # loads the library
    before, start = peak_memory_mb(), time.perf_counter()
    search(features, some, max(KS), progress=True)
    taken = time.perf_counter() - start
    at_work = min(queries, QUERIES_AT_ONCE) * 4 * (DIM + 32 * max(KS) + 1024) / 1e6
    answer = queries * max(KS) * 12 / 1e6
    stated = 1.5 * MEMORY_MB + at_work + answer
    print(f"features {features.nbytes / 1e6:.0f} MB")
    parts = f"block of the bank {MEMORY_MB} MB, products {MEMORY_MB // 2} MB, "
    parts += f"queries at work {at_work:.0f} MB, answer {answer:.0f} MB"
    print(f"stated beside them: {parts}, together {stated:.0f} MB")
    print(f"peak rises by {peak_memory_mb() - before:.0f} MB; {taken:.0f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch and faiss")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bank", type=int, help="default 60,000, with --memory 500,000")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--out", default="benchmarks/results", help="folder for the JSON and the Markdown file")
    parser.add_argument("--memory", action="store_true", help="measure memory in place of time")
    parser.add_argument("--kmeans", action="store_true", help="measure k-means")
    arguments = parser.parse_args()
    import faiss

    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    if arguments.memory:
        memory(arguments.bank or 500_000, arguments.queries)
    elif arguments.kmeans:
        kmeans(arguments.repeats, arguments.bank or 60_000, arguments.out)
    else:
        compare(arguments.repeats, arguments.bank or 60_000, arguments.queries, arguments.out)


if __name__ == "__main__":
    main()
