"""Salts of the prefix cache: one for each organisation, and nobody can tell whose."""

from __future__ import annotations

import base64
import hashlib

from models.prefix_salt import PrefixSalt


def test_an_organisation_has_one_of_its_own_wherever_the_key_is_the_same() -> None:
    salt = PrefixSalt(b"k" * 32)
    assert salt.of("acme") == salt.of("acme") == PrefixSalt(b"k" * 32).of("acme")
    others = [salt.of("acme "), salt.of("Acme"), salt.of("\ud800"), PrefixSalt(b"l" * 32).of("acme")]
    assert len({salt.of("acme"), *others}) == 5


def test_it_is_as_long_as_vllm_asks_for_and_no_hash_of_the_name_alone() -> None:
    found = PrefixSalt().of("acme")
    assert found is not None and len(base64.urlsafe_b64decode(found + "=")) == 32
    plain = base64.urlsafe_b64encode(hashlib.sha256(b"acme").digest()).decode().rstrip("=")
    assert "acme" not in found and found != plain
    assert PrefixSalt().of("acme") != found  # each process that asks alone has a key of its own


def test_nobodys_request_has_none() -> None:
    assert PrefixSalt().of("") is None
