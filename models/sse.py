"""Server-sent events (WHATWG HTML, section 9.2), decoded from bytes that arrive in any splits."""

from __future__ import annotations

MAX_EVENT_BYTES = 16 * 1024**2


class SSEDecoder:
    """Only `data` matters to a chat completion stream: comments, `event`, `id` and `retry` are passed over."""

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._size_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that `chunk` completes. An event that the stream's end cuts short is never given out.

        Raises ValueError when one event grows past `MAX_EVENT_BYTES`.
        """
        lines = (self._tail + chunk).splitlines(keepends=True)
        self._tail = b""
        # A lone CR at the end may be the first half of CRLF, so it waits too.
        if lines and not lines[-1].endswith(b"\n"):
            self._tail = lines.pop()
        events: list[bytes] = []
        for line in lines:
            line = line.rstrip(b"\r\n")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._size_bytes += len(line)
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._size_bytes = 0
        if self._size_bytes + len(self._tail) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return events
