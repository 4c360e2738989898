"""Uploads: pictures that requests bring, decoded within limits, and as thumbnails.

In: picture files as bytes. Out: pixels, or a JPEG. Called by encoders.py, and by the front process for
the pictures of added items; needs no torch.
"""

import tempfile
from pathlib import Path

import numpy as np

from embedding.image.pictures import Framing, UnusablePictureError, jpeg_of, load_picture
from recsys.errors import UserError
from recsys.serving.requests import NewItem

THUMBNAIL_PIXELS = 256


def uploaded_pixels(content: bytes, size: int, framing: Framing = "crop") -> np.ndarray:
    """Return a picture file as uint8 [size, size, 3].

    Args:
        framing: `crop` or `pad`, as in embedding.image.pictures.load_picture.

    Raises:
        UserError: the file is no usable picture.
    """
    # Decoders and their limits read files; the name says nothing of the upload.
    with tempfile.NamedTemporaryFile(prefix="upload-") as file:
        file.write(content)
        file.flush()
        try:
            return load_picture(Path(file.name), size, framing)
        except UnusablePictureError as error:
            detail = str(error).replace(f"{file.name}: ", "")
            raise UserError(
                f"picture: {detail} ({error.reason}); expected a PNG, JPEG, WebP or GIF file"
            ) from error


def thumbnail_of(request: bytes) -> bytes | None:
    """Return the thumbnail (JPEG) of an added item, given its NewItem as JSON; None without a picture."""
    item = NewItem.model_validate_json(request)
    if item.picture is None:
        return None
    return jpeg_of(uploaded_pixels(item.picture, THUMBNAIL_PIXELS))
