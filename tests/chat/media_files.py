"""Media made on the spot, as data URLs."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray, **options: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=options.pop("format", "PNG"), **options)
    return out.getvalue()


def png_head(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size; its pixels are `data`, deflated."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def video(
    frames: int,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    container: str = "mp4",
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
) -> bytes:
    """Each frame is grey, brighter than the one before; `options` are the container's."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=container, options=options or {}) as file:
        stream: Any = file.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv422p" if codec == "huffyuv" else "yuv420p"
        file.start_encoding()
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), number * 255 // max(frames, 2), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode())
    return out.getvalue()
