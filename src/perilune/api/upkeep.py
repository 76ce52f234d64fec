"""What a server does beside answering: folds closed months of the ledger, a little at a time."""

from __future__ import annotations

import asyncio
import logging

from perilune.accounts.accounts import Accounts
from perilune.errors import StoreError

log = logging.getLogger("perilune.api")

EVERY_S = 6 * 3600.0
PAUSE_S = 0.05
"""Between two steps: calls that settle meanwhile hardly notice."""


async def keep_up(accounts: Accounts) -> None:
    """Runs until it is cancelled."""
    while True:
        try:
            folded = 0
            while done := await accounts.fold_step():
                folded += done
                await asyncio.sleep(PAUSE_S)
            if folded:
                log.info("folded %d calls of closed months", folded)
        except StoreError as error:
            log.warning("closed months were not folded: %s", error)
        await asyncio.sleep(EVERY_S)
