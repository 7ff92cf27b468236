"""The Python SDK's client, driven by lines of JSON on standard input; answers go to standard output.

The one argument is {"url", "documentUrl", "metadata", "kept"}. Lines out: {"authorize": URL} asks for the person and
waits for {"returned": URL}; {NAME: {"value": ...}} answers the request {"name": NAME, "method", "tool"}.
"""

import asyncio
import json
import os
import sys
import traceback
from urllib.parse import parse_qs, urlsplit

from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken


class Memory:
    """Token storage for the life of the process; `kept` is what an earlier one had."""

    def __init__(self, kept: dict | None) -> None:
        kept = kept or {}
        tokens, client = kept.get("tokens"), kept.get("client")
        self.tokens = tokens and OAuthToken.model_validate(tokens)
        self.client = client and OAuthClientInformationFull.model_validate(client)

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info

    def kept(self) -> dict:
        parts = {"tokens": self.tokens, "client": self.client}
        return {name: part and part.model_dump(mode="json") for name, part in parts.items()}


def say(message: dict) -> None:
    print(json.dumps(message), flush=True)


async def lines(requests: asyncio.Queue, answers: asyncio.Queue) -> None:
    """Sorts what comes in: answers of the person, and requests of the harness."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        message = json.loads(line)
        await (answers if "returned" in message else requests).put(message)


async def serve(settings: dict) -> None:
    requests: asyncio.Queue = asyncio.Queue()
    answers: asyncio.Queue = asyncio.Queue()

    async def send_person(address: str) -> None:
        say({"authorize": address})

    async def person_returned() -> AuthorizationCodeResult:
        answer = parse_qs(urlsplit((await answers.get())["returned"]).query)
        code, state, iss = (answer.get(name, [None])[0] for name in ("code", "state", "iss"))
        if code is None:
            raise RuntimeError(f"the answer is {answer}")
        return AuthorizationCodeResult(code=code, state=state, iss=iss)

    memory = Memory(settings.get("kept"))
    provider = OAuthClientProvider(
        server_url=settings["url"],
        client_metadata=OAuthClientMetadata.model_validate(settings["metadata"]),
        storage=memory,
        redirect_handler=send_person,
        callback_handler=person_returned,
        client_metadata_url=settings.get("documentUrl"),
    )
    reader = asyncio.create_task(lines(requests, answers))
    async with create_mcp_http_client(auth=provider) as http:
        async with Client(streamable_http_client(settings["url"], http_client=http)) as client:
            say({"connected": {"value": True}})
            while (request := await requests.get())["method"] != "close":
                try:
                    value = await perform(client, memory, request)
                    say({request["name"]: {"value": value}})
                except Exception as error:  # the harness reports it
                    say({request["name"]: {"error": f"{type(error).__name__}: {error}"}})
    say({request["name"]: {"value": True}})
    reader.cancel()


async def perform(client: Client, memory: Memory, request: dict) -> object:
    if request["method"] == "kept":
        return memory.kept()
    if request["method"] == "tools":
        return [tool.name for tool in (await client.list_tools()).tools]
    tool = request["tool"]
    return (await client.call_tool(tool["name"], tool["arguments"])).content[0].text


async def serve_or_end(settings: dict) -> None:
    try:
        await serve(settings)
    except BaseException:  # the thread that waits for a line would keep the process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


asyncio.run(serve_or_end(json.loads(sys.argv[1])))
