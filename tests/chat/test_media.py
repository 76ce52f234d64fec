"""Images and videos of a request: what the tower gets, and what is refused."""

from __future__ import annotations

import io
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.chat.media_files import noise, png, png_head, url_of, video

from perilune.chat.media import plan
from perilune.chat.media_rules import MediaRules
from perilune.chat.messages import ImagePart, Message, Request, TextPart, VideoPart
from perilune.chat.placeholders import Prompt, expand, prompt_with_media
from perilune.chat.template import encode, render
from perilune.chat.tokenizer import Tokenizer
from perilune.errors import InputError

RULES = MediaRules()
VIDEO = "video/mp4"


def image(data: bytes) -> ImagePart:
    return ImagePart(url_of(data))


def clip(data: bytes) -> VideoPart:
    return VideoPart(url_of(data, VIDEO))


def user(*parts: TextPart | ImagePart | VideoPart) -> Message:
    return Message(role="user", content=parts)


def pixels_back(patches: bytes, grid: tuple[int, int, int]) -> np.ndarray:
    """[frames, height, width, 3] from patches."""
    frames, rows, columns = grid
    cut = np.frombuffer(patches, np.uint8).reshape(frames, rows, columns, 3, 14, 14)
    return cut.transpose(0, 1, 4, 2, 5, 3).reshape(frames, rows * 14, columns * 14, 3)


def test_an_image_is_cut_into_patches_and_padded_with_black() -> None:
    pixels = noise(40, 30)
    (one,) = plan([user(TextPart("see"), image(png(pixels)))], RULES)
    assert one.tokens == (4,) and one.times == ()
    (item,) = one.items()
    assert item.grid == (1, 4, 4)
    back = pixels_back(item.patches, item.grid)[0]
    assert np.array_equal(back[:30, :40], pixels)
    assert not back[30:].any() and not back[:, 40:].any()
    assert len(item.patches) == one.patch_bytes


def test_a_large_image_is_shrunk_by_pillows_bicubic() -> None:
    pixels = noise(300, 200)
    (one,) = plan([user(image(png(pixels)))], MediaRules(in_patch_limit=100))
    (item,) = one.items()
    back = pixels_back(item.patches, item.grid)[0]
    # 21 by 14 patches to at most 100: scale 0.583, so 174 by 116.
    wanted = Pillow.fromarray(pixels).resize((174, 116), Pillow.Resampling.BICUBIC)
    assert np.array_equal(back[:116, :174], np.asarray(wanted))


def test_transparency_palette_grey_and_animation_become_plain_colour() -> None:
    grey = Pillow.fromarray(noise(28, 28)[:, :, 0])
    clear = Pillow.fromarray(noise(28, 28)).copy()
    clear.putalpha(grey)
    out = io.BytesIO()
    grey.save(out, format="GIF", save_all=True, append_images=[Pillow.new("L", (28, 28), 9)])
    for data, wanted in (
        (png(np.asarray(grey)), grey.convert("RGB")),
        (png(np.asarray(clear)), clear.convert("RGB")),
        (out.getvalue(), grey.convert("RGB")),
    ):
        (item,) = plan([user(image(data))], RULES)[0].items()
        back = pixels_back(item.patches, item.grid)[0]
        assert np.abs(back.astype(int) - np.asarray(wanted).astype(int)).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_formats(format: str) -> None:
    (one,) = plan([user(image(png(noise(60, 30), format=format)))], RULES)
    assert next(one.items()).grid == (1, 4, 6)


def test_equal_content_has_an_equal_key_and_other_content_another() -> None:
    first, second = png(noise(28, 28)), png(noise(28, 28, seed=1))
    keys = [next(one.items()).key for one in plan([user(image(first), image(second), image(first))], RULES)]
    assert keys[0] == keys[2] != keys[1]
    pieces = [item.key for item in plan([user(clip(video(30)))], RULES)[0].items()]
    assert len(set(pieces)) == len(pieces) == 2


