"""Position embeddings against a naive look-up: any number of axes, at any offset."""

import itertools
import math

import pytest
import torch

from reformer_core.positions import AxialPositions, PlainPositions


@pytest.mark.parametrize(
    ("shape", "widths"), [((5,), (3,)), ((4, 6), (2, 5)), ((3, 4, 5), (4, 1, 2)), ((2, 1, 3, 2), (1, 1, 2, 3))]
)
def test_axial_positions_equal_a_naive_look_up(shape: tuple[int, ...], widths: tuple[int, ...]) -> None:
    positions = AxialPositions(shape, widths, std=1.0)
    tables = [table.detach().reshape(rows, -1) for table, rows in zip(positions.weights, shape, strict=True)]
    expected = torch.stack(
        [
            torch.cat([table[place] for table, place in zip(tables, places, strict=True)])
            for places in itertools.product(*(range(rows) for rows in shape))  # the last axis runs fastest
        ]
    )
    every = torch.arange(math.prod(shape))
    assert torch.equal(positions(every), expected)
    assert torch.equal(positions(every[2:5].view(3, 1)), expected[2:5].unsqueeze(1))
    assert len(expected.unique(dim=0)) == len(every)


def test_tables_have_the_checkpoint_shapes() -> None:
    assert [tuple(table.shape) for table in AxialPositions((3, 4, 5), (4, 1, 2), 1.0).weights] == [
        (3, 1, 1, 4),
        (1, 4, 1, 1),
        (1, 1, 5, 2),
    ]


def test_a_million_positions_cost_two_small_tables() -> None:
    positions = AxialPositions((1024, 1024), (64, 192), 1.0)
    assert sum(parameter.numel() for parameter in positions.parameters()) == 1024 * 256
    assert positions(torch.tensor([2**20 - 1])).shape == (1, 256)


def test_plain_positions_are_rows_of_the_table() -> None:
    positions = PlainPositions(7, 4, 1.0)
    assert torch.equal(positions(torch.tensor([[6, 0]])), positions.table[[6, 0]].unsqueeze(0))


def test_gradients_reach_every_axis() -> None:
    positions = AxialPositions((3, 4), (2, 3), 1.0)
    positions(torch.tensor([5])).sum().backward()  # row 1, column 1
    rows, columns = (
        table.grad.reshape(count, -1).sum(-1) for table, count in zip(positions.weights, (3, 4), strict=True)
    )
    assert rows.tolist() == [0, 2, 0]
    assert columns.tolist() == [0, 3, 0, 0]
