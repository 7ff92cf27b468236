"""A thousand users, and what each has: a token of every gateway under test, and a credential of their own upstream."""

import base64
import concurrent.futures
import json
import subprocess
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from . import signin

COUNT = 1000
NAMES = [f"user-{number:04}" for number in range(COUNT)]
PASSWORD = "pw"
# Deliberately cheap: signing in is not what is measured.
PASSWORD_HASH = "$argon2id$v=19$m=8,t=1,p=1$YmVuY2htYXJrLW9ubHkhIQ$bve6VApxlB7nemOTMaCrObzW5oaZtGsC+L8UE+Db9iA"
# As long as a token of Postern's; for those that look at none.
IDLE_TOKENS = [f"{name}-".ljust(240, "x") for name in NAMES]
# What a gateway without users puts in, for everybody.
FIXED = "fixed-".ljust(48, "x")
ISSUER, AUDIENCE = "https://idp.example.com", "https://mcp.example.com/mcp"


def upstream_token(name):
    return f"upstream-of-{name}-".ljust(48, "u")


class Consenting(BaseHTTPRequestHandler):
    """An authorization server that believes the cookie and gives every user another token. Asked for anything
    else it challenges, as an MCP server does."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        answer = urllib.parse.urlencode({"code": self.headers["Cookie"], "state": asked["state"]})
        self.answer(302, b"", {"Location": f"{asked['redirect_uri']}?{answer}"})

    def do_POST(self):
        given = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path != "/token":
            self.answer(401, b"", {"WWW-Authenticate": "Bearer"})
            return
        form = dict(urllib.parse.parse_qsl(given))
        tokens = {"access_token": upstream_token(form["code"]), "token_type": "Bearer", "expires_in": 86400}
        self.answer(200, json.dumps(tokens).encode(), {"Content-Type": "application/json"})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Crowd(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


def authorization_server(stack, port=0):
    """Its origin, while `stack` is open."""
    server = stack.enter_context(Crowd(("127.0.0.1", port), Consenting))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)
    return f"http://127.0.0.1:{server.server_address[1]}"


class GatewayTokens:
    """Of one Postern, one for each user, got by the real flow and refreshed when half their life is over."""

    def __init__(self, origin, resource):
        self.origin, began = origin, time.monotonic()
        self.client_id = signin.registered(origin)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            signed_in = lambda name: signin.sign_in(origin, self.client_id, resource, name, PASSWORD)  # noqa: E731
            self.tokens = list(pool.map(signed_in, NAMES))
        self.live_from(began)
        self.seconds = time.monotonic() - began

    def live_from(self, began):
        self.refresh_at = began + self.tokens[0]["expires_in"] / 2

    def __call__(self):
        if time.monotonic() >= self.refresh_at:
            began, browser = time.monotonic(), signin.Browser(self.origin)
            self.tokens = [
                signin.refreshed(browser, self.client_id, tokens["refresh_token"]) for tokens in self.tokens
            ]
            self.live_from(began)
        return [tokens["access_token"] for tokens in self.tokens]


class SignedTokens:
    """JSON Web Tokens of one issuer, RS256, and the files by which its key is known."""

    def __init__(self, directory):
        self.private, self.public = directory / "issuer.key", directory / "issuer.pem"
        openssl("genrsa", "-out", self.private, "2048")
        openssl("rsa", "-in", self.private, "-pubout", "-out", self.public)
        modulus = openssl("rsa", "-in", self.private, "-noout", "-modulus").decode().strip().partition("=")[2]
        key = {"kty": "RSA", "kid": "bench", "alg": "RS256", "use": "sig", "e": "AQAB"}
        self.jwks = directory / "jwks.json"
        self.jwks.write_text(json.dumps({"keys": [key | {"n": base64url(bytes.fromhex(modulus))}]}))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            self.tokens = list(pool.map(self.signed, NAMES))

    def signed(self, name):
        now = int(time.time())
        header = {"alg": "RS256", "typ": "JWT", "kid": "bench"}
        claims = {"iss": ISSUER, "sub": name, "aud": AUDIENCE, "iat": now, "exp": now + 86400, "scope": "mcp:access"}
        signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = openssl("dgst", "-sha256", "-sign", self.private, given=signed.encode())
        return f"{signed}.{base64url(signature)}"

    def __call__(self):
        return self.tokens


def openssl(*arguments, given=None):
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
