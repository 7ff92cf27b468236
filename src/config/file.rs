//! The configuration file as it is written: key names, optional keys, nothing decided yet.
//!
//! The comments on fields are written for users: they become the descriptions of the JSON schema.
//! Nothing here has `Debug`, so that no value can slip into a log.

mod calls;
mod credential;
mod kind;
mod limits;
mod login;
mod managed;
mod oauth_server;
mod policy;
mod pool;
mod proxies;
mod tcp;
mod telemetry;
mod tls;
mod trusted;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

pub(super) use calls::CallLimit;
pub use calls::Per;
pub(super) use credential::{ActorToken, AwsRole, Credential, CredentialKind, SubjectOf, Texts};
pub use credential::{ExchangeForm, InjectedToken, RefreshRotation, TokenEndpointAuthMethod};
pub(super) use kind::RouteKind;
pub(super) use limits::Limits;
pub(super) use login::{IdentityProvider, Login};
pub(super) use managed::Managed;
pub use oauth_server::{AccessTokenFormat, ClientAuthMethod};
pub(super) use oauth_server::{Cimd, IdJag, OauthServer, SigningKey, StaticClient};
pub(super) use policy::{Policy, PolicyDefault, PolicyRule};
pub use pool::{Balance, BalanceOn};
pub(super) use pool::{Health, HealthKind, Peer};
pub use proxies::ForwardedHeader;
pub(super) use tcp::TcpSettings;
pub(super) use telemetry::Telemetry;
pub(super) use tls::{Certificate, ClientCertificates, Tls, TlsVersion};
pub(super) use trusted::{Introspection, TrustedIssuer};

