"""Damaged images and videos: decoded or refused in our words, and nothing else."""

from __future__ import annotations

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat.media_files import noise, png, url_of, video

from perilune.chat.media import plan
from perilune.chat.media_rules import MediaRules
from perilune.chat.messages import ImagePart, Message, VideoPart
from perilune.errors import InputError

RULES = MediaRules()
IMAGES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
VIDEOS = ("mp4", "matroska", "avi", "flv")

damage = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8)
cut = st.floats(0.05, 1)


@functools.cache
def image_file(format: str) -> bytes:
    return png(noise(40, 30), format=format)


@functools.cache
def video_file(container: str) -> bytes:
    return video(12, container=container, codec="flv" if container == "flv" else "mpeg4")


def damaged(data: bytes, places: list[tuple[float, int]], end: float) -> bytes:
    """Changes crowd at the beginning, where the heads are."""
    out = bytearray(data)
    for place, value in places:
        out[int(place**3 * (len(out) - 1))] = value
    return bytes(out[: max(1, int(len(out) * end))])


def survives(part: ImagePart | VideoPart) -> None:
    try:
        for one in plan([Message(role="user", content=(part,))], RULES):
            items = list(one.items())
            assert len(items) == len(one.tokens)
            assert sum(len(item.patches) for item in items) == one.patch_bytes
    except InputError as error:
        assert error.field == "messages[0].content[0]"
        assert error.mend


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(IMAGES), damage, cut)
def test_damaged_images(format: str, places: list[tuple[float, int]], end: float) -> None:
    survives(ImagePart(url_of(damaged(image_file(format), places, end))))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(VIDEOS), damage, cut)
def test_damaged_videos(container: str, places: list[tuple[float, int]], end: float) -> None:
    survives(VideoPart(url_of(damaged(video_file(container), places, end))))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.binary(max_size=200), st.sampled_from((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b""))
)
def test_noise_behind_an_images_first_bytes(body: bytes, head: bytes) -> None:
    survives(ImagePart(url_of(head + body)))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.binary(max_size=200),
    st.sampled_from((b"\0\0\0\x18ftyp", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI ", b"FLV\1")),
)
def test_noise_behind_a_videos_first_bytes(body: bytes, head: bytes) -> None:
    survives(VideoPart(url_of(head + body)))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=60), st.sampled_from(("", "data:", "data:image/png;base64,", ";base64,")))
def test_urls_that_are_none(body: str, head: str) -> None:
    survives(ImagePart(head + body))
