"""Embeddings over HTTP: OpenAI, vLLM, Ollama and whoever else speaks `POST /v1/embeddings`.

Source: https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.base import Call, ChatModel
from models.catalog import ModelEntry
from models.messages import ChatRequest, Event, Finish, Message, TextPart
from models.providers import Quirks
from models.upstream import UpstreamCall
from models.upstream_http import HttpUpstream

MAX_ANSWER_BYTES = 128 * 1024**2
"""2048 vectors of 8192 numbers, in base64."""


class OpenAIEmbeddings:
    """The embedding models of one endpoint. `entries`: by name; an entry's `source` is the model's name upstream."""

    def __init__(self, entries: Mapping[str, ModelEntry], base_url: str, api_key: str | None, quirks: Quirks) -> None:
        self._entries = dict(entries)
        headers = dict(quirks.headers)
        if api_key:
            headers[quirks.key_header] = f"Bearer {api_key}" if quirks.key_header == "authorization" else api_key
        self._http = HttpUpstream(base_url, headers, quirks.query)

    async def embed(
        self, model: str, texts: Sequence[str], dimensions: int | None, timeout_s: float
    ) -> tuple[list[bytes], int]:
        """A vector for each text (float32, little-endian) and the tokens of all, as the provider counts them.

        Raises `models.errors` only.
        """
        upstream = UpstreamCall(model, timeout_s)
        source = self._entries[model].source or model
        body: dict[str, Any] = {"model": source, "input": list(texts), "encoding_format": "base64"}
        if dimensions is not None:
            body["dimensions"] = dimensions
        pieces: list[bytes] = []
        size = 0
        async with self._http.post(upstream, "embeddings", json.dumps(body).encode()) as response:
            while chunk := await upstream.wait(response.content.readany()):
                pieces.append(chunk)
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise upstream.broken("sent more than vectors can take")
        try:
            return _read(json.loads(b"".join(pieces)), len(texts))
        except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
            raise upstream.broken("sent something other than embeddings") from error

    async def close(self) -> None:
        await self._http.close()


@dataclass(frozen=True, slots=True)
class EmbeddingQuestion(ChatRequest):
    """A question after vectors, of the parts of its one message; `vectors` is where they go, with the tokens of all."""

    dimensions: int | None = None
    vectors: list[tuple[list[bytes], int]] = field(default_factory=list)

    @classmethod
    def of(cls, model: str, texts: Sequence[str], dimensions: int | None) -> EmbeddingQuestion:
        return cls(model, (Message("user", tuple(map(TextPart, texts))),), dimensions=dimensions)


class WithEmbeddings:
    """A `ChatModel` that is asked for vectors too, so that what is put around it (retries, keys in turn, breakers)
    holds for both. A stream of vectors is its end: they are in the question then."""

    def __init__(self, model: ChatModel, embeddings: OpenAIEmbeddings) -> None:
        self._model, self._embeddings = model, embeddings

    def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        return (
            self._embed(request, call) if isinstance(request, EmbeddingQuestion) else self._model.stream(request, call)
        )

    async def _embed(self, question: EmbeddingQuestion, call: Call) -> AsyncIterator[Event]:
        texts = [part.text for part in question.messages[0].parts if isinstance(part, TextPart)]
        made = await self._embeddings.embed(question.model, texts, question.dimensions, call.timeout_s)
        question.vectors.append(made)
        yield Finish("stop")

    async def check_health(self) -> None:
        await self._model.check_health()

    async def close(self) -> None:
        await self._model.close()
        await self._embeddings.close()


def _read(answer: dict[str, Any], count: int) -> tuple[list[bytes], int]:
    """Raises ValueError and the like for what is no answer to `count` texts. Some servers only know numbers."""
    found: dict[int, bytes] = {}
    for item in answer["data"]:
        vector = item["embedding"]
        packed = base64.b64decode(vector) if isinstance(vector, str) else struct.pack(f"<{len(vector)}f", *vector)
        if not packed or len(packed) % 4:
            raise ValueError("not a vector of float32")
        found[item["index"]] = packed
    if sorted(found) != list(range(count)):
        raise ValueError("not a vector for each text")
    usage = answer.get("usage") or {}
    return [found[number] for number in range(count)], int(usage.get("prompt_tokens") or usage.get("total_tokens") or 0)
