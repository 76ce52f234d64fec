"""All acts, by name."""

from __future__ import annotations

from perilune.accounts.desk import keys, ledger, money
from perilune.accounts.desk.act import Acts

ACTS: Acts = {**keys.ACTS, **money.ACTS, **ledger.ACTS}
