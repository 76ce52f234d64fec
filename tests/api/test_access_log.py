"""The line of an answer reads the same whichever way it takes to the log."""

from __future__ import annotations

import asyncio
import io
import logging

import pytest

from perilune.api.access_log import FORMAT, AccessLog

OTHER = "GET /v1/models 200 0.4 ms 01ABD"
LINE = "POST /v1/chat/completions 200 12.3 ms 01ABC"


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


async def test_the_short_way_writes_what_the_long_way_would(
    shown: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "perilune.api")
    log = AccessLog()
    log.answered(LINE)
    [record] = caplog.records
    log.shorten(shown)
    log.answered(LINE)
    await asyncio.sleep(0)
    assert len(caplog.records) == 1
    expected, found = logging.Formatter(FORMAT).format(record), shown.getvalue()
    stamp = len("2026-01-01 00:00:00,000")
    assert found[stamp:] == expected[stamp:] + "\n"


async def test_times_are_those_of_logging(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AccessLog()
    log.shorten(shown)
    monkeypatch.setattr(logging.getLogger("perilune.api"), "level", logging.INFO)
    for now in (1_790_000_000.0, 1_790_000_000.0625, 1_790_000_059.9995):
        monkeypatch.setattr("time.time", lambda now=now: now)
        shown.truncate(shown.seek(0))
        log.answered(LINE)
        await asyncio.sleep(0)
        record = logging.LogRecord("perilune.api", logging.INFO, "", 0, LINE, None, None)
        assert shown.getvalue() == logging.Formatter(FORMAT).format(record) + "\n"


async def test_a_level_that_hides_the_line_hides_it_on_both_ways(
    shown: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "perilune.api")
    log = AccessLog()
    log.answered(LINE)
    log.shorten(shown)
    log.answered(LINE)
    await asyncio.sleep(0)
    assert shown.getvalue() == "" and caplog.records == []


async def test_a_stream_that_nobody_reads_any_more_is_left(
    shown: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "perilune.api")
    log = AccessLog()
    log.shorten(shown)
    shown.close()
    log.answered(LINE)
    log.answered(OTHER)
    await asyncio.sleep(0)
    log.answered(LINE)
    assert [record.getMessage() for record in caplog.records] == [LINE, OTHER, LINE]


async def test_lines_of_one_turn_of_the_loop_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("perilune.api"), "level", logging.INFO)
    written: list[str] = []
    stream = io.StringIO()
    monkeypatch.setattr(stream, "write", written.append)
    log = AccessLog()
    log.shorten(stream)
    for line in (LINE, OTHER):
        log.answered(line)
    assert written == []
    await asyncio.sleep(0)
    log.answered(LINE)
    await asyncio.sleep(0)
    assert [
        [line[len("2026-01-01 00:00:00,000 INFO perilune.api: ") :] for line in one.splitlines()]
        for one in written
    ] == [[LINE, OTHER], [LINE]]
