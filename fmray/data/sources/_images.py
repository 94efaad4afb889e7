"""Pictures from bytes: PNG and JPEG, decoded with Pillow, its guard against decompression bombs on."""

import io
import struct
import warnings
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fmray.core.errors import DataError

Channels = Literal[1, 3]
FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)


def decode_image(raw: bytes, where: str, channels: Channels | None) -> NDArray[np.uint8]:
    """The pixels of a PNG or JPEG picture, uint8, height x width x channels.

    Args:
        channels: 1 for grey, 3 for colour; None: 1 for a grey picture, else 3. Transparency is dropped; 16 bits become 8.

    Raises:
        DataError: it is no such picture, is damaged or cut off, or claims more pixels than Pillow's guard lets through.
    """
    from PIL import Image

    with warnings.catch_warnings():
        # Beyond its limit Pillow warns, and only at twice the limit it raises.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
                if picture.mode.startswith("I;16"):
                    grey = (np.asarray(picture) >> 8).astype(np.uint8)
                    return _shaped(np.asarray(Image.fromarray(grey).convert("RGB")) if channels == 3 else grey)
                is_grey = picture.mode in ("1", "L", "LA")
                return _shaped(np.asarray(picture.convert("L" if channels == 1 or (channels is None and is_grey) else "RGB")))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(f"is larger than Pillow's guard against decompression bombs allows ({error})", where=where) from None
        except _DAMAGE as error:
            raise DataError(f"is not a whole {' or '.join(FORMATS)} picture ({_reason(error)})", where=where) from None


def _reason(error: Exception) -> str:
    # Pillow's message about an unknown format names a buffer by its address.
    return "unknown format" if "cannot identify" in str(error) else str(error)


def _shaped(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels[:, :, None] if pixels.ndim == 2 else pixels)
