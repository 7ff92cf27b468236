"""Postern under test: a route, a thousand users who have each signed in and connected their own upstream."""

import base64
import dataclasses
import json
import os
import time

from . import check, machine, peers, users


class Gateway:
    """Its target is there once it `serve`s and everybody has signed in."""

    def __init__(
        self, programs, program, key, name, upstream, consent,
        more=None, log=None, tls=None, cores=(machine.PROXY_CORE,), beside=None,
    ):  # fmt: skip
        """`upstream`: the URL of the MCP server. `consent`: origin of the authorization server. `more`: configuration.
        `beside`: other routes to the same server by their names, with what more is to be said of each.
        `log`: a file for the access log. `tls`: files of a certificate and its key. One worker for each of `cores`."""
        self.programs, self.program, self.key, self.log, self.cores = programs, program, key, log, cores
        port = machine.free_port()
        self.origin = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        self.path = programs.directory / f"{key}.yaml"
        server = {
            "public_url": self.origin,
            "listen": [f"127.0.0.1:{port}"],
            "admin": "off",
            "data_dir": str(programs.directory / f"{key}-data"),
            "threads": len(cores),
            "access_log": "json" if log else "off",
            "audit_log": "changes",
            "drain_timeout": "1s",
        }
        if tls:
            server["tls"] = {"certificates": [{"cert_file": str(tls[0]), "key_file": str(tls[1])}]}
        credential = {
            "kind": "oauth",
            "client_id": "bench",
            "token_endpoint_auth_method": "none",
            "authorization_endpoint": f"{consent}/authorize",
            "token_endpoint": f"{consent}/token",
        }
        everybody = [{"username": username, "password_hash": users.PASSWORD_HASH} for username in users.NAMES]
        named = {"bench": {"path": "/mcp"}} | {name: {"path": f"/{name}"} | more for name, more in (beside or {}).items()}
        common = {"upstream": {"url": upstream, "allow_private": True}, "credential": credential}
        configuration = {
            "server": server,
            "oauth_server": {"access_token_ttl": "15m"},
            "login": {"local": {"users": everybody}},
            "routes": [{"name": name} | common | own for name, own in named.items()],
        }
        self.path.write_text(json.dumps(configuration | (more or {})))  # JSON is YAML
        url = f"{self.origin}/mcp"
        self.target = peers.Target(key, name, url, [], None, peers.from_the_map, log)
        self.serve()

    def serve(self):
        command = [self.program, "run", "--config", self.path]
        cores = ",".join(map(str, self.cores))
        self.target.processes = [self.programs.start(self.key, command, cores, output=self.log)]

    def restart(self):
        """How long its start took, until it served; in seconds, a few milliseconds too long."""
        self.programs.end(*self.target.processes)
        began = time.monotonic()
        self.serve()
        check.wait_until_serving(self.target.url, self.target.processes)
        return time.monotonic() - began

    def sign_everybody_in(self):
        self.target.tokens = users.GatewayTokens(self.origin, self.target.url)

    def at(self, url, key, name):
        """Another route of it as a target, at which everybody has signed in too."""
        tokens = users.GatewayTokens(self.origin, url)
        return dataclasses.replace(self.target, key=key, name=name, url=url, tokens=tokens)


def ruled(rule):
    """Configuration with this rule for calls; where it denies, the rest is allowed."""
    return {"policy": {"default": "allow" if "deny" in rule else "deny", "call": [rule]}}


def redis(programs):
    """One that keeps nothing; its port."""
    port = machine.free_port()
    command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", programs.directory]
    programs.start("redis", command, machine.LOAD_CORE)
    return port


def on_redis(directory, port):
    """What the configuration says of a shared store."""
    key = directory / "sealing.key"
    key.write_text(base64.b64encode(os.urandom(32)).decode())
    key.chmod(0o600)
    return {
        "store": {"kind": "redis", "urls": [f"redis://127.0.0.1:{port}/0"]},
        "sealing_keys": [{"id": "k1", "file": str(key)}],
    }


def certificate(directory):
    """Files of a certificate for loopback and its key, P-256."""
    files = directory / "tls.crt", directory / "tls.key"
    users.openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
        "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1],
    )  # fmt: skip
    return files
