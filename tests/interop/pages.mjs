// The pages as a person meets them: every page of `postern demo`, and those of a gateway with an identity provider, by
// keyboard alone, in windows of several kinds.
// Each page is checked the same way (`look`), and a picture of it is kept when somebody wants to see it.
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { launching } from './browser.mjs';
import { App, register } from './clients/app.mjs';
import { metadata, startRedirect } from './clients/redirect.mjs';
import { freePorts } from './ports.mjs';
import { localUser, startDemo, startPostern, user } from './postern.mjs';

const windows = {
  'pages-narrow': { viewport: { width: 320, height: 640 }, colorScheme: 'light' },
  'pages-wide': { viewport: { width: 1200, height: 800 }, colorScheme: 'light' },
  'pages-narrow-without-script': { viewport: { width: 320, height: 640 }, colorScheme: 'dark', javaScriptEnabled: false },
  'pages-wide-without-script': { viewport: { width: 1200, height: 800 }, colorScheme: 'dark', javaScriptEnabled: false },
};

/** One case per kind of window. */
export const cases = Object.entries(windows).map(([name, kind]) => ({ name, run: options => runPages(kind, options) }));

// Client documents of this machine, so that the page of a client with a checked address is seen too.
const DOCUMENTS = 'oauth_server: { clients: { cimd: { enabled: true, allow_private: true } } }\n';
const CONTROLS = 'button, a[href], input:not([type=hidden])';
const PATIENCE = 10_000;

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

async function runPages(kind, { binary, directory, screenshots, defer, say }) {
  if (!binary) return false;
  if (screenshots) await mkdir(screenshots, { recursive: true });
  const demo = await startDemo({ binary, directory, more: DOCUMENTS, defer });
  const browser = await chromium.launch(launching);
  defer(() => browser.close());
  const context = await browser.newContext(kind);
  context.setDefaultTimeout(PATIENCE);
  const person = new Person(await context.newPage(), screenshots);
  const client = await startClient(demo, defer);
  try {
    await authorizations(person, demo, client);
    await signingInAndOut(person, demo);
    await deadEnds(person, demo);
    await elsewhere(person, { binary, directory, defer });
    expect(person.complaints.length === 0, `the browser complains:\n  ${person.complaints.join('\n  ')}`);
  } catch (error) {
    const text = await person.page.locator('body').innerText({ timeout: 1000 }).catch(() => '');
    throw new Error(`${error.stack}\nat ${person.page.url()}\n${text}\n${demo.child.output()}`);
  }
  say(`looked at ${person.seen.length} pages: ${person.seen.join(', ')}`);
  const ended = await demo.child.stop();
  expect(ended === 'ended with status 0', `told to stop, the demo ${ended}`);
  return true;
}

/** Clients send the person here: yes and no at both authorization servers, and a tool is called at the end. */
async function authorizations(person, demo, client) {
  const app = await client.register({ client_name: 'Notes for cats' });

  await person.open(await app.begin());
  await person.look('sign-in', /^Sign in$/);
  await person.press('Sign in as demo');
  const question = /^Allow “Notes for cats” to use demo\?$/;
  await person.look('consent', question);
  await person.press('Deny');
  app.refused(await person.at(app.redirectUri), 'access_denied');

  await person.open(await app.begin());
  await person.look('consent', question);
  await person.press('Allow');
  await person.look('demo-authorize', /wants to use Demo tools/);
  await person.press('Deny');
  app.refused(await person.at(app.redirectUri), 'access_denied');

  await person.open(await app.begin());
  await person.look('consent', question);
  await person.press('Allow');
  await person.look('demo-authorize', /wants to use Demo tools/);
  await person.fill('Your account here', 'not a name!');
  await person.press('Allow');
  await person.look('demo-authorize-wrong', /wants to use Demo tools/, 400);
  await person.fill('Your account here', 'mia');
  await person.press('Allow');
  const said = await app.whoami(await app.redeem(await person.at(app.redirectUri)));
  expect(said === 'You are mia at Demo tools.', `whoami says ${said}`);

  // The upstream is connected now, so there is no further page. This client's address is checked, its name is not.
  const known = await client.publish({ client_name: 'Postern Security Update' });
  await person.open(await known.begin());
  await person.look('consent-known-client', /^Allow “Postern Security Update” to use demo\?$/);
  await person.press('Allow');
  await known.redeem(await person.at(known.redirectUri));

  const long = await client.register({ client_name: `${'W'.repeat(60)} ${'long '.repeat(20)}` }, 'x'.repeat(300));
  await person.open(await long.begin());
  await person.look('consent-long-names', /^Allow “W+/);
}

