// The person without a browser: the gateway's pages, read and answered by plain requests, as headless Chromium does it in
// browser.mjs. For cases with so many people that a browser for each would take too long.
const MOST_STEPS = 20;

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

/** Somebody with an empty cookie jar. `user` is the name and password for the sign-in form. */
export function startWalker(user) {
  const jar = new Jar();
  const trips = [];
  return {
    /** One entry per authorization that was asked for: the addresses on the way. */
    trips,
    /** Opens an authorization URL, does what the pages ask, and returns the redirect URI with its answer. */
    async authorize(address) {
      const destination = new URL(address).searchParams.get('redirect_uri');
      const steps = [];
      trips.push(steps);
      let next = { url: new URL(address) };
      while (next.url.href !== destination && !next.url.href.startsWith(`${destination}?`)) {
        steps.push(`${next.form ? 'POST' : 'GET'} ${next.url.origin}${next.url.pathname}`);
        expect(steps.length <= MOST_STEPS, `more than ${MOST_STEPS} steps:\n  ${steps.join('\n  ')}`);
        next = await step(next, user, jar);
      }
      return next.url;
    },
  };
}

/** Loads what is to be loaded; returns where it leads. A form that is sent says where it comes from, as browsers do. */
async function step({ url, form, origin }, user, jar) {
  const headers = { accept: 'text/html', cookie: jar.cookies(url), ...(form && { origin }) };
  const reply = await fetch(url, { method: form ? 'POST' : 'GET', headers, body: form, redirect: 'manual' });
  jar.keep(url, reply.headers.getSetCookie());
  const text = await reply.text();
  const moved = reply.headers.get('location') ?? refreshed(text);
  if (moved) return { url: new URL(moved, url) };
  const written = text.match(/<form method="post"[^>]*>[^]*?<\/form>/)?.[0];
  expect(reply.ok && written, `${url.origin}${url.pathname} leads nowhere, status ${reply.status}: ${plain(text)}`);
  return { url: new URL(attribute(written, 'action'), url), form: filled(written, user), origin: url.origin };
}

/** Where a page goes on by itself. */
const refreshed = text =>
  attribute(text.match(/<meta http-equiv="refresh"[^>]*>/)?.[0], 'content')?.replace(/^0;url=/, '');

/** The form as somebody sends it who goes on: with what is hidden in it, name and password, and the first button. */
function filled(written, user) {
  const fields = new URLSearchParams();
  for (const [input] of written.matchAll(/<input[^>]*>/g)) {
    const name = attribute(input, 'name');
    const typed = { username: user.name, password: user.password };
    fields.set(name, typed[name] ?? attribute(input, 'value') ?? '');
  }
  const button = written.match(/<button[^>]*>/)[0];
  const name = attribute(button, 'name');
  if (name) fields.set(name, attribute(button, 'value'));
  return fields;
}

const attribute = (tag = '', name) => unescaped(tag.match(new RegExp(`\\s${name}="([^"]*)"`))?.[1]);

const CHARACTERS = { amp: '&', lt: '<', gt: '>', quot: '"' };
const unescaped = text =>
  text?.replace(/&(?:#(\d+)|#x([\da-f]+)|(\w+));/gi, (all, decimal, hex, name) =>
    name ? (CHARACTERS[name] ?? all) : String.fromCodePoint(decimal ? Number(decimal) : parseInt(hex, 16)),
  );

/** What a person would read of a page. */
const plain = html => unescaped(html.replace(/<head>[^]*<\/head>|<[^>]*>/g, ' ')).replace(/\s+/g, ' ').trim();

/** Cookies by host name, as browsers keep them: the port makes no difference. */
class Jar {
  #hosts = new Map();

  cookies({ hostname }) {
    return [...(this.#hosts.get(hostname) ?? [])].map(([name, value]) => `${name}=${value}`).join('; ');
  }

  keep({ hostname }, lines) {
    const cookies = this.#hosts.get(hostname) ?? new Map();
    this.#hosts.set(hostname, cookies);
    for (const line of lines) {
      const [, name, value] = line.match(/^([^=]+)=([^;]*)/);
      if (/;\s*max-age=0\b/i.test(line)) cookies.delete(name);
      else cookies.set(name, value);
    }
  }
}
