// Around the Python SDK: a session is a process, which begins with what the one before has kept.
import { signIn } from '../clients/python.mjs';
import { startRedirect } from '../clients/redirect.mjs';

export class PythonApp {
  #kept;

  constructor(parts) {
    Object.assign(this, parts);
  }

  async connect() {
    this.redirectUri ??= (await startRedirect(this)).uri;
    const { redirectUri, defer, person } = this;
    const url = this.gateway.url;
    this.session = await signIn({ url, redirectUri, kept: this.#kept, authorize: person.authorize, defer });
  }

  tools() {
    return this.session.tools();
  }

  call(tool) {
    return this.session.call(tool);
  }

  async callAgain(tool) {
    if (this.session) {
      this.#kept = await this.session.kept();
      await this.session.close();
    }
    await this.connect();
    return this.call(tool);
  }

  /** It keeps a client id for good, so people have to take the server out of the application and add it again. */
  async forget() {
    await this.session.close();
    this.#kept = undefined;
    this.session = undefined;
  }

  async kept() {
    const { tokens, client } = await this.session.kept();
    return { tokens, id: client.client_id };
  }
}
