"""`budget`: what is left, for whom, and what happens without a name or a store."""

import asyncio
import time

import pytest

from signals.facts import Facts
from signals.gather import fetch, read
from signals.reading import Unavailable
from signals.registry import BY_NAME
from signals.request import Message, Request
from signals.services import Services
from signals.signal import Shared
from signals.state.store import Memory

DAY = 86400.0
NOON = 1_700_000_000.0 - 1_700_000_000.0 % DAY + DAY / 2


def budget(shared=None, **params):
    kind = BY_NAME["budget"]
    return kind("b", kind.Parameters.model_validate(params), shared or Shared())


def request(tenant="acme", received=NOON):
    headers = {} if tenant is None else {"x-tenant": tenant}
    return Request("chat", b"", {}, None, (Message("user", "hi"),), headers, received=received)


async def reading(signal, call):
    facts = Facts(call, time.monotonic() + 1.0)
    await fetch([signal], facts)
    return read(signal, facts)


async def test_it_counts_down_and_matches_when_nothing_is_left():
    signal = budget(header="X-Tenant", limit=10.0)
    assert (await reading(signal, request())).score == 1.0
    signal._ledger.charge(request(), 7.5)
    first = await reading(signal, request())
    assert (first.matched, first.score) == (False, 0.25)
    signal._ledger.charge(request(), 4.0)
    last = await reading(signal, request())
    assert (last.matched, last.score) == (True, 0.0)


async def test_tenants_and_periods_are_apart():
    signal = budget(header="x-tenant", limit=10.0)
    signal._ledger.charge(request(), 10.0)
    assert (await reading(signal, request("other"))).score == 1.0
    assert (await reading(signal, request(received=NOON + DAY))).score == 1.0


@pytest.mark.parametrize(("per", "apart"), [("hour", 3600.0), ("month", 32 * DAY)])
async def test_each_period_begins_anew(per, apart):
    signal = budget(header="x-tenant", limit=1.0, per=per)
    signal._ledger.charge(request(), 1.0)
    assert (await reading(signal, request())).matched is True
    assert (await reading(signal, request(received=NOON + apart))).matched is False


async def test_a_session_has_no_period():
    signal = budget(limit=1.0, per="session")
    signal._ledger.charge(request(), 1.0)
    assert (await reading(signal, request(received=NOON + 3 * DAY))).matched is True


async def test_signals_of_one_payer_share_one_ledger():
    shared = Shared()
    low, out = (
        budget(shared, header="x-tenant", limit=10.0, remaining={"at_most": 0.5}),
        budget(shared, header="x-tenant", limit=10.0),
    )
    assert low._ledger is out._ledger
    low._ledger.charge(request(), 6.0)
    assert (await reading(low, request())).matched is True
    assert (await reading(out, request())).matched is False


async def test_nobody_named_is_unknown():
    assert (await reading(budget(header="x-tenant", limit=1.0), request(None))).error == "no_identity"


class Down(Memory):
    async def number(self, key):
        raise Unavailable("store_down")


class Slow(Memory):
    async def number(self, key):
        await asyncio.sleep(60)


async def test_a_store_that_is_down_or_slow_is_unknown_by_the_deadline():
    signal = budget(Shared(Services(store=Down())), header="x-tenant", limit=1.0)
    assert (await reading(signal, request())).error == "store_down"
    signal = budget(Shared(Services(store=Slow())), header="x-tenant", limit=1.0)
    facts = Facts(request(), time.monotonic() + 0.05)
    await fetch([signal], facts)
    assert read(signal, facts).error == "deadline"


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 1, "per": "year"}, {"limit": 1, "remaining": {}}, {}])
def test_bad_parameters_are_refused(params):
    with pytest.raises(ValueError, match="validation error"):
        budget(**params)


@pytest.mark.parametrize(
    ("per", "seconds"), [("hour", 3600.0), ("day", DAY / 2), ("month", 16.5 * DAY), ("session", None)]
)
async def test_it_says_when_it_begins_anew(per, seconds):
    signal = budget(header="x-tenant", limit=1.0, per=per)  # noon of 2023-11-14
    found = signal.renewed(NOON)
    if seconds is None:
        assert found is None
        return
    assert found is not None
    assert found[0] == pytest.approx(seconds)
    assert (found[1].matched, found[1].score) == (False, 1.0)
    signal._ledger.charge(request(), 1.0)
    assert (await reading(signal, request(received=NOON + seconds - 1))).matched is True
    assert (await reading(signal, request(received=NOON + seconds))).matched is False


def test_a_year_ends_too():
    december = 1_703_980_800.0  # 2023-12-31T00:00:00Z
    assert budget(header="x-tenant", limit=1.0, per="month").renewed(december)[0] == DAY


async def test_the_least_share_of_a_period_is_watched():
    signal = budget(header="x-tenant", limit=10.0)
    assert signal.least(NOON) == 1.0
    signal._ledger.charge(request(), 7.5)
    await reading(signal, request())
    await reading(signal, request("other"))
    assert signal.least(NOON + 60) == 0.25
    assert signal.least(NOON + DAY / 2) == 1.0
    await reading(signal, request("other", NOON + DAY))
    assert signal.least(NOON + DAY) == 1.0
    await reading(signal, request(None))  # nobody is named: nothing is read
    assert signal.least(NOON + DAY) == 1.0
