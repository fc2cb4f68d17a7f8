"""A computation's kernels on the CPU, recorded while it runs once, to be run again: a CUDA graph for CPUs.

Much of a small computation's time is spent between its kernels: on views, on memory for results, on Python. Where
shapes are fixed and no value is looked at, all of that can be done once. A recording keeps memory for the results of
its kernels; running it again fills it anew. Results that aren't needed at the same time share it: it is small then, and
stays in the CPU's cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

RECORDED_WORK = 2**26
"""Multiply-adds up to which a computation is worth recording; with more, its kernels take nearly all of the time."""

ALIGNMENT = 64  # bytes: a line of the cache, and what torch gives a tensor
_LOOKS_AT_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

Kernel = tuple[Callable[..., object], Sequence[Any], Mapping[str, Any]]


class Recording:
    """What a computation did with tensors that lie still: a list of kernels, each with its arguments and its result."""

    def __init__(self, computation: Callable[[], object]) -> None:
        """Runs the computation, and records it.

        Args:
            computation: reads and writes tensors that were there before; its shapes are fixed. What it tells Python
                of their values, as by `tolist`, can't be noticed, and what it keeps isn't filled anew.

        Raises:
            ValueError: it may look at values, or does what can't be repeated; it has been run in part.
        """
        recorder = _Recorder()
        with recorder:
            computation()
        self._kernels, result_bytes = recorder.finished()
        self.nbytes = result_bytes + sum(constant.untyped_storage().nbytes() for constant in recorder.lasting)
        """Of what is kept: memory for results, and constants."""

    def __len__(self) -> int:
        """Kernels."""
        return len(self._kernels)

    @torch.inference_mode()
    def replay(self) -> None:
        """Runs the computation again, on what its tensors hold by now."""
        for kernel, arguments, options in self._kernels:
            kernel(*arguments, **options)


@dataclass
class _Block:
    """Memory of a result, and the kernels between which it is needed."""

    storage: StorageWeakRef
    nbytes: int
    first: int
    last: int
    start: int = 0
    """In the memory of all results."""

    @property
    def end(self) -> int:
        return self.start + -(-self.nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class _Part:
    """A result or a view of it, before there is memory for it."""

    block: _Block
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def within(self, memory: torch.Tensor) -> torch.Tensor:
        """The same in the memory of all results, uint8 [bytes]."""
        first = self.block.start // self.dtype.itemsize
        return memory.view(self.dtype).as_strided(self.shape, self.stride, first + self.offset)


class _Recorder(TorchDispatchMode):
    """Sees every operation below autograd, and sorts it: a kernel to be run again, a view, or a constant.

    Of results only their shapes are kept, so that recording a computation takes no more memory than running it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lasting: list[torch.Tensor] = []  # constants, and what restores them: one a storage
        self._restores: list[Kernel] = []  # of what is constant until it is written to
        self._kernels: list[Kernel] = []
        self._blocks: dict[int, _Block] = {}  # by their places: results of kernels
        self._all_blocks: list[_Block] = []
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
            self._record(operation, arguments, options)
            result = operation(*arguments, **options)
            if torch.Tag.inplace_view in operation.tags or not given.issuperset(map(_place, _tensors(result))):
                raise ValueError(
                    f"a computation that calls {operation} can't be recorded: that moves what it writes to"
                )
            return result
        result = operation(*arguments, **options)
        results = _tensors(result)
        places = {_place(tensor): tensor for tensor in results}
        if operation is torch.ops.aten.lift_fresh.default:  # of `torch.tensor`, whose numbers came from Python
            self._keep_constant(places)
        elif given.isdisjoint(places):  # else it is a view: it shows what its memory holds by then
            if given <= self._constants.keys() and torch.Tag.nondeterministic_seeded not in operation.tags:
                self._keep_constant(places)
            else:
                self._add_blocks(places)
                self._record(*_into(operation, arguments, options, results))
        return result

    def finished(self) -> tuple[list[Kernel], int]:
        """All kernels, with memory for their results; and its bytes."""
        nbytes = _arrange(self._all_blocks)
        memory = torch.empty(nbytes, dtype=torch.uint8)
        kernels: list[Kernel] = tree_map_only(_Part, lambda part: part.within(memory), self._kernels)
        return [*self._restores, *kernels], nbytes

    def _keep_constant(self, places: dict[int, torch.Tensor]) -> None:
        self._constants |= places
        self.lasting += places.values()

    def _add_blocks(self, places: dict[int, torch.Tensor]) -> None:
        now = len(self._kernels)
        for place, tensor in places.items():
            storage = tensor.untyped_storage()
            self._blocks[place] = _Block(StorageWeakRef(storage), storage.nbytes(), now, now)
            self._all_blocks.append(self._blocks[place])

    def _record(self, kernel: Callable[..., object], arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
        self._kernels.append(tree_map_only(torch.Tensor, self._part, (kernel, arguments, options)))

    def _part(self, tensor: torch.Tensor) -> torch.Tensor | _Part:
        """What the kernel that comes next needs."""
        block = self._blocks.get(_place(tensor))
        if block is None or block.storage.expired():  # then something else lies there now
            return tensor
        if tensor.is_conj() or tensor.is_neg():
            raise ValueError("a computation with views of conjugate or negated results can't be recorded")
        block.last = len(self._kernels)
        return _Part(block, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def _write_to(self, tensors: list[torch.Tensor]) -> None:
        """What was constant up to here is so again when the computation begins anew."""
        for tensor in tensors:
            if (constant := self._constants.pop(_place(tensor), None)) is not None:
                self.lasting.append(original := constant.clone())
                self._restores.append((constant.copy_, (original,), {}))


def _arrange(blocks: Sequence[_Block]) -> int:
    """Gives each block the first place that is free while it is needed; returns the bytes of all places."""
    alive: list[_Block] = []  # by their places
    end = 0
    for block in blocks:  # in the order of their first kernels
        alive = [other for other in alive if other.last >= block.first]
        for other in alive:
            if block.end <= other.start:
                break
            block.start = max(block.start, other.end)
        alive.append(block)
        alive.sort(key=lambda each: each.start)
        end = max(end, block.end)
    return end


def _into(operation: Any, arguments: Sequence[Any], options: dict[str, Any], results: list[torch.Tensor]) -> Kernel:
    """The kernel that writes the operation's result where it lies; where there is none, a copy of the result."""
    if operation is torch.ops.aten._to_copy.default:
        return torch.ops.aten.copy_.default, (results[0], *arguments), {}
    takes = [str(argument.type) for argument in operation._schema.arguments]
    for name in operation.overloadpacket.overloads():
        other = getattr(operation.overloadpacket, name)
        places = [argument.name for argument in other._schema.arguments if argument.is_out and _is_tensor(argument)]
        others = [str(argument.type) for argument in other._schema.arguments if not argument.is_out]
        if len(places) == len(results) and places and others == takes:
            return other, arguments, {**options, **dict(zip(places, results, strict=True))}
    return _run_and_copy, (operation, results, arguments, options), {}


def _run_and_copy(
    operation: Any, results: list[torch.Tensor], arguments: Sequence[Any], options: Mapping[str, Any]
) -> None:
    for place, result in zip(results, _tensors(operation(*arguments, **options)), strict=True):
        place.copy_(result)


def _is_tensor(argument: Any) -> bool:
    return str(argument.type) == "Tensor"


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
