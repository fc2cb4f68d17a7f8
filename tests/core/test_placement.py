"""The choice of device and dtype, on machines that are pretended."""

from typing import Any

import pytest
import torch

from reformer_core import load_model, save_model
from reformer_core.errors import InvalidParameterError
from reformer_core.placement import choose_device, choose_dtype, cpu_multiplies_bfloat16, product_dtype
from tests.core.models import random_model, small_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)


@pytest.mark.parametrize(("gpus", "expected"), [(0, CPU), (2, CUDA)], indirect=["gpus"])
@pytest.mark.usefixtures("gpus")
def test_auto_takes_the_gpu_if_there_is_one(expected: torch.device) -> None:
    assert choose_device() == expected


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", CPU, CUDA])
def test_a_named_device_is_taken(device: str | torch.device) -> None:
    assert choose_device(device) == torch.device(device)


@pytest.mark.parametrize("gpus", [0, 2], indirect=True)
@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("device", ["cuda:2", "gpu", "mps", "meta", "", "cpu:x"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(InvalidParameterError, match="device: "):
        choose_device(device)


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_the_message_says_how_many_gpus_there_are() -> None:
    with pytest.raises(InvalidParameterError, match="device: is 'cuda', but torch finds 0 CUDA devices"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64", "bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64", "bf16": False}, torch.float32),
    ],
)
def test_auto_takes_bfloat16_on_a_cpu_that_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr("reformer_core.placement.cpu_multiplies_bfloat16", cpu_multiplies_bfloat16.__wrapped__)
    assert choose_dtype("auto", CPU) is expected
    assert product_dtype(torch.bfloat16, CPU) is expected


@pytest.mark.parametrize("native", [False, True])
def test_what_products_are_computed_in(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr("reformer_core.placement.cpu_multiplies_bfloat16", lambda: native)
    assert product_dtype(torch.bfloat16, CPU) is (torch.bfloat16 if native else torch.float32)
    assert product_dtype(torch.float16, CPU) is torch.float32
    for dtype in (torch.float32, torch.float64):
        assert product_dtype(dtype, CPU) is dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert product_dtype(dtype, CUDA) is product_dtype(dtype, torch.device("meta")) is dtype


def test_this_cpu_is_asked_without_an_error() -> None:
    assert choose_dtype("auto", CPU) in (torch.bfloat16, torch.float32)


def test_auto_takes_float16_on_a_gpu() -> None:
    assert choose_dtype("auto", CUDA) is torch.float16


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_named_dtype_is_taken(name: str, device: torch.device) -> None:
    assert choose_dtype(name, device) is choose_dtype(getattr(torch, name), device) is getattr(torch, name)


@pytest.mark.parametrize("dtype", ["float64", "int8", "", torch.float64, torch.int64])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(InvalidParameterError, match="dtype: must be auto, float16, bfloat16, float32, but is"):
        choose_dtype(dtype, CPU)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_stays_near(tmp_path: Any, dtype: torch.dtype) -> None:
    model = random_model(small_config(attn_layers=("local",)))  # no buckets: a close decision would be another way
    save_model(model, tmp_path)
    token_ids = torch.arange(60) % 50
    half = load_model(tmp_path, device="cpu", dtype=dtype)
    assert half.dtype is dtype
    with torch.no_grad():
        expected, logits = model(token_ids), half(token_ids)
    assert logits.dtype is torch.float32
    assert float((logits - expected).abs().mean() / expected.std()) < 0.02
