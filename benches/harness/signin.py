"""Gets tokens from Postern the way an MCP client and a person's browser do: register, authorize, sign in, consent,
redeem. Standard library only. Forms are read, not assumed: whatever hidden fields a page
carries go back with it, and its action is followed."""

import base64
import hashlib
import html.parser
import http.client
import json
import secrets
import ssl
import urllib.parse

REDIRECT_URI = "http://127.0.0.1/callback"
MOST_STEPS = 15


class Page(html.parser.HTMLParser):
    """The forms of a page and where its meta refresh leads."""

    def __init__(self, text):
        super().__init__()
        self.forms, self.refresh = [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "form":
            self.forms.append({"action": attributes.get("action") or "", "fields": {}, "types": {}})
        elif tag == "meta" and (attributes.get("http-equiv") or "").lower() == "refresh":
            _, _, target = attributes.get("content", "").partition("=")
            self.refresh = target.strip().strip("'\"")
        elif tag in ("input", "button") and self.forms and attributes.get("name"):
            form, name = self.forms[-1], attributes["name"]
            kind = "button" if tag == "button" else (attributes.get("type") or "text").lower()
            form["types"][name] = kind
            if kind not in ("button", "submit"):
                form["fields"][name] = attributes.get("value") or ""


class Browser:
    """Somebody's browser at one origin: a connection that stays, and cookies. Redirects are returned, not followed.
    Elsewhere it says by a cookie who it is: the stand-in authorization server asks nothing else."""

    def __init__(self, origin, user=""):
        self.origin, self.user, self.cookies = origin, user, {}
        self.connection = connection(origin)

    def request(self, method, url, body=None, content_type=None, accept="text/html"):
        target = urllib.parse.urlsplit(urllib.parse.urljoin(self.origin, url))
        path = (target.path or "/") + (f"?{target.query}" if target.query else "")
        if target.netloc != urllib.parse.urlsplit(self.origin).netloc:
            return sent(connection(target.geturl()), method, path, None, {"Cookie": self.user})
        headers = {"Accept": accept}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if body is not None:
            headers |= {"Content-Type": content_type, "Origin": self.origin, "Sec-Fetch-Site": "same-origin"}
        response, text = sent(self.connection, method, path, body, headers)
        for line in response.headers.get_all("Set-Cookie") or []:
            pair, *attributes = (part.strip() for part in line.split(";"))
            name, _, value = pair.partition("=")
            self.cookies[name] = value
            if "max-age=0" in (attribute.lower() for attribute in attributes):
                del self.cookies[name]
        return response, text

    def post_form(self, url, fields, accept="text/html"):
        return self.request(
            "POST", url, urllib.parse.urlencode(fields), "application/x-www-form-urlencoded", accept
        )


def connection(url):
    """One that is not made yet; certificates are our own, of a moment ago, and nobody's word is needed for them."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(parts.netloc, timeout=30, context=ssl._create_unverified_context())
    return http.client.HTTPConnection(parts.netloc, timeout=30)


def sent(over, method, path, body, headers):
    over.request(method, path, body, headers)
    response = over.getresponse()
    return response, response.read().decode()


def expect(response, text, *statuses):
    if response.status not in statuses:
        raise RuntimeError(f"expected {statuses}, got {response.status}: {text[:300]}")


def walk(browser, url, username, password):
    """Follows redirects, meta refreshes and forms until the client's redirect URI; gives its parameters."""
    response, text = browser.request("GET", url)
    for _ in range(MOST_STEPS):
        if 300 <= response.status < 400:
            following = response.headers["Location"]
        else:
            expect(response, text, 200)
            page = Page(text)
            following = page.refresh
            if following is None:
                form = fill(page, username, password)
                response, text = browser.post_form(form["action"] or url, form["fields"])
                continue
        if following.startswith(REDIRECT_URI):
            return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(following).query))
        url = urllib.parse.urljoin(urllib.parse.urljoin(browser.origin, url), following)
        response, text = browser.request("GET", url)
    raise RuntimeError(f"no end after {MOST_STEPS} steps, last at {url}")


def fill(page, username, password):
    """The form to send back: the sign-in form with its two fields, or the consent form with `allow`."""
    for form in page.forms:
        if "password" in form["types"].values():
            form["fields"] |= {"username": username, "password": password}
            return form
        if "decision" in form["types"]:
            form["fields"]["decision"] = "allow"
            return form
    raise RuntimeError("a page with neither a sign-in nor a consent form")


def registered(origin):
    """The id of a client of ours."""
    client = {
        "client_name": "benchmark",
        "redirect_uris": [REDIRECT_URI],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
    }
    browser = Browser(origin)
    response, text = browser.request(
        "POST", "/oauth/register", json.dumps(client), "application/json", "application/json"
    )
    expect(response, text, 201)
    return json.loads(text)["client_id"]


def sign_in(origin, client_id, resource, username, password):
    """The tokens for `resource`, as the token endpoint gives them."""
    browser = Browser(origin, username)
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": REDIRECT_URI,
        "scope": "mcp:access",
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "resource": resource,
    }
    answer = walk(browser, f"/oauth/authorize?{urllib.parse.urlencode(query)}", username, password)
    if "code" not in answer or answer.get("state") != state:
        raise RuntimeError(f"authorization failed: {answer.get('error')} {answer.get('error_description', '')}")
    return redeemed(
        browser,
        {
            "grant_type": "authorization_code",
            "code": answer["code"],
            "client_id": client_id,
            "redirect_uri": REDIRECT_URI,
            "code_verifier": verifier,
            "resource": resource,
        },
    )


def refreshed(browser, client_id, refresh_token):
    """Newer tokens for older ones."""
    form = {"grant_type": "refresh_token", "client_id": client_id, "refresh_token": refresh_token}
    return redeemed(browser, form)


def redeemed(browser, form):
    response, text = browser.post_form("/oauth/token", form, "application/json")
    expect(response, text, 200)
    return json.loads(text)
