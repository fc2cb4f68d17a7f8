"""Models stored in 16 bits on a CPU that doesn't multiply them: computed in float32, near the model in float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reformer_core import ReformerModel
from reformer_core.linear import Linear
from reformer_core.prefill import Prefill
from tests.core.models import random_model, small_config
from tests.core.tiny import append, open_session, random_tokens, tiny_model, tiny_pool

TOKENS = 300
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "attention")
Path = Callable[[ReformerModel, torch.Tensor], torch.Tensor]

pytestmark = pytest.mark.usefixtures("cpu_without_bfloat16")


@pytest.fixture
def cpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run."""
    monkeypatch.setattr("reformer_core.placement.cpu_multiplies_bfloat16", lambda: False)


class Products(TorchDispatchMode):
    """Counts matrix products, and those of 16-bit numbers; single rows of float16, which have a kernel, apart."""

    def __init__(self) -> None:
        super().__init__()
        self.all = 0
        self.rows = 0
        self.half: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(product in function._schema.name for product in PRODUCTS):
            self.all += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            rows = args["addmm" in function._schema.name]
            if rows.dtype == torch.float16 and rows.numel() == rows.shape[-1]:
                self.rows += 1
            elif any(tensor.is_floating_point() and tensor.dtype.itemsize == 2 for tensor in tensors):
                self.half.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def full_forward(model: ReformerModel, token_ids: torch.Tensor) -> torch.Tensor:
    return model(token_ids)


def score(model: ReformerModel, token_ids: torch.Tensor) -> torch.Tensor:
    prefill = Prefill(model, tiny_pool(model), token_ids, keep_document=False, keep_scores=True)
    for _ in prefill.slices():
        pass
    assert prefill.scores is not None
    return prefill.scores[1:]


def after_a_document(model: ReformerModel, token_ids: torch.Tensor) -> torch.Tensor:
    session = open_session(model, token_ids)
    return session.table.next_logits[session.row]


def extended(model: ReformerModel, token_ids: torch.Tensor) -> torch.Tensor:
    return append(model, open_session(model, token_ids[:-8]), token_ids[-8:], together=8)


def decoded(model: ReformerModel, token_ids: torch.Tensor) -> torch.Tensor:
    return append(model, open_session(model, token_ids[:-4]), token_ids[-4:])


PATHS: list[Path] = [full_forward, score, after_a_document, extended, decoded]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_product_is_computed_in_16_bits(dtype: torch.dtype, path: Path) -> None:
    model = tiny_model(dtype)
    with torch.inference_mode(), Products() as products:
        path(model, random_tokens(model, TOKENS))
    assert products.all > 10
    assert products.half == []
    assert (products.rows > 0) is (dtype == torch.float16 and path in (after_a_document, extended, decoded))


def test_a_single_row_in_float16() -> None:
    """Added in float32, and only then rounded."""
    layer = Linear(4096, 3).half()
    x = torch.full((1, 4096), 0.5, dtype=torch.float16)
    with torch.no_grad():
        layer.weight.fill_(2**-12)  # float16 would lose each of the later ones
        layer.bias.zero_()
        assert torch.equal(layer(x), torch.full((1, 3), 0.5, dtype=torch.float16))


def test_where_the_cpu_multiplies_bfloat16_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_core.placement.cpu_multiplies_bfloat16", lambda: True)
    model = tiny_model(torch.bfloat16)
    with torch.inference_mode(), Products() as products:
        full_forward(model, random_tokens(model, TOKENS))
    assert len(products.half) == products.all


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.03), (torch.float16, 0.003)])
def test_near_the_model_in_float32(dtype: torch.dtype, near: float, path: Path) -> None:
    model = tiny_model(dtype, attn_layers=("local", "local"))  # no buckets: a close decision would be another way
    token_ids = random_tokens(model, TOKENS)
    with torch.inference_mode():
        half = path(model, token_ids)
        exact = path(model.float(), token_ids)  # of the same weights
    assert half.dtype is torch.float32
    assert float((half - exact).square().mean().sqrt() / exact.std()) < near


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_buckets_fall_as_in_float32(dtype: torch.dtype) -> None:
    """Of the same vectors: products are exact to float32, so that only decisions as close as that may differ."""
    attention = random_model(small_config(attn_layers=("lsh",), num_hashes=4)).reversible_layers[0].attention
    vectors = torch.randn(2, 500, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(attention.hash(vectors), attention.hash(vectors.float()))


def test_layers_trained_under_autocast_compute_in_its_format() -> None:
    layer, x = Linear(8, 4), torch.ones(3, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype is torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype is torch.float32


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("kind", ["local", "lsh"])
def test_gradients_in_bfloat16(kind: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in 16 bits can be trained, too: their gradients are near those of float32."""
    monkeypatch.setattr("reformer_core.placement.cpu_multiplies_bfloat16", lambda: native)
    model = random_model(small_config(attn_layers=(kind,))).to(torch.bfloat16)
    token_ids = random_tokens(model, 64).unsqueeze(0)
    gradients = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = model.to(dtype)
        model.zero_grad()
        model.loss(token_ids, token_ids, torch.zeros(1, dtype=torch.long)).backward()
        gradients[dtype] = model.head.weight.grad
    half, exact = gradients[torch.bfloat16], gradients[torch.float32]
    assert half is not None
    assert exact is not None
    most = 0.1 if native else 0.05  # natively, vectors are hashed in bfloat16, too
    assert float((half - exact).norm() / exact.norm()) < most
