"""Train on several devices: replicas whose gradients are averaged, or one model whose weights are shared out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from clip3dreid.errors import InputError
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.model.blocks import repeated_blocks


class DistributedStudent(DDPStrategy):
    """Replicas of the whole model, one a process, whose gradients are averaged.

    Parameters without a gradient are looked for only where there may be some: a loss that starts at a later epoch
    leaves its head without one until then. Who trains something else than weighted losses is not known to have none.

    Args:
        broadcast_buffers: send the first process's buffers to the others before each step. No step computes anything
            of what that would send: running statistics are read in evaluation alone, which takes the first process's
            (`evaluation_module.share_buffers`), as checkpoints do; and what losses remember is worked out of the
            global batch in all processes alike.
        gradient_as_bucket_view: have gradients lie in the buffers that they are sent from.
        static_graph: promise that all steps have one and the same graph.
        options: of Lightning's `DDPStrategy`.
    """

    def __init__(
        self,
        *,
        broadcast_buffers: bool = False,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
        **options: Any,
    ) -> None:
        # Newer versions of torch call it what it does: buffers are sent once in the beginning either way.
        takes = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in takes else "broadcast_buffers"
        super().__init__(
            gradient_as_bucket_view=gradient_as_bucket_view, static_graph=static_graph, **options
        )
        self._ddp_kwargs[name] = broadcast_buffers

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        """Wrap the model, once its losses are known."""
        self._ddp_kwargs.setdefault("find_unused_parameters", may_leave_unused(model))
        return super()._setup_model(model)


def may_leave_unused(module: nn.Module) -> bool:
    """Return whether a step of a module may leave a parameter without a gradient."""
    losses = getattr(module, "losses", None)
    return not isinstance(losses, WeightedLosses) or max(losses.start_epochs.values()) > 0


class ShardedStudent(ModelParallelStrategy):
    """One model whose weights, gradients and optimiser's state are shared out among the processes (FSDP2).

    Each of the student's repeated blocks is brought together while it is at work, and what is left of the student
    likewise; losses are one part more. A checkpoint holds whole tensors, as one process writes it, and loads wherever
    such a one does.

    Args:
        options: of Lightning's `ModelParallelStrategy`.

    Source: Zhao et al., "PyTorch FSDP", VLDB 2023; torch's `fully_shard`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **options)

    saves_alone = False
    """Whether the first process can write a checkpoint that the others know nothing of."""

    def setup_environment(self) -> None:
        """Meet the other processes; all of them are one group that shares the weights out."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        if self.lightning_module is None:
            # They meet before there is a module to share out, and the trainer calls once more when there is.
            self._setup_distributed()
        else:
            super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Bring the model, whose weights are shared out by now, to the device.

        Raises:
            InputError: if nobody has shared them out: a student's training alone does.
        """
        assert self.lightning_module is not None
        if not is_overridden("configure_model", self.lightning_module):
            raise InputError("trainer=fsdp is for clip3dreid train; take trainer=ddp or gpu")
        super().setup(trainer)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Return whether the trainer hands over the optimiser's state.

        Lightning's own way needs one for every weight, and heads of losses that have not started have none.
        """
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather the module's state, whole tensors on the CPU; empty in all processes but the first."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather the optimiser's state likewise."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: dict[str, Any] = plain.state_dict()
        moments = {number: self._gathered(values) for number, values in state["state"].items()}
        return state | {"state": moments}

    def _gathered(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, tensor in tensors.items():
            value = whole(tensor) if isinstance(tensor, Tensor) else tensor
            if self.is_global_zero:
                found[name] = value.cpu() if isinstance(value, Tensor) else value
        return found

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of whole tensors, in every process."""
        content: dict[str, Any] = self.checkpoint_io.load_checkpoint(
            checkpoint_path, weights_only=weights_only
        )
        return content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of a checkpoint's weights."""
        module = self.lightning_module
        assert module is not None
        there = module.state_dict()
        state = {
            name: _part(tensor, there[name]) if name in there else tensor
            for name, tensor in checkpoint["state_dict"].items()
        }
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of a checkpoint's optimiser."""
        for optimizer, content in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            moments = {
                number: {name: _part(value, parameters[number]) for name, value in values.items()}
                for number, values in content["state"].items()
            }
            optimizer.load_state_dict({**content, "state": moments})


def _part(value: Any, like: Tensor) -> Any:
    """Return what this process holds of a tensor that is shared out as another is; anything else as it is."""
    if not isinstance(value, Tensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    # Every process has the whole, so nobody sends anything.
    on_device = value.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def share_out(module: pl.LightningModule, parts: tuple[nn.Module, ...]) -> None:
    """Share the weights of parts of a module out, in place, where its trainer's strategy is `ShardedStudent`.

    Args:
        module: attached to a trainer whose processes have met.
        parts: each with a forward pass of its own; once shared out they stay so.
    """
    strategy = module.trainer.strategy
    if not isinstance(strategy, ShardedStudent):
        return
    mesh = strategy.device_mesh["data_parallel"]
    for part in parts:
        if any(isinstance(parameter, DTensor) for parameter in part.parameters()):
            continue
        for block in repeated_blocks(part):
            fully_shard(block, mesh=mesh)
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all that other processes hold of it; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_devices(arguments: Mapping[str, Any]) -> None:
    """Refuse a trainer whose devices are not there, before anything is read for it.

    Args:
        arguments: of Lightning's trainer.

    Raises:
        InputError: naming the key.
    """
    accelerator, devices = arguments.get("accelerator"), arguments.get("devices")
    one = arguments.get("num_nodes", 1) == 1
    if accelerator in ("gpu", "cuda"):
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not there and not (accelerator == "gpu" and torch.backends.mps.is_available()):
            raise InputError(
                f"trainer.accelerator={accelerator} is a device that is not there: torch {torch.__version__} finds "
                "none; take trainer=cpu, or a torch that is built for the machine's GPU"
            )
        if there and isinstance(devices, int) and devices > there:
            raise InputError(f"trainer.devices={devices}, but there are {there} GPUs; give fewer")
    alone = accelerator == "cpu" and one and devices in (1, "1", "auto", None)
    if alone and isinstance(arguments.get("strategy"), ShardedStudent):
        raise InputError(
            "trainer=fsdp shares the weights out among processes, and this is one; give trainer.devices=2 or more, "
            "or take trainer=cpu"
        )
