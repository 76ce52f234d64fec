"""Byte-pair merges for a 1,024-id tokenizer that spells a name the same wherever it stands.

Merges never join a letter run with anything else (space, `_`, digit, punctuation, the start of the next
capitalised word), so a name has the same ids after a quote, a slash or a newline: copying is a matter of
repeating ids. A few pairs of JSON punctuation are merged besides, because half of what the model writes
is the frame of its calls.
"""

from __future__ import annotations

import argparse
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from perilune.agent.profiles import bundled_profile
from perilune.model.tiny import SPECIAL_TOKENS, write_tokenizer

VOCABULARY = 1024
JSON_PAIRS = (b'{"', b'":', b' "', b'",', b'"}')
_SEGMENT = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])| {2,}|\n{2,}")
MOST_PER_FILE = 20
"""A segment counts no more often in one file, so that tables do not buy merges."""
PROTOCOL_WEIGHT = 4_000
"""Occurrences that each word of the protocol counts for: it is in every trace."""
PROTOCOL = (
    "functions namespace type string number any tool declare Tools Return of user system assistant "
    "Rename to in hits hit shown ok left edits edit Done Finished files done not next page last Failed "
    "file error no line syntax rolled back is your task renamer src py"
)


def learn(texts: Iterable[str], extra: Sequence[str], size: int) -> list[bytes]:
    """Tokens in order of rank: 256 bytes, the JSON pairs, then learned merges, `size` in all."""
    counts: Counter[str] = Counter()
    for text in texts:
        for segment, count in Counter(_SEGMENT.findall(text)).items():
            counts[segment] += min(count, MOST_PER_FILE)
    for text in extra:
        for segment in _SEGMENT.findall(text):
            counts[segment] += PROTOCOL_WEIGHT
    tokens = [bytes([value]) for value in range(256)] + list(JSON_PAIRS)
    words = [([bytes([b]) for b in segment.encode()], count) for segment, count in sorted(counts.items())]
    return tokens + _merges(words, size - len(tokens))


def _merges(words: list[tuple[list[bytes], int]], wanted: int) -> list[bytes]:
    """The `wanted` most frequent merges, one after the other."""
    pairs: Counter[tuple[bytes, bytes]] = Counter()
    where: defaultdict[tuple[bytes, bytes], set[int]] = defaultdict(set)
    for index, (parts, count) in enumerate(words):
        for pair in pairwise(parts):
            pairs[pair] += count
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merged: list[bytes] = []
    while heap and len(merged) < wanted:
        count, best = heapq.heappop(heap)
        if pairs[best] != -count:
            if pairs[best] > 0:
                heapq.heappush(heap, (-pairs[best], best))
            continue
        joined = best[0] + best[1]
        if joined not in merged:
            merged.append(joined)
        changed: set[tuple[bytes, bytes]] = set()
        for index in sorted(where.pop(best)):
            parts, weight = words[index]
            new = _join(parts, best)
            if new == parts:
                continue
            for pair in pairwise(parts):
                pairs[pair] -= weight
            for pair in pairwise(new):
                pairs[pair] += weight
                where[pair].add(index)
                changed.add(pair)
            words[index] = (new, weight)
        for pair in sorted(changed):
            if pair != best:
                heapq.heappush(heap, (-pairs[pair], pair))
    return merged


def _join(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    new: list[bytes] = []
    for part in parts:
        if new and (new[-1], part) == pair:
            new[-1] += part
        else:
            new.append(part)
    return new


def protocol_texts() -> list[str]:
    """Words that every trace holds: tool names, descriptions, arguments, answers."""
    words = [PROTOCOL]
    for name in ("rename", "orchestrate-rename"):
        for tool in bundled_profile(name).tools:
            words += [tool.name, tool.description, *tool.parameters["properties"]]
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("nano/work"))
    options = parser.parse_args()
    texts = msgspec.msgpack.decode((options.work / "texts.msgpack").read_bytes(), type=list[str])
    tokens = learn(texts, protocol_texts(), VOCABULARY - len(SPECIAL_TOKENS))
    if len(tokens) + len(SPECIAL_TOKENS) != VOCABULARY:
        raise SystemExit("the corpus is too small for a vocabulary of this size")
    write_tokenizer(tokens, options.work / "tokenizer")
    print(f"{len(tokens)} tokens and {len(SPECIAL_TOKENS)} control tokens")


if __name__ == "__main__":
    main()
