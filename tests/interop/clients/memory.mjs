// What the TypeScript SDKs keep between the steps of an authorization; both generations take the same shape.
import { randomUUID } from 'node:crypto';
import { metadata } from './redirect.mjs';

/** `onAuthorize` gets the authorization URL; `documentUrl` makes the client identify itself by that document. */
export class Memory {
  #kept = {};
  #state;

  constructor({ redirectUri, documentUrl, onAuthorize }) {
    this.redirectUrl = redirectUri;
    this.clientMetadataUrl = documentUrl;
    this.clientMetadata = { ...metadata, redirect_uris: [redirectUri] };
    this.redirectToAuthorization = onAuthorize;
  }

  state() {
    return (this.#state = randomUUID());
  }
  clientInformation() {
    return this.#kept.client;
  }
  saveClientInformation(client) {
    this.#kept.client = client;
  }
  tokens() {
    return this.#kept.tokens;
  }
  saveTokens(tokens) {
    this.#kept.tokens = tokens;
  }
  discoveryState() {
    return this.#kept.discovery;
  }
  saveDiscoveryState(discovery) {
    this.#kept.discovery = discovery;
  }
  /** Asked for when the server has refused what is kept: `all`, `tokens`, `client`, `verifier` or `discovery`. */
  invalidateCredentials(which) {
    if (which === 'all') this.#kept = {};
    else delete this.#kept[which];
  }
  codeVerifier() {
    return this.#kept.verifier;
  }
  saveCodeVerifier(verifier) {
    this.#kept.verifier = verifier;
  }

  /** The parameters of the redirect, when they answer this client's own request. */
  answer(returned) {
    const { searchParams } = returned;
    if (searchParams.get('state') !== this.#state) throw new Error('the answer carries another state');
    if (!searchParams.get('code')) throw new Error(`the answer is ${searchParams}`);
    return searchParams;
  }
}
