"""Who is computed when, without a model: the next token is made up."""

from __future__ import annotations

from perilune.engine.cache import BlockCache
from perilune.engine.protocol import Generate
from perilune.engine.scheduler import Scheduler, Step
from perilune.engine.sequence import Sequence, open_sequence

WIDE = 10_000


def sequence(prompt: list[int], max_tokens: int = 5, id: int = 1) -> Sequence:
    return open_sequence(Generate(id=id, prompt=tuple(prompt), max_tokens=max_tokens), WIDE, WIDE)


def compute(scheduler: Scheduler, token: int = 7) -> Step:
    """One step; every sequence that is ready gets `token` and leaves at its max_tokens."""
    step = scheduler.plan()
    scheduler.done(step)
    for part in step.parts:
        if part.samples:
            part.sequence.tokens.append(token)
            if part.sequence.generated == part.sequence.call.max_tokens:
                scheduler.remove(part.sequence)
    return step


def compute_until_preemption(scheduler: Scheduler) -> None:
    for _ in range(50):
        compute(scheduler)
        check(scheduler)
        if scheduler.preemptions:
            return
    raise AssertionError("nothing was preempted")


def check(scheduler: Scheduler) -> None:
    scheduler.cache.check([running.blocks for running in scheduler.running])


def counts(step: Step) -> list[int]:
    return [part.count for part in step.parts]


def make(blocks: int = 100, size: int = 4, batch: int = 64, sequences: int = 8) -> Scheduler:
    return Scheduler(BlockCache(blocks, size), batch, sequences)


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    scheduler = make(batch=10, sequences=4)
    short, long = sequence([1, 2, 3]), sequence(list(range(100, 125)))
    scheduler.add(short)
    assert counts(compute(scheduler)) == [3]
    scheduler.add(long)
    assert [counts(compute(scheduler)) for _ in range(3)] == [[1, 9], [1, 9], [1, 7]]
    assert long.generated == 1


def test_no_more_than_max_sequences_run() -> None:
    scheduler = make(sequences=2)
    for start in range(3):
        scheduler.add(sequence([start * 10 + 1, start * 10 + 2], max_tokens=2))
    assert len(compute(scheduler).parts) == 2
    compute(scheduler)
    assert [part.sequence.tokens[0] for part in compute(scheduler).parts] == [21]


def test_a_wave_shares_its_prefix_within_one_step() -> None:
    scheduler = make(blocks=900, batch=2048, sequences=60)
    stem = list(range(1000, 1120))
    wave = [sequence([*stem, *range(50 * n, 50 * n + 30)]) for n in range(60)]
    for member in wave:
        scheduler.add(member)
    step = compute(scheduler)
    assert counts(step) == [150] + [30] * 59
    assert [member.cached_tokens for member in wave] == [0] + [120] * 59
    assert len({tuple(member.blocks[:30]) for member in wave}) == 1


def test_a_wave_larger_than_the_cache_still_shares() -> None:
    """100 agents with 6 calls each, 40 tokens more per call: 40,000 tokens through a cache of 13,000."""
    scheduler = make(blocks=1650, size=8, batch=2048, sequences=20)
    stem = list(range(1000, 1120))
    agents = [[*stem, *[n] * 80] for n in range(100)]
    calls = [0] * 100
    prompt_tokens = 0
    for n, tokens in enumerate(agents):
        scheduler.add(sequence(tokens, max_tokens=10, id=n))
    while scheduler.waiting or scheduler.running or scheduler.preempted:
        running = {part.sequence.call.id: part.sequence for part in compute(scheduler).parts}
        for n, served in running.items():
            if served in scheduler.running or served in scheduler.preempted:
                continue
            prompt_tokens += len(served.call.prompt)
            calls[n] += 1
            agents[n] = [*served.tokens, *[n + calls[n]] * 30]
            if calls[n] < 6:
                scheduler.add(sequence(agents[n], max_tokens=10, id=n))
    assert calls == [6] * 100
    assert scheduler.tokens_from_cache > 0.8 * prompt_tokens
    check(scheduler)


def test_the_longest_waiting_gets_a_fair_share() -> None:
    """A cold call is admitted although warm ones keep coming."""
    scheduler = make(sequences=1)
    warm = list(range(20))
    scheduler.add(sequence(warm, max_tokens=1))
    compute(scheduler)
    cold = sequence([500, 501], max_tokens=1)
    scheduler.add(cold)
    waited = 0
    while cold.generated == 0:
        scheduler.add(sequence(warm, max_tokens=1))
        compute(scheduler)
        waited += 1
    assert 1 < waited <= 8


def test_the_youngest_is_preempted_and_resumed_from_the_cache() -> None:
    scheduler = make(blocks=6, size=4, sequences=2)
    old, young = sequence(list(range(8)), max_tokens=12), sequence(list(range(50, 57)), max_tokens=8)
    scheduler.add(old)
    scheduler.add(young)
    compute_until_preemption(scheduler)
    assert scheduler.running == [old]
    assert list(scheduler.preempted) == [young]
    generated = young.generated
    assert generated > 0
    while young.generated < 8:
        compute(scheduler)
        check(scheduler)
    assert old.generated == 12
    assert young.cached_tokens == 0
    assert scheduler.cache.available == 6


def test_equal_sequences_end_up_on_the_same_blocks() -> None:
    """Both generate the same, so the second one's blocks are exchanged for the first one's."""
    scheduler = make()
    twins = [sequence([1, 2, 3], max_tokens=20, id=id) for id in (1, 2)]
    for twin in twins:
        scheduler.add(twin)
    for _ in range(11):
        compute(scheduler)
        check(scheduler)
    first, second = twins
    assert len(first.tokens) == 14
    assert first.blocks[:3] == second.blocks[:3]
    assert first.blocks[3] != second.blocks[3]


def test_removing_a_waiting_or_preempted_sequence_leaves_nothing() -> None:
    scheduler = make(blocks=5, size=4, sequences=2)
    first, second, third = (sequence([n * 10] * 7, max_tokens=6, id=n) for n in range(3))
    for one in (first, second, third):
        scheduler.add(one)
    compute_until_preemption(scheduler)
    scheduler.remove(second)
    scheduler.remove(third)
    scheduler.remove(first)
    assert compute(scheduler).parts == []
    assert scheduler.cache.available == 5
