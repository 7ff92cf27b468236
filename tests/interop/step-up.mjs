// A rule that asks for more: the official clients sign in with what everything needs, meet a tool that needs another scope, and
// get it on the way that the protocol has for it: 403 `insufficient_scope`, one more authorization, the call once more.
import { startPerson } from './browser.mjs';
import { sdk as sdk1 } from './clients/sdk1.mjs';
import { sdk as sdk2 } from './clients/sdk2.mjs';
import { startServer } from './lists.mjs';
import { SdkApp } from './lives/sdk.mjs';
import { startPostern, user } from './postern.mjs';
import * as example from './upstreams/example.mjs';

const SCOPE = 'demo:special';

const runs = {
  sdk1: { sdk: sdk1, startServer: example.startOpen },
  sdk2: { sdk: sdk2, startServer },
};

export const cases = Object.keys(runs).map(name => ({ name: `step-up-${name}`, run: options => stepUp(runs[name], options) }));

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

async function stepUp({ sdk, startServer: start }, { binary, directory, screenshots, defer, say }) {
  if (!binary) return false;
  const server = await start({ defer });
  const rule = { name: 'special', require_scope: [SCOPE], if: `mcp.tool == '${server.tool.name}'` };
  const route = { policy: { default: 'allow', call: [rule] } };
  const gateway = await startPostern({ binary, directory, upstreamUrl: server.url, credential: 'none', route, defer });
  const person = await startPerson({ directory, credentials: () => user, screenshots, defer });
  // What the gateway answers, as the SDK gets it.
  const refusals = [];
  const app = new SdkApp({ gateway, person, directory, defer, sdk: { ...sdk, transport: heard(sdk, refusals) } });
  const scopes = trip => (trip.url.searchParams.get('scope') ?? '').split(' ');
  try {
    await app.connect();
    expect((await app.tools()).includes(server.tool.name), 'a tool that needs more is not shown');
    expect(person.trips.length === 1 && refusals.length === 0, `${person.trips.length} trips and ${refusals} so far`);
    expect(!scopes(person.trips[0]).includes(SCOPE), 'the scope was asked for before it was needed');
    server.check(await app.call(server.tool));
    const [challenge] = refusals;
    expect(refusals.length === 1, `it was refused ${refusals.length} times: ${refusals}`);
    expect(challenge.includes('error="insufficient_scope"') && challenge.includes(SCOPE), `the challenge is ${challenge}`);
    expect(person.trips.length === 2, `the person was sent off ${person.trips.length} times`);
    expect(scopes(person.trips[1]).includes(SCOPE), `asked for were ${scopes(person.trips[1])}`);
    say(`asked for: ${scopes(person.trips[0]).join(' ')}; then ${scopes(person.trips[1]).join(' ')}`);
    // It stays: nothing is refused and nobody is asked again.
    server.check(await app.call(server.tool));
    await app.connect();
    server.check(await app.call(server.tool));
    expect(refusals.length === 1 && person.trips.length === 2, `${person.trips.length} trips, refused ${refusals.length} times`);
  } catch (error) {
    error.message = `${error.message}\n${gateway.child.output()}`;
    throw error;
  } finally {
    for (const trip of person.trips) trip.steps.forEach(step => say(step));
  }
  return true;
}

/** Transports of this SDK whose requests are its own; the challenges of what is forbidden are noted on the way. */
function heard(sdk, refusals) {
  return (url, authProvider) => {
    const fetching = async (...request) => {
      const answer = await fetch(...request);
      if (answer.status === 403) refusals.push(answer.headers.get('www-authenticate') ?? 'none');
      return answer;
    };
    return sdk.transport(url, authProvider, fetching);
  };
}
