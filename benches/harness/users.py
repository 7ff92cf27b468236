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
    """An authorization server that believes the cookie and gives every user another token."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        answer = urllib.parse.urlencode({"code": self.headers["Cookie"], "state": asked["state"]})
        self.send_response(302)
        self.send_header("Location", f"{asked['redirect_uri']}?{answer}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        tokens = {"access_token": upstream_token(form["code"]), "token_type": "Bearer", "expires_in": 86400}
        body = json.dumps(tokens).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Crowd(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


def authorization_server(stack):
    """Its origin."""
    server = stack.enter_context(Crowd(("127.0.0.1", 0), Consenting))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)
    return f"http://127.0.0.1:{server.server_address[1]}"


class GatewayTokens:
    """Of one Postern, one for each user, got by the real flow and refreshed when half their life is over."""

    def __init__(self, origin, resource):
        self.origin, began = origin, time.monotonic()
        self.client_id = signin.registered(origin)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.tokens = list(pool.map(lambda name: signin.sign_in(origin, self.client_id, resource, name, PASSWORD), NAMES))
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
