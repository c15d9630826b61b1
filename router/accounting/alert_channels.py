"""How an alert reaches somebody: a signed webhook, Slack, Discord, or e-mail. Synchronous, for a thread.

Where to is the operator's configuration alone: no caller names an address, redirects are not followed, and what the
other side answers is not shown to anybody.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

from router.accounting.alerts import Alert
from router.settings import AlertChannel

TIMEOUT_S = 10.0
SIGNATURE, EVENT_ID = "X-Switchyard-Signature", "X-Switchyard-Event-Id"
_COLOURS = {"info": 0x3498DB, "warning": 0xF39C12, "critical": 0xE74C3C}
_RETRIED = (408, 425, 429)


class NotDelivered(Exception):
    """Why, in a word. again: whether another try may help."""

    def __init__(self, why: str, again: bool = True) -> None:
        super().__init__(why)
        self.why, self.again = why, again


def event_id(alert: Alert) -> str:
    """The same for every attempt, so that who receives it twice can tell."""
    return hashlib.sha256(f"{alert.org}\n{alert.key}".encode()).hexdigest()[:32]


def signature(secret: str, body: bytes, unix_s: int) -> str:
    """`t=<unix seconds>,v1=<hex>`: the HMAC-SHA256 of the time, a full stop and the body."""
    mac = hmac.new(secret.encode(), f"{unix_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={unix_s},v1={mac}"


def payload(kind: str, alert: Alert) -> dict[str, Any]:
    """What is posted. `webhook` is flat, which is what n8n and the like branch on."""
    if kind == "slack":
        text = f"*{_slack(alert.title)}*\n{_slack(alert.text)}"
        return {"text": alert.title, "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text[:3000]}}]}
    if kind == "discord":
        embed = {"title": alert.title[:256], "description": alert.text[:4000], "color": _COLOURS[alert.severity]}
        return {"embeds": [embed], "allowed_mentions": {"parse": []}}
    return {"id": event_id(alert), **alert.body()}


class Channels:
    """secrets: what the environment had, by the name of the variable."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = secrets
        self._opener = urllib.request.build_opener(_NoRedirect)

    def send(self, channel: AlertChannel, alert: Alert) -> None:
        """Raises `NotDelivered`."""
        deliver: Callable[[AlertChannel, Alert], None] = self._mail if channel.kind == "email" else self._post
        try:
            deliver(channel, alert)
        except NotDelivered:
            raise
        except (OSError, http.client.HTTPException, smtplib.SMTPException, ValueError) as error:
            raise NotDelivered(type(error).__name__) from None  # its text may quote an address

    def _post(self, channel: AlertChannel, alert: Alert) -> None:
        url = channel.url or self._secrets.get(channel.url_env or "", "")
        if not url.startswith(("https://", "http://")):
            raise NotDelivered(f"{channel.url_env} is not set to a URL in the ledger's environment", again=False)
        body = json.dumps(payload(channel.kind, alert)).encode()
        headers = {"content-type": "application/json", "user-agent": "switchyard", EVENT_ID: event_id(alert)}
        if secret := self._secrets.get(channel.secret_env, ""):
            headers[SIGNATURE] = signature(secret, body, int(time.time()))
        request = urllib.request.Request(url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT_S):
                return
        except urllib.error.HTTPError as error:
            error.close()
            raise NotDelivered(f"HTTP {error.code}", error.code >= 500 or error.code in _RETRIED) from None

    def _mail(self, channel: AlertChannel, alert: Alert) -> None:
        message = EmailMessage()
        message["Subject"] = " ".join(f"[switchyard] {alert.title}".split())[:200]
        message["From"], message["To"] = channel.sender, ", ".join(channel.to)
        message["Date"], message["Message-ID"] = (
            formatdate(alert.at_unix_ms / 1000),
            make_msgid(event_id(alert), "switchyard"),
        )
        message.set_content(f"{alert.text}\n\n{json.dumps(alert.body(), indent=2)}\n")
        host, password = channel.host or "", self._secrets.get(channel.password_env, "")
        if channel.user and not password:
            raise NotDelivered(f"{channel.password_env} is not set in the ledger's environment", again=False)
        secure = ssl.create_default_context()
        if channel.tls == "implicit":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, channel.port, timeout=TIMEOUT_S, context=secure)
        else:
            server = smtplib.SMTP(host, channel.port, timeout=TIMEOUT_S)
        try:
            if channel.tls == "starttls":
                server.starttls(context=secure)
            if channel.user:
                server.login(channel.user, password)
            try:
                server.send_message(message)
            except smtplib.SMTPRecipientsRefused:
                raise NotDelivered("the server takes no mail for these recipients", again=False) from None
        finally:
            with suppress(OSError, smtplib.SMTPException):  # the mail is taken, however the server says good-bye
                server.quit()
            server.close()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
