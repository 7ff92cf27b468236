// The suite's scenarios for authorization servers: it reads the gateway's metadata, then takes the part of a client
// whose person is sent to the address it prints.
import { join } from 'node:path';
import { register } from '../clients/app.mjs';
import { startPerson } from '../browser.mjs';
import { withFreePorts } from '../ports.mjs';
import { startPostern, user } from '../postern.mjs';
import { complaints, readResults, startSuite, tally } from './suite.mjs';

const SCENARIOS = ['authorization-server-metadata-endpoint', 'authorization-code-grant'];

export async function authorizationServer({ binary, directory, screenshots, defer, say }) {
  if (!binary) return false;
  // Nobody gets as far as the upstream here.
  const upstreamUrl = 'http://127.0.0.1:9/mcp';
  const gateway = await startPostern({ binary, directory, upstreamUrl, credential: 'none', defer });
  const person = await startPerson({ directory, credentials: () => user, screenshots, defer });
  // With a resource, as MCP clients ask, and without, as others do.
  for (const [name, resource] of [['with-resource', gateway.url], ['without-resource', undefined]]) {
    const results = join(directory, name);
    await withFreePorts(1, ([port]) => walk({ gateway, person, port, resource, results, defer }));
    const found = await readResults(results, 'authorization-server-');
    for (const scenario of SCENARIOS) {
      const checks = found.get(scenario);
      say(`${name}, ${scenario}: ${tally(checks)}`);
      if (!checks?.length || complaints(checks).length > 0) {
        throw new Error(`${name}, ${scenario}: ${tally(checks)}\n  ${complaints(checks).join('\n  ')}`);
      }
    }
    const unknown = [...found.keys()].filter(scenario => !SCENARIOS.includes(scenario));
    if (unknown.length > 0) throw new Error(`the suite ran scenarios that are not expected: ${unknown}`);
  }
  return true;
}

/** Registers for the suite, and answers it in the browser. */
async function walk({ gateway, person, port, resource, results, defer }) {
  const app = await register(gateway, `http://127.0.0.1:${port}/callback`);
  const args = ['--url', gateway.origin, '--client-id', app.id, '--port', String(port)];
  if (resource) args.push('--resource', resource);
  const suite = startSuite('authorization', args, { results, defer });
  await person.authorize(await suite.line(line => line.match(/^https?:\/\/\S+[?&]code_challenge=\S+/)?.[0]));
  const ended = await suite.ended;
  if (ended !== 'ended with status 0') throw new Error(`the suite ${ended}\n${suite.output()}`);
}
