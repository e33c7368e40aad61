"""Chunks under DistributedDataParallel, on two processes, are one pass on one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfsup.distributed import world
from selfsup.functional import nt_xent
from selfsup.nn import Backbone, BackboneConfig, build_backbone, projection_head, split_batch_norm, unchanged_statistics

RANKS, COUNT = 2, 12


class Contrast(nn.Module):
    """SimCLR without its BatchNorm in the head, which has statistics of a rank."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.head = backbone, projection_head([backbone.dim, 16, 8])

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        z1, z2 = self.head(self.backbone(torch.cat([one, other]))).chunk(2)
        return nt_xent(z1, z2, 0.2, group=world())


def build(batch_norm: bool) -> Contrast:
    torch.manual_seed(0)
    if batch_norm:
        config = BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1])
    else:
        kwargs = {"channels": (8, 8, 8, 8), "norm_layer": "groupnorm1", "zero_init_last": False}
        config = BackboneConfig("resnet18", kwargs=kwargs)
    return Contrast(build_backbone(config, 3)).double()


def batch(step: int) -> Tensor:
    return torch.randn(2, COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(module: nn.Module, model: Contrast, rank: int, ranks: int) -> list[dict[str, Tensor]]:
    """Take three steps; return the gradients of each, and the parameters and statistics after the last."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    states = []
    for step in range(3):
        one, other = batch(step).chunk(ranks, dim=1)[rank]
        optimizer.zero_grad()
        loss = module(one, other)
        with unchanged_statistics(model):
            loss.backward()
        states.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return [*states, {k: v.clone() for k, v in model.state_dict().items()}]


def run(rank: int, batch_norm: bool, chunk: int, checkpointing: bool) -> list[dict[str, Tensor]]:
    model = build(batch_norm)
    model.backbone.save_memory(chunk, checkpointing)
    return train(DistributedDataParallel(model, broadcast_buffers=False, bucket_cap_mb=0.01), model, rank, RANKS)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("chunk", [3, 4])
def test_two_ranks_in_chunks_train_what_one_pass_does(two_ranks, batch_norm, chunk, checkpointing):
    """With BatchNorm, in chunks that divide a rank's images, one pass has it split in the same chunks."""
    if batch_norm and chunk == 4:
        chunk = 6
    states = two_ranks.run(run, batch_norm, chunk, checkpointing)
    reference = build(batch_norm)
    if batch_norm:
        split_batch_norm(reference.backbone, 2 * COUNT // chunk)
    expected = train(reference, reference, 0, 1)
    assert expected[0].keys() == dict(reference.named_parameters()).keys()
    for mine, theirs in zip(states[0], expected, strict=True):
        for key, value in theirs.items():
            if "running_" not in key:
                torch.testing.assert_close(mine[key], value, rtol=1e-10, atol=1e-11, msg=key)
    for key, value in expected[-1].items():  # each rank follows its own chunks, and one process all of them
        if "running_" in key and batch_norm:
            mean = (states[0][-1][key] + states[1][-1][key]) / 2
            torch.testing.assert_close(mean, value, rtol=1e-10, atol=1e-11, msg=key)
