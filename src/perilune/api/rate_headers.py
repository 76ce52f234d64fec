"""`X-RateLimit-*`: how many more requests a minute the key's organisation may make.

The hosted API names these headers without saying what they count. Here they count requests, and the reset
is the second (Unix time) at which all are free again if no more are made. A tier without a limit of
requests has none of them.
"""

from __future__ import annotations

import math
import time

from perilune.accounts.accounts import Accounts
from perilune.accounts.keys import Principal
from perilune.api.http import Headers


def rate_headers(accounts: Accounts, principal: Principal) -> Headers:
    """As the organisation stands now."""
    limit = accounts.organisations.tier(principal.organisation_id).rpm
    if not limit:
        return []
    requests, clear_s = accounts.limits.requests(principal.organisation_id)
    return [
        (b"x-ratelimit-limit", b"%d" % limit),
        (b"x-ratelimit-remaining", b"%d" % max(0, limit - requests)),
        (b"x-ratelimit-reset", b"%d" % math.ceil(time.time() + clear_s)),
    ]
