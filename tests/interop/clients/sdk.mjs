// The steps both TypeScript SDKs share: try, be refused, send the person, finish, try again.
import { Memory } from './memory.mjs';
import { startRedirect } from './redirect.mjs';

/** Prepares what the client needs before the gateway starts; `start` then does the whole flow. */
export async function connectWith({ defer }, sdk) {
  const { uri: redirectUri } = await startRedirect({ defer });
  return { redirectUri, start: options => signIn({ ...options, redirectUri, defer }, sdk) };
}

async function signIn({ url, redirectUri, documentUrl, authorize, defer }, sdk) {
  let address;
  const memory = new Memory({ redirectUri, documentUrl, onAuthorize: found => void (address = found) });
  const client = sdk.client();
  const first = sdk.transport(url, memory);
  const refused = await client.connect(first).then(
    () => undefined,
    error => error,
  );
  if (!refused) throw new Error('the server let the client in without a token');
  if (!(refused instanceof sdk.UnauthorizedError)) throw refused;
  await sdk.finish(first, memory.answer(await authorize(address)));
  await first.close();

  const transport = sdk.transport(url, memory);
  await client.connect(transport);
  defer(() => client.close());
  return {
    tools: async () => (await client.listTools()).tools.map(tool => tool.name),
    call: async tool => (await client.callTool(tool)).content[0].text,
    /** Ends the session on the server, then the connection. */
    async close() {
      await transport.terminateSession();
      await client.close();
    },
  };
}
