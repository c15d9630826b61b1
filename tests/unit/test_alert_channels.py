"""Channels, each to a real server on loopback: signed, encrypted, and not shown to anybody."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from router.accounting.alert_channels import EVENT_ID, SIGNATURE, Channels, NotDelivered, payload, signature
from router.accounting.alerts import Alert
from router.settings import AlertChannel, AlertSettings

SECRET = "a-secret-of-the-environment"
SECRETS = {"SWITCHYARD_ALERT_SECRET": SECRET}
ALERT = Alert("acme", "budget x", 1_780_000_000_000, "budget", "warning", "80% of <a> budget", "4 of 5 USD & more")


class Receiver:
    """What came, and what it is answered with: `statuses`, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.statuses = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((dict(self.headers.items()), body))
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("location", f"{receiver.url}/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    receiver = Receiver(*statuses)
    receiver.thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        receiver.thread.join()


def channel(url: str, **changes: Any) -> AlertChannel:
    return AlertChannel(**{"name": "ops", "url": url, **changes})


def test_a_webhook_is_signed_so_that_its_receiver_can_check_it() -> None:
    with receiving() as receiver:
        Channels(SECRETS).send(channel(f"{receiver.url}/hook?a=b"), ALERT)
        Channels(SECRETS).send(channel(receiver.url), ALERT)
        Channels({}).send(channel(receiver.url), ALERT)
    (headers, body), (again, _), (unsigned, _) = receiver.got
    moment, mac = (part.split("=")[1] for part in headers[SIGNATURE.title()].split(","))
    assert mac == hmac.new(SECRET.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    assert abs(int(moment) - time.time()) < 60 and signature(SECRET, body, int(moment)) == headers[SIGNATURE.title()]
    assert headers[EVENT_ID.title()] == again[EVENT_ID.title()] and SIGNATURE.title() not in unsigned
    told = json.loads(body)
    assert (told["kind"], told["org"], told["title"]) == ("budget", "acme", ALERT.title)


def test_each_kind_has_the_shape_that_its_service_takes() -> None:
    slack, discord = payload("slack", ALERT), payload("discord", ALERT)
    assert slack["blocks"][0]["text"]["text"] == "*80% of &lt;a&gt; budget*\n4 of 5 USD &amp; more"
    assert discord["embeds"][0]["title"] == ALERT.title and discord["allowed_mentions"] == {"parse": []}


@pytest.mark.parametrize(("status", "again"), [(500, True), (429, True), (400, False), (404, False), (302, False)])
def test_what_was_not_taken_is_said_without_the_address(status: int, again: bool) -> None:
    with receiving(status) as receiver, pytest.raises(NotDelivered) as failed:
        Channels(SECRETS).send(channel(f"{receiver.url}/secret-path"), ALERT)
    assert (failed.value.why, failed.value.again) == (f"HTTP {status}", again)
    assert len(receiver.got) == 1  # no redirect is followed


def test_who_does_not_answer_is_asked_again_later() -> None:
    with pytest.raises(NotDelivered) as failed:
        Channels(SECRETS).send(channel("http://127.0.0.1:1/secret"), ALERT)
    assert failed.value.again and "secret" not in failed.value.why
    with pytest.raises(NotDelivered, match="SWITCHYARD_ALERT_URL_CHAT is not set") as failed:
        Channels({}).send(AlertChannel(name="c", kind="slack", url_env="SWITCHYARD_ALERT_URL_CHAT"), ALERT)
    assert not failed.value.again


async def test_mail_goes_through_smtp() -> None:
    lines: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 test\r\n")
        in_data = False
        while line := await reader.readline():
            lines.append(line.decode().rstrip())
            if in_data and line != b".\r\n":
                continue
            starts_data, in_data = line.upper().startswith(b"DATA"), False
            writer.write(b"354 go on\r\n" if starts_data else b"250 ok\r\n")
            in_data = starts_data
            if line.upper().startswith(b"QUIT"):
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        mail = AlertChannel(name="m", kind="email", host="127.0.0.1", port=port, tls="none", to=("a@b.test",))
        await asyncio.to_thread(Channels({}).send, mail, replace(ALERT, title="two\r\nBcc: evil@x.test"))
        with pytest.raises(NotDelivered) as failed:  # a server that knows no STARTTLS gets nothing
            await asyncio.to_thread(Channels({}).send, mail.model_copy(update={"tls": "starttls"}), ALERT)
    assert failed.value.again
    assert "Subject: [switchyard] two Bcc: evil@x.test" in lines and "To: a@b.test" in lines
    assert sum(line.startswith("rcpt") for line in lines) == 1


class MailBox:
    """What an SMTP server of others' making (aiosmtpd) took."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.taken.append((session.ssl is not None, session.authenticated, envelope))
        return "250 OK"


@asynccontextmanager
async def mail_server(context: ssl.SSLContext) -> AsyncIterator[tuple[MailBox, int]]:
    """It takes mail after STARTTLS and a login only."""
    from aiosmtpd.smtp import SMTP, AuthResult

    box, loop = MailBox(), asyncio.get_running_loop()

    def knows(server: Any, session: Any, envelope: Any, mechanism: str, login: Any) -> AuthResult:
        fine = (login.login, login.password) == (b"switchyard", b"sesame")
        return AuthResult(success=fine, handled=False)

    def protocol() -> asyncio.Protocol:
        return SMTP(
            box, hostname="test", tls_context=context, require_starttls=True, auth_required=True, authenticator=knows
        )

    server = await loop.create_server(protocol, "127.0.0.1", 0)
    async with server:
        yield box, server.sockets[0].getsockname()[1]


def certified(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """A server's context, and the file of the authority that its certificate is from: itself."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, names = datetime.now(UTC), [x509.IPAddress(ip_address(name))]
    built = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    built = built.add_extension(x509.SubjectAlternativeName(names), False)
    certificate = built.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    file, key_file = folder / "certificate.pem", folder / "key.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption_algorithm=plain)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return context, file


async def test_mail_is_encrypted_by_starttls_before_the_password_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = certified(tmp_path, "127.0.0.1")
    secrets = {"SWITCHYARD_ALERT_SMTP_PASSWORD": "sesame"}
    async with mail_server(context) as (box, port):
        mail = AlertChannel(
            name="m", kind="email", host="127.0.0.1", port=port, user="switchyard", sender="s@b.test", to=("a@b.test",)
        )
        with pytest.raises(NotDelivered, match="SSLCertVerificationError"):  # by nobody whom this machine trusts
            await asyncio.to_thread(Channels(secrets).send, mail, ALERT)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        with pytest.raises(NotDelivered, match="SMTPAuthenticationError"):
            await asyncio.to_thread(Channels({"SWITCHYARD_ALERT_SMTP_PASSWORD": "simsim"}).send, mail, ALERT)
        with pytest.raises(NotDelivered, match="SWITCHYARD_ALERT_SMTP_PASSWORD is not set") as failed:
            await asyncio.to_thread(Channels({}).send, mail, ALERT)
        assert not failed.value.again
        with pytest.raises(NotDelivered, match="SMTP"):  # the server takes nothing unencrypted
            open_mail = mail.model_copy(update={"tls": "none", "user": None})
            await asyncio.to_thread(Channels(secrets).send, open_mail, ALERT)
        assert box.taken == []
        await asyncio.to_thread(Channels(secrets).send, mail, ALERT)
        ((encrypted, known, envelope),) = box.taken
    assert encrypted and known and envelope.rcpt_tos == ["a@b.test"] and envelope.mail_from == "s@b.test"
    told = message_from_bytes(envelope.content, policy=policy.default)
    assert told["Subject"] == "[switchyard] 80% of <a> budget" and "4 of 5 USD & more" in told.get_content()


async def test_mail_is_not_sent_to_a_server_that_has_another_ones_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = certified(tmp_path, "127.0.0.9")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    async with mail_server(context) as (box, port):
        mail = AlertChannel(name="m", kind="email", host="127.0.0.1", port=port, to=("a@b.test",))
        with pytest.raises(NotDelivered, match="SSLCertVerificationError"):
            await asyncio.to_thread(Channels({}).send, mail, ALERT)
    assert box.taken == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a"},
        {"name": "a", "url": "http://x", "url_env": "SWITCHYARD_ALERT_URL"},
        {"name": "a", "url": "file:///etc/passwd"},
        {"name": "a", "url": "http://user:pass@x/"},
        {"name": "a", "url_env": "HOME"},
        {"name": "a", "kind": "email", "host": "h"},
        {"name": "a", "kind": "email", "host": "h", "to": ["x@y"], "user": "u", "tls": "none"},
    ],
)
def test_a_channel_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AlertSettings(channels=(wrong,))
    with pytest.raises(ValidationError, match="same name"):
        AlertSettings(channels=({"name": "a", "url": "http://x"}, {"name": "a", "url": "http://y"}))
