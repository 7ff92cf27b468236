// One scenario with the gateway as the client: the suite plays an MCP server and its authorization server, a gateway of
// its own stands in front of it, a client nobody here wrote in front of the gateway, and a person signs in and consents.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { sdk as sdk1 } from '../clients/sdk1.mjs';
import { sdk as sdk2 } from '../clients/sdk2.mjs';
import { PythonApp } from '../lives/python.mjs';
import { SdkApp } from '../lives/sdk.mjs';
import { startPostern, user } from '../postern.mjs';
import { startWalker } from '../walk.mjs';

// More patient than the suite allows a client to be: the limit is to be the gateway's.
const patience = 5;
const apps = {
  sdk1: parts => new SdkApp({ ...parts, patience, sdk: sdk1 }),
  sdk2: parts => new SdkApp({ ...parts, patience, sdk: sdk2 }),
  python: parts => new PythonApp(parts),
};
/** A client that never gets an answer is a result too. */
const SCENARIO_SECONDS = 25;

/** What is called: the tool that all scenarios about authorization have, once, or what the scenario wants. */
const TEST = { name: 'test-tool', answer: 'test' };
const calls = {
  // The server changes its authorization server under way.
  'auth/authorization-server-migration': () => [TEST, TEST],
  tools_call: () => [{ name: 'add_numbers', arguments: { a: 5, b: 3 } }],
  'request-metadata': () => [],
  'json-schema-ref-no-deref': () => [],
  'http-standard-headers': () => [{ name: 'test_headers' }, { name: 'my-hyphenated-tool' }],
  'http-custom-headers': ({ toolCalls }) => toolCalls,
  'http-invalid-tool-headers': () => [{ name: 'valid_tool', arguments: { region: 'eu' } }],
};

/** How the scenarios that need it want the gateway to be configured; the others find everything by themselves. */
const settings = {
  'auth/basic-cimd': () => ({
    more: { oauth_client: { client_metadata_url: 'https://conformance-test.local/client-metadata.json' } },
  }),
  'auth/pre-registration': ({ client_id, client_secret }) => ({
    route: { credential: { kind: 'oauth', client_id, client_secret: { env: 'UPSTREAM_SECRET' } } },
    env: { UPSTREAM_SECRET: client_secret },
  }),
};

/** Plays it to its end. Returns the client's error, if it did not get what it wanted, with what led there. */
export async function play({ app, scenario, url, context, binary, directory, defer }) {
  const cleanup = [];
  const end = async () => {
    while (cleanup.length > 0) await Promise.resolve(cleanup.pop()()).catch(() => {});
  };
  defer(end);
  const home = join(directory, scenario.replaceAll('/', '-'));
  await mkdir(home, { recursive: true });
  const parts = { directory: home, defer: stop => cleanup.push(stop) };
  const person = startWalker(user);
  let gateway;
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${SCENARIO_SECONDS} seconds`)), SCENARIO_SECONDS * 1000);
  });
  const run = async () => {
    gateway = await startPostern({ binary, upstreamUrl: url, ...settings[scenario]?.(context), ...parts });
    await use(apps[app]({ gateway, person, ...parts }), scenario, context);
  };
  try {
    await Promise.race([run(), late]);
    return {};
  } catch (error) {
    const trips = person.trips.map((steps, at) => `  trip ${at + 1}: ${steps.join(', ')}`);
    return { error, log: [...trips, gateway?.child.output()].join('\n') };
  } finally {
    clearTimeout(timer);
    await end();
  }
}

/** What a client does with a server: connects, looks what there is, and calls it. */
async function use(app, scenario, context) {
  await app.connect();
  const tools = await app.tools();
  for (const call of calls[scenario]?.(context) ?? [TEST]) {
    if (!tools.includes(call.name)) throw new Error(`the tools are ${tools}`);
    const text = await app.call({ name: call.name, arguments: call.arguments ?? {} });
    if (call.answer && text !== call.answer) throw new Error(`${call.name} says ${text}`);
  }
}
