from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import AuthenticationFailed, PermissionDenied, RateLimited
from router.accounting.keys import hash_key, new_key
from router.accounting.tenants import Tenants
from router.config import IngressSettings, KeySettings, TenantSettings
from router.events import Principal


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def settings(**tenants: TenantSettings) -> IngressSettings:
    return IngressSettings(tenants=tenants)


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "Bearer   {} "])
def test_a_key_is_known_by_either_header(header: str) -> None:
    key = new_key()
    tenants = Tenants(
        [], IngressSettings(keys=(KeySettings(sha256=hash_key(key), org="acme", team="web", user="ann"),))
    )
    by_bearer = tenants.authenticate(header.format(key), None)
    assert by_bearer == tenants.authenticate(None, key) == tenants.authenticate("Basic eHk=", key)
    assert (by_bearer.org, by_bearer.team, by_bearer.user) == ("acme", "web", "ann")
    assert hash_key(key).startswith(by_bearer.key_id) and by_bearer.key_id not in key


@pytest.mark.parametrize(
    "sent", [(None, None), ("Bearer ", None), ("", ""), ("Bearer sy-wrong", None), (None, "sy-wrong")]
)
def test_no_or_a_wrong_key_is_refused_without_being_repeated(sent: tuple[str | None, str | None]) -> None:
    tenants = Tenants([KeySettings(sha256=hash_key("sy-right"), org="acme")], IngressSettings())
    with pytest.raises(AuthenticationFailed) as refused:
        tenants.authenticate(*sent)
    assert "key" in refused.value.message and "sy-wrong" not in refused.value.message


def test_a_digest_that_agrees_in_its_first_half_only_is_refused() -> None:
    digest = hash_key("sy-right")
    tenants = Tenants([KeySettings(sha256=digest[:32] + "0" * 32, org="acme")], IngressSettings())
    with pytest.raises(AuthenticationFailed):
        tenants.authenticate("Bearer sy-right", None)


def test_a_scope_that_the_key_lacks_is_denied() -> None:
    tenants = Tenants([KeySettings(sha256=hash_key("k"), org="acme", scopes=("usage",))], IngressSettings())
    assert tenants.authenticate("Bearer k", None, "usage").org == "acme"
    with pytest.raises(PermissionDenied, match="infer"):
        tenants.authenticate("Bearer k", None)


def test_without_auth_everybody_is_the_default_org() -> None:
    assert Tenants([], IngressSettings(), auth=False).authenticate(None, None).org == "default"


def test_reconfigure_adds_and_revokes_keys_and_keeps_the_environments() -> None:
    tenants = Tenants([KeySettings(sha256=hash_key("env"), org="default")], IngressSettings())
    tenants.reconfigure(IngressSettings(keys=(KeySettings(sha256=hash_key("new"), org="acme"),)))
    assert tenants.authenticate("Bearer new", None).org == "acme"
    tenants.reconfigure(IngressSettings())
    assert tenants.authenticate("Bearer env", None).org == "default"
    with pytest.raises(AuthenticationFailed):
        tenants.authenticate("Bearer new", None)


def test_limits_fall_back_to_the_default_tenant() -> None:
    tenants = Tenants(
        [],
        IngressSettings(
            tenants={"acme": TenantSettings(models=("a",))},
            default_tenant=TenantSettings(monthly_budget_microusd=5, models=("b", "c")),
        ),
    )
    assert (tenants.allowed_models(Principal("acme")), tenants.budget_microusd("acme")) == (("a",), None)
    assert (tenants.allowed_models(Principal("other")), tenants.budget_microusd("other")) == (("b", "c"), 5)


def test_the_rate_is_per_org_and_survives_a_reconfiguration() -> None:
    clock = Clock()
    keys = [KeySettings(sha256=hash_key(org), org=org) for org in ("acme", "other")]
    limited = settings(acme=TenantSettings(requests_per_minute=2), other=TenantSettings(requests_per_minute=1))
    tenants = Tenants(keys, limited, clock=clock)
    acme, other, free = (Principal(org) for org in ("acme", "other", "free"))
    tenants.check_rate(acme)
    clock.now_s += 30
    tenants.check_rate(acme)
    tenants.check_rate(other)
    for _ in range(100):
        tenants.check_rate(free)
    tenants.reconfigure(limited)
    with pytest.raises(RateLimited) as refused:
        tenants.check_rate(acme)
    assert 30 <= refused.value.retry_after_s <= 31
    clock.now_s += refused.value.retry_after_s
    tenants.check_rate(acme)


@given(st.lists(st.floats(0, 20), max_size=200), st.integers(1, 10))
def test_no_sixty_seconds_hold_more_than_the_limit(waits_s: list[float], limit: int) -> None:
    clock = Clock()
    tenants = Tenants([], settings(acme=TenantSettings(requests_per_minute=limit)), clock=clock)
    taken: list[float] = []
    for wait_s in waits_s:
        clock.now_s += wait_s
        try:
            tenants.check_rate(Principal("acme"))
            taken.append(clock.now_s)
        except RateLimited as refused:
            assert refused.retry_after_s is not None and 0 < refused.retry_after_s <= 61
    for start in taken:
        assert sum(start <= at < start + 60 for at in taken) <= limit
