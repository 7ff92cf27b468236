// The official conformance suite against the gateway: its authorization server, and MCP servers behind it.
import { authorizationServer } from './authorization.mjs';
import { throughGateway } from './difference.mjs';

export const cases = [
  { name: 'conformance-authorization-server', run: authorizationServer },
  { name: 'conformance-server-2025-11-25', run: options => throughGateway('2025-11-25', options) },
  { name: 'conformance-server-2026-07-28', run: options => throughGateway('2026-07-28', options) },
];
