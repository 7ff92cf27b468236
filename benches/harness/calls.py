"""The one call of the benchmark, its answer, and the headers of an MCP client."""

import json


def padded(message, text_of, size):
    """`message` as JSON, its text filled up until it is `size` bytes long."""
    text_of(message)["text"] = "m" * (size - len(json.dumps(message)))
    encoded = json.dumps(message)
    assert len(encoded) == size
    return encoded


def call(size):
    params = {"name": "echo", "arguments": {"text": ""}, "_meta": {"progressToken": 1}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return padded(message, lambda message: message["params"]["arguments"], size)


def answer(size):
    result = {"content": [{"type": "text", "text": ""}], "isError": False}
    message = {"jsonrpc": "2.0", "id": 1, "result": result}
    return padded(message, lambda message: message["result"]["content"][0], size)


CALL, ANSWER = call(280), answer(280)

HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2025-11-25",
}
