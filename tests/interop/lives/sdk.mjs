// Around the TypeScript SDKs.
import { Memory } from '../clients/memory.mjs';
import { startRedirect } from '../clients/redirect.mjs';

/** An application around an SDK's client: when the SDK sends it to the person, it goes, and tries again. */
export class SdkApp {
  /** How often it sends its person to the pages for one thing. */
  patience = 3;
  #address;

  constructor(parts) {
    Object.assign(this, parts);
  }

  async connect() {
    if (!this.memory) {
      const { uri: redirectUri } = await startRedirect(this);
      this.memory = new Memory({ redirectUri, onAuthorize: found => void (this.#address = found) });
    }
    await this.client?.close().catch(() => {});
    for (let tries = 0; ; tries++) {
      const client = this.sdk.client();
      const transport = this.sdk.transport(this.gateway.url, this.memory);
      try {
        await client.connect(transport);
        Object.assign(this, { client, transport });
        this.defer(() => client.close());
        return;
      } catch (error) {
        if (tries === this.patience) throw error;
        await this.#authorize(transport);
        await transport.close();
      }
    }
  }

  async call(tool) {
    const { content } = await this.#tried(() => this.client.callTool(tool));
    return content[0].text;
  }

  async tools() {
    const { tools } = await this.#tried(() => this.client.listTools());
    return tools.map(tool => tool.name);
  }

  async #tried(request) {
    for (let tries = 0; ; tries++) {
      try {
        return await request();
      } catch (error) {
        if (tries === this.patience) throw error;
        await this.#authorize(this.transport);
      }
    }
  }

  /** The same in a new session, where the old one may be gone with whatever it stood on. */
  async callAgain(tool) {
    await this.connect();
    return this.call(tool);
  }

  /** Where the SDK has sent nobody anywhere it has given up on a token that ended on the way: then once more. */
  async #authorize(transport) {
    const address = this.#address;
    this.#address = undefined;
    if (!address) return;
    await this.sdk.finish(transport, this.memory.answer(await this.person.authorize(address)));
  }

  kept() {
    return { tokens: this.memory.tokens(), id: this.memory.clientInformation().client_id };
  }
}
