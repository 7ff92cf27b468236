// Client: the TypeScript SDK of the second generation. It asks for the 2026 revision first and falls back.
import { Client, StreamableHTTPClientTransport, UnauthorizedError } from '@modelcontextprotocol/client';
import { connectWith } from './sdk.mjs';

export const sdk = {
  UnauthorizedError,
  client: () => new Client({ name: 'interop-sdk2', version: '1.0.0' }, { versionNegotiation: { mode: 'auto' } }),
  transport: (url, authProvider, fetch) => new StreamableHTTPClientTransport(new URL(url), { authProvider, fetch }),
  // All parameters, so that the SDK checks `iss` too.
  finish: (transport, answer) => transport.finishAuth(answer),
};

export const connect = options => connectWith(options, sdk);
