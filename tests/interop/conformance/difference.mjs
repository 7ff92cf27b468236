// One server, asked by the suite twice: directly, and through the gateway. Every scenario must come out the same.
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { register } from '../clients/app.mjs';
import { startRedirect } from '../clients/redirect.mjs';
import { startPerson } from '../browser.mjs';
import { startPostern, user } from '../postern.mjs';
import { startShim } from './shim.mjs';
import { complaints, readResults, startSuite, tally } from './suite.mjs';

/** Several scenarios that hang must still leave time to say so. */
const SCENARIO_MILLISECONDS = 8000;

const TASKS = 'an extension that the SDK of the fixture has no server side for';
/**
 * Per revision: the server, how many scenarios the suite has for it, and those that the server fails by itself, with
 * the reason. They run and are compared like all others.
 */
const revisions = {
  '2025-11-25': { fixture: () => import('./fixture2025.mjs'), scenarios: 33, beyond: {} },
  '2026-07-28': {
    fixture: () => import('./fixture2026.mjs'),
    scenarios: 50,
    beyond: {
      'tasks-lifecycle': TASKS,
      'tasks-capability-negotiation': TASKS,
      'tasks-wire-fields': TASKS,
      'tasks-request-state-removal': TASKS,
      'tasks-mrtr-input': TASKS,
      'tasks-request-headers': TASKS,
      'tasks-dispatch-and-envelope': TASKS,
      'tasks-required-task-error': TASKS,
      'tasks-mrtr-composition': TASKS,
      'tasks-status-notifications': 'the suite itself skips it: it asks in a way that the revision has given up',
    },
  },
};

export async function throughGateway(revision, { binary, directory, screenshots, defer, say }) {
  const { fixture, scenarios, beyond } = revisions[revision];
  const server = await startFixture(await fixture(), defer);
  const ask = (name, url) => runSuite({ url, revision, results: join(directory, name), defer });
  const direct = await ask('direct', server.url);
  say(`directly: ${summary(direct)}`);
  if (direct.size !== scenarios) throw new Error(`the suite ran ${direct.size} scenarios, not ${scenarios}`);
  checkFixture(direct, beyond);
  if (!binary) return true;

  const gateway = await startPostern({ binary, directory, upstreamUrl: server.url, credential: 'none', defer });
  const token = await signIn({ gateway, directory, screenshots, defer });
  const shim = await startShim({ target: gateway.origin, token, defer });
  const through = await ask('through', shim.origin + new URL(gateway.url).pathname);
  say(`through the gateway: ${summary(through)}`);
  const found = differences(direct, through);
  if (found.length > 0) throw new Error(`the gateway changes what the suite finds:\n${found.join('\n')}`);
  if (server.tokens.size > 0) throw new Error(`the upstream was sent ${[...server.tokens].join(' and ')}`);
  return true;
}

/** Serves the fixture, and notes what credentials ever reach it. */
async function startFixture({ handler }, defer) {
  const tokens = new Set();
  const server = createServer(handler());
  server.prependListener('request', ({ headers }) => {
    if (headers.authorization) tokens.add(headers.authorization.replace(/ .*/, ' credentials'));
    if (headers.cookie) tokens.add('cookies');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  defer(() => {
    server.close();
    server.closeAllConnections();
  });
  return { url: `http://127.0.0.1:${server.address().port}/mcp`, tokens };
}

/** An access token for the gateway, as any client gets one. */
async function signIn({ gateway, directory, screenshots, defer }) {
  const { uri } = await startRedirect({ defer });
  const app = await register(gateway, uri, { client_name: 'Conformance suite' });
  const person = await startPerson({ directory, credentials: () => user, screenshots, defer });
  return app.redeem(await person.authorize(app.begin()));
}

async function runSuite({ url, revision, results, defer }) {
  const args = ['--url', url, '--requirements', revision, '--timeout', String(SCENARIO_MILLISECONDS)];
  const suite = startSuite('server', args, { results, defer });
  // It ends with status 1 when a check failed, and that is read from its files.
  const ended = await suite.ended;
  if (!/status [01]$/.test(ended) || !existsSync(results)) throw new Error(`the suite ${ended}\n${suite.output()}`);
  return readResults(results, 'server-');
}

const summary = found => `${found.size} scenarios, ${tally([...found.values()].flat())}`;

/** A fixture that fails would hide what the gateway breaks. */
function checkFixture(found, beyond) {
  const faults = [];
  for (const [scenario, checks] of found) {
    const complaining = complaints(checks);
    if (checks.length === 0) faults.push(`${scenario}: checked nothing`);
    if (beyond[scenario] ? complaining.length === 0 : complaining.length > 0) {
      faults.push(`${scenario}: ${complaining.join('\n    ') || 'passes, so it is no longer beyond the fixture'}`);
    }
  }
  faults.push(...Object.keys(beyond).filter(name => !found.has(name)).map(name => `${name}: did not run`));
  if (faults.length > 0) throw new Error(`the fixture is not what it should be:\n  ${faults.join('\n  ')}`);
}

/** What differs, scenario by scenario: the counts, then the checks that do not agree. */
function differences(direct, through) {
  const found = [];
  for (const scenario of new Set([...direct.keys(), ...through.keys()])) {
    const [one, other] = [direct.get(scenario), through.get(scenario)];
    const [missing, added] = [without(one, other), without(other, one)];
    if (tally(one) === tally(other) && missing.length === 0 && added.length === 0) continue;
    found.push(`  ${scenario}: directly ${tally(one)}; through the gateway ${tally(other)}`);
    for (const check of missing) found.push(`    only directly:  ${line(check)}`);
    for (const check of added) found.push(`    only through it: ${line(check)}`);
  }
  return found;
}

const line = check => `${check.status} ${check.id}${check.errorMessage ? `: ${check.errorMessage}` : ''}`;

/** The checks of `some` that `others` lack, each counted as often as it was made. */
function without(some = [], others = []) {
  const left = others.map(verdict);
  return some.filter(check => {
    const place = left.indexOf(verdict(check));
    if (place >= 0) left.splice(place, 1);
    return place < 0;
  });
}

const verdict = check => `${check.status} ${check.id}`;
