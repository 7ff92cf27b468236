// What the gateway comes to as a client in the suite's scenarios: which checks each of them makes, and what is not green
// and why. All else is a success, and the same for every client in front of the gateway.
import { complaints } from './suite.mjs';

const FOUND = ['prm-pathbased-requested', 'authorization-server-metadata'];
const ASKED = [...FOUND, 'authorization-request', 'pkce-code-challenge-sent', 'pkce-s256-method-used'];
const REDEEMED = [...ASKED, 'token-request', 'pkce-code-verifier-sent', 'pkce-verifier-matches-challenge'];
const USED = [...REDEEMED, 'valid-bearer-token'];
const RESOURCE = ['in-authorization', 'in-token', 'valid-uri', 'consistency', 'matches-prm'].map(
  what => `resource-parameter-${what}`,
);
/** Stands for the checks of a registration, of which the later revision makes one more. */
const REGISTERED = 'client-registration';

const metadata = [...USED, REGISTERED, ...RESOURCE];
const both = {
  'auth/metadata-default': metadata,
  'auth/metadata-var1': metadata,
  'auth/metadata-var2': metadata,
  'auth/metadata-var3': metadata,
  'auth/basic-cimd': [...USED, 'cimd-client-id-used'],
  'auth/pre-registration': [...USED, 'pre-registration-auth'],
  'auth/scope-from-www-authenticate': [...USED, REGISTERED, 'scope-from-www-authenticate'],
  'auth/scope-from-scopes-supported': [...USED, REGISTERED, 'scope-from-scopes-supported'],
  'auth/scope-omitted-when-undefined': [...USED, REGISTERED, 'scope-omitted-when-undefined'],
  'auth/scope-step-up': [...USED, REGISTERED, 'scope-step-up-initial', 'scope-step-up-escalation'],
  'auth/scope-retry-limit': [...REDEEMED, REGISTERED, 'scope-retry-limit'],
  'auth/token-endpoint-auth-basic': [...metadata, 'token-endpoint-auth-method'],
  'auth/token-endpoint-auth-post': [...metadata, 'token-endpoint-auth-method'],
  'auth/token-endpoint-auth-none': [...metadata, 'token-endpoint-auth-method'],
};

const DPOP = ['token-request-proof', 'auth-scheme', 'fresh-proof'];
const NONCE = ['as-nonce', 'rs-nonce'];
const dpop = names => names.map(name => `sep-1932-client-${name === 'auth-scheme' ? 'dpop-auth-scheme' : name}`);
const later = {
  'auth/scope-step-up': [...both['auth/scope-step-up'], 'sep-2350-scope-union-on-reauth'],
  'auth/resource-mismatch': ['prm-pathbased-requested', 'resource-mismatch-rejected'],
  'auth/offline-access-scope': [
    ...USED,
    REGISTERED,
    'sep-2207-client-metadata-grant-types',
    'sep-2207-offline-access-requested',
  ],
  'auth/offline-access-not-supported': [...USED, REGISTERED, 'sep-2207-offline-access-not-requested'],
  'auth/authorization-server-migration': [
    ...USED,
    REGISTERED,
    'sep-2352-reregister-on-as-change',
    'sep-2352-no-reuse-on-as-change',
    'sep-2352-no-cross-as-credential-reuse',
  ],
  'auth/iss-supported': [...USED, REGISTERED, 'sep-2468-client-compare-iss-supported'],
  'auth/iss-not-advertised': [...USED, REGISTERED, 'sep-2468-client-proceed-no-iss'],
  'auth/iss-supported-missing': [...ASKED, REGISTERED, 'sep-2468-client-reject-missing-iss'],
  'auth/iss-wrong-issuer': [...ASKED, REGISTERED, 'sep-2468-client-compare-iss-supported'],
  'auth/iss-unexpected': [...ASKED, REGISTERED, 'sep-2468-client-compare-iss-unadvertised'],
  'auth/iss-normalized': [...ASKED, REGISTERED, 'sep-2468-client-no-normalization'],
  'auth/metadata-issuer-mismatch': [...FOUND, 'sep-2468-client-validate-metadata-issuer'],
  // Not about authorization: what comes through, and the gateway's own question whether a server wants a token.
  tools_call: ['tool-add-numbers', 'wire-schema-valid'],
  'request-metadata': [
    'sep-2575-http-client-sends-version-header',
    'sep-2575-client-populates-meta',
    'sep-2575-client-sends-client-info',
    'sep-2575-http-version-header-matches-meta',
    'sep-2575-client-declares-roots-capability',
    'sep-2575-client-declares-sampling-capability',
    'sep-2575-client-declares-elicitation-capability',
    'sep-2575-client-retry-supported-version',
  ],
  'http-standard-headers': ['sep-2243-client-includes-standard-headers'],
  'http-custom-headers': [
    'sep-2243-client-supports-custom-headers',
    'sep-2243-client-mirrors-designated-params',
    'sep-2243-client-encode-values',
    'sep-2243-client-base64-unsafe',
    'sep-2243-client-omit-null',
  ],
  'http-invalid-tool-headers': [
    'sep-2243-client-reject-invalid-tool',
    'sep-2243-x-mcp-header-not-empty',
    'sep-2243-x-mcp-header-primitive-only',
    'sep-2243-x-mcp-header-unique',
    'sep-2243-x-mcp-header-charset',
  ],
  'json-schema-ref-no-deref': ['sep-2106-no-network-ref-deref'],
  // Extensions, which no revision requires.
  'auth/dpop': [...REDEEMED, REGISTERED, ...dpop(DPOP)],
  'auth/dpop-nonce': [...REDEEMED, REGISTERED, ...dpop([...DPOP, ...NONCE])],
  'auth/client-credentials-jwt': [...FOUND, 'client-credentials-jwt-verified'],
  'auth/client-credentials-basic': [...FOUND, 'client-credentials-basic-auth'],
  'auth/enterprise-managed-authorization': [...FOUND, 'complete-flow-token-exchange', 'complete-flow-jwt-bearer'],
  'auth/wif-jwt-bearer': [...FOUND, 'wif-assertion-verified'],
};

