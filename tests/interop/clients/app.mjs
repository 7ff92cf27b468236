// A client written out by hand, for cases that take its steps one at a time.
import { createHash, randomBytes } from 'node:crypto';
import { metadata } from './redirect.mjs';

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

/** One that registers itself; `about` is added to what it says. */
export async function register(gateway, redirectUri, about) {
  const body = JSON.stringify({ ...metadata, ...about, redirect_uris: [redirectUri] });
  const headers = { 'content-type': 'application/json' };
  const reply = await fetch(`${gateway.origin}/oauth/register`, { method: 'POST', headers, body });
  expect(reply.status === 201, `registration: ${reply.status}`);
  return new App(gateway, (await reply.json()).client_id, redirectUri);
}

/** A client that asks `gateway`, which has an `origin` and the `url` of a route. */
export class App {
  #verifier = randomBytes(32).toString('base64url');
  #state;

  constructor(gateway, id, redirectUri) {
    Object.assign(this, { gateway, id, redirectUri });
  }

  /** The address that this client opens in the browser. */
  begin() {
    this.#state = randomBytes(8).toString('hex');
    const asked = new URLSearchParams({
      response_type: 'code',
      client_id: this.id,
      redirect_uri: this.redirectUri,
      code_challenge: createHash('sha256').update(this.#verifier).digest('base64url'),
      code_challenge_method: 'S256',
      state: this.#state,
      resource: this.gateway.url,
      scope: 'mcp:access',
    });
    return `${this.gateway.origin}/oauth/authorize?${asked}`;
  }

  #mine({ searchParams }) {
    expect(searchParams.get('state') === this.#state, `the answer is ${searchParams}`);
    expect(searchParams.get('iss') === this.gateway.origin, `the answer is ${searchParams}`);
    return searchParams;
  }

  refused(returned, error) {
    const answer = this.#mine(returned);
    expect(answer.get('error') === error && !answer.has('code'), `the answer is ${answer}`);
  }

  /** The access token for the code that came back. */
  async redeem(returned) {
    const body = new URLSearchParams({
      grant_type: 'authorization_code',
      code: this.#mine(returned).get('code'),
      client_id: this.id,
      redirect_uri: this.redirectUri,
      code_verifier: this.#verifier,
      resource: this.gateway.url,
    });
    const reply = await fetch(`${this.gateway.origin}/oauth/token`, { method: 'POST', body });
    expect(reply.status === 200, `token: ${reply.status}`);
    return (await reply.json()).access_token;
  }

  async whoami(token) {
    const headers = {
      authorization: `Bearer ${token}`,
      'content-type': 'application/json',
      accept: 'application/json, text/event-stream',
      'mcp-protocol-version': '2025-11-25',
    };
    const body = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'whoami' } });
    const reply = await fetch(this.gateway.url, { method: 'POST', headers, body });
    expect(reply.status === 200, `whoami: ${reply.status}`);
    return (await reply.json()).result.content[0].text;
  }
}
