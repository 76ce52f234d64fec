"""The journal: order, large bodies, readers beside the writer; and the recorder before it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_budgets import Memory, beginning

from perilune.errors import SessionNotFound, StorageFull
from perilune.swarm import events
from perilune.swarm.events import Budget, Entry
from perilune.swarm.journal import INLINE_BYTES, Journal, JournalReader
from perilune.swarm.recorder import Recorder
from perilune.swarm.state import SessionState, fold


async def test_large_bodies_lie_aside_and_read_back(tmp_path: Path) -> None:
    large = events.AgentCreated(name="large", system_prompt="x" * (2 * INLINE_BYTES))
    small = events.AgentCreated(name="small", system_prompt="x")
    entries = [Entry(n, n, event) for n, event in enumerate([large, small, large], start=1)]
    journal = Journal.open(tmp_path / "s.db")
    await journal.append(entries)
    reader = JournalReader(tmp_path / "s.db")
    assert list(journal.read()) == list(reader.read()) == entries
    assert list(reader.read(after=2)) == entries[2:]
    assert reader.latest("agent_created") == large
    assert reader.latest("merged") is None
    assert reader._reader.read("SELECT count(*) FROM blob") == [(1,)]
    reader.close()
    journal.close()
    with pytest.raises(SessionNotFound):
        JournalReader(tmp_path / "other.db")


async def test_all_of_one_append_is_kept_or_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "s.db")
    event = events.AgentCreated(name="a", system_prompt="")
    await journal.append([Entry(1, 0, event)])
    with pytest.raises(Exception, match="UNIQUE"):
        await journal.append([Entry(2, 0, event), Entry(1, 0, event)])
    assert [entry.seq for entry in journal.read()] == [1]
    journal.close()


async def test_a_record_is_on_disk_with_all_that_was_posted_before_it() -> None:
    memory = Memory()
    async with Recorder(memory, SessionState()) as recorder:
        first, *others = beginning(4, Budget())
        await recorder.record(first)
        for event in others[:-1]:
            recorder.post(event)
        await recorder.record(others[-1])
        assert [entry.event for entry in memory.entries] == [first, *others]
        recorder.post(events.SessionResumed())
    assert fold(memory.entries) == recorder.state
    assert recorder.state.resumes == 1


async def test_a_journal_that_fails_is_heard_of_by_all_who_wait() -> None:
    class Full(Memory):
        async def append(self, entries: Sequence[Entry]) -> None:
            if self.entries:
                raise StorageFull("no space left")
            await super().append(entries)

    recorder = Recorder(Full(), SessionState())
    with pytest.raises(StorageFull):
        async with recorder:
            first, second, *_ = beginning(1, Budget())
            await recorder.record(first)
            waiting = [recorder.record(second), recorder.record(events.SessionResumed())]
            ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(error) for error in ended] == [StorageFull, StorageFull]
            recorder.post(events.SessionResumed())
