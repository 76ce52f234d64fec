"""`perilune usage`: what was used and what it cost. `perilune compare`: what it would have cost elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perilune.cli.desk import Desk, money, open_desk, pages, print_table
from perilune.cli.flags import Commands, add_settings, load_settings
from perilune.errors import InputError

if TYPE_CHECKING:
    from perilune.accounts.prices import Buckets

BY = "month,key,model"


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "usage",
        help="what was used, and what it cost",
        description="Adds up the ledger's calls, tokens and charges; web searches stand under the model "
        "$web_search. Of folded months only sums are left, which count on the first day of theirs.",
    )
    parser.add_argument(
        "--by",
        metavar="AXES",
        help=f"some of month, day, project, key, model, price, with commas ({BY})",
    )
    parser.add_argument(
        "--calls", action="store_true", help="every call, instead of sums; as JSON, one on each line"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="as CSV")
    shape.add_argument("--json", action="store_true", help="as JSON")
    _add_period(parser)
    parser.set_defaults(run=usage)
    other = commands.add_parser(
        "compare",
        help="price the recorded traffic under other price books",
        description="Takes the settled tokens of the ledger, or those that you name, at the prices of this "
        "HOME and of other models. Other models count the same text a little differently.",
    )
    other.add_argument("--book", type=Path, metavar="FILE", help="TOML price book instead of the bundled one")
    for name, said in (("input", "fresh"), ("cached", "cached"), ("output", "output")):
        other.add_argument(
            f"--{name}", type=count, metavar="N", help=f"{said} tokens, instead of the ledger's"
        )
    other.add_argument("--json", action="store_true", help="as JSON")
    _add_period(other)
    other.set_defaults(run=compare)


def _add_period(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=day, metavar="DAY", help="first day, such as 2026-11-01 (UTC)")
    parser.add_argument("--until", type=day, metavar="DAY", help="first day that does not count")
    add_settings(parser)


def day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no day such as 2026-11-01") from error


def count(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens")
    return int(text)


def usage(given: argparse.Namespace) -> int:
    from perilune.accounts.usage import totals_csv

    with open_desk(load_settings(given), must_exist=True) as desk:
        if given.calls:
            return _print_calls(desk, given)
        by = [axis.strip() for axis in (BY if given.by is None else given.by).split(",") if axis.strip()]
        found = _totals(desk, by, given)
    if given.csv:
        sys.stdout.write(totals_csv(found, by))
        return 0
    if given.json:
        print(json.dumps([_as_json(total, by) for total in found], indent=2))
        return 0
    rows = [
        (*one.group, one.calls, one.uncached, one.cached, one.output, one.reasoning, money(one.charge))
        for one in found
    ]
    print_table((*by, "calls", "input", "cached", "output", "reasoning", "USD"), rows)
    return 0


def _totals(desk: Desk, by: list[str], given: argparse.Namespace) -> list[Any]:
    import msgspec

    from perilune.accounts.usage import Total

    return msgspec.convert(desk("ledger/usage", by=by, **_period(given)), list[Total])


def _period(given: argparse.Namespace) -> dict[str, str]:
    return {name: value.isoformat() for name in ("since", "until") if (value := getattr(given, name))}


def _as_json(total: Any, by: list[str]) -> dict[str, object]:
    from perilune.accounts.usage import COUNTS

    return dict(zip(by, total.group, strict=True)) | {name: getattr(total, name) for name in COUNTS}


def _print_calls(desk: Desk, given: argparse.Namespace) -> int:
    """Page by page: a ledger may be larger than memory."""
    import msgspec

    from perilune.accounts.rows import UsageRow
    from perilune.accounts.usage import MONEY, calls_csv

    if given.by is not None:
        raise InputError("are not added up", field="--calls", mend="leave --by out")
    first = True
    for found in pages(desk, "ledger/calls", "request_id", **_period(given)):
        page = msgspec.convert(found, list[UsageRow])
        if given.json:
            for one in found:  # a line each: a list would have to end before it can be read
                print(json.dumps({MONEY.get(name, name): value for name, value in one.items()}))
        elif given.csv:
            text = calls_csv(page)
            sys.stdout.write(text if first else text.partition("\n")[2])
        else:
            for row in page:
                tokens = f"{row.uncached} + {row.cached} cached -> {row.output}"
                whose = f"{row.request_id}  key {row.key_id}  {row.model}"
                print(f"{whose}  {row.outcome}  {tokens}  ${money(row.charge)}")
        first = False
    return 0


def compare(given: argparse.Namespace) -> int:
    import msgspec

    from perilune.accounts import compare as comparing
    from perilune.accounts.prices import PriceBook

    settings = load_settings(given)
    traffic = _traffic(given)
    book = PriceBook.load(settings)
    ours = [book.price(name) for name in book.ids if book.price(name).output]
    lines = comparing.compare(traffic, [*ours, *comparing.other_prices(given.book)])
    if given.json:
        print(
            json.dumps(
                {"tokens": msgspec.to_builtins(traffic), "prices": msgspec.to_builtins(lines)}, indent=2
            )
        )
        return 0
    print(f"{traffic.uncached} input + {traffic.cached} cached + {traffic.output} output tokens")
    print(comparing.table(lines))
    return 0


def _traffic(given: argparse.Namespace) -> Buckets:
    from perilune.accounts.compare import traffic_of
    from perilune.accounts.prices import Buckets

    named = (given.input, given.cached, given.output)
    if any(one is not None for one in named):
        return Buckets(*(one or 0 for one in named))
    with open_desk(load_settings(given), must_exist=True) as desk:
        return traffic_of(_totals(desk, ["model"], given))
