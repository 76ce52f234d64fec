"""GET /v1/users/me/balance: what the organisation of the key has left, in the hosted API's shape."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from perilune.accounts.accounts import Accounts
from perilune.api.auth import principal_of
from perilune.api.http import send_json

NANO_PER_STEP = 10_000
STEPS_PER_USD = 100_000
"""Five decimals of a USD, rounded down: never more than is there."""


class Balance:
    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._accounts.organisations.state(principal_of(scope).organisation_id)
        data = {
            "available_balance": _usd(state.available),
            "voucher_balance": _usd(state.voucher),
            "cash_balance": _usd(state.cash),
        }
        await send_json(send, {"code": 0, "data": data, "scode": "0x0", "status": True})


def _usd(nano: int) -> float:
    return nano // NANO_PER_STEP / STEPS_PER_USD
