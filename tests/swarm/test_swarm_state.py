"""What follows from a journal: claims, critical steps, texts; and what cannot follow."""

from __future__ import annotations

import msgspec
import pytest
from test_budgets import beginning

from perilune.agent.loop import AnswerRecord
from perilune.chat.messages import Completion, Message, Usage
from perilune.swarm import events
from perilune.swarm.events import ORCHESTRATOR, Budget, Entry, Event
from perilune.swarm.orchestrator import page_text, status_text
from perilune.swarm.state import SessionState, apply, fold


def played(*happened: Event) -> SessionState:
    return fold(Entry(seq, seq * 10, event) for seq, event in enumerate(happened, start=1))


def answered(agent: str, text: str = "Done: 0 edits.") -> list[Event]:
    said = Message(role="assistant", content=text)
    usage = Usage(prompt_tokens=10, cached_tokens=8, completion_tokens=2)
    completion = Completion(message=said, finish_reason="stop", usage=usage)
    return [
        events.ModelStarted(agent=agent, tokens=20, nano_usd=5),
        events.ModelAnswered(agent=agent, record=AnswerRecord(completion), nano_usd=3),
    ]


def done(name: str) -> list[Event]:
    return [
        events.AttemptEnded(id=name, attempt=0, status="succeeded", message="Done: 0 edits."),
        events.VerdictGiven(id=name, attempt=0, accepted=True),
        events.AssignmentDone(id=name, answer="Done: 0 edits."),
    ]


def buried(name: str) -> list[Event]:
    return [
        events.AttemptEnded(id=name, attempt=0, status="failed", message="Failed: loop."),
        events.DeadLettered(id=name, attempts=1, reason="Failed: loop.", answer="Failed: loop."),
    ]


def test_claims_of_a_dead_process_return_to_the_queue_once() -> None:
    begun = [*beginning(3, Budget()), *done("a0001")]
    state = played(*begun)
    assert [one.id for one in state.queue] == []
    state = played(*begun, events.SessionResumed())
    assert [one.id for one in state.queue] == ["a0000", "a0002"]
    again = apply(state, Entry(state.seq + 1, 0, events.AssignmentClaimed(id="a0000")))
    assert [one.id for one in again.queue] == ["a0002"]
    with pytest.raises(ValueError, match="claimed twice"):
        apply(again, Entry(again.seq + 1, 0, events.AssignmentClaimed(id="a0000")))


def test_critical_steps_are_the_orchestrators_and_the_longest_of_each_stage() -> None:
    # The worked example: stages with sub-agents of {3, 2}, {} and {4, 1, 2} steps.
    happened = beginning(0, Budget())
    number = 0
    for stage, lengths in enumerate(([3, 2], [], [4, 1, 2]), start=1):
        happened += [
            events.ModelStarted(agent=ORCHESTRATOR, tokens=1, nano_usd=0),
            events.ModelAnswered(agent=ORCHESTRATOR, record=empty_answer(), nano_usd=0),
        ]
        for steps in lengths:
            name = f"a{number:04d}"
            number += 1
            happened += [
                events.AssignmentQueued(id=name, key=name, agent="r", prompt=name, stage=stage, base="0"),
                events.AssignmentClaimed(id=name),
                events.AttemptStarted(id=name, attempt=0, base="0"),
            ]
            happened += [event for _ in range(steps) for event in answered(name)]
    state = played(*happened)
    assert state.critical_steps == (1 + 3) + (1 + 0) + (1 + 4)
    assert state.spent.steps == 15
    assert state.spent.cached_tokens == 12 * 8


def empty_answer() -> AnswerRecord:
    said = Message(role="assistant", content="Thinking.")
    return AnswerRecord(Completion(message=said, finish_reason="stop", usage=Usage()))


def test_status_counts_what_is_done_and_lists_what_may_be_given_out() -> None:
    begun = beginning(12, Budget())
    assert status_text(played(*begun)) == "\n".join(
        ["0 of 12 files done, 12 not done:", *(f"{n}.py" for n in range(8))]
    )
    most = [event for n in range(10) for event in done(f"a{n:04d}")]
    assert status_text(played(*begun, *most)) == "10 of 12 files done, 2 not done:\n10.py\n11.py"
    # Given up for good: counted, not listed again.
    state = played(*begun, *most, *buried("a0010"), *buried("a0011"))
    assert status_text(state) == "10 of 12 files done, 2 not done:"
    assert state.not_done == ("10.py", "11.py")
    everything = [event for n in range(12) for event in done(f"a{n:04d}")]
    assert status_text(played(*begun, *everything)) == "12 of 12 files done"


def test_pages_end_with_what_comes_next() -> None:
    files = [f"{n}.py" for n in range(9)]
    assert page_text(files, 1, 8) == "\n".join([*files[:8], "next page: 2"])
    assert page_text(files, 2, 8) == "8.py\nlast page"
    assert page_text(files[:8], 1, 8).endswith("7.py\nlast page")
    assert page_text(files, 3, 8) == "error: no page 3, the last is 2"
    assert page_text(files, 0, 8).startswith("error: no page 0")


def test_what_cannot_follow_is_refused() -> None:
    begun = beginning(1, Budget())
    with pytest.raises(ValueError, match="entry 3 after 1"):
        fold([Entry(1, 0, begun[0]), Entry(3, 0, begun[1])])
    for impossible in (
        begun[0],
        events.AssignmentQueued(id="a0000", key="other", agent="r", prompt="x", stage=1, base="0"),
        events.Merged(id="a0000", attempt=0, commit="1", tip="1", paths=()),
        events.AssignmentDone(id="a0000", answer=""),
        events.AttemptStarted(id="a0000", attempt=5, base="0"),
        events.AssignmentClaimed(id="nobody"),
        events.ModelFailed(agent="a0000", code="x", message="x"),
    ):
        with pytest.raises(ValueError):
            played(*begun, impossible)


def test_every_event_has_a_handler_and_reads_back_as_it_was_written() -> None:
    from perilune.swarm.state import _HANDLERS

    assert set(_HANDLERS) == set(Event.__args__)  # type: ignore[attr-defined]
    for event in [*beginning(2, Budget(tokens=5)), *answered("a0000"), *done("a0000"), *buried("a0001")]:
        assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event
