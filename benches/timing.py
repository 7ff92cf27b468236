#!/usr/bin/env python3
"""Whether refusals tell by their time how much of a guess was right.

    python3 benches/timing.py target/release/postern [ROUNDS]

Each pair is asked in turns over one connection, in an order that is drawn anew, and the medians of batches are compared
by Welch's t. On a quiet machine |t| below 4.5 says that nothing is seen; a busy one says nothing either way.
"""
import base64
import json
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

BATCH = 50
LIMIT = 4.5
HASH = "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(binary, directory):
    port, admin = free_port(), free_port()
    config = {
        "server": {
            "public_url": f"http://127.0.0.1:{port}",
            "listen": [f"127.0.0.1:{port}"],
            "admin": f"127.0.0.1:{admin}",
            "data_dir": str(directory / "data"),
            "access_log": "off",
        },
        "login": {"local": {"users": [{"username": "alice", "password_hash": HASH}]}},
        "routes": [
            {
                "name": "demo",
                "path": "/demo",
                "upstream": {"url": "http://127.0.0.1:1/mcp", "allow_private": True},
                "credential": {"kind": "none"},
            }
        ],
    }
    file = directory / "postern.yaml"
    file.write_text(json.dumps(config))
    process = subprocess.Popen([binary, "run", "--config", file], stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            if urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz").status == 200:
                return process, port
        except OSError:
            time.sleep(0.05)
    raise SystemExit("Postern is not ready")


def register(port):
    """A client with a secret: its id and its secret."""
    document = {
        "client_name": "timing",
        "redirect_uris": ["https://client.example/cb"],
        "token_endpoint_auth_method": "client_secret_basic",
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/oauth/register",
        json.dumps(document).encode(),
        {"content-type": "application/json"},
    )
    answer = json.load(urllib.request.urlopen(request))
    return answer["client_id"], answer["client_secret"]


def token_request(port, client, secret, form):
    basic = base64.b64encode(f"{client}:{secret}".encode()).decode()
    head = (
        f"POST /oauth/token HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Basic {basic}\r\n"
        f"content-type: application/x-www-form-urlencoded\r\ncontent-length: {len(form)}\r\n\r\n"
    )
    return (head + form).encode()


def bearer_request(port, token):
    return (
        f"POST /demo HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n"
        "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    ).encode()


def ask(connection, request):
    """Nanoseconds from the first byte sent to the whole answer."""
    began = time.perf_counter_ns()
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    took = time.perf_counter_ns() - began
    assert head.split()[1] in (b"400", b"401"), head
    return took


def welch(one, other):
    spread = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return (statistics.mean(one) - statistics.mean(other)) / spread**0.5


def measure(port, pair, rounds):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for request in pair * 50:
        ask(connection, request)
    batches = ([], [])
    for _ in range(rounds // BATCH):
        took = ([], [])
        for which in random.sample([0, 1] * BATCH, 2 * BATCH):
            took[which].append(ask(connection, pair[which]))
        for which in (0, 1):
            batches[which].append(statistics.median(took[which]))
    return batches


def main():
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    with tempfile.TemporaryDirectory() as directory:
        process, port = start(sys.argv[1], pathlib.Path(directory))
        try:
            client, secret = register(port)
            form = "grant_type=refresh_token&refresh_token=x"
            wrong = "x" * len(secret)
            near = secret[:-1] + ("x" if secret[-1] != "x" else "y")
            sealed = "postern_at_" + "A" * 200
            pairs = {
                "client secret: all wrong, all but the last character right": [
                    token_request(port, client, guess, form) for guess in (wrong, near)
                ],
                "client secret: two that are all wrong": [
                    token_request(port, client, guess, form) for guess in (wrong, "y" * len(secret))
                ],
                "access token: two that are not ours": [
                    bearer_request(port, token) for token in (sealed, sealed[:-1] + "B")
                ],
            }
            for name, pair in pairs.items():
                one, other = measure(port, pair, rounds)
                t = welch(one, other)
                verdict = "nothing is seen" if abs(t) < LIMIT else "DIFFERENT"
                print(f"{name}: {statistics.mean(one) / 1000:.1f} µs, {statistics.mean(other) / 1000:.1f} µs, t = {t:.2f}: {verdict}")
        finally:
            process.terminate()
            process.wait()


main()
