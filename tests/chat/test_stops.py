"""An answer's text ends before the first stop string, however the text arrives."""

from hypothesis import given
from hypothesis import strategies as st

from perilune.chat.messages import TextDelta, ThinkingDelta, ToolCallDelta, ToolCallStarted
from perilune.chat.stops import StopFilter


def filtered(parts: list[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    stop_filter = StopFilter(stops)
    events = [event for part in parts for event in stop_filter.feed([TextDelta(part)])]
    events += stop_filter.close()
    return "".join(event.text for event in events if isinstance(event, TextDelta)), stop_filter.hit


def test_text_ends_before_the_first_stop() -> None:
    assert filtered(["one END two STOP"], ("STOP", "END")) == ("one ", True)
    assert filtered(["a", "bE", "N", "Dc"], ("END",)) == ("ab", True)
    assert filtered(["aEN"], ("END",)) == ("aEN", False)
    assert filtered(["abc"], ()) == ("abc", False)


def test_only_text_is_looked_at_and_order_is_kept() -> None:
    call = [ToolCallStarted(0, "functions.f:0", "f"), ToolCallDelta(0, '"END"')]
    stop_filter = StopFilter(("END",))
    events = stop_filter.feed([ThinkingDelta("END"), TextDelta("a E"), *call])
    assert events == [ThinkingDelta("END"), TextDelta("a "), TextDelta("E"), *call]
    assert not stop_filter.hit


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_any_split_ends_at_the_same_place(text: str, stops: list[str], data) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    got, hit = filtered(parts, tuple(stops))
    assert hit == bool(found)
    if hit:
        # A stop that completes first wins even where a longer one had begun before it.
        assert text.startswith(got)
        assert any(text[len(got) :].startswith(stop) for stop in stops)
    else:
        assert got == text
