// The official conformance suite against the gateway: its authorization server, MCP servers behind it, and the gateway as
// the client of the suite's own servers.
import { authorizationServer } from './authorization.mjs';
import { CLIENT_SECONDS, asClient } from './client.mjs';
import { throughGateway } from './difference.mjs';

export const cases = [
  { name: 'conformance-authorization-server', run: authorizationServer },
  { name: 'conformance-server-2025-11-25', run: options => throughGateway('2025-11-25', options) },
  { name: 'conformance-server-2026-07-28', run: options => throughGateway('2026-07-28', options) },
  ...['sdk1', 'sdk2', 'python'].map(app => throughClient('2025-11-25', app)),
  // The first generation of the TypeScript SDK opens sessions, which servers of this revision do not have.
  ...['sdk2', 'python'].map(app => throughClient('2026-07-28', app)),
];

function throughClient(revision, app) {
  return {
    name: `conformance-client-${revision}-${app}`,
    seconds: CLIENT_SECONDS,
    run: options => asClient(revision, app, options),
  };
}
