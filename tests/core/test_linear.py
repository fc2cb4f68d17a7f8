"""Products of what isn't rounded to the format of the weights."""

import pytest
import torch

from reformer_core import linear
from reformer_core.linear import unrounded


@pytest.mark.parametrize("multiplies_float16", [False, True])
def test_float32_by_float16_weights(monkeypatch: pytest.MonkeyPatch, multiplies_float16: bool) -> None:
    """Right but for the rounding of products, of which there are two where the device multiplies float16."""
    if multiplies_float16:
        monkeypatch.setattr(linear, "product_dtype", lambda dtype, device: dtype)
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(5, 64, generator=generator), torch.randn(7, 64, generator=generator).half()
    x[:, :3] = torch.tensor([1000.2, -1000.3, 0.3])  # the first two nearly cancel; rounded, they come to -0.5
    weight[:, :3] = torch.tensor([1.0, 1.0, 1e-3])
    exact, rounded = (y.double() @ weight.double().T for y in (x, x.half()))
    found = unrounded(x, weight)
    assert found.dtype == torch.float16
    assert float((rounded - exact).abs().max()) > 0.3
    torch.testing.assert_close(found.double(), exact, rtol=2**-9 if multiplies_float16 else 2**-10, atol=2**-7)
