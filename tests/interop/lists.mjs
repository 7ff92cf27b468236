// Lists through a gateway whose rules say who may use what: the official clients see what they may call, are told so when they
// call something else, and see nothing of the rest. The servers are the SDK's own example, which answers in events, and one of
// the second generation, whose lists anybody might keep.
import { createServer } from 'node:http';
import { getRequestListener } from '@hono/node-server';
import { createMcpHandler, McpServer, ResourceTemplate } from '@modelcontextprotocol/server';
import { startPerson } from './browser.mjs';
import { sdk as sdk1 } from './clients/sdk1.mjs';
import { sdk as sdk2 } from './clients/sdk2.mjs';
import { SdkApp } from './lives/sdk.mjs';
import { withFreePorts } from './ports.mjs';
import { startPostern, user } from './postern.mjs';
import * as example from './upstreams/example.mjs';

/** JSON-RPC error of a call that the policy does not allow. */
const DENIED = -32099;

const runs = {
  sdk1: {
    sdk: sdk1,
    startServer: example.startOpen,
    hidden: ['multi-greet', 'greeting-template', 'https://example.com/greetings/default'],
    denied: { name: 'multi-greet', arguments: { name: 'Postern' } },
  },
  sdk2: {
    sdk: sdk2,
    startServer,
    hidden: ['erase', 'erase-all', 'memo://2', 'memo://erased/{id}'],
    denied: { name: 'erase', arguments: {} },
    isPrivate: true,
  },
};

export const cases = Object.keys(runs).map(name => ({ name: `lists-${name}`, run: options => look(runs[name], options) }));

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

/** A server of revision 2026-07-28, for anybody. */
export function startServer({ defer }) {
  return withFreePorts(1, async ([port]) => {
    const mcp = createMcpHandler(offering, { legacy: 'reject' });
    const server = createServer(getRequestListener(request => mcp.fetch(request)));
    await new Promise((listening, failed) => server.once('error', failed).listen(port, '127.0.0.1', listening));
    defer(() => new Promise(closed => (server.close(closed), server.closeAllConnections())));
    const check = text => expect(text === 'read', `the tool said ${JSON.stringify(text)}`);
    return { url: `http://127.0.0.1:${port}/mcp`, tool: { name: 'read', arguments: {} }, check };
  });
}

function offering() {
  const hint = { ttlMs: 60_000, cacheScope: 'public' };
  const methods = ['tools/list', 'prompts/list', 'resources/list', 'resources/templates/list', 'resources/read'];
  const cacheHints = Object.fromEntries(methods.map(method => [method, hint]));
  const server = new McpServer({ name: 'interop-lists', version: '1.0.0' }, { cacheHints });
  const content = { type: 'text', text: 'read' };
  for (const name of ['read', 'erase']) {
    server.registerTool(name, { description: 'Says what it was' }, () => ({ content: [{ type: 'text', text: name }] }));
  }
  for (const name of ['ask', 'erase-all']) {
    server.registerPrompt(name, { description: 'Asks' }, () => ({ messages: [{ role: 'user', content }] }));
  }
  for (const uri of ['memo://1', 'memo://2']) {
    server.registerResource(uri, uri, { description: 'A memo' }, () => ({ contents: [{ uri, text: 'a memo' }] }));
  }
  for (const uri of ['memo://kept/{id}', 'memo://erased/{id}']) {
    const template = new ResourceTemplate(uri, { list: undefined });
    server.registerResource(uri, template, { description: 'Memos' }, found => ({ contents: [{ uri: found.href, text: 'a memo' }] }));
  }
  return server;
}

/** All that a client is shown, by the names that rules know it by. */
async function seen(client) {
  // Not every server has all of them; the client asks what it has.
  const has = client.getServerCapabilities();
  const answers = [
    has.tools && (await client.listTools()),
    has.prompts && (await client.listPrompts()),
    has.resources && (await client.listResources()),
    has.resources && (await client.listResourceTemplates()),
  ].filter(Boolean);
  const items = answers.flatMap(({ tools, prompts, resources, resourceTemplates }) =>
    [tools, prompts, resources, resourceTemplates].flatMap(list => list ?? []),
  );
  return { names: items.map(({ uri, uriTemplate, name }) => uri ?? uriTemplate ?? name), answers };
}

async function look({ sdk, startServer: start, hidden, denied, isPrivate }, { binary, directory, screenshots, defer, say }) {
  if (!binary) return false;
  const server = await start({ defer });
  const names = JSON.stringify(hidden);
  const rule = { name: 'hidden', deny: `mcp.tool in ${names} || mcp.prompt in ${names} || mcp.resource in ${names}` };
  const direct = sdk.client();
  await direct.connect(sdk.transport(server.url));
  const { names: all } = await seen(direct);
  await direct.close();
  expect(hidden.every(name => all.includes(name)), `the server offers ${all}`);

  const route = { policy: { default: 'allow', call: [rule] } };
  const gateway = await startPostern({ binary, directory, upstreamUrl: server.url, credential: 'none', route, defer });
  const person = await startPerson({ directory, credentials: () => user, screenshots, defer });
  const app = new SdkApp({ gateway, person, directory, defer, sdk });
  try {
    await app.connect();
    const { names: left, answers } = await seen(app.client);
    const wanted = all.filter(name => !hidden.includes(name));
    expect(left.length > 0 && JSON.stringify(left) === JSON.stringify(wanted), `of ${all} there is left ${left}`);
    say(`of ${all.length} there are left: ${left.join(' ')}`);
    if (isPrivate) {
      const scopes = answers.map(answer => answer.cacheScope);
      expect(scopes.every(scope => scope === 'private'), `the lists are kept: ${scopes}`);
    }
    server.check(await app.call(server.tool));
    const error = await app.client.callTool(denied).then(
      answer => new Error(`the server said ${JSON.stringify(answer)}`),
      refused => refused,
    );
    expect(error.code === DENIED, `a denied call: ${error.code} ${error.message}`);
    say(`denied: ${error.message}`);
  } catch (error) {
    error.message = `${error.message}\n${gateway.child.output()}`;
    throw error;
  }
  return true;
}
