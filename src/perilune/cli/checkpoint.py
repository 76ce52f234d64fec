"""`perilune checkpoint make|verify|convert`: checkpoints in the official layout."""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perilune.cli.flags import Commands
from perilune.cli.inspect import sized
from perilune.errors import CheckpointError, InputError, shown

if TYPE_CHECKING:
    from perilune.model.verify import Verification

SHOWN_FAULTS = 20
GIGABYTE = 1000**3
EXPERTS = ("int4", "bf16")


def add(commands: Commands) -> None:
    parser = commands.add_parser("checkpoint", help="make, verify or convert a checkpoint folder")
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, parser_class=type(parser)
    )
    make = actions.add_parser(
        "make",
        help="a random checkpoint of any shape, in the official layout",
        description="Writes config, index and shards with random weights: for trying engines, not for "
        "answers. The same seed gives the same weights.",
    )
    make.add_argument("folder", metavar="FOLDER", type=Path, help="a new or empty folder")
    make.add_argument(
        "--shape", default="tiny", help="tiny, k2.6, or a config.json or folder to take it from"
    )
    make.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the text model's config, such as num_hidden_layers=2; may be repeated",
    )
    make.add_argument("--no-vision", action="store_true", help="leave out the vision tower and projector")
    make.add_argument("--experts", choices=EXPERTS, help="how routed experts are stored")
    make.add_argument("--seed", type=int, default=0, help="another seed gives other weights")
    make.add_argument("--no-hashes", action="store_true", help="write no checkpoint.sha256")
    _add_shard_size(make)
    make.set_defaults(run=run_make)
    check = actions.add_parser(
        "verify",
        help="read everything: hashes, finite values, index against files",
        description="Exit code 5 when something is wrong.",
    )
    check.add_argument("folder", metavar="FOLDER", type=Path)
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=run_verify)
    convert = actions.add_parser(
        "convert",
        help="store routed experts as INT4 or as BF16",
        description="Copies a checkpoint under the official names with its routed experts stored otherwise. "
        "To BF16 is exact; to INT4 rounds, except for weights that were INT4 before.",
    )
    convert.add_argument("source", metavar="SOURCE", type=Path, help="a whole checkpoint; it stays as it is")
    convert.add_argument("folder", metavar="FOLDER", type=Path, help="a new or empty folder")
    convert.add_argument("--experts", choices=EXPERTS, required=True, help="as what")
    _add_shard_size(convert)
    convert.set_defaults(run=run_convert)


def _add_shard_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard-gb", type=_gigabytes, default=10 * GIGABYTE, metavar="N", help="most per file (default: 10)"
    )


def _gigabytes(text: str) -> int:
    try:
        size = float(text) * GIGABYTE
    except ValueError:
        size = 0.0
    if not 1000 <= size <= 1e15:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in GB, such as 10 or 0.5")
    return int(size)


def run_make(given: argparse.Namespace) -> int:
    from perilune.model.make import copy_tokenizer, make_checkpoint, with_experts
    from perilune.model.tiny import write_byte_tokenizer

    document = _document(given.shape)
    if given.no_vision:
        document.pop("vision_config", None)
    _change(document, given.set)
    if given.experts:
        document = with_experts(document, given.experts)
    like = Path(given.shape)
    start = time.monotonic()
    make_checkpoint(
        document,
        given.folder,
        seed=given.seed,
        shard_bytes=given.shard_gb,
        tokenizer=write_byte_tokenizer if given.shape == "tiny" else partial(copy_tokenizer, like),
        hashes=not given.no_hashes,
    )
    _done("Made", given.folder, start)
    return 0


def _document(shape: str) -> dict[str, Any]:
    """config.json of a shape that is known by name, or of a file."""
    from perilune.model.config import read_config
    from perilune.model.shapes import SHAPES

    if shape in SHAPES:
        return SHAPES[shape]()
    path = Path(shape)
    if not path.exists():
        raise InputError(
            f"{shape!r} is neither a file nor one of {', '.join(SHAPES)}", field="--shape", mend="choose one"
        )
    return read_config(path) if path.is_dir() else read_config(path.parent, path.name)


def _change(document: dict[str, Any], changes: list[str]) -> None:
    text = document.get("text_config", document)
    for change in changes:
        name, _, value = change.partition("=")
        if not isinstance(text, dict) or name not in text:
            raise InputError(f"{name!r} is not a field of this config", field="--set", mend="see config.json")
        try:
            text[name] = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{value[:80]!r} is not a JSON value", field=f"--set {name}", mend="such as 2, 0.5 or null"
            ) from error
        if name == "hidden_size" and isinstance(vision := document.get("vision_config"), dict):
            vision["text_hidden_size"] = text[name]  # what the tower hands over is as wide as what takes it


def run_verify(given: argparse.Namespace) -> int:
    from perilune.model.inspection_json import json_pieces
    from perilune.model.verify import verify

    done = verify(given.folder)
    if given.json:
        faults = ({"name": fault.name, "detail": fault.detail} for fault in done.faults)
        sys.stdout.writelines(json_pieces(_verified(done), "faults", faults))
    else:
        hashes = f"{done.hashed} files match checkpoint.sha256" if done.hashed else "no list of hashes"
        print(f"Read          {done.seen.tensors:,} tensors, {sized(done.seen.nbytes)}")
        print(f"Hashes        {hashes if not done.faults else 'see below' if done.hashed else hashes}")
        print(f"Values        {done.checked:,} tensors read for NaN, infinity and stored shapes")
        for fault in done.faults[:SHOWN_FAULTS]:
            print(f"  {shown(fault.name)}: {fault.detail}")
        if len(done.faults) > SHOWN_FAULTS:
            print(f"  and {len(done.faults) - SHOWN_FAULTS:,} more (--json lists all)")
    if done.faults:
        print(
            f"perilune: {given.folder}: {len(done.faults):,} fault{'s' if len(done.faults) != 1 else ''}",
            file=sys.stderr,
        )
        return CheckpointError.exit_code
    return 0


def _verified(done: Verification) -> dict[str, Any]:
    return {
        "ok": not done.faults,
        "tensors": done.seen.tensors,
        "bytes": done.seen.nbytes,
        "files_hashed": done.hashed,
        "tensors_checked": done.checked,
    }


def run_convert(given: argparse.Namespace) -> int:
    from perilune.model.convert import convert

    start = time.monotonic()
    convert(given.source, given.folder, given.experts, shard_bytes=given.shard_gb)
    _done("Converted", given.folder, start)
    return 0


def _done(verb: str, folder: Path, start: float) -> None:
    from perilune.model.inspection import inspect

    seen = inspect(folder)
    print(
        f"{verb}  {folder}: {seen.tensors:,} tensors, {sized(seen.nbytes)}, experts "
        f"{seen.experts_stored}, in {time.monotonic() - start:,.1f} s"
    )
