"""Small files that once cost gigabytes or minutes: refused at once, by the place of their message."""

from __future__ import annotations

import pytest
from tests.chat.media_files import url_of, video

from perilune.chat.media import plan
from perilune.chat.media_rules import MediaRules
from perilune.chat.messages import Message, VideoPart
from perilune.chat.video_tables import MOST_SAMPLES, check_tables
from perilune.errors import InputError


def refused(part: VideoPart, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        for one in plan([Message(role="user", content=(part,))], MediaRules()):
            list(one.items())
    assert caught.value.field == "messages[0].content[0]" and caught.value.mend


def test_a_video_that_claims_fifty_million_samples() -> None:
    """FFmpeg took 1.8 GB for these two kilobytes."""
    data = bytearray(video(30))
    at = data.find(b"stsz")
    data[at + 12 : at + 16] = (50_000_000).to_bytes(4, "big")
    refused(VideoPart(url_of(bytes(data))), "claims to have 50,000,000 samples")


def test_edits_that_repeat_all_samples() -> None:
    data = bytearray(video(30))
    at = data.find(b"elst")
    data[at + 8 : at + 12] = (10_000_000).to_bytes(4, "big")
    refused(VideoPart(url_of(bytes(data))), "10,000,000 edits")


def test_a_compressed_head_is_refused_and_media_data_are_not_searched() -> None:
    box = (24).to_bytes(4, "big") + b"moov" + (16).to_bytes(4, "big") + b"cmov" + bytes(8)
    with pytest.raises(InputError, match="head is compressed"):
        check_tables(box, "x")
    check_tables(box.replace(b"moov", b"mdat"), "x")
    assert MOST_SAMPLES < 2**31
