// The TypeScript SDK's example server in a process that counts what its authorization server does and can shorten the life
// of the tokens it gives out. All else is the SDK's: it runs as it is, around the same classes.
import {
  DemoInMemoryAuthProvider as Provider,
  DemoInMemoryClientsStore as Clients,
} from '@modelcontextprotocol/sdk/examples/server/demoInMemoryOAuthProvider.js';

const seen = { registrations: 0, authorizations: 0, refreshes: 0, foreign: [] };
let lifetime = 3600;

const { registerClient } = Clients.prototype;
Clients.prototype.registerClient = function (client) {
  seen.registrations++;
  return registerClient.call(this, client);
};

let tokens = new Map();
const { authorize, exchangeAuthorizationCode } = Provider.prototype;
Provider.prototype.authorize = function (...asked) {
  seen.authorizations++;
  return authorize.call(this, ...asked);
};
Provider.prototype.exchangeAuthorizationCode = async function (...asked) {
  const answer = await exchangeAuthorizationCode.call(this, ...asked);
  tokens = this.tokens;
  tokens.get(answer.access_token).expiresAt = Date.now() + lifetime * 1000;
  return { ...answer, expires_in: lifetime };
};

process.on('message', message => {
  lifetime = message.lifetime ?? lifetime;
  if (message.end) tokens.clear();
  process.send({ ...seen, alive: [...tokens.values()].filter(token => token.expiresAt > Date.now()).length });
});
process.on('disconnect', () => process.exit()); // the harness is gone

// Strict: the token must have been asked for with exactly this server as its resource.
process.argv.push('--oauth', '--oauth-strict');
await import('@modelcontextprotocol/sdk/examples/server/simpleStreamableHttp.js');
