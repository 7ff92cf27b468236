// Client: mcp-remote, the stdio proxy that desktop clients use; driven by a few lines of JSON-RPC.
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { start as startChild } from '../child.mjs';
import { freePorts, listening } from '../ports.mjs';

const PROGRAM = fileURLToPath(new URL('../node_modules/mcp-remote/dist/proxy.js', import.meta.url));

export async function connect({ directory, defer }) {
  const [port] = await freePorts(1);
  return {
    redirectUri: `http://localhost:${port}/oauth/callback`,
    start: options => signIn({ ...options, directory, port, defer }),
  };
}

/** A program in front of the search path that stands for the desktop's opener, so that none opens a window. */
export async function quietOpener(directory) {
  const programs = join(directory, 'programs');
  await mkdir(programs, { recursive: true });
  await writeFile(join(programs, 'xdg-open'), '#!/bin/sh\nexit 0\n');
  await chmod(join(programs, 'xdg-open'), 0o755);
  return { PATH: `${programs}${delimiter}${process.env.PATH}`, BROWSER: 'true', DISPLAY: '' };
}

/** Starts it at `port`; `authorize` sends the person each time it asks. */
export async function signIn({ url, documentUrl, authorize, directory, port, defer }) {
  const env = { ...(await quietOpener(directory)), MCP_REMOTE_CONFIG_DIR: join(directory, 'mcp-remote') };
  const args = [PROGRAM, url, String(port), '--allow-http', '--transport', 'http-only'];
  if (documentUrl) args.push('--client-metadata-url', documentUrl);
  const child = startChild('mcp-remote', process.execPath, args, { env });
  defer(() => child.stop());

  const lost = new Promise((_, reject) => {
    const seen = new Set();
    child.each(line => {
      const address = line.match(/^https?:\/\/\S+[?&]code_challenge=\S+/)?.[0];
      if (!address || seen.has(address)) return;
      seen.add(address);
      // It prints the address before its own callback server is up.
      listening('localhost', port).then(() => authorize(address)).catch(reject);
    });
  });
  lost.catch(() => {});
  let last = 0;
  const request = async (method, params) => {
    const id = ++last;
    child.write({ jsonrpc: '2.0', id, method, params });
    const { result, error } = await Promise.race([child.line(line => answerTo(id, line)), lost]);
    if (error) throw new Error(`${method}: ${error.message}\n${child.output()}`);
    return result;
  };
  const clientInfo = { name: 'interop-mcp-remote', version: '1.0.0' };
  await request('initialize', { protocolVersion: '2025-11-25', capabilities: {}, clientInfo });
  child.write({ jsonrpc: '2.0', method: 'notifications/initialized' });
  return {
    tools: async () => (await request('tools/list', {})).tools.map(tool => tool.name),
    call: async tool => (await request('tools/call', tool)).content[0].text,
    close: () => child.stop(),
  };
}

function answerTo(id, line) {
  try {
    const message = JSON.parse(line);
    return message.id === id && !message.method ? message : undefined;
  } catch {
    return undefined; // its log shares the lines
  }
}
