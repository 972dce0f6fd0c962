"""A pretend accelerator: a device whose tensors compute on the CPU and behave like those of a GPU where it matters.

They refuse to be mixed with tensors of the CPU, follow autocast's lists, and every time that the host would have to
wait for the device is counted with the line that is to blame. So a machine without a GPU can tell that a training
never waits and never mixes devices. What it cannot tell: kernels, streams, collectives, half precision's range.

`run_on_it` runs commands of the project on it, in a process of its own, since a device once registered stays;
`register` and `patch_trainer` bring it into a process.

Counted as a wait: reading a tensor's values; a copy to memory that is not pinned, or a blocking one either way;
results whose size depends on values (boolean indices, `nonzero`, `unique`); an event of the very step that waits for
it. No wait: filling, asynchronous copies, an event of a step before.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import subprocess
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import library as operators
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "pretend"
aten = torch.ops.aten


@dataclass
class Report:
    """What a command did on the device.

    Attributes:
        status: of the command.
        steps: of training, 1 and up -> line to blame -> waits, those at the end of an epoch under `0`.
        batches: of prediction, likewise.
        mixed: lines that mixed devices.
        double: lines that computed in double precision, which consumer GPUs do at a thirtieth of the speed.
    """

    status: int = 0
    steps: dict[int, dict[str, int]] = field(default_factory=dict)
    batches: dict[int, dict[str, int]] = field(default_factory=dict)
    mixed: list[str] = field(default_factory=list)
    double: dict[str, int] = field(default_factory=dict)

    def waits(self, part: str = "steps") -> dict[int, dict[str, int]]:
        """Return the steps, or batches, after the first that waited, with the lines to blame."""
        found: dict[int, dict[str, int]] = getattr(self, part)
        return {int(number): lines for number, lines in found.items() if int(number) > 1 and lines}


def run_on_it(*commands: Sequence[str], folder: Path, precision: str = "bf16-mixed") -> list[Report]:
    """Run commands of the project on the pretend accelerator, one after the other in a process of its own."""
    told = json.dumps([precision, *commands])
    reports = [Report(**one) for one in answer_of(["-m", "tests.pretend_accelerator", told], folder)]
    assert [report.status for report in reports] == [0] * len(commands)
    return reports


def answer_of(program: Sequence[str], folder: Path) -> Any:
    """Run a Python program in a folder, and return what it says in JSON in its last line."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *program],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


class _Counts:
    """What is counted, and in which part of the work."""

    def __init__(self) -> None:
        self.report = Report()
        self.lines: collections.Counter[str] | None = None
        self.step = 0

    def begin(self, part: dict[int, dict[str, int]]) -> None:
        """Begin a step."""
        self.step = len([number for number in part if number]) + 1
        self.lines = collections.Counter()
        part[self.step] = self.lines

    def between(self) -> None:
        """End what is counted."""
        self.lines = None

    def wait(self, what: str) -> None:
        """Count a wait."""
        if self.lines is not None:
            self.lines[f"{what}: {_place()}"] += 1


COUNTS = _Counts()
PINNED: set[int] = set()
"""Addresses of memory that is taken for pinned."""


def _place() -> str:
    """Return the innermost line of the project that is at work, or of a library where there is none."""
    frames = traceback.extract_stack()
    for part in ("/clip3dreid/", "/lightning/", "/torch/optim/", "/torch/nn/utils/"):
        for frame in reversed(frames):
            if part in frame.filename:
                return f"{frame.filename.rpartition('/clip3dreid/')[2]}:{frame.lineno} {frame.line}"
    return "elsewhere"


