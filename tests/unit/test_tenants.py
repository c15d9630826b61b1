from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from models.errors import AuthenticationFailed, PermissionDenied
from router.accounting.keys import hash_key, new_key
from router.accounting.limits import Account, Claim, Limit
from router.accounting.tenants import Tenants
from router.events import Principal
from router.settings import IngressSettings, KeySettings, TenantSettings


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
    assert tenants.allowed_models(Principal("acme")) == ("a",)
    assert tenants.allowed_models(Principal("other")) == ("b", "c")
    budget = Account("other", "microusd", "month")
    assert (tenants.limit_of(budget), tenants.limit_of(replace(budget, org="acme"))) == (5, None)


def amounts(limits: Sequence[Limit]) -> dict[tuple[str, str], int]:
    return {(limit.account.unit, limit.account.span): limit.amount for limit in limits}


def test_limits_are_of_an_org_and_change_with_the_settings() -> None:
    limited = TenantSettings(
        requests_per_minute=2, tokens_per_minute=3, concurrent_requests=4, monthly_budget_microusd=5
    )
    tenants = Tenants([], settings(acme=limited))
    claim = Claim(Principal("acme", "web", "key"), "m", 1, 1)
    assert amounts(tenants.door_limits(claim)) == {("requests", "minute"): 2}
    assert amounts(tenants.limits_of(claim)) == {
        ("tokens", "minute"): 3,
        ("concurrent", "now"): 4,
        ("microusd", "month"): 5,
    }
    free = Claim(Principal("free"), "m", 1, 1)
    assert (tenants.door_limits(free), tenants.limits_of(free)) == ((), ())
    tenants.reconfigure(settings(acme=TenantSettings(requests_per_minute=9)))
    assert amounts(tenants.door_limits(claim)) == {("requests", "minute"): 9} and tenants.limits_of(claim) == ()
