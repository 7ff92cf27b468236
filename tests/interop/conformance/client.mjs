// The suite's scenarios for clients, with the gateway as the client. The suite starts a driver for every scenario, all at
// once; the drivers wait here for their turn. What each scenario must come to is in expected.mjs.
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { complaints, readResults, startSuite, tally } from './suite.mjs';
import { beyond, differences, known } from './expected.mjs';
import { play } from './play.mjs';

/** A scenario is a gateway, two servers and a client: more at once starve one another on a small machine. */
const TURNS = 3;
/** A case is up to 37 scenarios. */
export const CLIENT_SECONDS = 150;

/** How the suite is told which scenarios: what a revision requires, or all of a suite in a revision's words. */
const selections = {
  '2025-11-25': ['--suite', 'auth', '--spec-version', '2025-11-25'],
  '2026-07-28': ['--requirements', '2026-07-28'],
};

export async function asClient(revision, app, { binary, directory, defer, say }) {
  if (!binary) return false;
  const played = new Map();
  const ends = [];
  let isOver = false;
  const take = turns(TURNS);
  const room = await startRoom(async ({ url, scenario, context }) => {
    if (scenario in beyond) return new Error(`nobody plays this: it ${beyond[scenario]}`);
    const options = { app, scenario, url, context, binary, directory, defer: end => ends.push(end) };
    const outcome = await take(() => !isOver && play(options));
    if (outcome) played.set(scenario, outcome);
    return outcome && outcome.error;
  }, defer);

  const driver = fileURLToPath(new URL('driver.mjs', import.meta.url));
  const command = `"${process.execPath}" "${driver}" ${room}`;
  const results = join(directory, 'results');
  const args = [...selections[revision], '--command', command, '--timeout', String(CLIENT_SECONDS * 1000)];
  const suite = startSuite('client', args, { results, defer });
  // What is deferred last comes first: no scenario begins any more when the case is cut short.
  defer(() => {
    isOver = true;
    return Promise.all(ends.map(end => end()));
  });
  // It ends with status 1 when a check failed, and that is read from its files.
  const ended = await suite.ended;
  if (!/status [01]$/.test(ended) || !existsSync(results)) throw new Error(`the suite ${ended}\n${suite.output()}`);
  const found = await readResults(results);
  for (const scenario of Object.keys(beyond)) found.delete(scenario);
  say(score(found));
  known(revision).forEach(line => say(`not green: ${line}`));
  const wrong = differences({ found, played, revision });
  if (wrong.length > 0) throw new Error(`not what is expected:\n${wrong.join('\n')}`);
  return true;
}

/** How many scenarios are green from end to end, and how the single checks went. */
function score(found) {
  const green = [...found.values()].filter(checks => complaints(checks).length === 0).length;
  return `${green} of ${found.size} scenarios without complaint, ${tally([...found.values()].flat())}`;
}

/** Where the drivers report: answers 200 when the client got what it wanted, else 502 with its error. */
async function startRoom(perform, defer) {
  const server = createServer(async (request, response) => {
    try {
      const error = await perform(JSON.parse(await read(request)));
      response.writeHead(error ? 502 : 200).end(error ? String(error.stack) : 'done');
    } catch (error) {
      response.writeHead(500).end(String(error.stack));
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  defer(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${server.address().port}`;
}

async function read(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts).toString();
}

/** Lets so many run at once; the rest wait in the order in which they came. */
function turns(free) {
  const waiting = [];
  return async run => {
    if (free === 0) await new Promise(go => waiting.push(go));
    else free--;
    try {
      return await run();
    } finally {
      if (waiting.length > 0) waiting.shift()();
      else free++;
    }
  };
}
