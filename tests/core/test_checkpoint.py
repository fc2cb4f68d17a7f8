"""Checkpoints: both ways with transformers, in all formats, from the hub; what saving and loading leave behind."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reformer_core import ReformerConfig, ReformerModel, embedded_model, load_config, load_model, save_model
from reformer_core.checkpoint import model_directory
from reformer_core.embedded_model import embedded_model_path
from reformer_core.errors import CheckpointError, InvalidParameterError
from tests.core.models import edit_config, hugging_face_twin, load_on_cpu, random_model, small_config

TOKEN_IDS = torch.arange(3 * 70).view(3, 70) % 50
CONFIGS = {
    "axial": small_config(num_buckets=(4, 8)),
    "plain": small_config(axial_pos_embds=False, num_buckets=None, hash_seed=None),
    "local": small_config(attn_layers=("local",), eos_token_id=None),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> ReformerModel:
    return random_model(CONFIGS[request.param])


def logits(model: ReformerModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKEN_IDS)


def their_logits(model: transformers.ReformerModelWithLMHead) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKEN_IDS, use_cache=False).logits


def test_round_trip(model: ReformerModel, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    loaded = load_on_cpu(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.weights_digest == model.weights_digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_transformers_loads_what_we_save(model: ReformerModel, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    theirs, info = transformers.ReformerModelWithLMHead.from_pretrained(tmp_path, output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if found} == {}
    torch.testing.assert_close(their_logits(theirs), logits(model), atol=1e-4, rtol=0)
    assert torch.equal(theirs.lm_head.decoder.bias, model.head.bias)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}, {"safe_serialization": False}], ids=str)
def test_we_load_what_transformers_saves(model: ReformerModel, tmp_path: Path, options: dict[str, Any]) -> None:
    hugging_face_twin(model).save_pretrained(tmp_path, **options)
    assert torch.equal(logits(load_on_cpu(tmp_path)), logits(model))
    if "max_shard_size" in options:
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1


def test_dtypes_are_converted_and_kept(saved: Path, tmp_path: Path) -> None:
    half = load_model(saved, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    save_model(half, tmp_path / "half")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert torch.equal(logits(load_on_cpu(tmp_path / "half")), logits(half.float()))


def test_weights_are_trainable_and_independent_of_the_file(saved: Path) -> None:
    model = load_on_cpu(saved)
    before = logits(model)
    with (saved / "model.safetensors").open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
    assert torch.equal(logits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_loading_leaves_the_global_random_state_alone(saved: Path) -> None:
    state = torch.get_rng_state()
    load_on_cpu(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_hash_overrides(saved: Path) -> None:
    config = load_config(saved)
    assert load_on_cpu(saved).config == config
    other = load_on_cpu(saved, num_hashes=4, hash_seed=2**64 - 1)
    assert other.config == dataclasses.replace(config, num_hashes=4, hash_seed=2**64 - 1)
    assert other.layers[1].attention.rotations.shape[2] == 4
    assert not torch.equal(logits(other), logits(load_on_cpu(saved)))
    assert load_on_cpu(saved, num_hashes=4).weights_digest != load_on_cpu(saved).weights_digest


def test_what_a_config_leaves_open_is_pinned(saved: Path) -> None:
    edit_config(hash_seed=None, num_buckets=None)(saved)
    assert (load_config(saved).hash_seed, load_config(saved).num_buckets) == (None, None)
    config = load_on_cpu(saved).config
    assert (config.hash_seed, config.num_buckets) == (0, (16, 32))
    assert torch.equal(logits(load_on_cpu(saved)), logits(load_on_cpu(saved, hash_seed=0)))


@pytest.mark.parametrize(("name", "value"), [("num_hashes", 0), ("hash_seed", 2**64)])
def test_wrong_overrides_are_refused(saved: Path, name: str, value: int) -> None:
    with pytest.raises(InvalidParameterError, match=f"^{name}: "):
        load_on_cpu(saved, **{name: value})


def test_old_checkpoints(saved: Path, tmp_path: Path) -> None:
    """Of transformers before 4.31: a pickle that is no zip archive, masks among the weights, the head's bias twice."""
    weights = load_file(saved / "model.safetensors")
    prefix = "reformer.encoder.layers.1.attention.self_attention."
    constants = {f"{prefix}{name}": torch.tensor(-1e4) for name in ("mask_value_float16", "self_mask_value_float32")}
    expected = logits(load_on_cpu(saved))
    (saved / "model.safetensors").unlink()
    bias = weights["lm_head.bias"]
    torch.save(
        {"lm_head.decoder.bias": bias, **weights, **constants},
        saved / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    assert torch.equal(logits(load_on_cpu(saved)), expected)
    weights["lm_head.decoder.bias"] = weights.pop("lm_head.bias")
    save_file(weights, saved / "model.safetensors")
    assert torch.equal(logits(load_on_cpu(saved)), expected)


def test_all_files_are_as_readable_as_the_users_own(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "own").touch()
    modes = {path.stat().st_mode for path in saved.iterdir()}
    assert modes == {(tmp_path / "own").stat().st_mode}


def test_saving_again_replaces_and_keeps_other_files(saved: Path) -> None:
    (saved / "README.md").write_text("kept")
    other = random_model(small_config(num_hashes=3), seed=1)
    save_model(other, saved)
    assert torch.equal(logits(load_on_cpu(saved)), logits(other))
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]