const expected = { '2025-11-25': both, '2026-07-28': { ...both, ...later } };

/** Scenarios that the suite runs too and nobody here plays. */
export const beyond = {
  'sep-2322-client-request-state': 'is about what a client does by itself, and these cannot answer questions of servers',
  'json-schema-2020-12-preservation': 'is about what a client does by itself, and these keep no schemas',
};

const CODE = "the gateway gets its tokens for a user's authorization code and for nothing else";
const BEARER = 'the gateway asks for bearer tokens only';
const UNASKED = 'the client in front of the gateway does not do that';
const failing = checks => Object.fromEntries(checks.map(check => [check, 'FAILURE']));

/** What is not green: per scenario the verdicts other than SUCCESS, and the reason. */
const red = {
  'request-metadata': {
    because: 'the clients in front declare no capabilities',
    verdicts: {
      'sep-2575-client-declares-roots-capability': 'SKIPPED',
      'sep-2575-client-declares-sampling-capability': 'SKIPPED',
      'sep-2575-client-declares-elicitation-capability': 'SKIPPED',
    },
  },
  'http-standard-headers': { because: UNASKED, verdicts: { 'sep-2243-client-includes-standard-headers': 'SKIPPED' } },
  'auth/dpop': { because: BEARER, verdicts: failing(dpop(DPOP)) },
  'auth/dpop-nonce': { because: BEARER, verdicts: failing(dpop([...DPOP, ...NONCE])) },
  'auth/client-credentials-jwt': { because: CODE, verdicts: failing(['client-credentials-jwt-verified']) },
  'auth/client-credentials-basic': { because: CODE, verdicts: failing(['client-credentials-basic-auth']) },
  'auth/enterprise-managed-authorization': {
    because: CODE,
    verdicts: failing(['complete-flow-token-exchange', 'complete-flow-jwt-bearer']),
  },
  'auth/wif-jwt-bearer': { because: CODE, verdicts: failing(['wif-assertion-verified']) },
};

const UNUSABLE = "the MCP server's authorization server cannot be used";
const FAILED = 'the authorization at the MCP server failed';
/** Where the client is not to be let in: what it is told. */
const refusals = {
  'auth/resource-mismatch': UNUSABLE,
  'auth/metadata-issuer-mismatch': UNUSABLE,
  'auth/iss-supported-missing': FAILED,
  'auth/iss-wrong-issuer': FAILED,
  'auth/iss-unexpected': FAILED,
  'auth/iss-normalized': FAILED,
  'auth/client-credentials-jwt': UNUSABLE,
  'auth/client-credentials-basic': UNUSABLE,
  'auth/enterprise-managed-authorization': UNUSABLE,
  'auth/wif-jwt-bearer': UNUSABLE,
  // Each client says that in words of its own.
  'auth/scope-retry-limit': '',
};

/** What is known not to be green, one line each. */
export const known = revision =>
  Object.entries(red)
    .filter(([scenario]) => scenario in expected[revision])
    .map(([scenario, { because }]) => `${scenario}: ${because}`);

/** One line for everything that is not as it is written here. `found`: checks by scenario; `played`: how it went there. */
export function differences({ found, played, revision }) {
  const lines = [];
  const scenarios = new Set([...found.keys(), ...Object.keys(expected[revision])]);
  for (const scenario of scenarios) {
    if (scenario in beyond) continue;
    const checks = found.get(scenario);
    const wrong = [...wrongChecks(checks, wanted(scenario, revision)), ...wrongEnd(scenario, played.get(scenario))];
    if (wrong.length === 0) continue;
    const log = played.get(scenario)?.log;
    lines.push(`${scenario}:`, ...wrong, ...complaints(checks), ...(log ? [log] : []));
  }
  return lines;
}

/** The verdict that each check must come to, by its name. */
function wanted(scenario, revision) {
  const checks = expected[revision][scenario] ?? [];
  const isMore = checks.includes(REGISTERED) && revision !== '2025-11-25';
  const named = isMore ? [...checks, 'sep-837-application-type-present'] : checks;
  return new Map(named.map(check => [check, red[scenario]?.verdicts[check] ?? 'SUCCESS']));
}

const WORST_FIRST = ['FAILURE', 'WARNING', 'SKIPPED', 'SUCCESS'];
/** A check may be made many times; the worst counts. */
const verdictOf = (checks, id) =>
  WORST_FIRST.find(verdict => checks.some(check => check.id === id && check.status === verdict));

function wrongChecks(checks = [], wanted) {
  const ids = new Set([...checks.map(check => check.id), ...wanted.keys()]);
  return [...ids]
    .map(id => [id, wanted.get(id) ?? 'no such check', verdictOf(checks, id) ?? 'nothing'])
    .filter(([, before, now]) => before !== now)
    .map(([id, before, now]) => `  ${id}: ${now}, expected: ${before}`);
}

function wrongEnd(scenario, outcome) {
  if (!outcome) return ['  nobody played it'];
  const said = outcome.error && decodeURIComponent(outcome.error.message.replaceAll('+', ' '));
  const refusal = refusals[scenario];
  if (refusal === undefined) return said === undefined ? [] : [`  the client did not get what it wanted: ${said}`];
  if (said === undefined) return ['  the client got in, and must not'];
  return said.includes(refusal) ? [] : [`  the client was told: ${said}; expected: ${refusal}`];
}
