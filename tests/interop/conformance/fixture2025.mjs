// A server of revision 2025-11-25 on the first generation of the SDK: sessions, a stream of its own by GET, streams
// that can be resumed, and requests to the client in the middle of a call.
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { completable } from '@modelcontextprotocol/sdk/server/completable.js';
import { createMcpExpressApp } from '@modelcontextprotocol/sdk/server/express.js';
import { McpServer, ResourceTemplate } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import {
  CreateMessageResultSchema,
  ElicitResultSchema,
  SubscribeRequestSchema,
  UnsubscribeRequestSchema,
} from '@modelcontextprotocol/sdk/types.js';
import { z } from 'zod';
import { offer, text, wideSchema } from './content.mjs';

const dialect = {
  shape: fields => fields,
  completable,
  ResourceTemplate,
  // The SDK writes the metadata of a schema into what it publishes.
  wide: z.looseObject({}).meta(wideSchema),
  progress: extra => ({ token: extra._meta?.progressToken, notify: extra.sendNotification }),
};

/** The request handler of the server, for `http.createServer`. */
export function handler() {
  const sessions = new Map();
  const app = createMcpExpressApp();
  app.all('/mcp', async (request, response) => {
    const id = request.headers['mcp-session-id'];
    let transport = sessions.get(id);
    if (!transport && id) {
      const error = { code: -32001, message: 'no such session' };
      return response.status(404).json({ jsonrpc: '2.0', error, id: null });
    }
    transport ??= await open(sessions);
    await transport.handleRequest(request, response, request.body);
  });
  return app;
}

async function open(sessions) {
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: session => sessions.set(session, transport),
    onsessionclosed: session => sessions.delete(session),
    eventStore: new Events(),
    retryInterval: 100,
  });
  await mcpServer().connect(transport);
  return transport;
}

/** What was sent on the streams of one session, in order; an event's id is its place and its stream. */
class Events {
  #sent = [];

  async storeEvent(stream, message) {
    return `${this.#sent.push({ stream, message })}/${stream}`;
  }
  async getStreamIdForEventId(id) {
    return id.slice(id.indexOf('/') + 1);
  }
  async replayEventsAfter(id, { send }) {
    const stream = await this.getStreamIdForEventId(id);
    for (let place = parseInt(id); place < this.#sent.length; place++) {
      const event = this.#sent[place];
      if (event.stream === stream) await send(`${place + 1}/${stream}`, event.message);
    }
    return stream;
  }
}

function mcpServer() {
  const capabilities = { logging: {}, resources: { subscribe: true } };
  const server = new McpServer({ name: 'interop-2025', version: '1.0.0' }, { capabilities });
  offer(server, dialect);
  offerStreams(server);
  offerQuestions(server);
  const watched = new Set();
  server.server.setRequestHandler(SubscribeRequestSchema, ({ params }) => {
    watched.add(params.uri);
    return {};
  });
  server.server.setRequestHandler(UnsubscribeRequestSchema, ({ params }) => {
    watched.delete(params.uri);
    return {};
  });
  return server;
}

/** Tools whose stream carries more than the answer. */
function offerStreams(server) {
  server.registerTool('test_tool_with_logging', { description: 'Logs while it works' }, async extra => {
    for (const data of ['Tool execution started', 'Tool processing data', 'Tool execution completed']) {
      await extra.sendNotification({ method: 'notifications/message', params: { level: 'info', data } });
      await pause(50);
    }
    return { content: [text('logged')] };
  });
  server.registerTool('test_reconnection', { description: 'Hangs up before it answers' }, async extra => {
    extra.closeSSEStream?.();
    await pause(100);
    return { content: [text('answered after the stream was closed')] };
  });
}

/** Tools that ask the client something. */
function offerQuestions(server) {
  const asking = (name, description, fields, run) =>
    server.registerTool(name, { description, inputSchema: fields }, run);
  asking('test_sampling', 'Asks for a completion', { prompt: z.string() }, async ({ prompt }, extra) => {
    const messages = [{ role: 'user', content: text(prompt) }];
    const params = { messages, maxTokens: 100 };
    const question = { method: 'sampling/createMessage', params };
    const { content } = await extra.sendRequest(question, CreateMessageResultSchema);
    return { content: [text(`LLM response: ${content.text}`)] };
  });
  const elicit = async (extra, message, fields, required) => {
    const requestedSchema = { type: 'object', properties: fields, ...(required && { required }) };
    const params = { message, requestedSchema };
    const { action, content } = await extra.sendRequest({ method: 'elicitation/create', params }, ElicitResultSchema);
    return { content: [text(`Elicitation completed: action=${action}, content=${JSON.stringify(content)}`)] };
  };
  asking('test_elicitation', 'Asks for a person', { message: z.string() }, ({ message }, extra) =>
    elicit(extra, message, { username: { type: 'string' }, email: { type: 'string' } }, ['username', 'email']),
  );
  asking('test_elicitation_sep1034_defaults', 'Asks with answers filled in', {}, (_arguments, extra) =>
    elicit(extra, 'Is this right?', {
      name: { type: 'string', default: 'John Doe' },
      age: { type: 'integer', default: 30 },
      score: { type: 'number', default: 95.5 },
      status: { type: 'string', enum: ['active', 'inactive', 'pending'], default: 'active' },
      verified: { type: 'boolean', default: true },
    }),
  );
  asking('test_elicitation_sep1330_enums', 'Asks to choose, in every way', {}, (_arguments, extra) =>
    elicit(extra, 'Choose', choices),
  );
}

const options = ['option1', 'option2', 'option3'];
const titled = [
  { const: 'value1', title: 'First Option' },
  { const: 'value2', title: 'Second Option' },
  { const: 'value3', title: 'Third Option' },
];
const choices = {
  untitledSingle: { type: 'string', enum: options },
  titledSingle: { type: 'string', oneOf: titled },
  legacyEnum: {
    type: 'string',
    enum: ['opt1', 'opt2', 'opt3'],
    enumNames: ['Option One', 'Option Two', 'Option Three'],
  },
  untitledMulti: { type: 'array', items: { type: 'string', enum: options } },
  titledMulti: { type: 'array', items: { anyOf: titled } },
};
