"""Wrong keys from one address are let in only so often, and right ones always."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from api_server import serving, talker

from perilune.api import strangers
from perilune.api.strangers import Strangers
from perilune.errors import LimitReached


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_address_has_so_many_tries_and_gets_them_back_in_time() -> None:
    clock = Clock()
    guests = Strangers(60, clock)
    for _ in range(60):
        guests.came("10.0.0.1")
    with pytest.raises(LimitReached) as refused:
        guests.came("10.0.0.1")
    assert refused.value.retry_after_s == pytest.approx(1)
    guests.came("10.0.0.2")  # another's are its own
    clock.now += 1.01
    guests.came("10.0.0.1")
    with pytest.raises(LimitReached):
        guests.came("10.0.0.1")
    clock.now += 3600
    for _ in range(60):  # no more than the bucket holds
        guests.came("10.0.0.1")
    with pytest.raises(LimitReached):
        guests.came("10.0.0.1")


def test_a_network_of_ipv6_counts_as_one_address() -> None:
    guests = Strangers(2, Clock())
    guests.came("2001:db8::1")
    guests.came("2001:db8::ffff%eth0")
    with pytest.raises(LimitReached):
        guests.came("2001:db8::2")
    guests.came("2001:db8:0:1::1")
    for address in ("::ffff:10.0.0.1", "::ffff:10.0.0.2", "", "a:b"):
        guests.came(address)
        guests.came(address)
        with pytest.raises(LimitReached):
            guests.came(address)


def test_only_so_many_addresses_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "MOST_ADDRESSES", 3)
    guests = Strangers(1, Clock())
    for last in range(10):
        guests.came(f"10.0.0.{last}")
    assert len(guests._left) == 3


async def test_wrong_keys_are_held_off_and_right_ones_are_not(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, aiohttp.ClientSession() as web:

        async def status(key: str) -> tuple[int, str | None]:
            headers = {"Authorization": f"Bearer {key}"}
            async with web.get(f"{api.url}/models", headers=headers) as answer:
                return answer.status, answer.headers.get("retry-after")

        found = [await status(f"junk{number}") for number in range(strangers.A_MINUTE + 20)]
        assert found[strangers.A_MINUTE - 1][0] == 401
        assert found[-1] == (429, "1")
        assert (await status(api.key))[0] == 200
