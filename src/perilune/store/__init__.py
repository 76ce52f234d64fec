"""Durable small tables on SQLite, whole files, and the lock that gives a HOME one owner.

SQL elsewhere stays portable: tables, `?` parameters, no SQLite functions. What is particular to SQLite lives
in `store/sqlite.py` and `store/log.py`.
"""

from perilune.store import daybook
from perilune.store.daybook import Mark, Posting
from perilune.store.files import replace_file
from perilune.store.home import Holder, HomeLock, home_holder
from perilune.store.reader import Reader
from perilune.store.waiter import Work
from perilune.store.writer import Store

__all__ = [
    "Holder",
    "HomeLock",
    "Mark",
    "Posting",
    "Reader",
    "Store",
    "Work",
    "daybook",
    "home_holder",
    "replace_file",
]