async function signingInAndOut(person, demo) {
  await person.open(demo.origin);
  await person.look('home-signed-in', /^One door/);
  await person.press('Your connections', 'link');
  await person.look('connections', /^Your connections$/);
  await person.open(`${demo.origin}/connections/demo`);
  await person.look('server-connected', /^Your connection to demo$/);
  await person.press('All your connections', 'link');
  await person.press('Disconnect demo');
  await person.look('connections-ended', /^Your connections$/);
  await person.open(`${demo.origin}/connections/demo?return_to=/`);
  await person.look('server-not-connected', /^Your connection to demo$/);
  await person.open(demo.origin);
  await person.press('Sign out');
  await person.look('signed-out', /^You are signed out$/);
  await person.open(demo.origin);
  await person.look('home', /^One door/);
  await person.press('Sign in', 'link');
  await person.fill('Username', 'demo');
  await person.fill('Password', 'wrong');
  await person.press('Sign in');
  await person.look('sign-in-wrong', /^Sign in$/, 401);
  await person.fill('Password', 'demo');
  const letGo = await person.holdMoves();
  await person.press('Sign in');
  await person.look('moved', /^One moment$/);
  await letGo();
  await person.press('Continue', 'link');
  await person.look('home-signed-in', /^One door/);
}

/** Where nobody should be, but somebody will. */
async function deadEnds(person, demo) {
  await person.open(demo.url);
  await person.look('mcp-address', /^This is an MCP server address$/, 401);
  await person.open(`${demo.origin}/oauth/authorize?client_id=nobody&response_type=code`);
  await person.look('unknown-client', /./, 400);
  await person.open(`${demo.origin}/oauth/upstream/callback/none?state=none`);
  await person.look('unknown-callback', /./, 400);
  await person.open(`${demo.origin}/oauth/nothing`);
  await person.look('nothing-here', /./, 404);
}

/** A gateway with an identity provider and upstreams that are away, a listed client, and a stranger whose address nobody trusts. */
async function elsewhere(person, { binary, directory, defer }) {
  const { uri } = await startRedirect({ defer });
  const [port] = await freePorts(1);
  const corp = {
    name: 'corp',
    label: 'Example Corporation, Department of Rather Long Names',
    issuer: `http://127.0.0.1:${port}`,
    client_id: 'postern',
    allow_private: true,
  };
  const dashboard = { client_id: 'dashboard', client_name: 'Team dashboard', redirect_uris: [uri] };
  const route = (name, credential) => ({
    name,
    path: `/${name}`,
    upstream: { url: `http://127.0.0.1:${port}/mcp`, allow_private: true },
    credential,
  });
  const hint = 'Open your profile at https://wiki.example.com/profile and make a key there.';
  const key = { kind: 'header', per_user: true, name: 'x-api-key', hint };
  const routes = [
    route('demo', { kind: 'none' }),
    route('files', { kind: 'oauth' }),
    route('mail', { kind: 'oauth' }),
    route('wiki', key),
  ];
  const gateway = await startPostern({
    binary,
    directory,
    upstreamUrl: `http://127.0.0.1:${port}/mcp`,
    credential: 'none',
    login: { local: { users: [localUser] }, oidc: [corp] },
    more: { oauth_server: { clients: { static: [dashboard] } }, routes },
    defer,
  });
  const stranger = await register(gateway, 'https://client.example/a/rather/long/address/of/somebody');
  await person.open(`${stranger.begin()}&resource=https://elsewhere.example/mcp`.replace(/resource=[^&]*&/, ''));
  await person.look('way-back', /^This request cannot be answered$/, 400);
  const known = new App(gateway, 'dashboard', uri);
  await person.open(known.begin());
  await person.look('sign-in-providers', /^Sign in$/);
  await person.press(`Sign in with ${corp.label}`, 'link');
  await person.look('provider-away', /^Not just now$/, 503);
  await person.open(known.begin());
  await person.fill('Username', user.name);
  await person.fill('Password', user.password);
  await person.press('Sign in');
  await person.look('consent-listed-client', /^Allow “Team dashboard” to use demo\?$/);
  await person.press('Allow');
  await person.at(uri);
  // One more provider, for somebody who is in already: asked first, and nothing is lost when it is away.
  await person.open(`${gateway.origin}/login/start?provider=corp&next=/connections&further=1`);
  await person.look('further-provider', /^Sign in at Example Corporation.* as well\?$/);
  await person.press('Allow and sign in there');
  await person.look('further-provider-away', /^You are not connected$/, 503);
  await person.open(`${gateway.origin}/connections/wiki?return_to=/connections`);
  await person.look('key-wanted', /^Your connection to wiki$/);
  await person.fill('Your key for wiki', 'two words');
  await person.press('Keep');
  await person.look('key-that-is-none', /^Your connection to wiki$/, 400);
  await person.fill('Your key for wiki', 'k-0123456789');
  await person.press('Keep');
  await person.look('connections-with-a-key', /^Your connections$/);
  await person.open(`${gateway.origin}/connections/wiki`);
  await person.look('key-kept', /^Your connection to wiki$/);
  await person.open(`${gateway.origin}/connections`);
  await person.look('connections-missing', /^Your connections$/);
  await person.press('Connect all 2 that are missing');
  await person.look('not-connected', /^You are not connected$/, 503);
  await person.press('Your connections', 'link');
  await person.look('connections-unavailable', /^Your connections$/);
  await person.open(`${gateway.origin}/connections/files?return_to=${encodeURIComponent(uri)}`);
  await person.look('server-unavailable', /^Your connection to files$/);
  await person.open(`${gateway.origin}/connections/files?return_to=https://evil.example`);
  await person.look('no-way-back', /^There is no way back to that address$/, 400);
}

