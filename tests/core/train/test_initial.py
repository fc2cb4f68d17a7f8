"""What a training starts from."""

import dataclasses

import pytest
import torch

from reformer_core.model import ReformerModel
from reformer_core.train.initial import initialise_positions
from tests.core.train.small import settings, trainer


@pytest.mark.parametrize("axial", [True, False])
def test_products_of_positions_tell_their_distance(axial: bool) -> None:
    model = ReformerModel(dataclasses.replace(trainer(settings()).model.config, axial_pos_embds=axial))
    initialise_positions(model)
    embedded = model.embeddings.positions(torch.arange(256)).detach()
    rows = embedded[:16] if axial else embedded
    products = rows @ rows.T
    for distance in (0, 1, 5):
        assert products.diagonal(distance).std() < 1e-5 * products[0, 0].item() + 1e-9
    assert products[3, 3] > products[3, 4] > products[3, 5]
    assert rows.std() == pytest.approx(0.014 if axial else 0.02, rel=0.3)
    if axial:
        torch.testing.assert_close(embedded[16:32], rows)  # the other axis says nothing yet
