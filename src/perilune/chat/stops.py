"""Stop strings: an answer's text ends before the first of them, wherever its tokens are cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from perilune.chat.messages import Event, TextDelta


class StopFilter:
    """Passes events on, holding back text that may turn out to begin a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.hit = False
        """A stop string was found: the answer is over."""

    def feed(self, events: Iterable[Event]) -> list[Event]:
        if not self._stops:
            return list(events)
        passed: list[Event] = []
        for event in events:
            if self.hit:
                break
            if isinstance(event, TextDelta):
                passed += self._text(event.text)
            else:
                passed += [*self.close(), event]
        return passed

    def close(self) -> list[Event]:
        """What was held back and begins no stop string after all."""
        text, self._held = self._held, ""
        return [TextDelta(text)] if text else []

    def _text(self, text: str) -> list[Event]:
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            shown = text[: min(found)]
        else:
            keep = max(_overlap(text, stop) for stop in self._stops)
            shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return [TextDelta(shown)] if shown else []


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if stop.startswith(text[-length:])), 0)
