"""FSDP: each rank holds a part of every weight, of its gradient and of what the optimiser knows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from selfsup.config import TrainConfig
from selfsup.engine.compilation import networks, outermost_blocks
from selfsup.errors import UserError
from selfsup.methods import Method
from selfsup.nn import Backbone

#: Optimisers whose arithmetic was found to be the same on parts: those that go by elements, LARS and LAMB, whose norms
#: are then of whole weights. Others may know a weight by its rows and columns, or fail in the first step.
SHARDABLE = ("sgd", "momentum", "adam", "adamw", "lion", "lars", "lamb")


class ShardedStrategy(DDPStrategy):
    """Lightning's DDP with ``torch.distributed.fsdp.fully_shard`` in the place of its wrapper.

    Processes, gradients (their mean over ranks) and checkpoints (whole tensors in one file, under the same keys) are as
    with DDP. A checkpoint is read into the whole network before it is sharded.
    """

    def model_to_device(self) -> None:
        """Leave the network where it is: sharding moves it, unit by unit, so that no device has to hold all of it."""

    def configure_ddp(self) -> None:
        """Shard the network in place; the optimiser is built afterwards, over the parts."""
        method = self.lightning_module
        assert isinstance(method, Method)
        shard(method, init_device_mesh(self.root_device.type, (self.world_size,)))
        method.to(self.root_device)  # buffers

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole state of the module on rank 0. Every rank must call it."""
        state = super().lightning_module_state_dict()
        for key, value in state.items():
            state[key] = self._whole(value)
        return state if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state of the optimiser on rank 0. Every rank must call it."""
        state = optimizer.state_dict()
        state["state"] = {
            number: {key: self._whole(value) for key, value in known.items()}
            for number, known in state["state"].items()
        }
        return state if self.is_global_zero else {}

    def _whole(self, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.is_global_zero else None

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give the optimiser this rank's part of a state that was saved whole."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                number: {key: _part_like(value, parameters[number]) for key, value in known.items()}
                for number, known in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": parts})

    def teardown(self) -> None:
        """End; the parts stay where they are, as a part is of no use without the others."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def _part_like(value: Any, parameter: DTensor) -> Any:
    """Return this rank's part of what an optimiser keeps for each element of a weight; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(parameter.device), mesh, parameter.placements, src_data_rank=None)


def units(method: Method) -> Iterator[nn.Module]:
    """Yield the modules whose weights are gathered together when they run, inner ones first.

    These are the blocks of backbones, the rest of each backbone, and every head, momentum encoders' too.
    """
    for network in networks(method):
        if isinstance(network, Backbone):
            yield from outermost_blocks(network)
        yield network


def shard(method: Method, mesh: DeviceMesh) -> None:
    """Replace every parameter by a ``DTensor`` split along its first dimension over ``mesh``, in place.

    A unit's weights are whole while it runs, forward and backward, and at no other time. So what happens between steps
    (the optimiser, momentum encoders, prototypes) sees ``DTensor`` objects: their shapes and norms are those of the
    whole weight, their arithmetic is done on the parts.
    """
    method.to(memory_format=torch.contiguous_format)  # the one format that fully_shard takes
    for unit in units(method):
        unit.register_forward_hook(_no_view)
        # each is a root of its own: what calls them is Method.step, which is no forward
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        if isinstance(unit, Backbone):
            for name in ("forward_dense", "forward_both", "forward_tokens"):
                register_fsdp_forward_method(unit, name)


def _no_view(unit: nn.Module, args: Any, output: Any) -> Any:
    # written in place, a view would lose the hook by which the backward pass gathers the weights
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def check_shardable(method: Method, config: TrainConfig) -> None:
    """Make sure that training on parts is training on the whole.

    Raises:
        UserError: A setting or a parameter with which it is not.
    """
    name = config.optimizer.name
    if name not in SHARDABLE:
        raise UserError(
            f"optimizer.name={name} is not offered with trainer.strategy=fsdp, which takes {', '.join(SHARDABLE)}; "
            "choose one of these or trainer.strategy=ddp."
        )
    if config.trainer.compile:
        raise UserError("trainer.compile does not go with trainer.strategy=fsdp; leave it out, or choose ddp.")
    held = {id(parameter) for unit in units(method) for parameter in unit.parameters()}
    for key, parameter in method.named_parameters():
        if id(parameter) not in held or parameter.ndim == 0:
            reason = "a single number" if parameter.ndim == 0 else "outside of backbone and heads"
            raise UserError(
                f"trainer.strategy=fsdp cannot split the parameter {key}, which is {reason}; use trainer.strategy=ddp."
            )
