"""Before any load: every target answers, and the backend sees the credential it should, of every user."""

import http.client
import os
import pathlib
import time
import urllib.parse

from . import users
from .calls import ANSWER, CALL, HEADERS
from .signin import connection

def wait_until_serving(url, processes):
    """Until the port answers anything at all; a program that has ended is an error."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in processes:
            if process.poll() is not None:
                raise RuntimeError(f"{process.name} ended with {process.returncode}")
        asking = connection(url)
        try:
            asking.request("GET", "/")
            asking.getresponse().read()
            return
        except (OSError, http.client.HTTPException):
            time.sleep(0.005)
        finally:
            asking.close()
    raise RuntimeError(f"{url} does not answer")


def posted(asking, path, token, body, more=None):
    asking.request("POST", path, body, HEADERS | {"Authorization": f"Bearer {token}"} | (more or {}))
    response = asking.getresponse()
    return response.status, response.read().decode()


def credentials(target, seen):
    """One call of each user must come back whole, and the backend must have seen exactly that user's credential.
    `seen`: the backend's list of what arrived."""
    seen = pathlib.Path(seen)
    os.truncate(seen, 0)
    asking, path = connection(target.url), urllib.parse.urlsplit(target.url).path
    for number, token in enumerate(target.tokens()):
        status, body = posted(asking, path, token, CALL, {"X-Bench-Check": "1"})
        if status != 200 or body != ANSWER:
            raise RuntimeError(f"{target.name}, {users.NAMES[number]}: {status} {body[:300]}")
    asking.close()
    deadline = time.monotonic() + 5
    while len(arrived := seen.read_text().splitlines()) < users.COUNT and time.monotonic() < deadline:
        time.sleep(0.01)  # nginx writes its line just after the answer
    if arrived != [target.arrives(number) for number in range(users.COUNT)]:
        raise RuntimeError(f"{target.name}: the backend saw other credentials than it should")
