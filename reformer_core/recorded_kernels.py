"""A computation's kernels on the CPU, recorded while it runs once, to be run again: a CUDA graph for CPUs.

Much of a small computation's time is spent between its kernels: on views, on memory for results, on Python. Where
shapes are fixed and no value is looked at, all of that can be done once. A recording keeps the results of all kernels,
in the memory that they were given; running it again fills them anew.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RECORDED_WORK = 2**26
"""Multiply-adds up to which a computation is worth recording; with more, its kernels take nearly all of the time."""

_LOOKS_AT_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

Kernel = tuple[Callable[..., object], Sequence[Any], dict[str, Any]]


class Recording:
    """What a computation did with tensors that lie still: a list of kernels, each with its arguments and its result."""

    def __init__(self, computation: Callable[[], object]) -> None:
        """Runs the computation, and records it.

        Args:
            computation: reads and writes tensors that it finds where they are; its shapes are fixed. What it tells
                Python of their values, as by `tolist`, can't be noticed.

        Raises:
            ValueError: it may look at values; it has been run in part.
        """
        recorder = _Recorder()
        with recorder:
            computation()
        self._kernels = [*recorder.restores, *recorder.kernels]
        self.nbytes = sum({_place(tensor): tensor.untyped_storage().nbytes() for tensor in recorder.kept}.values())
        """Of the results that are kept."""

    def __len__(self) -> int:
        """Kernels."""
        return len(self._kernels)

    @torch.inference_mode()
    def replay(self) -> None:
        """Runs the computation again, on what its tensors hold by now."""
        for kernel, arguments, options in self._kernels:
            kernel(*arguments, **options)


class _Recorder(TorchDispatchMode):
    """Sees every operation below autograd, and sorts it: a kernel to be run again, a view, or a constant."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.restores: list[Kernel] = []  # of what is constant until it is written to
        self.kernels: list[Kernel] = []
        self.kept: list[torch.Tensor] = []
        self._constants: dict[int, torch.Tensor] = {}  # by their places: what depends on nothing that may change

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As torch asks it. To skip its compiler, it would import that: eight hundred modules, a second."""
        return False

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Sequence[Any] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        with self:
            result = operation.decompose(*arguments, **options)
        if result is not NotImplemented:
            return result
        if not _LOOKS_AT_VALUES.isdisjoint(operation.tags):
            raise ValueError(f"a computation that calls {operation} can't be recorded: that may look at values")
        given = {_place(tensor) for tensor in _tensors((arguments, options))}
        if operation._schema.is_mutable:
            named = {**dict(zip((x.name for x in operation._schema.arguments), arguments, strict=False)), **options}
            self._write_to(_tensors([named.get(x.name) for x in operation._schema.arguments if x.is_write]))
            self.kernels.append((operation, arguments, options))
            return operation(*arguments, **options)
        result = operation(*arguments, **options)
        results = _tensors(result)
        places = {_place(tensor): tensor for tensor in results}
        if operation is torch.ops.aten.lift_fresh.default:  # of `torch.tensor`, whose numbers came from Python
            self._constants |= places
        elif given.isdisjoint(places):  # else it is a view: it shows what its memory holds by then
            self.kept += results
            if given <= self._constants.keys() and torch.Tag.nondeterministic_seeded not in operation.tags:
                self._constants |= places
            else:
                self.kernels.append(_into(operation, arguments, options, results))
        return result

    def _write_to(self, tensors: list[torch.Tensor]) -> None:
        """What was constant up to here is so again when the computation begins anew."""
        for tensor in tensors:
            if (constant := self._constants.pop(_place(tensor), None)) is not None:
                self.kept.append(original := constant.clone())
                self.restores.append((constant.copy_, (original,), {}))


def _into(operation: Any, arguments: Sequence[Any], options: dict[str, Any], results: list[torch.Tensor]) -> Kernel:
    """The kernel that writes the operation's result where it lies; where there is none, a copy of the result."""
    if operation is torch.ops.aten._to_copy.default:
        return results[0].copy_, arguments, {}
    takes = [str(argument.type) for argument in operation._schema.arguments]
    for name in operation.overloadpacket.overloads():
        other = getattr(operation.overloadpacket, name)
        places = [argument.name for argument in other._schema.arguments if argument.is_out and _is_tensor(argument)]
        others = [str(argument.type) for argument in other._schema.arguments if not argument.is_out]
        if len(places) == len(results) and places and others == takes:
            return other, arguments, {**options, **dict(zip(places, results, strict=True))}

    def copy() -> None:
        for place, result in zip(results, _tensors(operation(*arguments, **options)), strict=True):
            place.copy_(result)

    return copy, (), {}


def _is_tensor(argument: Any) -> bool:
    return str(argument.type) == "Tensor"


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
