"""PNG and JPEG files, as strangers send them, to RGB pixels; and what had to be changed on the way, in words.

A file is refused by its header where that is enough: a small file can claim, and decode to, a huge picture.
"""

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps

from reformer_core.errors import InvalidTextError

SIGNATURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}  # as Pillow calls them; no other decoder is tried
MAX_PIXELS = 1 << 24  # of a picture that will be resized: some 100 MB while it is decoded
REPEATED = {"PNG": (b"iCCP", 8, "colour profiles"), "JPEG": (b"\xff\xda", 32, "scans")}
"""What costs its sender some bytes and its reader a decompression, or a pass over all pixels; how many are allowed, and
what they are called. A PNG has one profile, a JPEG up to 12 scans; chance bytes and previews look like more."""

Size = tuple[int, int]
"""Width and height, as Pillow has it."""


def read_picture(content: bytes, size: Size, *, resize: bool) -> tuple[Image.Image, list[str]]:
    """A file's pixels as RGB of this size, and notes on what was changed.

    Transparency is laid over white, EXIF's orientation followed, of an animation the first frame taken.

    Args:
        content: a PNG or JPEG file.
        size: width and height wanted.
        resize: bring a picture of another size to this one (Lanczos), rather than refuse it.

    Raises:
        InvalidTextError: it is neither PNG nor JPEG, damaged, of another size, or too large to be resized.
    """
    kind = next((kind for kind, signature in SIGNATURES.items() if content.startswith(signature)), None)
    if kind is None:
        raise InvalidTextError("this model reads pictures, and these bytes are neither a PNG nor a JPEG file")
    marker, most, what = REPEATED[kind]
    count = content.count(marker)
    if count > most:
        raise InvalidTextError(f"the {kind} has {count:,} {what}, but at most {most} are decoded")
    try:
        image = Image.open(io.BytesIO(content), formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidTextError(f"the {kind} is too large: {error}") from error
    except Exception as error:  # a damaged file fails with whatever the decoder stumbles over
        raise InvalidTextError(f"the {kind} is damaged: {_reason(error)}") from error
    _check_size(image.size, size, resize=resize, may_turn=True)
    notes = []
    if getattr(image, "is_animated", False):
        notes.append(f"animated: only the first of {getattr(image, 'n_frames', 0)} frames is used")
    try:
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        upright = ImageOps.exif_transpose(image)
        rgb = _to_rgb(upright)
    except Exception as error:
        raise InvalidTextError(f"the {kind} is damaged: {_reason(error)}") from error
    if turned:
        notes.append("turned upright, as its EXIF orientation says")
    if upright.mode != "RGB":
        over_white = ", transparent parts over white" if upright.has_transparency_data else ""
        notes.append(f"converted from {_MODES.get(upright.mode, upright.mode)} to RGB{over_white}")
    elif upright.has_transparency_data:
        notes.append("transparent parts laid over white")
    _check_size(rgb.size, size, resize=resize)
    if rgb.size != size:
        notes.append(f"resized from {_times(rgb.size)} to {_times(size)} pixels")
        rgb = rgb.resize(size, Image.Resampling.LANCZOS)
    return rgb, notes


_MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey",
    "I;16": "grey of 16 bits",
    "P": "a palette",
    "PA": "a palette",
}


def _check_size(found: Size, wanted: Size, *, resize: bool, may_turn: bool = False) -> None:
    if resize:
        if found[0] * found[1] > MAX_PIXELS:
            raise InvalidTextError(f"the picture has {_times(found)} pixels, but at most {MAX_PIXELS:,} are decoded")
    elif found != wanted and not (may_turn and found[::-1] == wanted):
        raise InvalidTextError(
            f"the picture has {_times(found)} pixels, but this model reads {_times(wanted)} (width × height); "
            "resize it, or ask for resizing where the call offers that"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB, transparency over white."""
    if image.mode == "I;16":  # which Pillow would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _times(size: Size) -> str:
    return f"{size[0]:,} × {size[1]:,}"


def _reason(error: Exception) -> str:
    """Pillow's own words, unless they name our buffer."""
    return type(error).__name__ if "BytesIO" in str(error) or not str(error) else str(error)
