"""Another program in the cluster: asks through handles, from itself and from a Ray task, and tells what it got."""

import asyncio
import json
import os
import sys
from contextlib import aclosing

import ray

from deployments.handles import connect
from models.errors import SwitchyardError
from models.messages import ChatRequest, Message, Sampling, TextPart, fold


def body(text, model="smoke-small", **extra):
    question = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 20}
    return question | {"switchyard": {"cache": "off"}} | extra


def reply_of(reply):
    return {name: getattr(reply, name) for name in ("text", "model", "cache", "cost_microusd", "request_id")}


def error_of(call):
    try:
        call()
    except SwitchyardError as error:
        return {"type": type(error).__name__, "code": error.code, "message": error.message}
    return None


def ask_sync(text):
    switchyard = connect()
    batches = list(switchyard.stream(body(text)))
    return {
        "chat": reply_of(switchyard.chat(body(text))),
        "streamed": fold([event for batch in batches for event in batch]).text,
        "batches": len(batches),
        "explained": switchyard.explain(body(text, "auto"))["decision"]["model"],
    }


async def ask_async(text):
    switchyard = connect()
    events = []
    async with aclosing(switchyard.astream(body(text))) as batches:
        async for batch in batches:
            events += batch
    replies = await asyncio.gather(*(switchyard.achat(body(text)) for _ in range(4)))
    explained = await switchyard.aexplain(body(text, "auto"))
    return {
        "chat": reply_of(replies[0]),
        "same": len({reply.text for reply in replies}) == 1,
        "streamed": fold(events).text,
        "explained": explained["decision"]["model"],
    }


def leave(text):
    """Streams whose reader goes away after the first batch: what they have said, and who they are."""
    stream = connect().stream(body(text, "sim-slow"))
    first = next(stream)
    stream.close()
    return len(first)


async def leave_async(text):
    async with aclosing(connect().astream(body(text, "sim-slow"))) as batches:
        return len(await anext(batches))


@ray.remote
def in_a_task(key, text):
    os.environ["SWITCHYARD_API_KEY"] = key
    return {"sync": ask_sync(text), "async": asyncio.run(ask_async(text))}


def main(text):
    ray.init(log_to_driver=False)
    key = os.environ["SWITCHYARD_API_KEY"]
    typed = ChatRequest("smoke-small", (Message("user", (TextPart(text),)),), Sampling(20, 0.0))
    print(
        json.dumps(
            {
                "driver": {"sync": ask_sync(text), "async": asyncio.run(ask_async(text))},
                "task": ray.get(in_a_task.remote(key, text)),
                "typed": connect().chat(typed).text,
                "errors": {
                    "wrong key": error_of(lambda: connect("sy-wrong").chat(body(text))),
                    "unknown model": error_of(lambda: connect().chat(body(text, "gpt-17"))),
                    "wrong type": error_of(lambda: connect().explain(body(text, temperature="hot"))),
                    "stream": error_of(lambda: list(connect("sy-wrong").stream(body(text)))),
                    "broken": error_of(lambda: list(connect().stream(body(text, "sim-broken")))),
                },
                "left": [leave(text), asyncio.run(leave_async(text))],
            }
        )
    )


main(sys.argv[1])
