"""The command as a user calls it, on a tiny model and a few pictures."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import harness, pictures
from benchmarks.pictures import CUT, ENLARGED, GAP, SAMPLES, chosen, contact_sheet, main, model_bits
from reformer_core import PixelTokenizer, ReformerModel, save_model
from reformer_core.train.configurations import image_config

SIZE = 6


@pytest.fixture
def model(tmp_path: Path) -> tuple[ReformerModel, Path]:
    config = dataclasses.replace(
        image_config(SIZE, SIZE),
        attn_layers=("local", "lsh"),
        hidden_size=16,
        feed_forward_size=16,
        num_attention_heads=1,
        attention_head_size=8,
        lsh_attn_chunk_length=9,
        num_buckets=12,
        axial_pos_embds_dim=(4, 4, 8),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ReformerModel(config)
    save_model(model, tmp_path / "model", PixelTokenizer(SIZE, SIZE))
    return model, tmp_path / "model"


def noise(count: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_the_command_writes_a_table_a_record_and_a_sheet(
    model: tuple[ReformerModel, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(pictures, "IMAGES", tmp_path)
    np.savez(tmp_path / "images.npz", train=noise(20), validation=noise(5))
    main(["--images", str(tmp_path / "images.npz"), "--model", str(model[1]), "--sheet", "2", "--most", "3"])
    table = capsys.readouterr().out
    assert "| Reformer, as served | " in table
    assert "| PNG files, optimised | " in table
    record = json.loads((tmp_path / "pictures.json").read_text(encoding="utf-8"))
    assert record["pictures"] == 3
    bits = record["bits_per_dimension"]
    assert all(each > 7 for each in bits.values()), "noise can't be predicted"
    assert bits["Reformer, 2 hash rounds"] == bits["Reformer, as served"] != bits["Reformer, LSH layers silenced"]
    with Image.open(tmp_path / "pictures.png") as sheet:
        width, height = sheet.size
    assert width == ENLARGED * (2 * ((2 + SAMPLES) * SIZE + (1 + SAMPLES) * GAP) + 4 * GAP)
    assert height == ENLARGED * SIZE


def test_bits_are_those_of_the_full_forward_pass(model: tuple[ReformerModel, Path]) -> None:
    ids = torch.from_numpy(noise(2)).flatten(1).long()
    with torch.inference_mode():
        scores = model[0](ids).log_softmax(dim=-1)[:, :-1].gather(-1, ids[:, 1:, None])
    expected = (8 * len(ids) - scores.sum().item() / np.log(2)) / ids.numel()
    assert model_bits(model[0], noise(2)) == pytest.approx(expected, abs=1e-4)


def test_a_row_of_the_sheet_is_the_original_its_half_and_the_samples() -> None:
    originals = noise(3)
    drawn = [[np.full_like(originals[0], 10 * sample) for sample in range(SAMPLES)] for _ in originals]
    sheet = np.asarray(contact_sheet(originals, drawn, columns=2))[::ENLARGED, ::ENLARGED]
    assert np.array_equal(sheet[:SIZE, :SIZE], originals[0])
    half = sheet[:SIZE, SIZE + GAP : 2 * SIZE + GAP]
    assert np.array_equal(half[: SIZE // 2], originals[0, : SIZE // 2])
    assert (half[SIZE // 2 :] == CUT).all()
    assert (sheet[:SIZE, 2 * (SIZE + GAP) : 2 * (SIZE + GAP) + SIZE] == 0).all()
    assert (sheet[SIZE + GAP :, sheet.shape[1] // 2 + 4 * GAP :] == 255).all(), "three pictures leave the fourth empty"


def test_nobody_picks_the_pictures() -> None:
    assert np.array_equal(chosen(noise(5), 3), noise(5)[[0, 2, 4]])
