"""Damage to a checkpoint's index, shards and tokenizer files that keeps most of their sense."""

from __future__ import annotations

import base64
import json
import math
import struct
from random import Random
from typing import Any

from tests.fuzz.mutation import NUMBERS, TEXTS, damaged_bytes, damaged_json, junk

DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "U64", "bf16", "")
BEGINNINGS = ("language_model.", "model.", "model.language_model.", "vision_tower.", "")
OFFSETS = (0, 1, -1, 2, 4, 8, -8, 64, 2**31, 2**48, 2**63)


def damaged_head(random: Random, data: bytes) -> bytes:
    """A flag byte and a safetensors file: its tensors damaged and its length right again, or its bytes."""
    flag = bytes((random.randrange(256),)) if random.random() < 0.2 else data[:1]
    body = data[1:]
    length = struct.unpack("<Q", body[:8])[0] if len(body) >= 8 else 0
    if not 0 < length <= len(body) - 8 or random.random() < 0.1:
        return flag + damaged_bytes(random, body)
    head = body[8 : 8 + length]
    try:
        tensors = json.loads(head)
    except (ValueError, RecursionError):
        tensors = None
    if isinstance(tensors, dict) and random.random() < 0.7:
        for _ in range(random.choice((1, 1, 2, 4))):
            _damage_tensor(random, tensors)
        head = json.dumps(tensors, ensure_ascii=random.random() < 0.9).encode("utf-8", "surrogatepass")
        if random.random() < 0.1:
            head = b"{" + head[1 : head.find(b"}, ") + 3] + head[1:]  # the first tensor twice
    else:
        head = damaged_json(random, head)
    claimed = len(head) + random.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, -1, 2**63))
    return flag + struct.pack("<Q", max(claimed, 0)) + head + body[8 + length :]


def _damage_tensor(random: Random, tensors: dict[str, Any]) -> None:
    """One of the tensors gets another type, shape, place or name; now and then its bytes fit it again."""
    names = [name for name, entry in tensors.items() if _is_tensor(entry)]
    if not names:
        tensors[random.choice(TEXTS)] = junk(random)
        return
    name, other = random.choice(names), random.choice(names)
    entry = json.loads(json.dumps(tensors[name]))
    shape, offsets = entry["shape"], entry["data_offsets"]
    match random.randrange(9):
        case 0:
            entry["dtype"] = random.choice(DTYPES)
        case 1 if shape:
            shape[random.randrange(len(shape))] = random.choice((*NUMBERS, 1, 2, 4, 32))
        case 2:
            random.choice((shape.reverse, shape.clear, lambda: shape.insert(0, random.choice((0, 1, 2)))))()
        case 3:
            offsets[random.randrange(2)] += random.choice(OFFSETS)
        case 4:
            step = random.choice(OFFSETS)
            entry["data_offsets"] = [one + step for one in offsets]
        case 5:
            entry["data_offsets"] = tensors[other]["data_offsets"]
        case 6:
            if random.random() < 0.5:
                del tensors[name]
            name = random.choice(
                (
                    other,
                    random.choice(BEGINNINGS) + name.removeprefix("language_model."),
                    name + "x",
                    "x." + name.rpartition(".")[2],
                )
            )
        case 7:
            tensors["__metadata__"] = random.choice((junk(random), entry, {name: "pt"}))
        case _:
            entry[random.choice((*entry, "more"))] = junk(random)
    tensors[name] = entry
    if random.random() < 0.3 and _is_tensor(entry):
        _fit(entry)


def _is_tensor(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        return False
    offsets = entry.get("data_offsets")
    return isinstance(offsets, list) and len(offsets) == 2 and all(type(one) is int for one in offsets)


def _fit(entry: dict[str, Any]) -> None:
    """Let the tensor end where its type and shape say."""
    sizes = [one for one in entry["shape"] if type(one) is int and 0 <= one < 2**20]
    item = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BOOL": 1, "U8": 1, "I8": 1}.get(
        str(entry.get("dtype")), 2
    )
    begin = entry["data_offsets"][0]
    entry["data_offsets"] = [begin, begin + item * math.prod(sizes)]


# ---- the index: a flag byte says whether it is one


def damaged_index(random: Random, data: bytes) -> bytes:
    """Names and files of tensors changed for others that could stand there, or any JSON."""
    try:
        document = json.loads(data[1:])
        names = list(document["weight_map"]) if data[:1] == b"i" else []
    except (ValueError, RecursionError, TypeError, LookupError):
        names = []
    if not names or random.random() < 0.4:
        return data[:1] + damaged_json(random, data[1:])
    files = document["weight_map"]
    for _ in range(random.choice((1, 1, 2, 8))):
        name, other = random.choice(names), random.choice(names)
        match random.randrange(5):
            case 0 if isinstance(files, dict):
                files[random.choice(BEGINNINGS) + name.removeprefix("language_model.")] = "model.safetensors"
            case 1 if isinstance(files, dict):
                files[name] = files.get(other, "x.safetensors")
            case 2 if isinstance(files, dict):
                files.pop(name, None)
            case 3 if isinstance(files, dict):
                files[name + random.choice(("_packed", "_scale", ".rotary_emb.inv_freq", "\0"))] = junk(
                    random
                )
            case _:
                document["metadata"] = random.choice((junk(random), {"total_size": random.choice(NUMBERS)}))
    return data[:1] + json.dumps(document).encode()


# ---- tokenizer files: a flag byte says which


def damaged_tokenizer(random: Random, data: bytes) -> bytes:
    if data[:1] != b"r":
        return data[:1] + damaged_json(random, data[1:])
    lines = data[1:].split(b"\n")
    for _ in range(random.choice((1, 1, 2, 5))):
        at, other = random.randrange(len(lines)), random.randrange(len(lines))
        word = base64.b64encode(random.randbytes(random.randint(0, 6)))
        match random.randrange(6):
            case 0:
                lines[at] = word + b" " + str(random.choice((at, other, -1, 2**70))).encode()
            case 1:
                lines[at], lines[other] = lines[other], lines[at]
            case 2:
                lines[at] = lines[other]
            case 3:
                lines[at] = b""
            case 4:
                lines[at] = damaged_bytes(random, lines[at])
            case _:
                lines.append(word + b" " + str(len(lines)).encode())
    return data[:1] + b"\n".join(lines)
