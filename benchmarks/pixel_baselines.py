"""What pictures take without a neural network: a per-pixel model of counts, and files of lossless formats.

Shapes: N pictures, h rows, w columns, 3 colours.
"""

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

OUTSIDE = 255  # a picture's background: what is seen beyond its edges
ACTIVITY_BOUNDS = (1, 3, 6, 12, 24, 48, 96)  # of |left - corner| + |above - corner|, how uneven the surroundings are
ERROR_BOUNDS = (-48, -16, -5, -1, 0, 1, 2, 6, 17, 49)  # of the prediction's error in the colour before
SMOOTHING = 0.05  # added to each count


def neighbours(pictures: Pixels) -> tuple[Numbers, Numbers, Numbers]:
    """The values to the left, above, and above to the left, of the same colour: int64 [N, h, w, 3] each."""
    padded = np.pad(pictures.astype(np.int64), ((0, 0), (1, 0), (1, 0), (0, 0)), constant_values=OUTSIDE)
    return padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]


def median_prediction(pictures: Pixels) -> Numbers:
    """The median of left, above, and left + above - corner: JPEG-LS's predictor (Weinberger et al. 1996)."""
    left, above, corner = neighbours(pictures)
    low, high = np.minimum(left, above), np.maximum(left, above)
    predicted: Numbers = np.clip(left + above - corner, low, high)
    return predicted


class PixelCounts:
    """Each value's error against `median_prediction`, counted in contexts, on pictures to learn from.

    The context is the colour, how uneven the surroundings are, and, with `colours`, the errors of the pixel's colours
    before this one.
    """

    def __init__(self, pictures: Pixels, *, colours: bool) -> None:
        """`pictures` uint8 [N, h, w, 3]."""
        self._colours = colours
        contexts, errors = self._contexts(pictures)
        counts = np.bincount((contexts * 256 + errors).reshape(-1), minlength=self._num_contexts * 256)
        smoothed = counts.reshape(-1, 256) + SMOOTHING
        self._bits = -np.log2(smoothed / smoothed.sum(axis=1, keepdims=True))

    def bits(self, pictures: Pixels) -> npt.NDArray[np.float64]:
        """Bits of each value, [N, h, w, 3]; uint8 [N, h, w, 3]."""
        bits: npt.NDArray[np.float64] = self._bits[self._contexts(pictures)]
        return bits

    @property
    def _num_contexts(self) -> int:
        errors = (len(ERROR_BOUNDS) + 1) ** 2 if self._colours else 1
        return 3 * (len(ACTIVITY_BOUNDS) + 1) * errors

    def _contexts(self, pictures: Pixels) -> tuple[Numbers, Numbers]:
        """Each value's context, and its error modulo 256: int64 [N, h, w, 3] both."""
        left, above, corner = neighbours(pictures)
        activity = np.digitize(np.abs(left - corner) + np.abs(above - corner), ACTIVITY_BOUNDS)
        errors = pictures - median_prediction(pictures)
        contexts = activity * 3 + np.arange(3)
        if self._colours:
            known = np.digitize(errors, ERROR_BOUNDS)
            none = np.full_like(known[..., 0], len(ERROR_BOUNDS) // 2)
            before = np.stack([none, known[..., 0], known[..., 1]], axis=-1)
            two_before = np.stack([none, none, known[..., 0]], axis=-1)
            contexts = (contexts * (len(ERROR_BOUNDS) + 1) + before) * (len(ERROR_BOUNDS) + 1) + two_before
        return contexts, errors % 256


def file_bits(pictures: Pixels, kind: str, **options: object) -> float:
    """Mean bits a dimension of the pictures as files of a lossless format, headers included."""
    total = 0
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, kind, **options)
        total += len(file.getvalue())
    return 8 * total / math.prod(pictures.shape)
