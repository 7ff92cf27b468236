// Client: the Python SDK, run by python_client.py in the virtual environment; it speaks lines of JSON with us.
import { fileURLToPath } from 'node:url';
import { start as startChild } from '../child.mjs';
import { metadata, startRedirect } from './redirect.mjs';

const PYTHON = fileURLToPath(new URL('../../../target/interop-venv/bin/python', import.meta.url));
const PROGRAM = fileURLToPath(new URL('python_client.py', import.meta.url));

export async function connect({ defer }) {
  const { uri: redirectUri } = await startRedirect({ defer });
  return { redirectUri, start: options => signIn({ ...options, redirectUri, defer }) };
}

/** `kept`: what an earlier session had of the server. */
export async function signIn({ url, redirectUri, documentUrl, kept, authorize, defer }) {
  const settings = { url, documentUrl, kept, metadata: { ...metadata, redirect_uris: [redirectUri] } };
  const child = startChild('python', PYTHON, ['-u', PROGRAM, JSON.stringify(settings)]);
  defer(() => child.stop());
  // It may need the person during any request, so this is answered beside everything else.
  const lost = new Promise((_, reject) => {
    child.each(line => {
      const address = parse(line)?.authorize;
      if (address) authorize(address).then(returned => child.write({ returned: returned.href }), reject);
    });
  });
  const reply = async name => {
    const { value, error } = await Promise.race([child.line(line => parse(line)?.[name]), lost]);
    if (error) throw new Error(`the Python client failed at ${name}: ${error}\n${child.output()}`);
    return value;
  };
  let last = 0;
  const request = (method, tool) => {
    const name = `${method} ${++last}`;
    child.write({ name, method, tool });
    return reply(name);
  };
  await reply('connected');
  return {
    tools: () => request('tools'),
    call: tool => request('call', tool),
    kept: () => request('kept'),
    close: () => request('close'),
  };
}

function parse(line) {
  try {
    return JSON.parse(line);
  } catch {
    return undefined; // its log shares the lines
  }
}
