"""What Postern is measured beside, each configured as its own documentation advises (the files in benches/conf/)."""

import os
import pathlib
import shutil
from dataclasses import dataclass

from . import machine, users
from .calls import ANSWER

CONF = pathlib.Path(__file__).resolve().parent.parent / "conf"


KEYS = [
    "nginx", "nginx-header", "nginx-auth", "haproxy", "haproxy-jwt",
    "envoy", "envoy-jwt", "envoy-jwt-cache", "envoy-ext-proc",
]  # fmt: skip


@dataclass
class Target:
    """What is measured: `tokens` gives a bearer token for each user, `arrives` what the backend must see for user k,
    `log` is a file that grows with every call."""

    key: str
    name: str
    url: str
    processes: list
    tokens: callable
    arrives: callable
    log: pathlib.Path | None = None


def filled(directory, name, **names):
    """The file `name` of benches/conf/ with its @names@ filled in; its path."""
    text = (CONF / name).read_text()
    for key, value in names.items():
        text = text.replace(f"@{key}@", str(value))
    path = directory / name
    path.write_text(text)
    return path


def idle_tokens():
    return users.IDLE_TOKENS


def untouched(number):
    return f"Bearer {users.IDLE_TOKENS[number]}"


def fixed(_):
    return f"Bearer {users.FIXED}"


def from_the_map(number):
    return f"Bearer {users.upstream_token(users.NAMES[number])}"


def nginx(programs, conf, core, **names):
    directory, port = programs.directory, machine.free_port()
    user = "root" if os.geteuid() == 0 else "nobody"
    path = filled(directory, conf, dir=directory, user=user, port=port, fixed=users.FIXED, **names)
    command = ["nginx", "-p", directory, "-c", path, "-e", "stderr"]
    return programs.start(path.stem, command, core), f"http://127.0.0.1:{port}"


def backend(programs):
    """The target of no proxy at all, where the CPU is the backend's own; and its address."""
    process, origin = nginx(programs, "backend.conf", machine.LOAD_CORE, answer=ANSWER)
    name = "direct (CPU of the backend)"
    target = Target("direct", name, f"{origin}/mcp", [process], idle_tokens, untouched)
    return target, origin.removeprefix("http://")


def nginxes(programs, address):
    process, origin = nginx(programs, "nginx.conf", machine.PROXY_CORE, backend=address.partition(":")[2])
    return [
        Target("nginx", "nginx proxy_pass", f"{origin}/plain", [process], idle_tokens, untouched),
        Target("nginx-header", "nginx proxy_pass, fixed header", f"{origin}/header", [process], idle_tokens, fixed),
        Target("nginx-auth", "nginx auth_request, header", f"{origin}/auth-request", [process], idle_tokens, fixed),
    ]


def haproxies(programs, address, signed):
    plain, jwt, directory = machine.free_port(), machine.free_port(), programs.directory
    map_file = directory / "haproxy.map"
    map_file.write_text("".join(f"{name} {users.upstream_token(name)}\n" for name in users.NAMES))
    path = filled(
        directory, "haproxy.cfg", plain=plain, jwt=jwt, map=map_file, public_key=signed.public, issuer=users.ISSUER,
        audience=users.AUDIENCE, fixed=users.FIXED, backend=address.partition(":")[2],
    )  # fmt: skip
    process = programs.start("haproxy", ["haproxy", "-db", "-f", path], machine.PROXY_CORE)
    plain, jwt = (f"http://127.0.0.1:{port}/mcp" for port in (plain, jwt))
    return [
        Target("haproxy", "HAProxy, fixed header", plain, [process], idle_tokens, fixed),
        Target("haproxy-jwt", "HAProxy jwt_verify RS256, map", jwt, [process], signed, from_the_map),
    ]


def envoy_program(directory):
    """From the PyPI package that tests/setup/install.sh puts there, or wherever PATH has one."""
    packaged = directory / "envoy" / "_bin" / "envoy"
    if packaged.exists():
        packaged.chmod(0o755)  # pip leaves it without
        return packaged
    return shutil.which("envoy")


def envoys(programs, address, signed, program, ext_proc):
    """`ext_proc`: the program that answers Envoy's questions; its CPU counts with Envoy's."""
    names = {name: machine.free_port() for name in ("admin", "plain", "jwt", "cached", "processed", "ext_proc")}
    path = filled(
        programs.directory, "envoy.yaml", backend=address.partition(":")[2], jwks=signed.jwks, issuer=users.ISSUER,
        audience=users.AUDIENCE, fixed=users.FIXED, **names,
    )  # fmt: skip
    command = [program, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    envoy = programs.start("envoy", command, machine.PROXY_CORE)

    def target(key, name, port, tokens, *others):
        return Target(key, name, f"http://127.0.0.1:{names[port]}/mcp", [envoy, *others], tokens, fixed)

    targets = [
        target("envoy", "Envoy, fixed header", "plain", idle_tokens),
        target("envoy-jwt", "Envoy jwt_authn RS256", "jwt", signed),
        target("envoy-jwt-cache", "Envoy jwt_authn RS256, cached", "cached", signed),
    ]
    if ext_proc:
        command = [ext_proc, "--listen", f"127.0.0.1:{names['ext_proc']}"]
        side = programs.start("ext_proc", command, machine.PROXY_CORE)
        targets.append(target("envoy-ext-proc", "Envoy + ext_proc", "processed", idle_tokens, side))
    return targets


# Buffers and scheduling as src/server/mod.rs has them.
AS_POSTERN = ("--read-buffer", "2048", "--write-buffer", "2048", "--work-stealing", "false")


def bare(
    programs, program, address, key="bare", name="bare Pingora", path="/mcp", tls=None, cores=(machine.PROXY_CORE,)
):
    """Pingora that only forwards, with Postern's settings unless it is the one of the examples. `tls`: files of a
    certificate and its key. One worker for each of `cores`."""
    port = machine.free_port()
    command = [program, "--listen", f"127.0.0.1:{port}", "--upstream", address]
    if key != "bare-examples":
        command += AS_POSTERN
    if tls:
        command += ["--tls-cert", tls[0], "--tls-key", tls[1]]
    if len(cores) > 1:
        command += ["--threads", len(cores)]
    process = programs.start(key, command, ",".join(map(str, cores)))
    scheme = "https" if tls else "http"
    return Target(key, name, f"{scheme}://127.0.0.1:{port}{path}", [process], idle_tokens, untouched)
