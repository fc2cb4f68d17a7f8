"""Computations that are recorded once: run again, they do what they did, on what their tensors hold by then."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from reformer_core.recorded_kernels import Recording

Computation = Callable[[torch.Tensor, torch.Tensor], None]


def views(x: torch.Tensor, out: torch.Tensor) -> None:
    out.view(2, 8)[:, ::2].copy_(x.reshape(4, 4).t().reshape(2, 8)[:, 1::2])


def constants(x: torch.Tensor, out: torch.Tensor) -> None:
    ahead = torch.arange(16) * 3 % 16
    out.copy_(x.take(ahead) + ahead.flip(0))


def accumulators(x: torch.Tensor, out: torch.Tensor) -> None:
    sums = torch.zeros(4).scatter_add_(0, torch.arange(16) % 4, x)
    out.copy_(sums.repeat(4))


def constants_written_to(x: torch.Tensor, out: torch.Tensor) -> None:
    ahead = torch.arange(16)
    doubled = ahead * 2
    ahead[3:].add_(1).mul_(x[3:].sign().long())
    torch.add(x, ahead, out=out)
    torch.mul(ahead, 2, out=ahead)
    out.add_(doubled).add_(ahead)


def constants_read_before(x: torch.Tensor, out: torch.Tensor) -> None:
    sums, given = torch.zeros(18), torch.tensor([1.0] * 16)
    part = sums[1:17]
    out.copy_(part * x + given * x)
    part += x
    given += x
    out += part * given


def lists(x: torch.Tensor, out: torch.Tensor) -> None:
    [doubled] = torch._foreach_mul([x], 2.0)
    first, second = torch._foreach_add([x[:8], x[8:]], 1.0)
    out.copy_(doubled + torch.cat([first, second]))


def several_results(x: torch.Tensor, out: torch.Tensor) -> None:
    values, places = x.view(4, 4).max(dim=1)
    out.view(4, 4).copy_(values + places.unsqueeze(1))


def without_such_a_kernel(x: torch.Tensor, out: torch.Tensor) -> None:
    """torch's layer norm can't write to where its result was."""
    out.copy_(torch.nn.functional.layer_norm(x.to(torch.float64), (16,)).to(torch.float32))


def masks(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(torch.where((x > 0) & (x < 1), x, -1.0).masked_fill_(x > 2, 7.0))


def many_in_turn(x: torch.Tensor, out: torch.Tensor) -> None:
    """Results, views of them and constants, again and again where others were before."""
    kept = x.exp()
    for number in range(8):
        x = (x.view(4, 4).t().double().reshape(16) + torch.arange(16) % (number + 1)).float()
    out.copy_(x * kept)


def written_to_later(x: torch.Tensor, out: torch.Tensor) -> None:
    first = x * 2
    for _ in range(4):
        second = first + x
        first[::2] = second[1::2]
    out.copy_(first)


COMPUTATIONS = (
    many_in_turn,
    written_to_later,
    views,
    constants,
    constants_written_to,
    constants_read_before,
    lists,
    accumulators,
    several_results,
    without_such_a_kernel,
    masks,
)


@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_it_computes_anew(computation: Computation) -> None:
    x, out, expected = torch.full((16,), 2.0), torch.zeros(16), torch.zeros(16)
    recording = Recording(lambda: computation(x, out))
    assert recording.nbytes < 4096
    for seed in range(3):
        x.copy_(torch.randn(16, generator=torch.Generator().manual_seed(seed)))
        computation(x, expected)
        out.zero_()
        recording.replay()
        assert torch.equal(out, expected)


def test_recording_runs_it_once() -> None:
    x = torch.zeros(3)
    recording = Recording(lambda: x.add_(1))
    assert x.tolist() == [1, 1, 1]
    recording.replay()
    assert x.tolist() == [2, 2, 2]


def test_results_share_memory() -> None:
    x = torch.zeros(2**18)

    def add_ten_times() -> None:
        result = x
        for _ in range(10):
            result = result + 1
        x.copy_(result)

    recording = Recording(add_ten_times)
    assert recording.nbytes == 2 * x.nbytes, "each is needed until the next is there"
    recording.replay()
    assert x.unique().tolist() == [20]


def test_views_and_constants_are_no_kernels() -> None:
    x, out = torch.zeros(16), torch.zeros(16)
    assert len(Recording(lambda: views(x, out))) == 2, "the copy of what is no view, and the copy"
    assert len(Recording(lambda: constants(x, out))) == 3, "take, add, copy"


@pytest.mark.parametrize("look", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0]])
def test_what_looks_at_values_cannot_be_recorded(look: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(ValueError, match="may look at values"):
        Recording(lambda: look(torch.ones(3)))


def grow(x: torch.Tensor) -> None:
    torch.add(x, x, out=x[:2] * 2)


def normalise(x: torch.Tensor) -> None:
    torch.nn.functional.batch_norm(x.view(2, 2), torch.zeros(2), torch.ones(2), training=True)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize(
    "change",
    [grow, normalise, lambda x: (x * 2).resize_(9), lambda x: x.view(2, 2).t_(), lambda x: torch._neg_view(x * 2) + 1],
    ids=["out is too small", "new results", "resized", "transposed in place", "negated view"],
)
def test_what_cannot_be_repeated_cannot_be_recorded(change: Callable[[torch.Tensor], object]) -> None:
    x = torch.ones(4)
    with pytest.raises(ValueError, match="can't be recorded"):
        Recording(lambda: change(x))


def test_memory_of_a_result_that_is_gone_may_be_anything() -> None:
    """Tensors whose making isn't seen lie where results have been."""
    for size in range(1000, 9000, 97):
        x, out = torch.ones(size), torch.zeros(size)

        def computation(x: torch.Tensor = x, out: torch.Tensor = out, size: int = size) -> None:
            out.copy_(x * 3)
            out.add_(torch.frombuffer(bytearray(4 * size), dtype=torch.float32))

        recording = Recording(computation)
        x.fill_(2)
        recording.replay()
        assert out.unique().tolist() == [6]


def test_recording_imports_no_compiler() -> None:
    """Which takes a second, and memory."""
    program = """
import sys, torch
from reformer_core.recorded_kernels import Recording
Recording(lambda: torch.zeros(3).add_(1))
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
