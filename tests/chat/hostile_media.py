"""Images and videos that are small to send and would be endless to read, made on the spot.

Run as a program it reads each of CASES in a process of its own, and prints as a line of JSON what came of
it: the error, how much the peak of resident memory grew, and the seconds of processor time.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import struct
import sys
import traceback
import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from tests.chat.media_files import noise, png, url_of, video

from perilune.chat.media import plan
from perilune.chat.media_rules import MediaRules
from perilune.chat.messages import ImagePart, Message, VideoPart
from perilune.errors import InputError

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
SOS, EOI = 0xDA, b"\xff\xd9"
BOMB = 60_000_000
"""Zeros, a thousand to a byte."""
NOTES = {b"zTXt": b"k\0\0", b"iCCP": b"k\0\0", b"iTXt": b"k\0\1\0\0\0"}
HUGE = (4224, 4224)
Chunk = tuple[bytes, bytes]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(*chunks: Chunk) -> bytes:
    return PNG_HEAD + b"".join(chunk(*one) for one in chunks)


def png_chunks(width: int, height: int) -> tuple[Chunk, Chunk, Chunk]:
    """Head, pixels and end of a black image of one bit a pixel."""
    rows = bytes((width + 7) // 8 + 1) * height
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")


@cache
def packed(size: int) -> bytes:
    """`size` zeros as a thousandth of it."""
    deflate = zlib.compressobj(9)
    piece = bytes(min(size, 1 << 20))
    return b"".join(deflate.compress(piece) for _ in range(-(-size // len(piece)))) + deflate.flush()


def png_with_note(name: bytes, size: int, *, count: int = 1, last: bool = False) -> bytes:
    """`count` texts or profiles that unpack to `size` bytes each, before the pixels or behind them."""
    head, pixels, end = png_chunks(30, 30)
    notes = [(name, NOTES[name] + packed(size))] * count
    return png_of(head, *(() if last else notes), pixels, *(notes if last else ()), end)


def more_pixels() -> bytes:
    head, _, end = png_chunks(30, 30)
    return png_of(head, (b"IDAT", packed(BOMB)), end)


def jpeg_of_scans(edge: int, count: int) -> bytes:
    """A grey progressive JPEG whose last scan, of a few bytes, stands there `count` times."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("L", (edge, edge), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    start = data.rfind(bytes((0xFF, SOS)))
    assert data.endswith(EOI)
    return data[:start] + data[start:-2] * count + EOI


def endless_gif(frames: int) -> bytes:
    """An image of 30 by 30 pixels, and frames of one pixel each, shown for ever."""
    from PIL import Image

    out = io.BytesIO()
    first = Image.new("P", (30, 30))
    first.save(out, "GIF", save_all=True, append_images=[Image.new("P", (30, 30), 1)], loop=0)
    frame = b"\x21\xf9\4\0\0\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return out.getvalue()[:-1] + frame * frames + b";"


def endless_apng(claimed: int, frames: int) -> bytes:
    head, pixels, end = png_chunks(30, 30)
    control = struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 1, 0, 0)
    more = []
    for number in range(frames):
        control = struct.pack(">I", number) + control[4:]
        more += [(b"fcTL", control), (b"fdAT", struct.pack(">I", number) + zlib.compress(bytes(2)))]
    return png_of(head, (b"acTL", struct.pack(">II", claimed, 0)), pixels, *more, end)


def video_of(packets: list[bytes], codec: str, container: str, size: tuple[int, int]) -> bytes:
    """Packets as they are, in a container that says they are `codec`, two a second."""
    import av
    from av.codec import Codec

    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=2)
        stream.width, stream.height = size
        stream.pix_fmt = (Codec(codec, "w").video_formats or [])[0].name
        file.start_encoding()
        for number, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            packet.time_base = stream.time_base
            file.mux(packet)
    return out.getvalue()


def jpegs(container: str, frame: bytes | None = None) -> bytes:
    """Motion JPEG: its size is what the container says, for nothing is decoded before."""
    size = (64, 48)
    return video_of([frame or png(noise(*size), format="JPEG")] * 3, "mjpeg", container, size)


def with_size_in_avi(data: bytes, width: int, height: int) -> bytes:
    """The head says another size; the frames stay as they are."""
    out = bytearray(data)
    size = struct.pack("<II", width, height)
    for name, at in ((b"avih", 40), (b"strf", 12)):
        place = data.index(name) + at
        out[place : place + 8] = size
    return bytes(out)


def with_size_in_mp4(data: bytes, width: int, height: int) -> bytes:
    out = bytearray(data)
    track = data.index(b"tkhd")
    out[track + 80 : track + 88] = struct.pack(">II", width << 16, height << 16)
    entry = data.index(b"stsd") + 16
    out[entry + 28 : entry + 32] = struct.pack(">HH", width % 65536, height % 65536)
    return bytes(out)


