// The long life of a client nobody here wrote: it signs in, its token expires, it is asked for more, it is revoked, and the
// gateway forgets that it ever registered. After each of them the same session object calls the tool again.
import { startPerson } from './browser.mjs';
import { startPostern, user } from './postern.mjs';
import * as example from './upstreams/example.mjs';

const sdk = module => async parts => {
  const [{ SdkApp }, { sdk }] = await Promise.all([import('./lives/sdk.mjs'), module()]);
  return new SdkApp({ ...parts, sdk });
};
const apps = {
  sdk1: sdk(() => import('./clients/sdk1.mjs')),
  sdk2: sdk(() => import('./clients/sdk2.mjs')),
  'mcp-remote': async parts => new (await import('./lives/mcp-remote.mjs')).RemoteApp(parts),
  python: async parts => new (await import('./lives/python.mjs')).PythonApp(parts),
  inspector: async parts => new (await import('./lives/inspector.mjs')).InspectorApp(parts),
};

export const cases = Object.keys(apps).map(app => ({ name: `life-${app}`, run: options => live(app, options) }));

const TOOL_SCOPE = 'demo:greet';

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

async function live(name, { binary, directory, screenshots, defer, say }) {
  if (!binary) return false;
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
  const app = await apps[name]({ gateway, person, directory, defer });
  const trips = () => person.trips.length;
  const scopes = async () => (await app.kept()).tokens.scope.split(' ').sort().join(' ');
  try {
    await app.connect();
    expect(trips() === 1, `signing in took ${trips()} trips`);
    expect((await scopes()) === 'mcp:access mcp:tools', `the first token may ${await scopes()}`);

    server.check(await app.call(server.tool));
    expect(trips() === 2, `the step-up took ${trips() - 1} trips`);
    const both = `${TOOL_SCOPE} mcp:access mcp:tools`;
    expect((await scopes()) === both, `after the step-up it may ${await scopes()}`);
    say(`stepped up: ${both}`);

    const token = async () => (await app.kept()).tokens.access_token;
    const first = await token();
    const deadline = Date.now() + 15_000;
    while ((await token()) === first) {
      server.check(await app.call(server.tool));
      expect(Date.now() < deadline, 'the token was not refreshed');
    }
    expect(trips() === 2, 'a refresh needs nobody');
    expect((await scopes()) === both, 'a refresh loses no scope');
    say('refreshed after the token had expired');

    await revoke(gateway, await app.kept());
    server.check(await app.callAgain(server.tool));
    expect(trips() > 2, 'after a revocation nobody was asked');
    say(`revoked and let in again, ${trips() - 2} trips`);

    const [before, { id }] = [trips(), await app.kept()];
    // Some do not register again by themselves: the page says what their person has to do.
    await app.forget?.();
    await gateway.again({ empty: true });
    const asked = await fetch(`${gateway.origin}/oauth/authorize?client_id=${id}`);
    const page = await asked.text();
    expect(asked.status === 400 && page.includes('Remove this server from it, add it again'), `the page says ${page}`);
    server.check(await app.callAgain(server.tool));
    expect(trips() > before, 'the gateway knew nobody, and nobody was asked');
    expect(gateway.child.printed('client_registered'), 'the client did not register again');
    // A public client's id is made of what it registered: to register the same again gives the same.
    expect((await app.kept()).id === id, 'the same client has another id');
    say(`registered again, ${trips() - before} trips`);
  } catch (error) {
    const steps = person.trips.flatMap(trip => trip.steps);
    throw new Error(`${error.stack}\n${app.log?.() ?? ""}\n${steps.join('\n')}\n${gateway.child.output()}`);
  }
  return true;
}


/** What a person does who takes a client's access back. */
async function revoke(gateway, { tokens, id }) {
  const body = new URLSearchParams({ token: tokens.refresh_token, client_id: id });
  const reply = await fetch(`${gateway.origin}/oauth/revoke`, { method: 'POST', body });
  expect(reply.status === 200, `revocation: ${reply.status}`);
}
