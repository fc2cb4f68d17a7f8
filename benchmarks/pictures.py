"""How well a picture model predicts pictures that it hasn't seen, and how it completes those that are cut in half.

    python -m benchmarks.pictures --images FILE.npz [--model embedded:image] [--sheet 12]

FILE.npz holds `train` and `validation`, uint8 [pictures, rows, columns, 3]. The per-pixel model counts on `train`;
everything is measured on `validation`. The completions are drawn by a server, as `reformer complete-image` does.
"""

import argparse
import io
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.contexts import lsh_layers, silenced
from benchmarks.harness import IMAGES, markdown_table, save
from benchmarks.pixel_baselines import PixelCounts, Pixels, file_bits
from examples.demo import serving
from reformer_client import Client
from reformer_core import Engine, PixelTokenizer, ReformerModel, load_model, load_tokenizer
from reformer_core.train.images import read_images

FIRST_VALUE_BITS = 8.0  # a model gives the first value no probability
ROUNDS = (1, 2, 4)
MEMORY_BYTES = 1 << 30
SAMPLES, TEMPERATURE, SEED = 4, 0.8, 1
TOGETHER = 8  # pictures that are being completed at the same time
ENLARGED = 3  # times, on the sheet
GAP = 2  # pixels between pictures, before that
CUT = (216, 216, 224)  # colour of what is cut away


def model_bits(model: ReformerModel, pictures: Pixels) -> float:
    """Mean bits a dimension, each picture scored by itself, as a server does it."""
    engine = Engine(model, memory_bytes=MEMORY_BYTES, max_running=1)
    nats = 0.0
    for picture in pictures:
        nats -= float(engine.score(torch.from_numpy(picture.reshape(-1).astype(np.int64)))[1:].double().sum())
    return (nats / math.log(2) + FIRST_VALUE_BITS * len(pictures)) / math.prod(pictures.shape)


def bits_of_models(source: str, pictures: Pixels) -> dict[str, float]:
    """Bits a dimension of the model as it is served, with other numbers of hash rounds, and without LSH layers."""
    served = load_model(source)
    found = {"Reformer, as served": model_bits(served, pictures)}
    for rounds in ROUNDS:
        found[f"Reformer, {rounds} hash round{'s' if rounds > 1 else ''}"] = (
            found["Reformer, as served"]
            if rounds == served.config.num_hashes
            else model_bits(load_model(source, num_hashes=rounds), pictures)
        )
    with silenced(served, list(lsh_layers(served))):
        found["Reformer, LSH layers silenced"] = model_bits(served, pictures)
    return found


def bits_of_others(train: Pixels, validation: Pixels) -> dict[str, float]:
    """Bits a dimension of what needs no neural network."""
    return {
        "per pixel, from left and upper neighbours": float(PixelCounts(train, colours=False).bits(validation).mean()),
        "the same, and the colours before": float(PixelCounts(train, colours=True).bits(validation).mean()),
        "PNG files, optimised": file_bits(validation, "PNG", optimize=True),
        "WebP files, lossless": file_bits(validation, "WEBP", lossless=True, quality=100, method=6),
    }


def complete(source: str, pictures: Pixels) -> tuple[list[list[Pixels]], dict[str, float]]:
    """Completions [picture][sample] of the upper halves, and how fast a server draws them."""
    tokenizer = load_tokenizer(source)
    assert isinstance(tokenizer, PixelTokenizer), f"{source} reads no pictures"
    began = time.perf_counter()
    with serving(Path(source)) as server, Client(f"{server['host']}:{server['port']}") as client:

        def completed(picture: Pixels) -> list[Pixels]:
            png = tokenizer.to_png(picture.reshape(-1).tolist())
            drawn = client.complete_image(png, samples=SAMPLES, temperature=TEMPERATURE, seed=SEED)
            return [np.asarray(Image.open(io.BytesIO(each.png))) for each in drawn]

        with ThreadPoolExecutor(TOGETHER) as threads:
            completions = list(threads.map(completed, pictures))
    seconds = time.perf_counter() - began
    tokens = SAMPLES * pictures.size / 2
    return completions, {
        "seconds": seconds,
        "completions": SAMPLES * len(pictures),
        "tokens_a_second": tokens / seconds,
    }


def contact_sheet(pictures: Pixels, completions: Sequence[Sequence[Pixels]], columns: int = 2) -> Image.Image:
    """A row a picture, in so many columns of rows: the original, its upper half, and the completions."""
    rows = []
    for picture, drawn in zip(pictures, completions, strict=True):
        half = picture.copy()
        half[len(half) // 2 :] = CUT
        rows.append(_joined([picture, half, *drawn], axis=1))
    per_column = -(-len(rows) // columns)
    blank = np.full_like(rows[0], 255)
    rows += [blank] * (per_column * columns - len(rows))
    blocks = [_joined(rows[start : start + per_column], axis=0) for start in range(0, len(rows), per_column)]
    sheet = Image.fromarray(_joined(blocks, axis=1, gap=4 * GAP))
    return sheet.resize((ENLARGED * sheet.width, ENLARGED * sheet.height), Image.Resampling.NEAREST)


def _joined(pictures: Sequence[Pixels], axis: int, gap: int = GAP) -> Pixels:
    """One after the other along an axis, with white between them."""
    shape = list(pictures[0].shape)
    shape[axis] = gap
    parts = [pictures[0]]
    for picture in pictures[1:]:
        parts += [np.full(shape, 255, np.uint8), picture]
    return np.concatenate(parts, axis=axis)


def chosen(validation: Pixels, count: int) -> Pixels:
    """Pictures for the sheet, evenly spread over the file: nobody picked them."""
    spread: Pixels = validation[np.linspace(0, len(validation) - 1, count).astype(int)]
    return spread


def main(arguments: Sequence[str]) -> None:
    """Measures, draws, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="an .npz file with train and validation")
    parser.add_argument("--model", default="embedded:image", help="the picture model [embedded:image]")
    parser.add_argument("--sheet", type=int, default=16, help="pictures on the contact sheet, 0: none [16]")
    parser.add_argument("--most", type=int, help="measure so many pictures at most")
    options = parser.parse_args(arguments)
    train = read_images(options.images, "train").pixels
    validation = read_images(options.images, "validation").pixels[: options.most]

    results: dict[str, Any] = {
        "model": options.model,
        "pictures": len(validation),
        "first_value_bits": FIRST_VALUE_BITS,
    }
    bits = bits_of_others(train, validation) | bits_of_models(options.model, validation)
    results["bits_per_dimension"] = bits
    print(
        markdown_table(
            ["on pictures never seen", "bits per dimension"], [(name, f"{b:.3f}") for name, b in bits.items()]
        )
    )
    if options.sheet:
        pictures = chosen(validation, options.sheet)
        completions, results["completing"] = complete(options.model, pictures)
        results["sheet"] = {"samples": SAMPLES, "temperature": TEMPERATURE, "seed": SEED}
        IMAGES.mkdir(parents=True, exist_ok=True)
        contact_sheet(pictures, completions).save(IMAGES / "pictures.png", optimize=True)
        facts = results["completing"]
        print(
            f"{facts['completions']} completions in {facts['seconds']:.0f} s, {facts['tokens_a_second']:.0f} tokens/s"
        )
    print(f"wrote {save('pictures', results)}")


if __name__ == "__main__":
    main(sys.argv[1:])
