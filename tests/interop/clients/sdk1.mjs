// Client: the TypeScript SDK of the first generation (`@modelcontextprotocol/sdk`).
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { UnauthorizedError } from '@modelcontextprotocol/sdk/client/auth.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { connectWith } from './sdk.mjs';

export const sdk = {
  UnauthorizedError,
  client: () => new Client({ name: 'interop-sdk1', version: '1.0.0' }),
  transport: (url, authProvider, fetch) => new StreamableHTTPClientTransport(new URL(url), { authProvider, fetch }),
  finish: (transport, answer) => transport.finishAuth(answer.get('code')),
};

export const connect = options => connectWith(options, sdk);
