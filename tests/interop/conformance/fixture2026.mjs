// A server of revision 2026-07-28 on the second generation of the SDK: no sessions, every request for itself, changes
// heard of by listening, and what is missing asked for in the answer (`rounds.mjs`).
import { getRequestListener } from '@hono/node-server';
import {
  completable,
  createMcpHandler,
  fromJsonSchema,
  hostHeaderValidationResponse,
  localhostAllowedHostnames,
  localhostAllowedOrigins,
  McpServer,
  originValidationResponse,
  ResourceTemplate,
} from '@modelcontextprotocol/server';
import { z } from 'zod';
import { offer, text, wideSchema } from './content.mjs';
import { offerRounds, requestState } from './rounds.mjs';

const dialect = {
  shape: fields => z.object(fields),
  completable,
  ResourceTemplate,
  wide: fromJsonSchema(wideSchema),
  progress: ({ mcpReq }) => ({ token: mcpReq._meta?.progressToken, notify: mcpReq.notify }),
};

const hint = { ttlMs: 1000, cacheScope: 'private' };
const cacheHints = {
  'tools/list': hint,
  'prompts/list': hint,
  'resources/list': hint,
  'resources/templates/list': hint,
  'resources/read': hint,
};

/** The request handler of the server, for `http.createServer`. */
export function handler() {
  const mcp = createMcpHandler(() => mcpServer(mcp.notify), { legacy: 'reject' });
  return getRequestListener(
    request =>
      hostHeaderValidationResponse(request, localhostAllowedHostnames()) ??
      originValidationResponse(request, localhostAllowedOrigins()) ??
      mcp.fetch(request),
  );
}

function mcpServer(notify) {
  const server = new McpServer({ name: 'interop-2026', version: '1.0.0' }, { cacheHints, requestState });
  offer(server, dialect);
  offerRounds(server);
  offerHeader(server);
  offerDiagnostics(server, notify);
  return server;
}

/** A tool one of whose arguments is to stand in a header as well. */
function offerHeader(server) {
  const region = { type: 'string', 'x-mcp-header': 'Region' };
  const inputSchema = fromJsonSchema({ type: 'object', properties: { region }, required: ['region'] });
  const described = { description: 'Says for which region it was asked', inputSchema };
  server.registerTool('test_headers', described, ({ region: asked }) => ({ content: [text(asked)] }));
}

/** Tools that let the suite bring about what it wants to see. */
function offerDiagnostics(server, notify) {
  const tool = (name, description, run) => server.registerTool(name, { description }, run);
  tool('test_logging_tool', 'Logs for those who asked for it', async ({ mcpReq }) => {
    await mcpReq.log('info', 'working');
    return { content: [text('logged')] };
  });
  tool('test_trigger_tool_change', 'Says that the tools have changed', () => {
    notify.toolsChanged();
    return { content: [text('told')] };
  });
  tool('test_trigger_prompt_change', 'Says that the prompts have changed', () => {
    notify.promptsChanged();
    return { content: [text('told')] };
  });
}
