// The client's own ID metadata document, served over https with a certificate of a CA made for the case.
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:https';
import { join } from 'node:path';
import { promisify } from 'node:util';

const openssl = (...args) => promisify(execFile)('openssl', args);
const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

/** Makes a CA and a certificate for localhost. A CA's own certificate will not do: strict TLS stacks refuse it as a server's. */
async function certificates(directory) {
  const file = name => join(directory, name);
  const extensions = 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n';
  await writeFile(file('leaf.ext'), extensions);
  await Promise.all([
    openssl('req', '-x509', ...KEY, '-days', '2', '-subj', '/CN=Interop CA',
      '-keyout', file('ca.key'), '-out', file('ca.pem')),
    openssl('req', ...KEY, '-subj', '/CN=localhost', '-keyout', file('leaf.key'), '-out', file('leaf.csr')),
  ]);
  await openssl('x509', '-req', '-in', file('leaf.csr'), '-CA', file('ca.pem'), '-CAkey', file('ca.key'),
    '-set_serial', '1', '-days', '2', '-extfile', file('leaf.ext'), '-out', file('leaf.pem'));
  return { authority: file('ca.pem'), key: await readFile(file('leaf.key')), cert: await readFile(file('leaf.pem')) };
}

/** Serves the document of a client that returns to `redirectUri`. `fetches` counts who came for it. */
export async function startDocument({ directory, redirectUri, metadata, defer }) {
  const { authority, key, cert } = await certificates(directory);
  const document = { authority, fetches: 0 };
  const server = createServer({ key, cert }, (request, response) => {
    if (request.url !== '/client.json') return response.writeHead(404).end();
    document.fetches++;
    response.writeHead(200, { 'content-type': 'application/json', 'cache-control': 'max-age=60' });
    response.end(JSON.stringify({ client_id: document.url, ...metadata, redirect_uris: [redirectUri] }));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  document.url = `https://localhost:${server.address().port}/client.json`;
  defer(() => {
    server.close();
    server.closeAllConnections();
  });
  return document;
}
