// Ports for programs that cannot be told "any port": taken from the kernel, given back, used at once.
import { connect, createServer } from 'node:net';
import { once } from 'node:events';

/** `count` different ports that were free a moment ago. */
export async function freePorts(count) {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map(server => server.listening || once(server, 'listening')));
  const ports = servers.map(server => server.address().port);
  await Promise.all(servers.map(server => new Promise(done => server.close(done))));
  return ports;
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
