// oidc-provider as an identity provider, in a process on Node 22. It learns of Postern, its client, by a message, since each of
// the two names the other's address. RS256, PKCE, Basic authentication, back-channel logout; refresh tokens that rotate. Other
// clients register themselves, and get tokens for the resource that it was told of, in the format that it was told.
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { exportJWK, generateKeyPair } from 'jose';
import { Provider } from 'oidc-provider';

const server = createServer().listen(0, '127.0.0.1');
await once(server, 'listening');
const SCOPE = 'mcp:tools';
const ACCESS_TOKEN_SECONDS = 4;
const issuer = `http://127.0.0.1:${server.address().port}`;

async function signingKey() {
  const { privateKey } = await generateKeyPair('RS256', { extractable: true });
  return { ...(await exportJWK(privateKey)), alg: 'RS256', use: 'sig', kid: randomBytes(4).toString('hex') };
}

async function serve({ origin, secret, resource, format }) {
  const provider = new Provider(issuer, {
    jwks: { keys: [await signingKey()] },
    cookies: { keys: [randomBytes(16).toString('hex')] },
    clients: [
      {
        client_id: 'postern',
        client_secret: secret,
        redirect_uris: [`${origin}/login/callback`],
        post_logout_redirect_uris: [`${origin}/login/signed-out`],
        backchannel_logout_uri: `${origin}/login/backchannel-logout`,
        backchannel_logout_session_required: true,
        token_endpoint_auth_method: 'client_secret_basic',
        grant_types: ['authorization_code', 'refresh_token'],
      },
    ],
    clientDefaults: { grant_types: ['authorization_code', 'refresh_token'], token_endpoint_auth_method: 'none' },
    scopes: ['openid', 'offline_access', SCOPE],
    issueRefreshToken: (_context, client) => client.grantTypeAllowed('refresh_token'),
    rotateRefreshToken: true,
    ttl: { AccessToken: ACCESS_TOKEN_SECONDS },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
    conformIdTokenClaims: false,
    findAccount: (_context, id) => ({
      accountId: id,
      claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: true, name: id }),
    }),
    // Its guard against private addresses would refuse Postern on loopback.
    fetch: (address, { dispatcher: _guard, ...options }) => fetch(address, options),
    pkce: { required: () => true },
    features: {
      devInteractions: { enabled: true },
      backchannelLogout: { enabled: true },
      introspection: { enabled: true },
      registration: { enabled: true },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: () => true,
        getResourceServerInfo(_context, indicator) {
          if (indicator !== resource) throw Object.assign(new Error('invalid_target'), { expose: true, status: 400 });
          const jwt = { sign: { alg: 'RS256' } };
          return { scope: SCOPE, audience: resource, accessTokenFormat: format, accessTokenTTL: 60, jwt };
        },
      },
    },
  });
  for (const event of ['authorization.error', 'grant.error', 'backchannel.error', 'server_error']) {
    provider.on(event, (_context, error) => console.log(event, error.message, error.error_description, error.error_detail));
  }
  server.removeAllListeners('request');
  server.on('request', provider.callback());
}

process.on('message', async message => {
  if (message.client) await serve(message.client);
  process.send({ issuer });
});
process.on('disconnect', () => process.exit()); // the harness is gone
process.send({ issuer });