/** Somebody at a keyboard. */
class Person {
  seen = [];
  /** What the browser wrote to its console, and what pages could not load. */
  complaints = [];
  #screenshots;
  #document;

  constructor(page, screenshots) {
    this.page = page;
    this.#screenshots = screenshots;
    page.on('pageerror', error => this.complaints.push(`${page.url()}: ${error}`));
    page.on('console', message => {
      // Chromium also reports the status of the page itself; `look` expects that one.
      const status = /^Failed to load resource: the server responded with a status of [45]/.test(message.text());
      if (status && message.location().url === this.#document?.url()) return;
      if (['error', 'warning'].includes(message.type())) this.complaints.push(`${page.url()}: ${message.text()}`);
    });
    page.on('response', response => {
      const navigation = response.request().isNavigationRequest();
      if (navigation) this.#document = response;
      else if (response.status() >= 400) this.complaints.push(`${response.status()} ${response.url()}`);
    });
  }

  async open(url) {
    await this.page.goto(url);
  }

  /** The address once the browser stands at `redirectUri`. */
  async at(redirectUri) {
    await this.page.waitForURL(url => url.href.startsWith(`${redirectUri}?`));
    return new URL(this.page.url());
  }

  /** Waits for the page with that heading and checks what holds for every page. */
  async look(name, heading, status = 200) {
    const { page } = this;
    await page.getByRole('heading', { level: 1, name: heading }).waitFor();
    await page.waitForLoadState('load');
    if (this.#screenshots) {
      // Playwright would put a style of its own into the page to hide the caret.
      const path = join(this.#screenshots, `${name}.png`);
      await page.screenshot({ path, fullPage: true, caret: 'initial' });
    }
    this.seen.push(name);
    const wrong = text => `${name}: ${text}`;
    const policy = await this.#document.headerValue('content-security-policy');
    expect(this.#document.status() === status, wrong(`status ${this.#document.status()}`));
    expect(policy?.includes("default-src 'none'") && policy.includes("frame-ancestors 'none'"), wrong(`policy ${policy}`));
    const faults = await page.evaluate(inspect, CONTROLS);
    expect(faults.length === 0, wrong(faults.join('; ')));
    await this.#tabThrough(wrong);
  }

  /** Every control takes the focus in its turn, and shows it. */
  async #tabThrough(wrong) {
    const missing = new Set(await this.page.locator(CONTROLS).evaluateAll(all => all.map((_, index) => index)));
    for (let presses = missing.size + 2; presses > 0; presses--) {
      await this.page.keyboard.press('Tab');
      const { index, shown } = await this.page.evaluate(controls => {
        const focused = document.activeElement;
        const { outlineStyle, outlineWidth } = getComputedStyle(focused);
        const index = [...document.querySelectorAll(controls)].indexOf(focused);
        return { index, shown: index < 0 || (outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2) };
      }, CONTROLS);
      expect(shown, wrong(`control ${index} does not show its focus`));
      missing.delete(index);
    }
    expect(missing.size === 0, wrong(`not reached by keyboard: controls ${[...missing]}`));
  }

  /** Walks to a control with the tabulator key. */
  async #walkTo(control) {
    await control.waitFor();
    for (let presses = 0; presses < 20; presses++) {
      if (await control.evaluate(element => element === document.activeElement)) return;
      await this.page.keyboard.press('Tab');
    }
    throw new Error(`${control} is not reached by keyboard`);
  }

  async fill(label, text) {
    await this.#walkTo(this.page.getByLabel(label));
    await this.page.keyboard.press('Control+A');
    await this.page.keyboard.type(text);
  }

  async press(name, role = 'button') {
    await this.#walkTo(this.page.getByRole(role, { name, exact: true }));
    await this.page.keyboard.press('Enter');
  }

  /** Takes the refresh out of moving pages, so that one can be looked at; the function returned ends that. */
  async holdMoves() {
    const hold = async route => {
      if (route.request().method() !== 'POST') return route.continue();
      // The browser would add this one only later on the way.
      const headers = { ...(await route.request().allHeaders()), 'sec-fetch-site': 'same-origin' };
      const response = await route.fetch({ headers });
      const body = (await response.text()).replace(/<meta http-equiv="refresh"[^>]*>/, '');
      return route.fulfill({ response, body });
    };
    await this.page.route('**/login', hold);
    return () => this.page.unroute('**/login', hold);
  }
}

/** Runs in the page and returns what is wrong with it. */
function inspect(controls) {
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`scrolls sideways, ${root.scrollWidth} > ${root.clientWidth}`);
  if (!root.lang || !document.title) faults.push('no language or no title');
  if (document.querySelectorAll('h1').length !== 1) faults.push('not one main heading');
  if (document.querySelector('script, [style], [onclick]')) faults.push('a script, or a style in an attribute');
  for (const control of document.querySelectorAll(controls)) {
    const { left, right, height } = control.getBoundingClientRect();
    const name = control.name || control.textContent.trim();
    if (left < 0 || right > root.clientWidth) faults.push(`${name} is cut off`);
    if (height < 44) faults.push(`${name} is ${height} px high`);
    if (control.tagName === 'INPUT' && control.labels.length === 0) faults.push(`${name} has no label`);
  }
  // WCAG 2.2, 1.4.3: text against what lies behind it.
  const channels = color => color.match(/[\d.]+/g).map(Number);
  const luminance = color => {
    const [r, g, b] = channels(color).map(value => (value <= 10 ? value / 3294 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const clear = color => channels(color)[3] === 0;
  for (const element of document.body.querySelectorAll('*')) {
    if (![...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim())) continue;
    let behind = element;
    while (behind !== root && clear(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    const [dark, light] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
      .map(luminance)
      .sort((one, other) => one - other);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(1)} of "${element.textContent.trim().slice(0, 30)}"`);
  }
  return faults;
}

/** Clients of the demo's gateway, written out by hand so that the pages can be left half-way. */
async function startClient(demo, defer) {
  const { uri } = await startRedirect({ defer });
  const documents = new Map();
  const site = createServer((request, response) => {
    response.writeHead(documents.has(request.url) ? 200 : 404, { 'content-type': 'application/json' });
    response.end(documents.get(request.url));
  });
  site.listen(0, '127.0.0.1');
  await once(site, 'listening');
  defer(() => {
    site.close();
    site.closeAllConnections();
  });
  return {
    /** One that registers itself. `tail` lengthens its redirect URI. */
    register: (about, tail = '') => register(demo, uri + tail, about),
    /** One that is known by its document. */
    async publish(about) {
      const id = `http://127.0.0.1:${site.address().port}/client.json`;
      documents.set('/client.json', JSON.stringify({ ...metadata, ...about, client_id: id, redirect_uris: [uri] }));
      return new App(demo, id, uri);
    },
  };
}
