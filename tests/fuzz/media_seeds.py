"""Small images and videos of many kinds, each whole: what the fuzzer of media begins with."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from tests.chat.hostile_media import PNG_HEAD, chunk, element, jpegs
from tests.chat.media_files import noise, video
from tests.fuzz.media_damage import chunks_of

VIDEOS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("mp4", "mpeg4", {}),
    ("mp4", "libx264", {}),
    ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ("mov", "mpeg4", {}),
    ("webm", "libvpx", {}),
    ("webm", "libvpx-vp9", {}),
    ("matroska", "mpeg4", {}),
    ("matroska", "libx264", {}),
    ("matroska", "ffv1", {}),
    ("avi", "mpeg4", {}),
    ("avi", "msmpeg4v2", {}),
    ("avi", "huffyuv", {}),
    ("flv", "flv", {}),
    ("flv", "libx264", {}),
)


def images() -> Iterator[bytes]:
    from PIL import Image

    colour = Image.fromarray(noise(20, 14))
    grey, few = colour.convert("L"), colour.quantize(7)
    clear = colour.convert("RGBA")
    clear.putalpha(grey)
    profile, exif = {"icc_profile": bytes(200)}, Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a text"
    frames: dict[str, Any] = {
        "save_all": True,
        "append_images": [grey.convert("RGB"), colour],
        "duration": 40,
    }

    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    for image in (colour, grey, few, clear, grey.convert("1"), grey.convert("LA"), grey.convert("I;16")):
        yield saved(image, "PNG")
    yield saved(few, "PNG", transparency=2, **profile)
    yield saved(colour, "PNG", **frames)
    for options in ({}, {"progressive": True}, {"subsampling": 2, "quality": 40, "exif": exif, **profile},
                    {"restart_marker_blocks": 1}):  # fmt: skip
        yield saved(colour, "JPEG", **options)
    yield saved(grey, "JPEG", optimize=True, comment=b"a word")
    yield saved(colour.convert("CMYK"), "JPEG")
    yield saved(colour, "MPO", **frames)
    for image in (colour, few, grey):
        yield saved(image, "GIF")
    yield saved(few, "GIF", interlace=0, transparency=1, comment=b"a word")
    yield saved(colour, "GIF", **frames, loop=0, disposal=2)
    for image, options in ((colour, {}), (clear, {}), (clear, {"lossless": True, "exif": exif, **profile})):
        yield saved(image, "WEBP", **options)
    yield saved(clear, "WEBP", **frames)
    for image in (colour, few, grey.convert("1"), clear):
        yield saved(image, "BMP")
    yield (
        b"BM"
        + bytes((90, 0, 0, 0, 0, 0, 0, 0, 62, 0, 0, 0, 40, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0))
        + (
            b"\1\0\x08\0\1\0\0\0\x1c\0\0\0" + bytes(8) + b"\2\0\0\0" + bytes(4) + b"\0\0\0\0\xff\xff\xff\0"
            b"\4\1\0\4\1\0\1\1\0\0\0\2\4\0\4\1\0\0\0\1" + bytes(8)
        )
    )
    chunks = chunks_of(saved(grey, "PNG"))
    texts = [(b"tEXt", b"a\0b"), (b"iTXt", b"a\0\0\0\0\0b"), (b"gAMA", b"\0\0\xb1\x8f"), (b"pHYs", bytes(9))]
    yield PNG_HEAD + b"".join(chunk(*one) for one in (chunks[0], *texts, *chunks[1:]))


def videos() -> Iterator[bytes]:
    for container, codec, options in VIDEOS:
        yield video(4, size=(32, 24), container=container, codec=codec, options=options)
    for container in ("avi", "mov"):
        yield jpegs(container)
    yield spoken()
    track = element(0xAE, element(0xD7, b"\1"), element(0x83, b"\1"), element(0x86, b"V_MPEG2"))
    yield element(0x1A45DFA3, element(0x4282, b"matroska")) + element(0x18538067, element(0x1654AE6B, track))


def spoken() -> bytes:
    """A film with a sound track beside its pictures."""
    import av
    import numpy as np

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        pictures: Any = file.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 24, "yuv420p"
        sound: Any = file.add_stream("aac", rate=8000)
        for number in range(3):
            grey = np.full((24, 32, 3), 60 * number, dtype=np.uint8)
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux([*sound.encode(frame), *sound.encode(), *pictures.encode()])
    return out.getvalue()