class PretendTensor(torch.Tensor):
    """A tensor on the device; `raw` holds its values on the CPU."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=torch.device(DEVICE, 0), requires_grad=False,
        )  # fmt: skip
        made.raw = raw
        return made

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        COUNTS.wait("tolist")
        return self.raw.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.raw.detach().clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made: Any = PretendTensor(self.raw.clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types_: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


_SIZED_BY_VALUES = {
    aten._local_scalar_dense.default: "item", aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select", aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique", aten.unique_dim.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave", aten.bincount.default: "bincount",
    aten.equal.default: "equal", aten._linalg_eigh.default: "eigh", aten._linalg_svd.default: "svd",
    aten.is_nonzero.default: "bool",
}  # fmt: skip
_INDEXED = (
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
)


def _ours(value: Any) -> bool:
    return isinstance(value, PretendTensor)


def _pinned(value: torch.Tensor) -> bool:
    return value.untyped_storage().data_ptr() in PINNED


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU, counting what it would cost on a device."""
    flat, _ = tree_flatten((args, kwargs))
    ours = [value for value in flat if _ours(value)]
    others = [value for value in flat if isinstance(value, torch.Tensor) and not _ours(value)]
    device = kwargs.get("device")
    to_cpu = device is not None and torch.device(device).type == "cpu"
    to_us = device is not None and torch.device(device).type == DEVICE
    copying = func in (aten._to_copy.default, aten.copy_.default, aten._copy_from.default)
    _refuse_mixed(func, args, ours, others, copying)
    _count(func, args, kwargs, ours, to_cpu, to_us)
    raw = {id(value.raw): value for value in ours}
    args, kwargs = tree_map(lambda value: value.raw if _ours(value) else value, (args, kwargs))
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        found = func(*args, **kwargs)
    if func is aten._to_copy.default and to_cpu:
        return found.clone() if id(found) in raw else found
    if func is aten.copy_.default and id(args[0]) not in raw:
        return args[0]
    if not (ours or to_us) or func is aten._local_scalar_dense.default:
        return found

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        known = raw.get(id(value))
        if known is None:
            return PretendTensor(value)
        assert known.shape == value.shape, f"{func} resizes in place"
        return known

    return tree_map(wrapped, found)


def _refuse_mixed(
    func: Any, args: Any, ours: Sequence[Any], others: Sequence[torch.Tensor], copying: bool
) -> None:
    if copying or not ours or not any(other.dim() for other in others):
        return
    if func in _INDEXED and _ours(args[0]):
        values = args[2] if len(args) > 2 else None
        if not (isinstance(values, torch.Tensor) and not _ours(values) and values.dim()):
            COUNTS.wait("index from the CPU")
            return
    COUNTS.report.mixed.append(f"{func}: {_place()}")
    raise RuntimeError(f"Expected all tensors to be on the same device: {func} at {_place()}")


def _count(
    func: Any, args: Any, kwargs: dict[str, Any], ours: Sequence[Any], to_cpu: bool, to_us: bool
) -> None:
    if func in _SIZED_BY_VALUES and ours:
        COUNTS.wait(_SIZED_BY_VALUES[func])
    if func in _INDEXED and any(
        _ours(t) and t.dtype in (torch.bool, torch.uint8) for t in args[1] if t is not None
    ):
        COUNTS.wait("boolean index")
    if func is aten._to_copy.default:
        if ours and to_cpu:
            COUNTS.wait("copy to the CPU")
        elif not ours and to_us and not kwargs.get("non_blocking"):
            COUNTS.wait("blocking copy from the CPU")
    if func is aten.copy_.default and _ours(args[0]) != _ours(args[1]):
        late = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        if _ours(args[1]) and not (late and _pinned(args[0])):
            COUNTS.wait("copy to the CPU")
        if _ours(args[0]) and args[1].dim() and not late:
            COUNTS.wait("blocking copy from the CPU")
    if any(value.dtype == torch.float64 for value in ours):
        COUNTS.report.double[_place()] = COUNTS.report.double.get(_place(), 0) + 1


