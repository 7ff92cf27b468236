"""FastMCP with its own in-memory authorization server, on any port; what goes on there is counted and nothing else changed.

Says {"url", "issuer"} once it listens. Then lines of JSON come in, {"name": NAME} with "lifetime": SECONDS of access tokens
from now on, or "end": "access" or "all" tokens; each is answered by {NAME: what it has seen}.
"""

import asyncio
import hashlib
import json
import socket
import sys

import uvicorn
from fastmcp import FastMCP
from fastmcp.server.auth.auth import ClientRegistrationOptions, RevocationOptions
from fastmcp.server.auth.providers import in_memory
from fastmcp.server.dependencies import get_access_token

SCOPE = "mcp:tools"


class Counted(in_memory.InMemoryOAuthProvider):
    seen = {"registrations": 0, "authorizations": 0, "refreshes": 0}
    known: set[str] = set()
    foreign: list[str] = []

    async def register_client(self, client_info):
        await super().register_client(client_info)
        self.seen["registrations"] += 1

    async def authorize(self, client, params):
        answer = await super().authorize(client, params)
        self.seen["authorizations"] += 1
        return answer

    async def exchange_authorization_code(self, client, authorization_code):
        return self.noted(await super().exchange_authorization_code(client, authorization_code))

    async def exchange_refresh_token(self, client, refresh_token, scopes):
        tokens = await super().exchange_refresh_token(client, refresh_token, scopes)
        self.seen["refreshes"] += 1
        return self.noted(tokens)

    async def load_access_token(self, token):
        # Anything that is not a token of this authorization server should never have come here.
        if token not in self.known:
            self.foreign.append("unknown token")
        return await super().load_access_token(token)

    def noted(self, tokens):
        self.known.add(tokens.access_token)
        # What it is asked to revoke is looked up among the access tokens too.
        self.known.add(tokens.refresh_token)
        return tokens

    def do(self, message: dict) -> dict:
        if lifetime := message.get("lifetime"):
            in_memory.DEFAULT_ACCESS_TOKEN_EXPIRY_SECONDS = lifetime
        if message.get("end"):
            self.access_tokens.clear()
        if message.get("end") == "all":
            self.refresh_tokens.clear()
        alive = len(self.access_tokens) + len(self.refresh_tokens)
        return {**self.seen, "foreign": self.foreign, "alive": alive}


def say(message: dict) -> None:
    print(json.dumps(message), flush=True)


async def serve() -> None:
    # Taken first, because the documents name it.
    listener = socket.create_server(("127.0.0.1", 0))
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    provider = Counted(
        base_url=origin,
        required_scopes=[SCOPE],
        client_registration_options=ClientRegistrationOptions(enabled=True, valid_scopes=[SCOPE], default_scopes=[SCOPE]),
        revocation_options=RevocationOptions(enabled=True),
    )
    mcp = FastMCP("interop-fastmcp", auth=provider)

    @mcp.tool
    def whoami() -> str:
        """Says which client calls, and with which token"""
        token = get_access_token()
        digest = hashlib.sha256(token.token.encode()).hexdigest()
        return json.dumps({"client": token.client_id, "known": token.client_id in provider.clients, "token": digest})

    server = uvicorn.Server(uvicorn.Config(mcp.http_app(path="/mcp"), log_level="info", lifespan="on"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.02)
    say({"url": f"{origin}/mcp", "issuer": origin})
    # The harness is gone when there is nothing more to read.
    while line := await asyncio.to_thread(sys.stdin.readline):
        message = json.loads(line)
        say({message["name"]: provider.do(message)})
    server.should_exit = server.force_exit = True
    await serving


asyncio.run(serve())
