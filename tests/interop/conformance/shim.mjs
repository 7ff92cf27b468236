// The suite cannot send a token. This stands between it and the gateway and adds one; everything else passes as it is,
// piece by piece. A Host or Origin that names the shim becomes the gateway's, and any other one, which is how the
// suite plays an attacker, reaches the gateway unchanged.
import { once } from 'node:events';
import { createServer, request as send } from 'node:http';

/** Serves what `target`, an http origin, serves, with `token` in every request. */
export async function startShim({ target, token, defer }) {
  const { host, hostname, port } = new URL(target);
  const shim = createServer((request, response) => {
    const own = request.socket.server.own;
    const headers = { ...request.headers, authorization: `Bearer ${token}` };
    if (headers.host === own) headers.host = host;
    if (headers.origin === `http://${own}`) headers.origin = target;
    const { method, url: path } = request;
    const onward = send({ hostname, port, method, path, headers }, answer => {
      response.writeHead(answer.statusCode, answer.headers);
      // The first event may be long in coming, the client waits for the headers.
      response.flushHeaders();
      answer.on('error', () => response.destroy()).pipe(response);
    });
    onward.on('error', () => response.destroy());
    // Whoever hangs up, hangs up on both sides.
    response.on('close', () => onward.destroy());
    request.pipe(onward);
  });
  shim.listen(0, '127.0.0.1');
  await once(shim, 'listening');
  defer(() => {
    shim.close();
    shim.closeAllConnections();
  });
  shim.own = `127.0.0.1:${shim.address().port}`;
  return { origin: `http://${shim.own}` };
}
