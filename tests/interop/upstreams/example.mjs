// Upstream: the TypeScript SDK's own example server, protected by the SDK's example authorization server.
// Opaque tokens, no refresh tokens, an issuer with a trailing slash, and no page for a person.
import { fileURLToPath } from 'node:url';
import { start, startModule } from '../child.mjs';
import { withFreePorts } from '../ports.mjs';

const PROGRAM = fileURLToPath(
  import.meta.resolve('@modelcontextprotocol/sdk/examples/server/simpleStreamableHttp.js'),
);
const PROTECTED = fileURLToPath(new URL('example-server.mjs', import.meta.url));

const tool = { name: 'greet', arguments: { name: 'Postern' } };

function check(text) {
  if (text !== 'Hello, Postern!') throw new Error(`the tool said ${JSON.stringify(text)}`);
}

export const facts = {
  authorizationServerTakesDocuments: false,
  givesRefreshTokens: false,
  // To a token that it does not know it says 500, which may mean anything.
  tellsRefusals: false,
  revokes: false,
};

/** The same server for anybody. */
export function startOpen({ defer }) {
  return withFreePorts(1, async ([port]) => {
    const child = start('example', process.execPath, [PROGRAM], { env: { MCP_PORT: String(port) } });
    defer(() => child.stop());
    await child.line(line => line.includes(`Streamable HTTP Server listening on port ${port}`));
    return { url: `http://localhost:${port}/mcp`, tool, check };
  });
}

export function startUpstream({ defer }) {
  return withFreePorts(2, async ([port, authorizationPort]) => {
    const env = { MCP_PORT: String(port), MCP_AUTH_PORT: String(authorizationPort) };
    const child = startModule('example', process.execPath, PROTECTED, { env });
    defer(() => child.stop());
    await Promise.all([
      child.line(line => line.includes(`Streamable HTTP Server listening on port ${port}`)),
      child.line(line => line.includes(`Authorization Server listening on port ${authorizationPort}`)),
    ]);
    return {
      url: `http://localhost:${port}/mcp`,
      issuerOrigin: `http://localhost:${authorizationPort}`,
      tool,
      check,
      /** From now on an access token that it gives out is good for so many seconds. */
      giveFor: seconds => child.ask({ lifetime: seconds }),
      /** From now on nothing issued so far is good for anything. */
      endGrants: () => child.ask({ end: true }),
      /** What its authorization server has seen; `alive`: how many of its tokens are good. */
      seen: () => child.ask({ report: true }),
      log: () => child.output(),
    };
  });
}
