// The person: headless Chromium that signs in and consents wherever an authorization leads.
import { join } from 'node:path';
import { chromium } from 'playwright-core';

/** How Chromium is started here. */
export const launching = {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--no-proxy-server',
    // Pages may name fonts or pictures elsewhere; only this machine is ever asked.
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1',
  ],
};
const FORWARD = /^(sign[ -]?in|log[ -]?in|allow|continue|authorize|approve|accept)\b/i;
const MOST_PAGES = 12;
const PATIENCE = 15_000;

/**
 * Opens a browser with an empty profile. `credentials(origin)` gives the name and password for a sign-in form;
 * `screenshots` is a directory for pictures of every page with a form, or nothing.
 */
export async function startPerson({ directory, credentials, screenshots, defer }) {
  let context;
  const launch = async () => (context ??= await chromium.launchPersistentContext(join(directory, 'profile'), launching));
  await launch();
  defer(() => context?.close());
  const trips = [];
  return {
    /** One entry per authorization that was asked for: the URL, what was done, the origins and codes on the way. */
    trips,
    /** A page of the same browser, for what is not an authorization. */
    async open(address) {
      const page = await (await launch()).newPage();
      page.setDefaultTimeout(PATIENCE);
      await page.goto(address);
      return page;
    },
    /** Closes the browser, and with it the connections that it keeps for later. What it remembers stays. */
    async leave() {
      const closing = context;
      context = undefined;
      await closing?.close();
    },
    /** Opens an authorization URL, does what the pages ask, and returns the redirect URI with its answer. */
    async authorize(address) {
      const trip = { url: new URL(address), steps: [], origins: new Set(), codes: new Set() };
      trips.push(trip);
      // Each trip has a page of its own. It stays open: Chromium may never finish closing one that still loads.
      const page = await (await launch()).newPage();
      try {
        const load = () => page.goto(trip.url.href);
        return await walk(page, trip, load, trip.url.searchParams.get('redirect_uri'), { credentials, screenshots });
      } catch (error) {
        throw await lost(page, trip, error);
      }
    },
    /** Presses a button of a page, does what the pages after it ask until one comes back to `page`, and says what it did. */
    async press(page, name) {
      const trip = { steps: [], origins: new Set(), codes: new Set() };
      const begin = () => page.getByRole('button', { name, exact: true }).click({ noWaitAfter: true });
      try {
        await walk(page, trip, begin, page.url(), { credentials, screenshots });
        return trip;
      } catch (error) {
        throw await lost(page, trip, error);
      }
    },
  };
}

async function lost(page, trip, error) {
  const text = await page.locator('body').innerText({ timeout: 1000 }).catch(() => '');
  const path = [...trip.steps, `stuck at ${page.url()}`].join('\n  ');
  return new Error(`the browser did not come back: ${error.message}\n  ${path}\n${text.slice(0, 1000)}`);
}

async function walk(page, trip, begin, destination, { credentials, screenshots }) {
  const journey = watch(page, destination, trip);
  let seen = journey.count();
  begin().catch(() => {}); // a failed load shows in the frame's URL, a failed press in a page that does not move
  await journey.moved(seen);
  for (let pages = 0; pages < MOST_PAGES && !journey.arrival(); pages++) {
    seen = journey.count();
    // A page without a button is on its way elsewhere: a meta refresh, or a redirect not yet followed.
    if (await act(page, trip, { credentials, screenshots }, () => journey.count() === seen)) await journey.moved(seen);
    else if (journey.count() === seen) await journey.moved(seen);
  }
  if (!journey.arrival()) throw new Error(`more than ${MOST_PAGES} pages`);
  return new URL(journey.arrival());
}

/** Counts the pages the main frame shows and notices when it stands at the destination. */
function watch(page, destination, trip) {
  let count = 0;
  let arrival;
  let wake = () => {};
  const arrived = url => {
    if (url === destination || url.startsWith(`${destination}?`)) arrival ??= url;
  };
  page.on('request', request => {
    if (!request.isNavigationRequest() || request.frame() !== page.mainFrame()) return;
    if (!/^https?:/.test(request.url())) return;
    const { origin, searchParams } = new URL(request.url());
    trip.origins.add(origin);
    if (searchParams.has('code')) trip.codes.add(searchParams.get('code'));
  });
  page.on('framenavigated', frame => {
    if (frame !== page.mainFrame()) return;
    count++;
    arrived(frame.url());
    wake();
  });
  return {
    count: () => count,
    arrival: () => arrival,
    async moved(seen) {
      let timer;
      const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error('the page does not move on')), PATIENCE);
      });
      while (count === seen) await Promise.race([new Promise(resolve => (wake = resolve)), late]);
      clearTimeout(timer);
      if (page.url().startsWith('chrome-error:')) throw new Error('the page cannot be reached');
    },
  };
}

/** Fills the form of the page and presses the button that goes on. False when there is none. */
async function act(page, trip, { credentials, screenshots }, still) {
  try {
    await page.waitForLoadState('domcontentloaded');
    const button = page.getByRole('button', { name: FORWARD }).first();
    if (!(await button.isVisible())) return false;
    // Everything about this page is asked of the button itself: the page's own URL may already be the next one's.
    const pressed = await button.elementHandle({ timeout: 1000 });
    const { href, signIn } = await pressed.evaluate(element => ({
      href: element.ownerDocument.location.href,
      signIn: Boolean(element.form?.querySelector('input[type=password]')),
    }));
    const { origin, pathname } = new URL(href);
    if (signIn) {
      const { name, password } = credentials(origin);
      const form = await pressed.evaluateHandle(element => element.form);
      await (await form.$('input[name=username], input[name=login], input[name=email]')).fill(name);
      await (await form.$('input[type=password]')).fill(password);
    }
    const label = (await pressed.innerText()).trim();
    if (screenshots) {
      const file = `${trip.steps.length + 1}-${signIn ? 'sign-in' : 'consent'}-${new URL(origin).port}.png`;
      await page.screenshot({ path: join(screenshots, file), fullPage: true });
    }
    await pressed.click({ noWaitAfter: true, timeout: 5000 });
    trip.steps.push(`${origin}${pathname}: ${signIn ? 'signed in with' : 'pressed'} "${label}"`);
    return true;
  } catch (error) {
    // The page moved on while it was looked at; the next look sees the new one.
    if (!still()) return false;
    throw error;
  }
}