class Event:
    """An event of the device, which has always passed it: what matters is which step waits for it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.step = 0

    def record(self, *_: Any) -> None:
        """Note the step."""
        self.step = COUNTS.step

    def query(self) -> bool:
        """Answer."""
        return True

    def synchronize(self) -> None:
        """Count a wait for something of the same step."""
        if self.step == COUNTS.step:
            COUNTS.wait("event of the same step")


def _module() -> Any:
    module: Any = types.ModuleType(f"torch.{DEVICE}")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = module.manual_seed = module.manual_seed_all = lambda *_: None
    module.synchronize = lambda *_: COUNTS.wait("synchronize")
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.get_rng_state = lambda *_: torch.get_rng_state()
    module.set_rng_state = lambda *_: None
    module.Event = Event
    return module


def _factories() -> Iterator[tuple[str, Any]]:
    """Yield the operations that make tensors of nothing."""
    skipped = ("sparse", "quantized", "cudnn", "mkldnn", "nested", "_make_dep_token", "from_file")
    for full in torch._C._dispatch_get_all_op_names():
        if not full.startswith("aten::") or any(word in full for word in skipped):
            continue
        name, _, overload = full[6:].partition(".")
        try:
            op = getattr(getattr(aten, name), overload or "default")
        except (AttributeError, RuntimeError):
            continue
        schema = op._schema
        makes = len(schema.returns) == 1 and "Tensor" in str(schema.returns[0].type)
        placed = any(argument.name == "device" for argument in schema.arguments)
        if makes and placed and not any("Tensor" in str(argument.type) for argument in schema.arguments):
            yield full[6:], op


_LOW = """
conv1d conv2d conv3d convolution _convolution addmm addmv addbmm baddbmm bmm mm mv matmul linear chain_matmul einsum
prelu scaled_dot_product_attention
"""
_HIGH = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus layer_norm group_norm norm
linalg_vector_norm nuclear_norm cosine_similarity cosine_embedding_loss cdist dist pdist renorm logsumexp nll_loss
nll_loss_nd mse_loss smooth_l1_loss huber_loss l1_loss kl_div triplet_margin_loss binary_cross_entropy_with_logits
prod softmax log_softmax cumprod cumsum sum
"""
"""What CUDA's autocast computes in half precision, and in float32."""
_LIBRARIES: list[Any] = []


def register() -> None:
    """Make the device known to torch; once a process."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(DEVICE, backend_module=_module())
    library = operators.Library("aten", "IMPL")
    for name, op in _factories():
        try:
            library.impl(name, _made_here(op), "PrivateUse1")
        except RuntimeError:  # has a kernel of its own
            continue
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    through = operators.Library("_", "IMPL")
    through.fallback(operators.fallthrough_kernel, "AutocastPrivateUse1")
    _LIBRARIES.extend([library, through])
    for names, dtype in ((_LOW, None), (_HIGH, torch.float32)):
        for name in names.split():
            _autocast(library, name, dtype)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _pin()


def _made_here(op: Any) -> Any:
    return lambda *args, **kwargs: _compute(op, args, {**kwargs, "device": torch.device(DEVICE)})


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    return _compute(aten.copy_.default, (target, source, non_blocking), {})


def _autocast(library: Any, name: str, dtype: torch.dtype | None) -> None:
    """Have the overloads of an operation cast what floats to a type; None: to autocast's own."""
    key = torch._C.DispatchKey.AutocastPrivateUse1
    packet = getattr(aten, name, None)
    for overload in [] if packet is None else packet.overloads():
        op = getattr(packet, overload)
        if any(word in overload for word in ("out", "names", "Dimname")) or "Dimname" in str(op._schema):
            continue

        def kernel(*args: Any, _op: Any = op, **kwargs: Any) -> Any:
            wanted = torch.get_autocast_dtype(DEVICE) if dtype is None else dtype

            def cast(value: Any) -> Any:
                floats = _ours(value) and value.is_floating_point() and value.dtype != torch.float64
                return value.to(wanted) if floats else value

            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                args, kwargs = tree_map(cast, (args, kwargs))
                return _op(*args, **kwargs)

        try:
            library.impl(
                name + ("" if overload == "default" else f".{overload}"), kernel, "AutocastPrivateUse1"
            )
        except RuntimeError:  # taken already
            continue