def element(name: int, *content: bytes) -> bytes:
    """One EBML element, its length in eight bytes."""
    body = b"".join(content)
    return name.to_bytes(-(-name.bit_length() // 8), "big") + (1 << 56 | len(body)).to_bytes(8, "big") + body


def matroska_of_packed(size: int, count: int) -> bytes:
    """`count` frames of MPEG-2 that are compressed once more; each unpacks to `size` zeros."""
    compression = element(0x6D80, element(0x6240, element(0x5034, element(0x4254, b"\0"))))
    picture = element(0xE0, element(0xB0, b"\x40"), element(0xBA, b"\x30"))
    track = element(
        0xAE,
        *(element(0xD7, b"\1"), element(0x73C5, b"\1"), element(0x83, b"\1"), element(0x86, b"V_MPEG2")),
        *(element(0x23E383, struct.pack(">I", 500_000_000)), picture, compression),
    )
    frame = packed(size)
    blocks = [
        element(0xA3, b"\x81" + struct.pack(">hB", 500 * number % 30_000, 0x80) + frame)
        for number in range(count)
    ]
    return element(0x1A45DFA3, element(0x4282, b"matroska")) + element(
        0x18538067, element(0x1654AE6B, track), element(0x1F43B675, element(0xE7, b"\0"), *blocks)
    )


def cut_into(kind: str) -> bytes:
    """An image of five megabytes, most of them parts of no content."""
    data = png(noise(30, 30), format=kind)
    if kind == "JPEG":
        return data[:2] + b"\xff\xe1\0\x0aExif\0\0aa" * 300_000 + data[2:]
    head = 13 + 3 * (2 << (data[10] & 7))
    return data[:head] + b"\x21\xfe\1a\0" * 300_000 + data[head:]


Case = tuple[bool, Callable[[], bytes]]
"""Whether it is a video, and its bytes."""
CASES: dict[str, Case] = {
    "100 megapixels": (False, lambda: png_of(*png_chunks(10_000, 10_000))),
    "1 by 10,000": (False, lambda: png_of(*png_chunks(1, 10_000))),
    "49 megapixels": (False, lambda: png_of(*png_chunks(7_000, 7_000))),
    "zTXt bomb": (False, partial(png_with_note, b"zTXt", BOMB)),
    "iTXt bomb": (False, partial(png_with_note, b"iTXt", BOMB)),
    "iCCP bomb": (False, partial(png_with_note, b"iCCP", BOMB)),
    "zTXt bomb behind": (False, partial(png_with_note, b"zTXt", BOMB, last=True)),
    "iCCP bomb behind": (False, partial(png_with_note, b"iCCP", BOMB, last=True)),
    "many iCCP": (False, lambda: png_with_note(b"iCCP", 1_000_000, count=4_000, last=True)),
    "more pixels than its size": (False, more_pixels),
    "JPEG of many scans": (False, lambda: jpeg_of_scans(2000, 1500)),
    "JPEG of many parts": (False, lambda: cut_into("JPEG")),
    "GIF of many parts": (False, lambda: cut_into("GIF")),
    "endless GIF": (False, lambda: endless_gif(100_000)),
    "endless APNG": (False, lambda: endless_apng(2**31 - 1, 20_000)),
    "AVI, huge by its head": (True, lambda: with_size_in_avi(jpegs("avi"), 20_000, 20_000)),
    "AVI, huge by its frames": (True, lambda: video(1, size=HUGE, container="avi")),
    "MP4, huge by its head": (True, lambda: with_size_in_mp4(jpegs("mov"), 60_000, 60_000)),
    "MP4, huge by its frames": (True, lambda: video(1, size=HUGE)),
    "MP4, huge by a wrong head": (True, lambda: with_size_in_mp4(video(5), 60_000, 60_000)),
    "frames larger than the head": (True, lambda: jpegs("avi", jpeg_of_scans(2000, 1))),
    "packets packed again": (True, lambda: matroska_of_packed(9_900_000, 100)),
    "a codec that unpacks": (True, lambda: video_of([png_with_note(b"zTXt", BOMB)], "png", "avi", (30, 30))),
    "frames of many scans": (True, lambda: jpegs("avi", jpeg_of_scans(200, 40_000))),
    "MP4 without frames": (True, lambda: video(0)),
    "Matroska without frames": (True, lambda: video(0, container="matroska")),
    "AVI without frames": (True, lambda: video(0, container="avi")),
    "MP4 as AVI": (True, lambda: b"RIFF" + video(5)[4:8] + b"AVI " + video(5)[12:]),
    "AVI as MP4": (True, lambda: video(5)[:16] + video(5, container="avi")),
    "MP4 as Matroska": (True, lambda: b"\x1aE\xdf\xa3" + video(5)),
}


def read(part: ImagePart | VideoPart) -> dict[str, object]:
    """What reading the part at place 1 of message 2 came to."""
    talk = [Message(role="user", content="x"), Message(role="assistant", content="x")]
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        for one in plan([*talk, Message(role="user", content=(part, part))], MediaRules()):
            for item in one.items():
                assert item.patches
    except InputError as error:
        said: dict[str, object] = {"message": error.message, "field": error.field, "mend": error.mend}
    else:
        said = {"message": "", "field": "", "mend": ""}
    after = resource.getrusage(resource.RUSAGE_SELF)
    grown = (after.ru_maxrss - before.ru_maxrss) >> 10
    return said | {"mib": grown, "seconds": after.ru_utime - before.ru_utime}


def main() -> None:
    # Loaded once, before the processes part: what a reader takes is not what its library takes.
    read(ImagePart(url_of(png(noise(30, 30)))))
    read(VideoPart(url_of(video(2))))
    for name, (is_video, make) in CASES.items():
        url = url_of(make())
        # Given back, so that what the child needs shows as growth.
        ctypes.CDLL(None).malloc_trim(0)
        child = os.fork()
        if not child:
            try:
                part = VideoPart(url) if is_video else ImagePart(url)
                print(json.dumps({"case": name} | read(part)), flush=True)
            except BaseException:  # noqa: BLE001  shown to the test, which then lacks the line
                traceback.print_exc()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    sys.exit(main())