class FailingTokenizer:
    """Its save fails half-way."""

    def save(self, directory: Path) -> None:
        (directory / "spiece.model").write_bytes(b"half")
        raise OSError("no space left on device")


def test_saving_that_fails_changes_nothing(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(OSError, match="no space"):
        save_model(random_model(small_config(), seed=1), saved, FailingTokenizer())
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


class OneFileTokenizer:
    def save(self, directory: Path) -> None:
        (directory / "spiece.model").write_bytes(b"pieces")


def test_the_tokenizer_is_saved_too(tmp_path: Path) -> None:
    save_model(random_model(small_config()), tmp_path, OneFileTokenizer())
    assert (tmp_path / "spiece.model").read_bytes() == b"pieces"


def test_loading_needs_memory_for_one_model_and_one_tensor(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are converted one at a time, and the model is built without any of its own."""
    built: list[set[str]] = []
    initialise = ReformerModel.__init__

    def spy(self: ReformerModel, config: ReformerConfig) -> None:
        initialise(self, config)
        built.append({parameter.device.type for parameter in self.parameters()})

    monkeypatch.setattr(ReformerModel, "__init__", spy)
    load_on_cpu(saved)
    assert built == [{"meta"}]


def test_sources_that_are_no_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"file is no directory; expected a model directory"):
        load_on_cpu(tmp_path / "file")
    with pytest.raises(CheckpointError, match="there is no such directory; expected a model directory, or a hub id"):
        load_on_cpu(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="there is no such directory"):
        load_model("missing")


def test_hub_ids_that_cannot_be_had() -> None:
    """The tests are offline, and this isn't in the cache."""
    with pytest.raises(
        CheckpointError, match=r"^no-one/no-model: there is no such directory, and as a hub id it can't be had"
    ):
        load_model("no-one/no-model")


def test_hub_ids_are_downloaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns[0]))
        if "pytorch_model*.bin*" in allow_patterns:
            torch.save(load_file(saved / "hidden"), saved / "pytorch_model.bin")
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert model_directory("google/reformer-enwik8") == saved
    assert asked == [("google/reformer-enwik8", "config.json")]
    (saved / "model.safetensors").rename(saved / "hidden")
    assert load_model("google/reformer-enwik8").config == load_config(saved)
    assert asked[1:] == [("google/reformer-enwik8", "config.json"), ("google/reformer-enwik8", "pytorch_model*.bin*")]


def test_the_hub_is_imported_only_for_hub_ids() -> None:
    code = "import sys, reformer_core; print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_an_installation_without_an_embedded_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_model, "_MODELS", tmp_path)
    with pytest.raises(CheckpointError, match="no embedded model 'text': it came without any; name a model's"):
        embedded_model_path()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text("{}")
    assert embedded_model_path() == tmp_path / "text"
    for other in ("embedded:audio", "embedded:", "embedded:../text"):
        with pytest.raises(CheckpointError, match=r"no embedded model .*: there are embedded:text; name a model's"):
            load_config(other)


def test_an_embedded_model_has_a_name() -> None:
    assert load_config("embedded:text") == load_config(embedded_model_path())
