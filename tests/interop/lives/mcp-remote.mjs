// Around mcp-remote, which keeps what it has in files.
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { signIn } from '../clients/mcp-remote.mjs';
import { freePorts } from '../ports.mjs';

export class RemoteApp {
  constructor(parts) {
    Object.assign(this, parts);
  }

  async connect() {
    this.port ??= (await freePorts(1))[0];
    const { port, directory, defer, person, gateway } = this;
    const authorize = async address => {
      await person.authorize(address);
      // It goes on once its port is closed, and a browser keeps connections to that for a minute.
      await person.leave();
    };
    this.session = await signIn({ url: gateway.url, authorize, directory, port, defer });
  }

  call(tool) {
    return this.session.call(tool);
  }

  async callAgain(tool) {
    await this.session.close();
    await this.connect();
    return this.call(tool);
  }

  async kept() {
    return { tokens: await this.#file('tokens.json'), id: (await this.#file('client_info.json')).client_id };
  }

  async #file(ending) {
    const home = join(this.directory, 'mcp-remote');
    const files = await readdir(home, { recursive: true });
    const file = files.find(name => name.endsWith(ending));
    if (!file) throw new Error(`no ${ending} among ${files}`);
    return JSON.parse(await readFile(join(home, file), 'utf8'));
  }
}
