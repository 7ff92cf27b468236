// Ports for programs that cannot be told "any port", and that come back to the one they had: from a range out of which the kernel
// gives none by itself, so that nothing else on the machine has one by chance while its program is not running.
import { connect, createServer } from 'node:net';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';

/** Below the kernel's own range, and above where services are. */
const [LEAST, MOST] = [10_000, ownRange()];
const given = new Set();

function ownRange() {
  try {
    return Number(readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8').split(/\s+/)[0]);
  } catch {
    return 0;
  }
}

/** `count` different ports that are free, and that nobody is given here again. */
export async function freePorts(count) {
  const ports = [];
  while (ports.length < count) {
    const port = await free(MOST > 2 * LEAST ? LEAST + Math.floor(Math.random() * (MOST - LEAST)) : 0);
    if (port && !given.has(port)) ports.push(port);
    given.add(port);
  }
  return ports;
}

/** This port, or if it is 0 any, unless somebody listens on it. */
async function free(port) {
  const server = createServer().listen(port, '127.0.0.1');
  const listens = await once(server, 'listening').then(() => true, () => false);
  if (!listens) return undefined;
  const found = server.address().port;
  await new Promise(done => server.close(done));
  return found;
}

/** Waits until something listens on a port of this machine. */
export async function listening(host, port, deadline = Date.now() + 10_000) {
  for (;;) {
    const socket = connect(port, host);
    const open = await once(socket, 'connect').then(() => true, () => false);
    socket.destroy();
    if (open) return;
    if (Date.now() > deadline) throw new Error(`nothing listens on ${host}:${port}`);
    await nextLook();
  }
}

/** The pause between two looks at a condition that nothing announces. */
export const nextLook = () => new Promise(resolve => setTimeout(resolve, 25));

/** Another process may take a port between finding and using it: starts again with fresh ones, three times in all. */
export async function withFreePorts(count, begin) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await begin(await freePorts(count));
    } catch (error) {
      if (attempt === 3 || !/EADDRINUSE|in use/i.test(error.message)) throw error;
    }
  }
}
