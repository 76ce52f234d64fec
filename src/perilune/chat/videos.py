"""Videos as pieces of sampled frames, by PyAV. Files come from strangers: containers are told by their
first bytes and nothing else is tried, for FFmpeg's playlist readers would open other files and addresses."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from PIL import Image as Pillow

from perilune.chat.media import COLOURS, Item, Planned, content_key, item_of
from perilune.chat.media_rules import MediaRules, fit, pieces_of, sampled, timestamp, tokens_of
from perilune.chat.pictures import check_size, fitted_pixels, patches_of, scans
from perilune.chat.video_tables import check_tables
from perilune.errors import InputError

MAX_FRAME_PIXELS = 4096 * 4096
MOST_CUT = 2
"""So many times a frame's pixels may be coded: what is beyond its edges is cut off when it is shown."""
LEAST_FRAME_PIXELS = 2**20
"""Some codecs begin with a frame of their own size, whatever the video's."""
USUAL_SCANS = 3
"""Of one frame of motion JPEG: one for each colour."""
MAX_FRAMES = 100_000
MAX_DECODED_PIXELS = 10**10
"""Of all frames: those between the chosen ones have to be decoded as well. A minute's work or two."""
MAX_SCANNED_PIXELS = 4 * MAX_DECODED_PIXELS
"""Of all scans of motion JPEG. FFmpeg takes a quarter of a nanosecond for each."""
MOST_GROWTH = 4
"""Packets may be compressed once more, and each then stands for up to 10 MB: so many times the file."""
LEAST_ALLOWED = 100 * 1024**2
MAX_FPS = 1000
CONTAINERS = "mp4, mov, 3gp, webm, mkv, avi and flv"
CODECS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "vp6", "vp6a", "vp6f", "theora"),
    *("mpeg4", "mpeg2video", "mpeg1video", "h263", "flv", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "wmv3"),
    *("vc1", "prores", "dnxhd", "dvvideo", "rawvideo", "ffv1", "huffyuv", "ffvhuff", "cinepak"),
)
"""By the names of FFmpeg's decoders. It knows hundreds, and some, such as PNG's, unpack without a bound."""
SCANNED_CODEC = "mjpeg"
"""Read as well, but not before its scans are counted: FFmpeg decodes frames when it opens a file."""
DAMAGED = "the file is damaged: save it anew"
OPENING = {"max_pixels": str(MAX_FRAME_PIXELS), "codec_whitelist": ",".join(CODECS)}
BROKEN = (av.FFmpegError, ValueError, OSError, EOFError, LookupError, OverflowError)


class Video(Planned):
    def __init__(self, data: bytes, rules: MediaRules, where: str) -> None:
        """Counts frames without decoding them. Raises InputError naming `where`."""
        self._data, self._rules, self._where = data, rules, where
        frames, fps, width, height = _head(data, where)
        check_size(width, height, MAX_FRAME_PIXELS, where)
        if frames * width * height > MAX_DECODED_PIXELS:
            raise InputError(
                f"the video has {frames:,} frames of {width} by {height} pixels, too much to decode",
                field=where,
                mend="send a shorter one, or one with fewer or smaller frames",
            )
        self._size = (width, height)
        self._frames = frames
        self._fitted = fit(width, height, rules, rules.in_patch_limit_each_frame)
        indices = sampled(frames, fps, rules)
        self._pieces = pieces_of(indices, rules)
        self.tokens = (tokens_of(self._fitted, rules),) * len(self._pieces)
        self.times = tuple(timestamp(piece[0] / fps) for piece in self._pieces)
        self.patch_bytes = self._fitted.padded_width * self._fitted.padded_height * COLOURS * len(indices)

    def items(self) -> Iterator[Item]:
        frames = self._sampled_frames()
        for number, piece in enumerate(self._pieces):
            yield item_of([next(frames) for _ in piece], content_key(self._data, number))

    def _sampled_frames(self) -> Iterator[np.ndarray]:
        """Patches of the chosen frames, in order; a frame may be chosen twice in a very short video."""
        wanted = [index for piece in self._pieces for index in piece]
        seen = 0
        try:
            with _opened(self._data, self._where) as container:
                stream = _picture_stream(container, self._where)
                # Whatever the stream itself says of its size later.
                stream.codec_context.options = {"max_pixels": str(_most_pixels(*self._size))}
                for number, frame in enumerate(container.decode(stream)):
                    if (frame.width, frame.height) != self._size:
                        raise InputError(
                            f"frame {number} is {frame.width} by {frame.height} pixels, the header says "
                            f"{self._size[0]} by {self._size[1]}",
                            field=self._where,
                            mend="save the video with one size",
                        )
                    if number == wanted[seen]:
                        pixels = Pillow.fromarray(frame.to_ndarray(format="rgb24"))
                        patches = patches_of(fitted_pixels(pixels, self._fitted), self._rules.patch_size)
                    while number == wanted[seen]:
                        seen += 1
                        yield patches
                        if seen == len(wanted):
                            return
        except BROKEN as error:
            raise InputError(
                f"the video cannot be decoded: {_told(error)}", field=self._where, mend=DAMAGED
            ) from error
        raise InputError(
            f"the video has {self._frames} frames by its header, and fewer to decode",
            field=self._where,
            mend=DAMAGED,
        )


