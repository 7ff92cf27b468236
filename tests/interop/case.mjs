// One case: a client nobody here wrote goes through the whole flow and calls a tool of a protected upstream.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { startPerson } from './browser.mjs';
import { startDocument } from './document.mjs';
import { metadata } from './clients/redirect.mjs';
import { startPostern, user } from './postern.mjs';
import * as example from './upstreams/example.mjs';
import * as fastmcp from './upstreams/fastmcp.mjs';
import * as oidc from './upstreams/oidc.mjs';

const upstreams = { example, oidc, fastmcp };
const clients = {
  sdk1: () => import('./clients/sdk1.mjs'),
  sdk2: () => import('./clients/sdk2.mjs'),
  'mcp-remote': () => import('./clients/mcp-remote.mjs'),
  python: () => import('./clients/python.mjs'),
};

// Upstreams see nothing of how a client registers here, so not each of them needs both ways.
const met = { dcr: ['example', 'oidc', 'fastmcp'], cimd: ['example', 'oidc'] };

/** Every client, registering in both ways, against upstreams; named `client-registration-upstream`. */
export const cases = Object.keys(clients).flatMap(client =>
  Object.keys(met).flatMap(registration =>
    met[registration].map(upstream => ({
      name: `${client}-${registration}-${upstream}`,
      run: options => runCase({ client, registration, upstream }, options),
    })),
  ),
);

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

/**
 * Runs one case. `binary` is Postern's; without it the client talks to the upstream directly, which tries the
 * harness itself. `defer` takes what has to be stopped afterwards, `say` takes a line for the reader.
 * Returns false when there is nothing to run.
 */
async function runCase({ client, registration, upstream }, { binary, directory, screenshots, defer, say }) {
  const byDocument = registration === 'cimd';
  if (!binary && byDocument && !upstreams[upstream].facts.authorizationServerTakesDocuments) return false;
  if (screenshots) await mkdir(screenshots, { recursive: true });

  const { connect } = await clients[client]();
  const { redirectUri, start } = await connect({ directory, defer });
  const document = byDocument && (await startDocument({ directory, redirectUri, metadata, defer }));
  const authority = document ? document.authority : undefined;
  const server = await upstreams[upstream].startUpstream({ authority: binary ? undefined : authority, defer });
  const gateway = binary && (await startPostern({ binary, directory, upstreamUrl: server.url, authority, defer }));
  const credentials = origin =>
    origin === gateway?.origin ? user : { name: oidc.subject, password: 'anything' };
  const person = await startPerson({ directory, credentials, screenshots, defer });

  try {
    const url = gateway ? gateway.url : server.url;
    const session = await start({ url, documentUrl: document ? document.url : undefined, authorize: person.authorize });
    const tools = await session.tools();
    expect(tools.includes(server.tool.name), `the tools are ${tools}`);
    const text = await session.call(server.tool);
    server.check(text);
    say(`called ${server.tool.name}: ${text}`);
    checkTrip({ trip: person.trips[0], url, document, gateway, server });
    if (server.refuseTokens) await refuseAndCall({ session, server, gateway, before: text, say });
    await session.close();
    if (gateway) await checkGateway({ gateway, trips: person.trips });
  } catch (error) {
    const logs = [gateway && gateway.child.output(), server.log?.()].filter(Boolean);
    error.message = [error.message, ...logs].join('\n');
    throw error;
  } finally {
    for (const trip of person.trips) trip.steps.forEach(step => say(step));
  }
  return true;
}

/** What the browser's way proves: who the client said it was, for which resource, and where the trip led. */
function checkTrip({ trip, url, document, gateway, server }) {
  expect(trip, 'nobody was asked to authorize');
  const asked = trip.url.searchParams;
  expect(asked.get('code_challenge_method') === 'S256', 'the client asked without PKCE');
  expect(asked.get('resource') === url, `the client asked for the resource ${asked.get('resource')}`);
  if (document) {
    expect(asked.get('client_id') === document.url, `the client calls itself ${asked.get('client_id')}`);
    expect(document.fetches > 0, 'nobody fetched the client document');
  } else {
    expect(!asked.get('client_id').startsWith('https:'), 'the client did not register');
  }
  if (!gateway) return;
  const atGateway = trip.steps.filter(step => step.startsWith(gateway.origin));
  expect(atGateway.length === 2, `at the gateway the person did: ${atGateway.join(', ') || 'nothing'}`);
  expect(trip.origins.has(server.issuerOrigin), 'the same trip did not visit the upstream authorization server');
}

/** One trip of the person was enough, the gateway kept the codes to itself, and it ends when told to. */
async function checkGateway({ gateway, trips }) {
  expect(trips.length === 1, `the person was sent off ${trips.length} times`);
  const [{ codes }] = trips;
  expect(codes.size >= 2, `${codes.size} authorization codes passed the browser, not the upstream's and the gateway's`);
  for (const code of codes) expect(!gateway.child.printed(code), 'an authorization code is in the log');
  const ended = await gateway.child.stop();
  expect(ended === 'ended with status 0', `told to stop, the gateway ${ended}`);
}

/** The upstream stops taking the token in use: the next calls still work, on a token that was refreshed once. */
async function refuseAndCall({ session, server, gateway, before, say }) {
  const { refreshes: earlier } = await server.refuseTokens();
  // Directly the client would refresh once per call, and rotation punishes that; one call is enough there.
  const texts = await Promise.all(Array.from({ length: gateway ? 3 : 1 }, () => session.call(server.tool)));
  texts.forEach(server.check);
  expect(!texts.map(server.tokenOf).includes(server.tokenOf(before)), 'the refused token was used again');
  const { registrations, refreshes: total, foreign } = await server.seen();
  const refreshes = total - earlier;
  say(`calls after the token was refused: ${texts.length}; refreshes: ${refreshes}, ${earlier} before; registrations: ${registrations}`);
  expect(foreign.length === 0, `tokens of somebody else reached the upstream: ${foreign}`);
  if (!gateway) return;
  expect(refreshes === 1, `${refreshes} refreshes for ${texts.length} calls at once`);
  expect(registrations === 1, `the gateway registered ${registrations} times`);
}