/// Configuration of Postern. Durations are written as `30s`, `10m`, `30d`; secrets as `{env: NAME}`, `{file: PATH}` or
/// `{credential: NAME}`, and as they are where `server.public_url` is a loopback one. Relative paths count from the directory Postern is started in.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Postern configuration")]
pub(super) struct File {
    /// Where Postern listens and what it is called.
    pub(super) server: Server,
    /// Where state is kept.
    pub(super) store: Option<Store>,
    /// Keys that seal secrets in the store. The first one seals, all of them open. Without any, one is generated into `data_dir`.
    pub(super) sealing_keys: Option<Vec<SealingKey>>,
    /// Postern as the authorization server of MCP clients.
    pub(super) oauth_server: Option<OauthServer>,
    /// Postern as an OAuth client of upstream servers.
    pub(super) oauth_client: Option<OauthClient>,
    /// How people sign in. May be left out where every route has issuers of its own and none has users' connections.
    pub(super) login: Option<Login>,
    /// Authorization servers whose access tokens are taken in place of Postern's own, at the routes that say so. Default: none.
    pub(super) trusted_issuers: Option<Vec<TrustedIssuer>>,
    /// Requests that Postern makes itself.
    pub(super) outbound: Option<Outbound>,
    /// How much one caller, and all of them together, may hold at each instance.
    pub(super) limits: Option<Limits>,
    /// Who may call what, at all routes. Default: no rules.
    pub(super) policy: Option<Policy>,
    /// What is told to others about requests, besides metrics and logs. Default: nothing.
    pub(super) telemetry: Option<Telemetry>,
    /// Lets people and organisations add MCP servers at run time, by `/api/v1` or the command line. Default: nobody may.
    pub(super) managed: Option<Managed>,
    /// The MCP servers that Postern publishes.
    pub(super) routes: Vec<Route>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    /// The origin under which clients reach Postern, like `https://mcp.example.com`. Has no path. `http` only for loopback hosts.
    pub(super) public_url: String,
    /// Addresses to listen on, like `0.0.0.0:443` or `[::]:443`. With `http://` or `https://` in front, the listener has TLS or not whatever
    /// the others do; without, it has TLS when `tls` is given.
    pub(super) listen: Vec<String>,
    /// Certificates of the TLS listeners.
    pub(super) tls: Option<Tls>,
    /// Addresses of `listen`, as they are written after their scheme, where a balancer says with the PROXY protocol (1 or 2) whose each
    /// connection is. They have TLS, and `trusted_proxies` are all who may connect there. Default: none.
    pub(super) proxy_protocol: Option<Vec<String>>,
    /// Addresses and networks of the balancers in front, like `10.0.0.0/8`. They are believed when they say whose a request or a connection
    /// is; from everybody else that means nothing. Default: none.
    pub(super) trusted_proxies: Option<Vec<String>>,
    /// The header in which those balancers say whose a request is: `x_forwarded_for`, or `forwarded` (RFC 7239). They have to write it
    /// themselves, since the other one is not looked at. Default: `x_forwarded_for`.
    pub(super) forwarded_header: Option<ForwardedHeader>,
    /// Address of the admin listener (`/healthz`, `/readyz`, `/metrics`), or `off`. Default: `127.0.0.1:9090`.
    pub(super) admin: Option<String>,
    /// Directory of the embedded store and of generated keys. Created with mode 0700. Default: `./postern-data`.
    pub(super) data_dir: Option<PathBuf>,
    /// Worker threads of the proxy; a connection stays with one of them. Default: as many as the machine has processors.
    #[schemars(range(min = 1))]
    pub(super) threads: Option<usize>,
    /// Form of the access log on standard output. Default: `json`.
    pub(super) access_log: Option<AccessLog>,
    /// What the audit log on standard error says of credentials: `all` of each that a call was given, `changes` of those that were fetched,
    /// renewed or refused. Default: `all`; without an access log `changes`.
    pub(super) audit_log: Option<AuditLog>,
    /// Browser origins that may call MCP routes, like `https://inspector.example.com`. Postern's own origin always may, and with a loopback
    /// `public_url` every loopback origin. Pages of those written here may have people sent back to them. Default: none.
    pub(super) allowed_origins: Option<Vec<String>>,
    /// Where whoever gets certificates for this machine answers their challenges, like `http://127.0.0.1:8402`:
    /// `/.well-known/acme-challenge/TOKEN` is asked for there, whatever the host, without a token of anybody's. Default: nowhere.
    pub(super) acme_challenge: Option<String>,
    /// How long running requests may go on after SIGTERM. Default: `30s`.
    pub(super) drain_timeout: Option<String>,
    /// Read the configuration again whenever it or a file that it names has changed. Default: `false`.
    pub(super) watch: Option<bool>,
    /// How long a new process may take to serve before `postern upgrade` goes on with the old one. Default: `30s`.
    pub(super) upgrade_timeout: Option<String>,
}

/// Form of the access log.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum AccessLog {
    Off,
    Json,
    Text,
}

/// How much the audit log says.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum AuditLog {
    All,
    Changes,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Store {
    /// `embedded` keeps everything in `data_dir`, for one instance. `redis` is shared by many (Redis 6.2 or newer, or Valkey); the
    /// other keys belong to it. Default: `embedded`.
    pub(super) kind: Option<StoreKind>,
    /// Addresses, like `redis://127.0.0.1:6379/0`, with TLS `rediss://…`, as a socket `unix:///run/redis/redis.sock`. For `sentinel` those of
    /// the Sentinels, for `cluster` of some of its nodes.
    pub(super) urls: Option<Vec<String>>,
    /// What every key in Redis begins with. Default: `postern:`.
    pub(super) prefix: Option<String>,
    /// What stands at `urls`. Default: `standalone`, which is one server.
    pub(super) topology: Option<StoreTopology>,
    /// `sentinel`: the name under which the Sentinels know the primary.
    pub(super) master: Option<String>,
    /// ACL user. Default: Redis's `default` user.
    pub(super) username: Option<String>,
    /// Password of the user.
    pub(super) password: Option<Secret>,
    /// `sentinel`: ACL user at the Sentinels.
    pub(super) sentinel_username: Option<String>,
    /// `sentinel`: password at the Sentinels.
    pub(super) sentinel_password: Option<Secret>,
    /// With TLS: PEM file with the authorities to trust instead of the system's.
    pub(super) ca_file: Option<PathBuf>,
    /// With TLS: PEM file with a client certificate.
    pub(super) cert_file: Option<PathBuf>,
    /// With TLS: PEM file with the private key of `cert_file`.
    pub(super) key_file: Option<PathBuf>,
    /// How many replicas have to confirm a refresh or a revocation (WAIT, 50 ms) before it counts as safe. Default: 0.
    #[schemars(range(min = 0, max = 16))]
    pub(super) replicas: Option<u32>,
    /// Allows a Redis beyond loopback without TLS or without a password. Default: `false`.
    pub(super) allow_insecure: Option<bool>,
}

