// The two servers behind oidc.mjs, in one process on Node 22: oidc-provider, and an MCP server that takes its
// tokens. Tokens are JWTs for exactly this MCP server; refresh tokens rotate, and one used twice ends the grant.
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js';
import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js';
import express from 'express';
import { createRemoteJWKSet, decodeJwt, exportJWK, generateKeyPair, jwtVerify } from 'jose';
import { Provider } from 'oidc-provider';

const SCOPE = 'mcp:tools';
let lifetime = 60;
const seen = { registrations: 0, authorizations: 0, refreshes: 0, foreign: [] };
const refreshTokens = new Set();

// Both servers take any port first, because each one's documents name the other.
async function listen() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { server, origin: `http://127.0.0.1:${server.address().port}` };
}
const authorization = await listen();
const resource = await listen();
const issuer = authorization.origin;
const url = `${resource.origin}/mcp`;

async function authorizationServer() {
  const { privateKey } = await generateKeyPair('RS256', { extractable: true });
  const provider = new Provider(issuer, {
    jwks: { keys: [{ ...(await exportJWK(privateKey)), alg: 'RS256', use: 'sig', kid: 'interop' }] },
    cookies: { keys: [randomBytes(16).toString('hex')] },
    scopes: ['openid', 'offline_access', SCOPE],
    findAccount: (_context, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    // It would refuse client documents on loopback; leaving out its dispatcher leaves out that guard.
    fetch: (address, { dispatcher: _guard, ...options }) => fetch(address, options),
    pkce: { required: () => true },
    rotateRefreshToken: true,
    issueRefreshToken: (_context, client) => client.grantTypeAllowed('refresh_token'),
    clientDefaults: { grant_types: ['authorization_code', 'refresh_token'], token_endpoint_auth_method: 'none' },
    features: {
      devInteractions: { enabled: true },
      registration: { enabled: true },
      revocation: { enabled: true },
      clientIdMetadataDocument: { enabled: true, ack: 'draft-02' },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: () => true,
        getResourceServerInfo(_context, indicator) {
          if (indicator !== url) throw Object.assign(new Error('invalid_target'), { expose: true, status: 400 });
          return {
            scope: SCOPE,
            audience: url,
            accessTokenFormat: 'jwt',
            accessTokenTTL: lifetime,
            jwt: { sign: { alg: 'RS256' } },
          };
        },
      },
    },
  });
  provider.on('registration_create.success', () => seen.registrations++);
  provider.on('authorization.success', () => seen.authorizations++);
  provider.on('grant.success', context => {
    if (context.oidc.params.grant_type === 'refresh_token') seen.refreshes++;
    if (context.body.refresh_token) refreshTokens.add(context.body.refresh_token);
  });
  for (const event of ['authorization.error', 'grant.error', 'registration_create.error', 'server_error']) {
    provider.on(event, (_context, error) => console.log(event, reasons(error)));
  }
  return provider;
}

/** The refresh tokens that it would still redeem. Access tokens are JWTs, and end by their own date. */
async function goodRefreshTokens() {
  const found = await Promise.all([...refreshTokens].map(token => provider.RefreshToken.find(token)));
  return found.filter(token => token?.isValid);
}

/** What an administrator does who takes back everything that people have allowed. */
async function endGrants() {
  for (const { grantId } of await goodRefreshTokens()) {
    await provider.RefreshToken.revokeByGrantId(grantId);
    await (await provider.Grant.find(grantId)).destroy();
  }
  refused = new Set(known);
}

/** An error with everything that is given as its cause, on one line. */
function reasons(error) {
  const own = [error.message, error.error_description, error.error_detail, error.code].filter(Boolean).join(', ');
  return error.cause instanceof Error ? `${own}: ${reasons(error.cause)}` : own;
}

// Tokens issued up to the moment the case asked for it are refused, however long they would live.
const known = new Set();
let refused = new Set();

async function verifyAccessToken(token) {
  const keys = verifyAccessToken.keys ??= createRemoteJWKSet(new URL(`${issuer}/jwks`));
  let claims;
  try {
    ({ payload: claims } = await jwtVerify(token, keys, { issuer, audience: url, typ: 'at+jwt' }));
  } catch (error) {
    // Anything that is not a token of this authorization server should never have come here.
    if (error.code !== 'ERR_JWT_EXPIRED') seen.foreign.push(error.code ?? error.message);
    throw new InvalidTokenError('not a token for this server');
  }
  known.add(claims.jti);
  if (refused.has(claims.jti)) throw new InvalidTokenError('the token is no longer accepted');
  return { token, clientId: claims.client_id, scopes: claims.scope.split(' '), expiresAt: claims.exp, extra: claims };
}

function mcpServer() {
  const server = new McpServer({ name: 'interop-oidc', version: '1.0.0' });
  server.registerTool('whoami', { description: 'Says who calls, and with which token' }, ({ authInfo }) => {
    const token = createHash('sha256').update(authInfo.token).digest('hex');
    return { content: [{ type: 'text', text: JSON.stringify({ subject: decodeJwt(authInfo.token).sub, token }) }] };
  });
  return server;
}

function resourceServer() {
  const app = express();
  const metadata = '/.well-known/oauth-protected-resource/mcp';
  app.get(metadata, (_request, response) => {
    response.json({ resource: url, authorization_servers: [issuer], scopes_supported: [SCOPE] });
  });
  const sessions = new Map();
  const bearer = requireBearerAuth({
    verifier: { verifyAccessToken },
    requiredScopes: [SCOPE],
    resourceMetadataUrl: `${resource.origin}${metadata}`,
  });
  app.all('/mcp', bearer, express.json(), async (request, response) => {
    const id = request.headers['mcp-session-id'];
    let transport = sessions.get(id);
    if (!transport) {
      if (id) return response.status(404).json({ jsonrpc: '2.0', error: { code: -32001, message: 'no such session' }, id: null });
      transport = new StreamableHTTPServerTransport({
        sessionIdGenerator: randomUUID,
        onsessioninitialized: session => sessions.set(session, transport),
        onsessionclosed: session => sessions.delete(session),
      });
      await mcpServer().connect(transport);
    }
    await transport.handleRequest(request, response, request.body);
  });
  return app;
}

const provider = await authorizationServer();
authorization.server.on('request', provider.callback());
resource.server.on('request', resourceServer());

process.on('message', async message => {
  lifetime = message.lifetime ?? lifetime;
  if (message.refuse) refused = new Set(known);
  if (message.end) await endGrants();
  process.send({ ...seen, alive: (await goodRefreshTokens()).length });
});
process.on('disconnect', () => process.exit()); // the harness is gone
process.send({ url, issuer });
