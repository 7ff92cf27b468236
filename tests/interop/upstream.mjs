// The long life of a connection to a server nobody here wrote: a client brings its user there, the token comes to its end,
// the server forgets what the user has allowed, and the user ends the connection on the page and makes it again there.
// After each of them the same session object calls the tool, and what the authorization server has seen of it is counted.
import { startPerson } from './browser.mjs';
import { sdk } from './clients/sdk2.mjs';
import { SdkApp } from './lives/sdk.mjs';
import { nextLook } from './ports.mjs';
import { startPostern, user } from './postern.mjs';
import * as example from './upstreams/example.mjs';
import * as fastmcp from './upstreams/fastmcp.mjs';
import * as oidc from './upstreams/oidc.mjs';

const upstreams = { example, oidc, fastmcp };

export const cases = Object.keys(upstreams).map(name => ({
  name: `upstream-${name}`,
  run: options => live(upstreams[name], options),
}));

const SHORT_SECONDS = 6;
const LONG_SECONDS = 3600;

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

async function live({ startUpstream, facts }, { binary, directory, screenshots, defer, say }) {
  if (!binary) return false;
  const server = await startUpstream({ defer });
  const gateway = await startPostern({ binary, directory, upstreamUrl: server.url, defer });
  const credentials = origin => (origin === gateway.origin ? user : { name: oidc.subject, password: 'anything' });
  const person = await startPerson({ directory, credentials, screenshots, defer });
  const app = new SdkApp({ gateway, person, directory, defer, sdk });
  const call = async () => server.check(await app.call(server.tool));
  /** How often the client has sent its user off, and what the authorization server has seen of that. */
  const counted = async (when, wanted) => {
    const { registrations, authorizations, refreshes } = await server.seen();
    const found = { trips: person.trips.length, registrations, authorizations, refreshes };
    const differing = Object.keys(wanted).filter(name => found[name] !== wanted[name]);
    expect(differing.length === 0, `${when}: ${JSON.stringify(found)} instead of ${JSON.stringify(wanted)}`);
    say(`${when}: ${JSON.stringify(found)}`);
  };
  try {
    await server.giveFor(SHORT_SECONDS);
    await app.connect();
    await call();
    const wanted = { trips: 1, registrations: 1, authorizations: 1, refreshes: 0 };
    await counted('connected', wanted);

    await server.giveFor(LONG_SECONDS);
    await outlive({ server, call, wanted });
    if (facts.givesRefreshTokens) {
      wanted.refreshes++;
      await counted('expired, and refreshed', wanted);
      await server.refuseTokens();
      await call();
      wanted.refreshes++;
      await counted('refused, and refreshed', wanted);
    } else {
      wanted.trips++;
      wanted.authorizations++;
      await counted('expired, and connected anew', wanted);
    }

    await server.endGrants();
    if (facts.tellsRefusals) {
      await call();
      wanted.trips++;
      wanted.authorizations++;
      await counted('revoked there, and connected anew', wanted);
    } else {
      // An error like any other. Only the user can notice, and help on the page.
      const failed = await app.client.callTool(server.tool).catch(error => error);
      expect(failed instanceof Error, 'the tool answers without a token that is good');
      await counted(`revoked there, which nobody is told (${failed.message})`, wanted);
    }

    await onThePage({ server, facts, gateway, person, say });
    await call();
    wanted.authorizations++;
    await counted('connected anew on the page', wanted);
    const { foreign } = await server.seen();
    expect(foreign.length === 0, `tokens of somebody else reached the upstream: ${foreign}`);
  } catch (error) {
    const steps = person.trips.flatMap(trip => trip.steps);
    throw new Error(`${error.stack}\n${steps.join('\n')}\n${gateway.child.output()}\n${server.log()}`);
  }
  return true;
}

/** Calls all the time, until the short-lived token has been replaced by another. */
async function outlive({ server, call, wanted }) {
  const deadline = Date.now() + 3 * SHORT_SECONDS * 1000;
  const given = ({ authorizations, refreshes }) => authorizations + refreshes;
  while (given(await server.seen()) === given(wanted)) {
    expect(Date.now() < deadline, 'nothing has come of the end of the token');
    await nextLook();
    await call();
  }
  await call();
}

/** The user's own page: the connection is ended, at the upstream too where that can be, and made again. No client is there. */
async function onThePage({ server, facts, gateway, person, say }) {
  const page = await person.open(`${gateway.origin}/connections`);
  const { alive: before } = await server.seen();
  await person.press(page, 'Disconnect demo');
  const { alive } = await server.seen();
  if (facts.revokes) expect(before > 0 && alive === 0, `of ${before} tokens ${alive} live on after the connection`);
  say(`disconnected: of ${before} good tokens there are ${alive} left`);
  const { steps, origins } = await person.press(page, 'Connect demo');
  expect(origins.has(server.issuerOrigin), 'the page did not lead to the upstream authorization server');
  expect(!steps.some(step => step.startsWith(gateway.origin)), `at the gateway the person did: ${steps.join(', ')}`);
  await page.getByText('Connected with your account there.').waitFor();
  await page.close();
}