/// The kinds of store.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum StoreKind {
    Embedded,
    Redis,
}

/// How Redis is set up.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum StoreTopology {
    Standalone,
    Sentinel,
    Cluster,
}

/// A sealing key: 32 random bytes in base64, as `postern keys generate` prints. Give one of `env`, `file`, `credential`, `command`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SealingKey {
    /// Name of the key: letters, digits, `-` and `_`. Never give a new key an old name.
    pub(super) id: String,
    /// Environment variable that holds the key.
    pub(super) env: Option<String>,
    /// File that holds the key. Must be readable by its owner only.
    pub(super) file: Option<PathBuf>,
    /// Name of a systemd credential that holds the key.
    pub(super) credential: Option<String>,
    /// Program and arguments that print the key, such as the client of a key management service that unwraps it.
    pub(super) command: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OauthClient {
    /// URL of a client metadata document that replaces Postern's own for every issuer. `https`, with a path.
    pub(super) client_metadata_url: Option<String>,
    /// How long a registration at an upstream's authorization server is kept once no route leads there, before it is deleted
    /// (RFC 7592). Default: `7d`.
    pub(super) unused_registration_ttl: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Outbound {
    /// PEM files with certificates to trust beside the system's, for OAuth requests and upstreams. Default: none.
    pub(super) ca_files: Option<Vec<PathBuf>>,
    /// Name servers to ask, like `10.0.0.2` or `127.0.0.1:5353`. Default: those of the system, by its own resolver; `srv:` names by
    /// `/etc/resolv.conf`.
    pub(super) name_servers: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// Name of the route, unique: lower-case letters, digits, `-` and `_`.
    pub(super) name: String,
    /// What it leads to. `http` is anything that speaks HTTP, on a host of its own, which is not that of `public_url`; `tcp` are bytes, on a listener of
    /// their own. Default: `mcp`.
    pub(super) kind: Option<RouteKind>,
    /// `http`: nobody is asked for a token, and requests go on as they are. Default: `false`.
    pub(super) public: Option<bool>,
    /// `http`: preflights of browsers (CORS) go on to the server although no token comes with them, and it answers them. Default: `false`.
    pub(super) cors_allow_preflight: Option<bool>,
    /// `tcp`: the address to listen on, like `0.0.0.0:5432`.
    pub(super) listen: Option<String>,
    /// `tcp`: who may connect, how many, and for how long.
    pub(super) tcp: Option<TcpSettings>,
    /// Host of the route as clients send it, with the port where it is not the usual one. Default: that of `public_url`.
    pub(super) host: Option<String>,
    /// Path of the route, like `/files`. Default: `/`, which needs a `host`.
    pub(super) path: Option<String>,
    /// The server behind the route.
    pub(super) upstream: Upstream,
    /// What Postern puts into requests to the upstream. Default: `{kind: oauth}`, at an `http` route `{kind: none}`.
    pub(super) credential: Option<Credential>,
    /// Access scopes of this route besides `mcp:access`. Default: none.
    pub(super) scopes: Option<Vec<String>>,
    /// Access scopes that calls of single tools need besides, by the tool's name, like `{delete_file: [files:delete]}`. A client is told
    /// when it lacks one, and then asks the user. Default: none.
    pub(super) tool_scopes: Option<BTreeMap<String, Vec<String>>>,
    /// Who may call what here, besides what the global `policy` says. Default: no further rules.
    pub(super) policy: Option<Policy>,
    /// Entries of `trusted_issuers`, by name: this route takes their access tokens and no others, and sends clients there. Default: those
    /// with `for_all_routes`; `[]` is Postern itself.
    pub(super) trusted_issuers: Option<Vec<String>>,
    /// How often somebody may call this route, and how many calls at once. Default: no limits but those of `limits.calls`.
    pub(super) limits: Option<Vec<CallLimit>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Upstream {
    /// URL of the MCP endpoint, or of whatever else is there (`tcp://HOST:PORT` for `tcp`), like `https://files.example.com/mcp`.
    pub(super) url: String,
    /// Allows `http`, and loopback and private addresses, for the host of `url` and for `peers`. Default: `false`.
    pub(super) allow_private: Option<bool>,
    /// Other hosts that the upstream may lead to (its authorization server, say), for which the same is allowed. Names without port. Default: none.
    pub(super) allow_hosts: Option<Vec<String>>,
    /// How long it may say nothing, before its answer and within it: then a call is answered 504, and an answer that has begun ends. `0s`: as
    /// long as it likes. Default: `0s` for MCP servers, whose streams are silent for hours; `1h` at `kind: http`.
    pub(super) read_timeout: Option<String>,
    /// Where it is, as `HOST:PORT`: requests are shared out among these. Scheme, host header, TLS name and path stay those of `url`, which
    /// is still who the upstream is. Default: where `url` says.
    pub(super) peers: Option<Vec<Peer>>,
    /// How the peer of a request is chosen; those of a session stay with the peer where it was begun. Default: `round_robin`.
    pub(super) balance: Option<Balance>,
    /// What `consistent` goes by. Default: `caller`.
    pub(super) balance_on: Option<BalanceOn>,
    /// How peers are asked whether they are well. Default: not at all; what becomes of requests says it.
    pub(super) health: Option<Health>,
    /// How long a peer that has come back takes until it bears its whole share. Default: `0s`.
    pub(super) slow_start: Option<String>,
    /// How long a peer that was taken out still has the sessions that were begun there, while it answers. Default: `10m`.
    pub(super) drain: Option<String>,
}

/// A secret: where it is read from, or, to try things out on one machine, itself. An empty `client_secret` is none: a public client.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Secret {
    Place(Place),
    Plain(#[schemars(with = "String")] SecretString),
}

/// Where a secret is read from: one of `env`, `file`, `credential`. A line break at the end is dropped.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    /// Name of an environment variable.
    pub(super) env: Option<String>,
    /// Path of a file.
    pub(super) file: Option<PathBuf>,
    /// Name of a systemd credential (a file in `$CREDENTIALS_DIRECTORY`).
    pub(super) credential: Option<String>,
}

impl File {
    /// Whoever has an empty secret has none (RFC 6749 §2.1, public clients).
    pub(super) fn drop_empty_secrets(&mut self) {
        let providers = self.login.iter_mut().flat_map(|login| login.oidc.iter_mut().flatten());
        let clients = self.oauth_server.iter_mut().filter_map(|server| server.clients.as_mut());
        let clients = clients.flat_map(|clients| clients.listed.iter_mut().flatten());
        let credentials = self.routes.iter_mut().filter_map(|route| route.credential.as_mut());
        let secrets = providers.map(|provider| &mut provider.client_secret);
        let secrets = secrets.chain(clients.map(|client| &mut client.client_secret));
        for secret in secrets.chain(credentials.map(|credential| &mut credential.client_secret)) {
            secret.take_if(|secret| matches!(secret, Secret::Plain(text) if text.expose_secret().is_empty()));
        }
    }
}
