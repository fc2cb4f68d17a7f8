"""Which parameters are updated by what, and that Muon is Muon."""

import pytest
import torch
from torch import nn

from reformer_core.train.muon import Muon, orthogonalised
from reformer_core.train.optimizer import build_optimizers
from reformer_core.train.settings import OptimizerSettings
from tests.core.train.small import settings, trainer


def ids(optimizer: torch.optim.Optimizer, group: int) -> set[int]:
    return {id(parameter) for parameter in optimizer.param_groups[group]["params"]}


def test_only_matrices_of_linear_layers_decay() -> None:
    model = trainer(settings()).model
    (adamw,) = build_optimizers(model, OptimizerSettings(kind="adamw", weight_decay=0.2))
    assert ids(adamw, 0) == {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    assert ids(adamw, 0) | ids(adamw, 1) == {id(parameter) for parameter in model.parameters()}
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.2, 0.0]


def test_muon_takes_the_matrices_of_the_layers() -> None:
    model = trainer(settings()).model
    adamw, muon = build_optimizers(model, OptimizerSettings(weight_decay=0.2))
    assert isinstance(muon, Muon)
    in_layers = {id(module.weight) for module in model.layers.modules() if isinstance(module, nn.Linear)}
    assert ids(muon, 0) == in_layers
    assert ids(adamw, 0) == {id(model.head.weight)}
    assert ids(adamw, 0) | ids(adamw, 1) | in_layers == {id(parameter) for parameter in model.parameters()}
    assert muon.param_groups[0]["weight_decay"] == 0.2


def test_frozen_parameters_stay_and_all_others_are_trained() -> None:
    run = settings({"steps": 2}, optimizer={"freeze": ["embeddings.positions", "layers.0.attention"]})
    training = trainer(run)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    for _ in range(2):
        training.train_step()
    kept = {name for name, value in training.model.state_dict().items() if torch.equal(value, before[name])}
    named = {name for name in before if name.startswith(("embeddings.positions.", "layers.0.attention."))}
    assert named
    assert kept == named


def test_what_is_to_be_frozen_must_exist() -> None:
    run = settings(optimizer={"freeze": ["embeddings.position"]})
    with pytest.raises(ValueError, match=r"'embeddings.position', but no parameter .* embeddings.positions.weights, "):
        trainer(run)


def test_something_must_be_left_to_train() -> None:
    run = settings(optimizer={"freeze": ["embeddings", "layers", "final_norm", "head"]})
    with pytest.raises(ValueError, match="leaves nothing to train: it names embeddings, layers, final_norm, head"):
        trainer(run)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 6, 6)])
def test_orthogonalised_matrices_keep_their_directions(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, before, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ orthogonalised(matrices) @ right.mT
    assert inside.diagonal(dim1=-2, dim2=-1)[before > 0.1].sub(1).abs().max() < 0.35
    off = inside - torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-4


def test_muon_equals_the_one_of_torch_but_for_bfloat16() -> None:
    """torch's sums up gradients where ours averages them; the direction is the same, and so is the update."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(12, 20, generator=generator)
    own, reference = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([own], lr=0.01, weight_decay=0.1)
    theirs = torch.optim.Muon([reference], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(12, 20, generator=generator)
        own.grad, reference.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    moved = (own - start).norm()
    assert (own - reference).norm() < 0.05 * moved
