// The loopback address a native client waits at for its authorization code.
import { once } from 'node:events';
import { createServer } from 'node:http';

/** What every client here says about itself when it registers. */
export const metadata = {
  client_name: 'Postern interop',
  application_type: 'native',
  grant_types: ['authorization_code', 'refresh_token'],
  response_types: ['code'],
  token_endpoint_auth_method: 'none',
};

/** Serves `{uri}` so that the browser has a page to end on; the answer itself is read from the browser's URL. */
export async function startRedirect({ defer }) {
  const server = createServer((_request, response) => {
    response.writeHead(200, { 'content-type': 'text/plain' }).end('The client has its answer.');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  defer(() => {
    server.close();
    server.closeAllConnections();
  });
  return { uri: `http://127.0.0.1:${server.address().port}/callback` };
}
