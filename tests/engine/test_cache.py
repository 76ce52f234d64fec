"""The block cache's books: what can be found, by whom, and what goes first."""

from __future__ import annotations

import random

import pytest

from perilune.engine.cache import BlockCache
from perilune.errors import EngineError


def fill(cache: BlockCache, tokens: list[int], salt: str = "") -> list[int]:
    """Give a sequence of these tokens its blocks and publish the full ones, as the scheduler does."""
    blocks = cache.match(tokens, salt)
    size = cache.block_size
    for place in range(len(blocks), cache.needed(len(tokens))):
        block = cache.allocate()
        if (place + 1) * size <= len(tokens):
            before = blocks[place - 1] if place else None
            known = cache.publish(before, tokens[place * size : (place + 1) * size], salt, block)
            if known not in (None, block):
                cache.release([block])
                block = known
        blocks.append(block)
    return blocks


def test_only_full_blocks_are_shared_and_never_the_last_token() -> None:
    cache = BlockCache(10, 4)
    held = fill(cache, list(range(10)))
    assert len(held) == 3
    assert cache.match(list(range(10)), "") == held[:2]
    # Eight tokens fill two blocks, but the eighth must be computed to be followed.
    assert cache.match(list(range(8)), "") == held[:1]
    assert cache.match(list(range(9)), "") == held[:2]
    assert cache.match([*range(7), 99, 8, 9], "") == held[:1]
    assert cache.match([1, *range(9)], "") == []


def test_equal_tokens_after_another_beginning_are_not_shared() -> None:
    cache = BlockCache(10, 2)
    fill(cache, [1, 1, 5, 5, 0])
    other = fill(cache, [2, 2, 5, 5, 0])
    assert cache.match([2, 2, 5, 5, 9], "") == other[:2]
    assert cache.match([5, 5, 0], "") == []


def test_salts_do_not_see_each_other() -> None:
    cache = BlockCache(10, 2)
    held = fill(cache, [1, 2, 3], "tenant-a")
    assert cache.match([1, 2, 3], "tenant-b") == []
    assert cache.match([1, 2, 3], "tenant-a") == held[:1]


def test_eviction_takes_the_oldest_and_ends_before_beginnings() -> None:
    cache = BlockCache(5, 2)
    old = fill(cache, [1, 1, 2, 2])
    new = fill(cache, [3, 3, 4, 4])
    cache.release(old)
    cache.release(new)
    assert (cache.free, cache.cached, cache.available) == (1, 4, 5)
    taken = [cache.allocate() for _ in range(3)]
    assert taken[1:] == [old[1], old[0]]
    assert cache.find([3, 3, 4, 4, 5], "") == new
    assert cache.allocate() == new[1]
    assert cache.find([3, 3, 4, 4, 5], "") == new[:1]


def test_a_used_block_is_never_given_away() -> None:
    cache = BlockCache(3, 2)
    held = fill(cache, [1, 1, 2, 2])
    again = cache.match([1, 1, 2, 2, 3], "")
    cache.release(held)
    assert again == held
    assert cache.available == 1
    cache.check([again])


def test_the_second_publisher_gets_the_first_ones_block() -> None:
    cache = BlockCache(4, 2)
    mine, yours = cache.allocate(), cache.allocate()
    assert cache.publish(None, [7, 7], "", mine) == mine
    assert cache.publish(None, [7, 7], "", yours) == mine
    cache.release([yours])
    cache.check([[mine], [mine]])


def test_spoilt_blocks_are_not_found_again_unless_others_use_them() -> None:
    cache = BlockCache(6, 2)
    first = fill(cache, [1, 1, 2, 2, 3])
    second = cache.match([1, 1, 9], "")
    cache.release(first, spoilt=True)
    assert cache.find([1, 1, 2, 2, 3], "") == second == first[:1]
    # What would follow a block that cannot be found cannot be found either.
    cache.release(second, spoilt=True)
    lone = cache.allocate()
    assert cache.publish(first[0], [4, 4], "", lone) is None
    cache.check([[lone]])


def test_the_self_check_finds_damage() -> None:
    cache = BlockCache(4, 2)
    held = fill(cache, [1, 1, 2])
    cache.check([held])
    with pytest.raises(EngineError, match="references"):
        cache.check([])
    cache._free.append(held[0])
    with pytest.raises(EngineError, match="two places"):
        cache.check([held])


def test_books_balance_under_random_use() -> None:
    draws = random.Random(1)
    cache = BlockCache(20, 2)
    held: list[list[int]] = []
    for _ in range(400):
        tokens = [draws.randrange(2) for _ in range(draws.randint(1, 12))]
        if cache.available >= cache.needed(len(tokens)) and draws.random() < 0.6:
            held.append(fill(cache, tokens, draws.choice(["", "x"])))
        elif held:
            cache.release(held.pop(draws.randrange(len(held))), spoilt=draws.random() < 0.1)
        cache.check(held)
        assert cache.free + cache.cached + len({b for t in held for b in t}) == 20
    assert cache.cached > 0
