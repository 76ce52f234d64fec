"""What a server does beside answering: folds closed months of the ledger, a little at a time, writes down
when keys were last used, and settles what a full disk did not take."""

from __future__ import annotations

import asyncio
import logging

from perilune.accounts.accounts import Accounts
from perilune.errors import StoreError

log = logging.getLogger("perilune.api")

EVERY_S = 6 * 3600.0
PAUSE_S = 0.05
"""Between two steps: calls that settle meanwhile hardly notice."""
USES_EVERY_S = 60.0
LATE_EVERY_S = 5.0


async def keep_up(accounts: Accounts) -> None:
    """Runs until it is cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_fold(accounts), name="perilune fold")
        group.create_task(_keep_uses(accounts), name="perilune uses")
        group.create_task(_settle_late(accounts), name="perilune late")


async def _fold(accounts: Accounts) -> None:
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
        except Exception:  # the task's edge: whatever it was, it is tried again, and somebody hears of it
            log.exception("closed months were not folded")
        await asyncio.sleep(EVERY_S)


async def _keep_uses(accounts: Accounts) -> None:
    while True:
        await asyncio.sleep(USES_EVERY_S)
        try:
            await accounts.keyring.write_uses()
        except StoreError as error:
            log.warning("when keys were last used was not kept: %s", error)
        except Exception:  # the task's edge, as above
            log.exception("when keys were last used was not kept")


async def _settle_late(accounts: Accounts) -> None:
    while True:
        await asyncio.sleep(LATE_EVERY_S)
        try:
            if done := await accounts.ledger.settle_late():
                log.warning("settled %d calls that had ended while the disk was full", done)
        except StoreError as error:
            log.warning("calls that have ended are not settled yet: %s", error)
        except Exception:  # the task's edge, as above
            log.exception("calls that have ended are not settled yet")