def _pin() -> None:
    """Have pinned memory be what was asked to be."""
    empty, pinned = torch.empty, torch.Tensor.is_pinned

    def make(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        made = empty(*args, **kwargs)
        if pin_memory:
            PINNED.add(made.untyped_storage().data_ptr())
        return made

    def pin(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        copy = tensor.clone()
        PINNED.add(copy.untyped_storage().data_ptr())
        return copy

    torch.empty = make  # type: ignore[assignment]
    torch.Tensor.pin_memory = pin  # type: ignore[method-assign]
    torch.Tensor.is_pinned = lambda tensor, *_: (
        not _ours(tensor)
        and (  # type: ignore[method-assign]
            _pinned(tensor) or pinned(tensor)
        )
    )


def patch_trainer(precision: str) -> None:
    """Have Lightning's trainer use the device, and count by steps; before anything of the project is imported."""
    import lightning.pytorch as pl
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.plugins import MixedPrecision
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Pretend(Accelerator):
        def setup_device(self, device: torch.device) -> None: ...
        def teardown(self) -> None: ...

        @staticmethod
        def parse_devices(devices: Any) -> Any:
            return [0]

        @staticmethod
        def get_parallel_devices(devices: Any) -> Any:
            return [torch.device(DEVICE, 0)]

        @staticmethod
        def auto_device_count() -> int:
            return 1

        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def name() -> str:
            return DEVICE

    class Counting(pl.Callback):
        """A step reaches from the start of its batch to that of the next, loading included."""

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            COUNTS.begin(COUNTS.report.steps)

        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx + 1 == trainer.num_training_batches:
                COUNTS.between()  # an epoch's means are read

        def on_predict_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int, *_: Any
        ) -> None:
            COUNTS.begin(COUNTS.report.batches)

        def on_predict_end(self, trainer: Any, module: Any) -> None:
            COUNTS.between()

    real = pl.Trainer

    class PretendTrainer(real):  # type: ignore[misc,valid-type]
        def __init__(self, **keys: Any) -> None:
            for name in ("precision", "devices", "strategy", "accelerator"):
                keys.pop(name, None)
            keys["callbacks"] = [Counting(), *(keys.get("callbacks") or [])]
            plugins = list(keys.pop("plugins", None) or ())
            if precision != "32-true":
                plugins.append(MixedPrecision(precision, DEVICE))  # type: ignore[arg-type]
            keys["inference_mode"] = False  # wrapped tensors know no inference mode
            strategy = SingleDeviceStrategy(device=torch.device(DEVICE, 0), accelerator=Pretend())
            super().__init__(strategy=strategy, plugins=plugins, **keys)

    pl.Trainer = PretendTrainer  # type: ignore[misc]


def _run(command: str, *arguments: str) -> Report:
    """Run a command in this process."""
    from hydra.core.global_hydra import GlobalHydra

    COUNTS.report = Report()
    sys.argv = [f"clip3dreid.{command}", *arguments]
    try:
        importlib.import_module(f"clip3dreid.cli.{command}").main()
    except SystemExit as leaving:
        COUNTS.report.status = int(leaving.code or 0)
    GlobalHydra.instance().clear()
    return COUNTS.report


def main(precision: str, *commands: Sequence[str]) -> None:
    """Run commands on the device, and print their reports."""
    register()
    patch_trainer(precision)
    training = importlib.import_module("clip3dreid.config.training")
    training.training_device = lambda _: torch.device(DEVICE, 0)  # type: ignore[attr-defined]
    reports = [vars(_run(*command)) for command in commands]
    sys.stdout.write("\n" + json.dumps(reports) + "\n")


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
