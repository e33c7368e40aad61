"""The arithmetic of benchmarks/scaling.py against closed forms and against the operations that the losses run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from selfsup.functional import contrastive, redundancy, whitening
from selfsup.functional.arguments import trusted_values

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
RANKS = 16


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import scaling

    yield scaling
    for name in ("scaling", "measure"):
        sys.modules.pop(name, None)


# messages


def test_a_ring_within_a_node(scaling: Any) -> None:
    machines = scaling.Machines(100.0, 10.0, 0.5, 3.0)
    assert scaling.seconds("all_gather", 40.0, 1, machines) == 0
    assert scaling.seconds("all_gather", 40.0, 4, machines) == pytest.approx(3 * 0.5 + 3 * 40 / 100)
    assert scaling.seconds("reduce_scatter", 40.0, 4, machines) == pytest.approx(3 * 0.5 + 3 * 40 / 100)
    # large: a ring, which sends 2 · 3/4; small: a tree of 2 + 2 hops
    assert scaling.seconds("all_reduce", 4e4, 4, machines) == pytest.approx(6 * 0.5 + 1.5 * 4e4 / 100)
    assert scaling.seconds("all_reduce", 1.0, 4, machines) == pytest.approx(4 * 0.5 + 2 / 100)
    assert scaling.seconds("all_to_all_single", 40.0, 4, machines) == pytest.approx(3 * 0.5 + 0.75 * 40 / 100)


def test_links_between_nodes_bound_what_crosses_them(scaling: Any) -> None:
    machines = scaling.Machines(100.0, 10.0, 0.5, 3.0, per_node=4)
    hops = 6 * 0.5 + 3.0  # seven hops, one of them between the nodes
    assert scaling.seconds("all_gather", 40.0, 8, machines) == pytest.approx(hops + 7 * 40 / 10)
    # half of what each of a node's four ranks has goes over its link
    assert scaling.seconds("all_to_all_single", 40.0, 8, machines) == pytest.approx(hops + 4 * 20 / 10)
    logarithmic = scaling.Machines(100.0, 10.0, 0.5, 3.0, per_node=4, hops="log")
    assert scaling.seconds("all_gather", 40.0, 8, logarithmic) == pytest.approx(2 * 0.5 + 3.0 + 7 * 40 / 10)


# losses


class Moved(TorchDispatchMode):
    """Counts the elements that operations read and write, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "view" not in str(func) and "empty" not in str(func):
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.elements += sum(x.numel() for x in tensors)
        return out


@pytest.fixture
def many_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every loss find as many ranks as RANKS, with the same embeddings as its own."""

    def gather(x: Tensor, group: Any) -> Tensor:
        return torch.cat([x] * RANKS)

    def gather_together(tensors: Any, group: Any) -> tuple[Tensor, ...]:
        return gather(torch.stack(tuple(tensors), dim=1), group).unbind(1)

    for module in (contrastive, redundancy, whitening):
        for function in (gather, gather_together):
            monkeypatch.setattr(module, function.__name__, function, raising=False)
        monkeypatch.setattr(module, "dist", SimpleNamespace(get_world_size=lambda group: RANKS), raising=False)
    monkeypatch.setattr(redundancy, "sum_over", lambda x, group: x if group is None else x * RANKS)
    monkeypatch.setattr(contrastive, "rank_of", lambda group: 0)
    for module in (contrastive, redundancy):
        monkeypatch.setattr(module, "size_of", lambda group: 1 if group is None else RANKS)


LOSSES = {
    "simclr": lambda z: contrastive.nt_xent(z[0], z[1], 0.1, group=True),
    "supcon": lambda z: contrastive.supervised_contrastive(z, torch.arange(z.shape[1]), 0.1, group=True),
    "moco_v3": lambda z: (
        contrastive.cross_view_nce(z[0], z[1].detach(), 0.1, True)
        + contrastive.cross_view_nce(z[1], z[0].detach(), 0.1, True)
    ),
    "nnclr": lambda z: (
        contrastive.cross_view_nce(z[0].detach(), z[1], 0.1, True)
        + contrastive.cross_view_nce(z[1].detach(), z[0], 0.1, True)
    ),
    "barlow_twins": lambda z: redundancy.barlow_twins_loss(z[0], z[1], group=True),
    "vicreg": lambda z: redundancy.vicreg_loss(z[0], z[1], group=True),
    "wmse": lambda z: whitening.whitening_mse(z, 2 * z.shape[2], group=True),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_work_of_a_loss_is_what_its_operations_do(name: str, scaling: Any, many_ranks: None) -> None:
    """The operations of products exactly; reads and writes, which depend a little on the shapes, within a third."""
    # where ranks sum their matrices, so many images that those hardly count beside the embeddings
    images, dim = 512 if name in scaling.MATRICES else 64, 16
    config = SimpleNamespace(method=SimpleNamespace(name=name, output_dim=dim, scope="world", iterations=1))
    method = SimpleNamespace(views=SimpleNamespace(sizes=(32, 32)))
    operations, elements = scaling.loss_work(config, method, images, RANKS)
    z = torch.randn(2, images, dim, requires_grad=True)
    with trusted_values(), FlopCounterMode(display=False) as counted:  # as in a training step
        LOSSES[name](z).backward()
    assert counted.get_total_flops() == operations
    with trusted_values(), Moved() as moved:
        LOSSES[name](z).backward()
    assert moved.elements / elements == pytest.approx(scaling.TOUCHES[name], rel=1 / 3)


# the whole


def predict(scaling: Any, name: str, ranks: int, **changed: Any) -> dict[str, Any]:
    figures = {"hidden_share": 0.5, "tflops": 50.0, "memory_gb_s": 2000.0, **changed}
    config, method = scaling.build([f"experiment=imagenet/{name}"])
    machines = scaling.Machines(300e9, 25e9, 2e-6, 10e-6)
    return scaling.predict(config, method, 64, ranks, 0.2, machines, SimpleNamespace(**figures))


def test_one_gpu_is_the_measured_step(scaling: Any) -> None:
    row = predict(scaling, "barlow_twins", 1)
    assert (row["step, ms"], row["images/s"], row["efficiency"], row["limit"]) == (200.0, 320, 1.0, None)


def test_only_what_is_longer_than_its_cover_is_seen_of_the_gradients(scaling: Any) -> None:
    bare = predict(scaling, "byol", 64, hidden_share=0.0)
    assert bare["of it seen"] == bare["gradients, ms"] > 5
    covered = predict(scaling, "byol", 64, hidden_share=0.01)
    assert covered["of it seen"] == pytest.approx(bare["gradients, ms"] - 2.0)
    assert predict(scaling, "byol", 64)["of it seen"] == 0


def test_a_queue_smaller_than_the_batch_ends_it(scaling: Any) -> None:
    rows = [predict(scaling, "moco", ranks) for ranks in (1, 1024, 2048)]  # 65536 keys, 64 images a GPU
    assert [row["limit"] == scaling.FULL_QUEUE for row in rows] == [False, False, True]
    assert scaling.stops_at(rows, 0.0) == (2048, scaling.FULL_QUEUE)
    assert scaling.stops_at(rows[:2], 0.0) == (None, None)
    assert scaling.stops_at(rows, 0.99)[0] == 1024
