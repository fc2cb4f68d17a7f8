"""A picture model begins by looking at the pixels that it should look at, and by saying what it sees there."""

import dataclasses
import math

import pytest
import torch

from reformer_core.config import ReformerConfig
from reformer_core.local_attention import LocalAttention
from reformer_core.model import ReformerModel
from reformer_core.train.configurations import image_config
from reformer_core.train.initial_pixels import (
    ABOVE,
    FIRST_LAYER,
    LEFT,
    MIRRORED,
    OTHER_LAYERS,
    Axis,
    View,
    initialise_pixels,
)

ROWS, COLUMNS = 8, 12
CONFIG = image_config(ROWS, COLUMNS)


def initialised(config: ReformerConfig = CONFIG) -> ReformerModel:
    model = ReformerModel(config)
    initialise_pixels(model)
    return model


@pytest.mark.parametrize("step", [-2, 0, 1, 5])
def test_a_step_along_an_axis_is_read_off_its_sinusoids(step: int) -> None:
    for axis in (Axis.of(4, 10, 6), Axis.of(4, 3, 8)):
        hidden = torch.zeros(axis.size, 20)
        hidden[:, 4 : 4 + axis.channels] = axis.table()
        read = hidden @ axis.reader(20, step).T
        inside = [number for number in range(axis.size) if 0 <= number + step < axis.size]
        expected = axis.table()[torch.tensor(inside, dtype=torch.long) + step]
        torch.testing.assert_close(read[inside], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(hidden @ axis.reader(20, mirrored=True).T, axis.table().flip(0), atol=1e-5, rtol=0)


def looked_at(model: ReformerModel, layer: int, head: int, row: int, column: int, colour: int) -> tuple[int, ...]:
    """Where the token before the one at this place looks the most: row, column and colour."""
    attention = model.reversible_layers[layer].attention
    assert isinstance(attention, LocalAttention)
    places = torch.arange(ROWS * COLUMNS * 3)
    hidden = model.embed(torch.full_like(places, 100), places)
    query, key, _ = attention.project(hidden)
    last = (row * COLUMNS + column) * 3 + colour - 1
    most = int((query[head, last] @ key[head, : last + 1].T).argmax())
    return most // (COLUMNS * 3), most // 3 % COLUMNS, most % 3


@torch.no_grad()
def test_heads_look_at_the_neighbours_of_what_is_to_come() -> None:
    model = initialised()
    assert FIRST_LAYER[:3] == (LEFT, ABOVE, MIRRORED)
    # The second colour of a pixel: the token before it is the first colour of the same pixel.
    assert looked_at(model, 0, 0, 4, 5, 1) == (4, 4, 1)
    assert looked_at(model, 0, 1, 4, 5, 1) == (3, 5, 1)
    assert looked_at(model, 0, 2, 4, 9, 1) == (4, COLUMNS - 1 - 9, 1)
    assert looked_at(model, 0, 3, 4, 5, 1) == (4, 4, 0)
    assert OTHER_LAYERS[1] == View(rows=-1, colours=0)
    assert looked_at(model, 1, 1, 4, 5, 2) == (3, 5, 1)
    assert looked_at(model, 3, 2, 4, 5, 1) == (3, 6, 1)


@torch.no_grad()
def test_an_untrained_model_predicts_smooth_pictures_better_than_chance() -> None:
    picture = torch.full((ROWS, COLUMNS, 3), 200)
    picture[:, 4:8] = torch.tensor([30, 90, 150])
    ids = picture.view(1, -1)
    start = torch.zeros(1, dtype=torch.long)
    bits = initialised().loss(ids[:, :-1], ids[:, 1:], start).item() / math.log(2)
    random = ReformerModel(CONFIG).loss(ids[:, :-1], ids[:, 1:], start).item() / math.log(2)
    assert bits < 5 < 7.5 < random


def test_it_is_the_same_each_time_and_leaves_the_global_generator_alone() -> None:
    one = initialised().state_dict()
    state = torch.get_rng_state()
    model = ReformerModel(CONFIG)
    torch.set_rng_state(state)
    initialise_pixels(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, one[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 1, "attention_head_size": 64},
        {"num_attention_heads": 8, "attention_head_size": 8},
        {"hidden_size": 24, "axial_pos_embds_dim": (8, 8, 8)},
        {"attn_layers": ("lsh",)},
    ],
)
def test_any_widths_and_heads_will_do(changes: dict[str, object]) -> None:
    model = initialised(dataclasses.replace(CONFIG, **changes))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(96, 3), (8, 4, 9)])
def test_other_axes_are_refused(shape: tuple[int, ...]) -> None:
    widths = (64, 64) if len(shape) == 2 else (52, 52, 24)
    model = ReformerModel(dataclasses.replace(CONFIG, axial_pos_shape=shape, axial_pos_embds_dim=widths))
    with pytest.raises(ValueError, match=r"axes \[rows, columns, 3\], but axial_pos_shape is \["):
        initialise_pixels(model)
