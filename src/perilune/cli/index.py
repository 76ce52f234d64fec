"""`perilune index`: the local search index. `perilune search`: ask what `$web_search` would ask."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

from perilune.cli.flags import Commands, add_settings, load_settings, whole

if TYPE_CHECKING:
    from perilune.agent.search.indexing import Done


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "index",
        help="make or refresh the local search index from folders",
        description="Reads text, Markdown, HTML, PDF and office files below the folders into HOME/search.db; "
        "files that did not change are not read again, those that are gone are taken out. Without a folder, "
        "all that were named before. Whatever is indexed can be found by every key of this HOME's server.",
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="a folder to index")
    parser.add_argument("--forget", action="store_true", help="take these folders out of the index instead")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_settings(parser)
    parser.set_defaults(run=index, parser=parser)
    asked = commands.add_parser(
        "search",
        help="search as $web_search does, free of charge",
        description="Asks what the API's $web_search asks: the SearXNG server of the setting searxng_url, "
        "else the index that `perilune index` made. Nothing is charged.",
    )
    asked.add_argument("words", nargs="+", metavar="WORD", help="what to look for; none of it is syntax")
    asked.add_argument("--limit", type=whole, metavar="N", help="most results")
    asked.add_argument("--json", action="store_true", help="as JSON")
    add_settings(asked)
    asked.set_defaults(run=search)


def index(given: argparse.Namespace) -> int:
    from perilune.agent.search.index_tables import FILE_NAME
    from perilune.agent.search.indexing import forget
    from perilune.agent.search.indexing import index as bring_up

    path = load_settings(given).home / FILE_NAME
    if given.forget and not given.folders:
        given.parser.error("--forget needs a DIR")
    for folder in given.folders if given.forget else ():
        _print(forget(path, folder), given.json)
    if not given.forget:
        _print(asyncio.run(bring_up(path, given.folders)), given.json)
    return 0


def _print(done: Done, as_json: bool) -> None:
    if as_json:
        print(json.dumps(vars(done)))
        return
    print(
        f"{done.added} added, {done.changed} changed, {done.unchanged} unchanged, {done.removed} removed; "
        f"{done.documents} documents in the index"
    )
    for reason, files in sorted(done.skipped.items()):
        print(f"skipped {files}: {reason}")


def search(given: argparse.Namespace) -> int:
    import msgspec

    from perilune.api.search_choice import provider_of

    settings = load_settings(given)
    query = " ".join(given.words)
    hits = asyncio.run(provider_of(settings).search(query, given.limit or settings.search_results))
    if given.json:
        print(json.dumps([msgspec.to_builtins(hit) for hit in hits], indent=2, ensure_ascii=False))
        return 0
    for hit in hits:
        print(f"{hit.title}\n  {hit.url}\n  {' '.join(hit.snippet.split())[:300]}\n")
    if not hits:
        print("nothing found")
    return 0
