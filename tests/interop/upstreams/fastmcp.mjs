// Upstream: Python's FastMCP with its in-memory authorization server. Opaque tokens, refresh tokens that rotate, an issuer
// with a trailing slash, and no page for a person: it knows clients, but no users.
import { fileURLToPath } from 'node:url';
import { start } from '../child.mjs';

const PYTHON = fileURLToPath(new URL('../../../target/interop-venv/bin/python', import.meta.url));
const PROGRAM = fileURLToPath(new URL('fastmcp_server.py', import.meta.url));

export const facts = { authorizationServerTakesDocuments: false, givesRefreshTokens: true, tellsRefusals: true, revokes: true };

export async function startUpstream({ defer }) {
  const child = start('fastmcp', PYTHON, ['-u', PROGRAM]);
  defer(() => child.stop());
  const { url, issuer } = await child.line(line => line.startsWith('{') && JSON.parse(line));
  let last = 0;
  const ask = message => {
    const name = `report ${++last}`;
    child.write({ name, ...message });
    return child.line(line => line.startsWith(`{"${name}"`) && JSON.parse(line)[name]);
  };
  return {
    url,
    issuerOrigin: issuer,
    tool: { name: 'whoami', arguments: {} },
    check(text) {
      if (!JSON.parse(text).known) throw new Error(`the tool ran for a client that nobody registered: ${text}`);
    },
    /** Which access token a call ran with. */
    tokenOf: text => JSON.parse(text).token,
    /** From now on an access token that it gives out is good for so many seconds. */
    giveFor: seconds => ask({ lifetime: seconds }),
    /** From now on every access token issued so far meets a 401. */
    refuseTokens: () => ask({ end: 'access' }),
    /** From now on nothing issued so far is good for anything. */
    endGrants: () => ask({ end: 'all' }),
    /** What it has seen; `alive`: how many of its tokens are good. */
    seen: () => ask(),
    log: () => child.output(),
  };
}
