// Upstream: the TypeScript SDK's own example server, protected by the SDK's example authorization server.
// Opaque tokens, no refresh tokens, an issuer with a trailing slash, and no page for a person.
import { fileURLToPath } from 'node:url';
import { start } from '../child.mjs';
import { withFreePorts } from '../ports.mjs';

const PROGRAM = fileURLToPath(
  import.meta.resolve('@modelcontextprotocol/sdk/examples/server/simpleStreamableHttp.js'),
);

export const facts = { authorizationServerTakesDocuments: false };

export function startUpstream({ defer }) {
  return withFreePorts(2, async ([port, authorizationPort]) => {
    const env = { MCP_PORT: String(port), MCP_AUTH_PORT: String(authorizationPort) };
    // Strict: the token must have been asked for with exactly this server as its resource.
    const child = start('example', process.execPath, [PROGRAM, '--oauth', '--oauth-strict'], { env });
    defer(() => child.stop());
    await Promise.all([
      child.line(line => line.includes(`Streamable HTTP Server listening on port ${port}`)),
      child.line(line => line.includes(`Authorization Server listening on port ${authorizationPort}`)),
    ]);
    return {
      url: `http://localhost:${port}/mcp`,
      issuerOrigin: `http://localhost:${authorizationPort}`,
      tool: { name: 'greet', arguments: { name: 'Postern' } },
      check(text) {
        if (text !== 'Hello, Postern!') throw new Error(`the tool said ${JSON.stringify(text)}`);
      },
    };
  });
}