def test_a_video_becomes_pieces_of_four_frames() -> None:
    (one,) = plan([user(clip(video(25)))], RULES)
    # 2.5 s at 2 frames a second: 5 frames, 0 6 12 18 24.
    assert one.times == ("00:00:00.000", "00:00:02.399")
    assert one.tokens == (3 * 2,) * 2
    items = list(one.items())
    assert [item.grid for item in items] == [(4, 4, 6), (1, 4, 6)]
    shades = [frame[:48, :64].mean() for item in items for frame in pixels_back(item.patches, item.grid)]
    assert shades == pytest.approx([number * 255 // 25 for number in (0, 6, 12, 18, 24)], abs=4)
    assert sum(len(item.patches) for item in items) == one.patch_bytes


@pytest.mark.parametrize("container", ["mov", "matroska", "avi"])
def test_containers(container: str) -> None:
    (one,) = plan([user(clip(video(10, fps=2, container=container)))], RULES)
    assert len(one.times) == 3


# ---- what is refused


def refused(*parts: TextPart | ImagePart | VideoPart) -> str:
    with pytest.raises(InputError) as error:
        for one in plan([user(TextPart("see"), *parts)], RULES):
            list(one.items())
    assert error.value.field == "messages[0].content[1]"
    assert error.value.mend
    return error.value.message


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (ImagePart("https://x/y.png"), "not a base64 data URL"),
        (ImagePart("data:image/png,abc"), "not a base64 data URL"),
        (ImagePart("data:image/png;base64"), "not a base64 data URL"),
        (ImagePart("data:image/png;base64,AA=A"), "not valid base64"),
        (ImagePart("data:image/png;base64,\ud800"), "not valid base64"),
        (ImagePart("data:image/png;base64,"), "no bytes"),
        (image(b"hello, I am text"), "not an image"),
        (image(b"\x89PNG\r\n\x1a\n"), "not an image"),
        (image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
        (image(png_head(0, 10)), "0 by 10|not an image"),
        (image(png_head(10_000, 10_000)), "far more|10000 by 10000"),
        (image(png_head(60_000, 60_000, b"\0" * 1000)), "far more"),
        (image(png_head(8000, 7000)), "8000 by 7000 pixels, at most 50,000,000"),
        (image(png_head(1, 10_000)), "1 by 10000 pixels, one side more than 200 times"),
        (image(png_head(10_000, 1)), "one side more than 200 times"),
        (image(png_head(500, 500, b"\0" * 100)), "cannot be decoded"),
        (image(png(noise(200, 200))[:5000]), "cannot be decoded"),
        (image(png(noise(200, 200), format="JPEG")[:3000]), "cannot be decoded"),
        (clip(b"hello, I am text"), "not a video"),
        (clip(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "not a video"),
        (clip(b"ffconcat version 1.0\nfile /etc/passwd\n"), "not a video"),
        (clip(png(noise(30, 30))), "not a video"),
        (clip(b"\0\0\0\x18ftypisom\0\0\0\0isommp42"), "cannot be read|no video stream"),
        (clip(b"\x1aE\xdf\xa3" + b"\0" * 100), "cannot be read|no video stream"),
        (clip(video(0)), "no frames|cannot be read|no video stream"),
        (clip(video(20)[:1500]), "cannot be|fewer to decode|no video|not read"),
    ],
)  # fmt: skip
def test_bad_media_is_refused_by_name(part: ImagePart | VideoPart, match: str) -> None:
    assert re.search(match, refused(part))


def test_a_video_whose_frames_are_damaged_is_refused_or_decoded_never_worse() -> None:
    whole = bytearray(video(20, container="matroska"))
    for place in range(600, len(whole), 97):
        whole[place] ^= 0xFF
    try:
        items = [item for one in plan([user(clip(bytes(whole)))], RULES) for item in one.items()]
        assert items
    except InputError as error:
        assert error.field == "messages[0].content[0]"


def test_a_video_that_takes_too_long_to_decode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perilune.chat.videos.MAX_DECODED_PIXELS", 20 * 64 * 48 - 1)
    assert "20 frames of 64 by 48 pixels, too much to decode" in refused(clip(video(20)))


def test_a_bomb_costs_no_memory() -> None:
    bomb = png_head(49_000, 49_000, b"\0" * 50_000_000)
    assert len(bomb) < 100_000
    tracemalloc.start()
    refused(image(bomb))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_too_much_for_one_request_is_refused_before_anything_is_decoded() -> None:
    large = image(png_head(7000, 7000))
    with pytest.raises(InputError, match="more than 192 MiB") as error:
        plan([user(*[large] * 30)], RULES)
    assert error.value.field == "messages[0].content[20]"


# ---- placeholders


def test_the_reference_prompt_with_an_image(official: Tokenizer) -> None:
    """Case F: 18 tokens with one placeholder; 1386 with an image of 1024 by 1024."""
    part = image(png(np.zeros((1024, 1024, 3), np.uint8)))
    messages = (user(part, TextPart("Describe this image.")),)
    assert len(encode(render(messages, thinking=True), official)) == 18
    request = Request(model="m", messages=messages)
    prompt = prompt_with_media(request, official, plan(messages, RULES))
    assert len(prompt.ids) == 1386
    pad = official.special("<|media_pad|>")
    (start,) = prompt.starts
    assert prompt.ids[start : start + 1369] == [pad] * 1369
    assert prompt.ids.count(pad) == 1369
    assert prompt.ids[start + 1369 + 1] == 198


def test_the_reference_tokens_of_a_piece_of_video(official: Tokenizer) -> None:
    messages = (user(VideoPart("")),)
    ids = encode(render(messages, thinking=True, video_times=[("00:00:02.107",)]), official)
    wanted = [465, 25, 465, 25, 4312, 13, 14235, 163602, 22782, 163603, 163605, 163604, 198]
    assert ids[3 : 3 + len(wanted)] == wanted


def test_text_video_and_image_in_order() -> None:
    messages = (user(TextPart("a"), VideoPart(""), ImagePart(""), TextPart("b")),)
    pieces = render(messages, thinking=True, video_times=[("00:00:00.000", "00:00:02.000")])
    text = "".join(piece if isinstance(piece, str) else piece.name for piece in pieces)
    begin, end = "<|media_begin|>", "<|media_content|><|media_pad|><|media_end|>"
    assert (
        f"a00:00:00.000{begin}video{end}00:00:02.000{begin}video{end}\n{begin}image{end}\nb<|im_end|>"
    ) in text


def test_placeholders_are_repeated_and_found_again() -> None:
    assert expand([1, 9, 2, 9, 9], 9, [3, 1, 2]) == Prompt([1, 9, 9, 9, 2, 9, 9, 9], (1, 5, 6))


@pytest.mark.parametrize("counts", [[], [1], [1, 2, 3]])
def test_other_counts_than_placeholders_are_refused(counts: list[int]) -> None:
    with pytest.raises(InputError, match=r"2 media placeholders for \d"):
        expand([9, 1, 9], 9, counts)


def test_other_counts_of_videos_are_refused() -> None:
    messages = (user(VideoPart("")),)
    for count, field in ((0, r"messages\[0\].content\[0\]"), (2, "messages")):
        with pytest.raises(InputError, match=f"{field}: the messages hold 1 videos, and {count} were read"):
            render(messages, thinking=True, video_times=[("00:00:00.000",)] * count)


def test_text_that_spells_a_placeholder_is_text(official: Tokenizer) -> None:
    request = Request(model="m", messages=(Message(role="user", content="<|media_pad|>"),))
    assert prompt_with_media(request, official, ()).starts == ()


def test_media_files_are_read_from_the_data_url_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(noise(28, 28)))
    assert "not a base64" in refused(ImagePart(path.as_uri()))