def _head(data: bytes, where: str) -> tuple[int, float, int, int]:
    """Frames, frames per second, width and height."""
    try:
        with _opened(data, where) as container:
            stream = _picture_stream(container, where)
            rate = stream.average_rate or stream.guessed_rate
            width, height = stream.codec_context.width, stream.codec_context.height
            frames = _count(container, stream, max(LEAST_ALLOWED, MOST_GROWTH * len(data)), where)
            if stream.codec_context.name == SCANNED_CODEC:
                _check_scans(scans(data), frames, _most_pixels(width, height), where)
    except BROKEN as error:
        raise InputError(f"the video cannot be read: {_told(error)}", field=where, mend=DAMAGED) from error
    if not frames:
        raise InputError("the video has no frames", field=where, mend=DAMAGED)
    if width < 1 or height < 1:
        # FFmpeg forgets what is above the bound.
        raise InputError(
            f"the video's frames have no size, or more than {MAX_FRAME_PIXELS:,} pixels",
            field=where,
            mend="make them smaller, or save the video anew",
        )
    if not rate or not 0 < rate <= MAX_FPS:
        raise InputError("the video does not say how fast it runs", field=where, mend=DAMAGED)
    return frames, float(rate), width, height


def _told(error: Exception) -> object:
    """What FFmpeg says, without its numbers and the name of a file that there is not."""
    return getattr(error, "strerror", None) or error


def _count(container: Any, stream: Any, most_bytes: int, where: str) -> int:
    """Packets with content: what is there to decode, whatever the header says."""
    frames = size = 0
    for packet in container.demux():
        size += packet.size
        if size > most_bytes:
            raise InputError(
                "the video's packets unpack to far more than the file has", field=where, mend=DAMAGED
            )
        frames += packet.stream_index == stream.index and packet.size > 0 and not packet.is_discard
        if frames > MAX_FRAMES:
            raise InputError(
                f"the video has more than {MAX_FRAMES:,} frames", field=where, mend="send a shorter one"
            )
    return frames


def _most_pixels(width: int, height: int) -> int:
    return min(MAX_FRAME_PIXELS, max(LEAST_FRAME_PIXELS, MOST_CUT * width * height))


def _check_scans(count: int, frames: int, pixels: int, where: str) -> None:
    if count > USUAL_SCANS * frames and count * pixels > MAX_SCANNED_PIXELS:
        raise InputError(
            f"the video's frames are JPEG images of {count:,} scans in all, too much to decode",
            field=where,
            mend="save it as H.264, or send a shorter one",
        )


def _opened(data: bytes, where: str) -> Any:
    kind = _container(data)
    if kind is None:
        raise InputError(
            f"is not a video of a known container ({CONTAINERS})",
            field=where,
            mend="send the bytes of such a file",
        )
    if kind == "mov":
        check_tables(data, where)
    # FFmpeg decodes a frame or two to learn what a stream is: it must know the bound by then.
    return av.open(io.BytesIO(data), mode="r", format=kind, options=dict(OPENING))


def _container(data: bytes) -> str | None:
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    return "flv" if data.startswith(b"FLV") else None


def _picture_stream(container: Any, where: str) -> Any:
    if not container.streams.video:
        raise InputError("holds no video stream", field=where, mend="send a video with pictures")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None or context.name not in (*CODECS, SCANNED_CODEC):
        known = f"the codec {context.name}" if context else "a codec"
        raise InputError(f"is in {known} that is not read", field=where, mend="save it as H.264")
    context.thread_count = 1
    return stream
