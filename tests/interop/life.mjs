// The long life of a client nobody here wrote: it signs in, its token expires, it is asked for more, it is revoked, and the
// gateway forgets that it ever registered. After each of them the same session object calls the tool again.
import { startPerson } from './browser.mjs';
import { Memory } from './clients/memory.mjs';
import { startRedirect } from './clients/redirect.mjs';
import { startPostern, user } from './postern.mjs';
import * as example from './upstreams/example.mjs';

const clients = { sdk1: () => import('./clients/sdk1.mjs'), sdk2: () => import('./clients/sdk2.mjs') };

export const cases = Object.keys(clients).map(client => ({ name: `life-${client}`, run: options => live(client, options) }));

const TOOL_SCOPE = 'demo:greet';

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

async function live(name, { binary, directory, screenshots, defer, say }) {
  if (!binary) return false;
  const { sdk } = await clients[name]();
  const server = await example.startUpstream({ defer });
  const gateway = await startPostern({
    binary,
    directory,
    upstreamUrl: server.url,
    more: { oauth_server: { access_token_ttl: '3s' } },
    route: { tool_scopes: { [server.tool.name]: [TOOL_SCOPE] } },
    defer,
  });
  const person = await startPerson({ directory, credentials: () => user, screenshots, defer });
  const { uri: redirectUri } = await startRedirect({ defer });
  const app = new App({ sdk, gateway, person, redirectUri, defer });
  const trips = () => person.trips.length;
  try {
    await app.connect();
    expect(trips() === 1, `signing in took ${trips()} trips`);
    expect(app.scopes().join() === 'mcp:access', `the first token may ${app.scopes()}`);

    server.check(await app.call(server.tool));
    expect(trips() === 2, `the step-up took ${trips() - 1} trips`);
    expect(app.scopes().sort().join() === `${TOOL_SCOPE},mcp:access`, `after the step-up it may ${app.scopes()}`);
    say(`stepped up: ${app.scopes().join(' ')}`);

    const first = app.token();
    const deadline = Date.now() + 15_000;
    while (app.token() === first) {
      server.check(await app.call(server.tool));
      expect(Date.now() < deadline, 'the token was not refreshed');
    }
    expect(trips() === 2, 'a refresh needs nobody');
    expect(app.scopes().includes(TOOL_SCOPE), 'a refresh loses no scope');
    say('refreshed after the token had expired');

    await app.revoke();
    server.check(await app.callAgain(server.tool));
    expect(trips() > 2, 'after a revocation nobody was asked');
    say(`revoked and let in again, ${trips() - 2} trips`);

    const [before, known] = [trips(), app.clientId()];
    await gateway.again({ empty: true });
    server.check(await app.callAgain(server.tool));
    expect(trips() > before, 'the gateway knew nobody, and nobody was asked');
    // A public client's id is made of what it registered: to register the same again gives the same.
    expect(gateway.child.output().includes('client_registered'), 'the client did not register again');
    expect(app.clientId() === known, 'the same client has another id');
    say(`registered again, ${trips() - before} trips`);
  } catch (error) {
    const steps = person.trips.flatMap(trip => trip.steps);
    throw new Error(`${error.stack}\n${steps.join('\n')}\n${gateway.child.output()}`);
  }
  return true;
}

/** An application around an SDK's client: when the SDK sends it to the person, it goes, and tries again. */
class App {
  #address;

  constructor(parts) {
    Object.assign(this, parts);
    this.memory = new Memory({ redirectUri: parts.redirectUri, onAuthorize: found => void (this.#address = found) });
  }

  async connect() {
    await this.client?.close().catch(() => {});
    for (let tries = 0; ; tries++) {
      const client = this.sdk.client();
      const transport = this.sdk.transport(this.gateway.url, this.memory);
      try {
        await client.connect(transport);
        Object.assign(this, { client, transport });
        this.defer(() => client.close());
        return;
      } catch (error) {
        if (tries === 3) throw error;
        await this.#authorize(transport);
        await transport.close();
      }
    }
  }

  async call(tool) {
    for (let tries = 0; ; tries++) {
      try {
        return (await this.client.callTool(tool)).content[0].text;
      } catch (error) {
        if (tries === 3) throw error;
        await this.#authorize(this.transport);
      }
    }
  }

  /** The same in a new session, where the old one may be gone with whatever it stood on. */
  async callAgain(tool) {
    await this.connect();
    return this.call(tool);
  }

  /** Where the SDK has sent nobody anywhere it has given up on a token that ended on the way: then once more. */
  async #authorize(transport) {
    const address = this.#address;
    this.#address = undefined;
    if (!address) return;
    await this.sdk.finish(transport, this.memory.answer(await this.person.authorize(address)));
  }

  async revoke() {
    const body = new URLSearchParams({ token: this.memory.tokens().refresh_token, client_id: this.clientId() });
    const reply = await fetch(`${this.gateway.origin}/oauth/revoke`, { method: 'POST', body });
    expect(reply.status === 200, `revocation: ${reply.status}`);
  }

  scopes() {
    return (this.memory.tokens().scope ?? '').split(' ');
  }

  token() {
    return this.memory.tokens().access_token;
  }

  clientId() {
    return this.memory.clientInformation().client_id;
  }
}
