"""Ten thousand configurations and a hundred thousand assignments, made over the management API as organisations make them."""

import concurrent.futures
import http.client
import itertools
import json
import os
import re
import subprocess
import threading
import urllib.parse
from unittest import mock

from . import users

ORGANIZATIONS, CONFIGURATIONS, ASSIGNED = 125, 80, 10
THREADS = 8
# Each may ask so much in a short time; together they may ask for all of it.
ACCOUNTS = 150


def uncounted():
    """A program that is built so that it counts what runs (`benches/build.sh`) and that starts within this keeps it to itself: to make so
    many is more work than all the calls that are to say what is warm."""
    return mock.patch.dict(os.environ, {"LLVM_PROFILE_FILE": os.devnull})


def filled(made, upstream):
    """Fills the store of this gateway. The address of one configuration that all users may use."""
    asking = Asking(made)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda number: organization(asking, number, upstream), range(ORGANIZATIONS)))
        everybody = asking("POST", "/organizations", {"name": "everybody"})["id"]
        member = f"/organizations/{everybody}/members"
        list(pool.map(lambda name: asking("PUT", f"{member}/{name}", {"role": "member"}), users.NAMES))
        shared = added(asking, everybody, "shared", upstream)
        list(pool.map(lambda name: assigned(asking, shared, name), users.NAMES))
    return shared["route"]["url"]


def organization(asking, number, upstream):
    members = [users.NAMES[(number * ASSIGNED + each) % users.COUNT] for each in range(ASSIGNED)]
    made = asking("POST", "/organizations", {"name": f"organization {number}"})["id"]
    for name in members:
        asking("PUT", f"/organizations/{made}/members/{name}", {"role": "member"})
    for each in range(CONFIGURATIONS):
        configuration = added(asking, made, f"server {each}", upstream)
        for name in members:
            assigned(asking, configuration, name)


def added(asking, organization, name, upstream):
    auth = {"mode": "static_headers", "headers": [{"name": "Authorization", "value": users.FIXED}]}
    wanted = {"organization": organization, "name": name, "url": upstream, "auth": auth, "sharing": "multi_user"}
    return asking("POST", "/configurations", wanted)


def assigned(asking, configuration, name):
    asking("PUT", f"/configurations/{configuration['id']}/assignments/{name}")


class Asking:
    """The management API, asked by many programs in turns."""

    def __init__(self, made):
        self.place = urllib.parse.urlsplit(made.origin).netloc
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            self.accounts = itertools.cycle(pool.map(lambda number: account(made, number), range(ACCOUNTS)))
        self.turn, self.own = threading.Lock(), threading.local()

    def __call__(self, method, path, document=None):
        with self.turn:
            token = next(self.accounts)
        if not hasattr(self.own, "connection"):
            self.own.connection = http.client.HTTPConnection(self.place, timeout=60)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = None if document is None else json.dumps(document)
        self.own.connection.request(method, f"/api/v1{path}", body, headers)
        answer = self.own.connection.getresponse()
        said = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {said.decode()}")
        return json.loads(said) if said else None


def account(made, number):
    command = [made.program, "service-accounts", "create", f"bench-{number}", "--api", "connections:read,connections:write"]
    said = subprocess.run([*command, "--config", made.path], capture_output=True, text=True, check=True).stdout
    return re.search(r"postern_st_\S+", said)[0]
