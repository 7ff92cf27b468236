//! `postern doctor`: walks the way to an upstream's authorization as the gateway would, with the gateway's own code looked at
//! while it asks, and says what it found, what was decided and what to change. Keeps nothing, and touches no store, so that it
//! works beside a running Postern.
mod fix;
mod identity;
mod looking;
mod report;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::Value;

use self::looking::{Eyes, Seen};
use self::report::{Report, Step};
use super::{failed, println};
use crate::config::{Config, Credential, IdentityProvider, OauthCredential, Profile};
use crate::oauth::client::discover::{Discovered, Overrides};
use crate::oauth::client::ourselves::Ourselves;
use crate::oauth::client::probe::{Probe, probe};
use crate::oauth::client::prospect::{Upstream, ask};
use crate::outbound::{AddressPolicy, Outbound, Settings};
use crate::route::{Route, Table};

/// What `doctor --json` prints.
pub const JSON: &str = "\
JSON: {route, steps, verdict}
  steps    list of {step, request?, response?, facts?, decision, why, fix?}
    step      route, address, probe, resource_metadata, server_metadata, authorization_server,
              token_endpoint, identity, registration_endpoint or registration
    request   {method, url}
    response  {status or error, content_type?, length?, milliseconds,
               www_authenticate?: {schemes, scope?, resource_metadata?, error?}}
    facts     names and values: what was configured, published or chosen
    decision, why, fix   text
  verdict  {ok, summary, fixes}: ok as in the exit code; fixes: those of all steps, in order
Nothing in it is secret; what strangers have written is cut to one short line of visible ASCII.";

/// `registers`: registers for real, and ends that registration where it can be ended.
pub fn doctor(config: &Config, name: &str, registers: bool, as_json: bool) -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().ok();
    let table = Table::new(&config.server.public_url, &config.routes);
    let Some(route) = table.by_name(name) else {
        let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return failed(&format!("there is no route {name} in the configuration; there are: {names}"));
    };
    // As for the gateway, so that an upstream that leads there is refused here too.
    let admin = config.server.admin.as_deref().and_then(|admin| admin.parse::<SocketAddr>().ok());
    let ca_certificates = config.outbound.ca_certificates.clone();
    let name_servers = config.outbound.name_servers.clone();
    let settings = Settings { ca_certificates, forbidden: admin.into_iter().collect(), name_servers };
    let outbound = match Outbound::new(settings) {
        Ok(outbound) => outbound,
        Err(error) => return failed(&error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let eyes = Eyes::default();
    let visit = Visit {
        route,
        ourselves: Ourselves::new(config),
        outbound: eyes.on(&outbound),
        eyes,
        registers,
        steps: Vec::new(),
    };
    let report = runtime.block_on(visit.report());
    let text =
        if as_json { serde_json::to_string_pretty(&report).unwrap_or_default() } else { report.to_string() };
    let printed = println(&text);
    if report.verdict.ok { printed } else { ExitCode::FAILURE }
}

/// One look at one route.
struct Visit<'a> {
    route: &'a Arc<Route>,
    ourselves: Ourselves,
    outbound: Outbound,
    eyes: Eyes,
    registers: bool,
    steps: Vec<Step>,
}

impl Visit<'_> {
    async fn report(mut self) -> Report {
        let configured = self.configured();
        self.steps.push(configured);
        let is_allowed = self.address().await;
        let fine = match (&self.route.credential, is_allowed) {
            (Credential::Oauth(oauth), true) => self.authorization(oauth).await,
            (Credential::Oauth(oauth), false) => self.unreached(oauth),
            (_, true) => self.without_discovery().await,
            (_, false) => String::new(),
        };
        Report::new(&self.route.name, self.steps, &fine)
    }

    /// What the configuration says.
    fn configured(&self) -> Step {
        let route = self.route;
        let (decision, why) = match &route.credential {
            Credential::None => ("none", "nothing is put into requests to the upstream".to_owned()),
            Credential::Header { name, .. } => {
                ("header", format!("requests to the upstream get the header {name}, the same for everybody"))
            }
            Credential::UserHeader(header) => (
                "header",
                format!("requests to the upstream get the header {}, with the user's own key", header.name),
            ),
            Credential::UpstreamInject(provider, _) => (
                "upstream_inject",
                format!(
                    "requests to the upstream get the token that provider {} gave the user",
                    provider.name
                ),
            ),
            Credential::Custom(custom) => {
                ("custom", format!("requests to the upstream get what the strategy {} says", custom.strategy))
            }
            Credential::PosternToken(routes) => (
                "postern_token",
                format!(
                    "requests to the upstream get a token of ours for the caller, good at {}",
                    routes.join(", ")
                ),
            ),
            Credential::ClientCredentials(_) => (
                "client_credentials",
                "requests to the upstream get a token of this gateway's own, the same for everybody".into(),
            ),
            Credential::AwsSigv4(aws) => (
                "aws_sigv4",
                format!(
                    "requests to the upstream are signed with the credentials of a role that provider {} makes the user have",
                    aws.provider.name
                ),
            ),
            Credential::TokenExchange(_) => (
                "token_exchange",
                "requests to the upstream get a token of the user's, which is exchanged for another one"
                    .into(),
            ),
            Credential::EntraObo(_) => (
                "entra_obo",
                "requests to the upstream get a token that Entra gives on behalf of the user".into(),
            ),
            Credential::IdJag(_) => (
                "id_jag",
                "requests to the upstream get a token that is given for an assertion of the user's provider"
                    .into(),
            ),
            Credential::Oauth(_) => (
                "oauth",
                "requests to the upstream get the user's own token, from its authorization server".into(),
            ),
        };
        let step = Step::new("route", decision, &why)
            .fact("published", route.resource.as_str())
            .fact("upstream", route.upstream.url.as_str());
        match &route.credential {
            Credential::Oauth(oauth) => {
                let profile = oauth.profile.map(|profile| format!("{}, by its name", profile.name));
                step.fact("profile", profile.unwrap_or_else(|| "by the issuer".to_owned()))
                    .fact("issuer", oauth.issuer.clone())
                    .fact("authorization_endpoint", oauth.authorization_endpoint.clone())
                    .fact("token_endpoint", oauth.token_endpoint.clone())
                    .fact("resource", oauth.resource.clone())
                    .fact("scopes", oauth.scopes.clone())
                    .fact("client_id", oauth.client_id.clone())
                    .fact("has_client_secret", oauth.client_secret.is_some())
            }
            Credential::UpstreamInject(provider, _) => step.fact("issuer", provider.issuer.as_str()),
            Credential::AwsSigv4(aws) => step
                .fact("subject_provider", aws.provider.name.as_str())
                .fact("region", aws.region.as_str())
                .fact("service", aws.service.as_str()),
            Credential::ClientCredentials(_)
            | Credential::TokenExchange(_)
            | Credential::EntraObo(_)
            | Credential::IdJag(_) => {
                let provider = route.credential.provider().map(|provider| provider.name.clone());
                let step = step.fact("subject_provider", provider);
                match route.credential.exchanger() {
                    Some(at) => step
                        .fact("issuer", at.issuer.clone())
                        .fact("token_endpoint", at.token_endpoint.clone())
                        .fact("client_id", at.client_id.clone())
                        .fact("audience", at.audience.clone())
                        .fact("resource", at.resource.clone())
                        .fact("scopes", at.scopes.clone()),
                    None => step,
                }
            }
            Credential::None
            | Credential::Header { .. }
            | Credential::UserHeader(_)
            | Credential::PosternToken(_)
            | Credential::Custom(_) => step,
        }
    }

    /// Where the name of the upstream leads. Says whether the gateway may go there.
    async fn address(&mut self) -> bool {
        let upstream = &self.route.upstream;
        let vetted = self.outbound.vet(&upstream.host, upstream.port, &upstream.policy).await;
        let step = match &vetted {
            Ok(addresses) => {
                let why = match upstream.policy.allows_private(&upstream.host) {
                    true => "private addresses and plain http are allowed for this host",
                    false => "every address of this host is a public one",
                };
                Step::new("address", "allowed", why).fact("addresses", fix::texts(addresses))
            }
            Err(error) => {
                let decision = if error.is_transient() { "unavailable" } else { "refused" };
                let fix = fix::address(&self.outbound, &upstream.host, upstream.port, error).await;
                Step::new("address", decision, &error.to_string()).failed(&fix)
            }
        };
        self.steps.push(step);
        vetted.is_ok()
    }

    /// A route with a token per user. Returns what is fine about it.
    async fn authorization(&mut self, oauth: &OauthCredential) -> String {
        let overrides = Overrides::from(oauth);
        let (upstream, _) = ask(&self.outbound, self.route, &overrides, false).await;
        let Seen { steps, documents } = self.eyes.take();
        self.steps.extend(steps);
        match upstream {
            Upstream::Open => {
                self.unreached(oauth);
                "the upstream asks for no token now; should it ask once a tool is called, users are sent to its authorization server then".into()
            }
            Upstream::Silent => {
                let url = &self.route.upstream.url;
                let fix =
                    format!("see that the MCP server answers at {url} from here, or correct `upstream.url`");
                self.fail_last(&fix);
                self.unreached(oauth)
            }
            Upstream::Protected(Err(error)) => {
                let seen = fix::Found { steps: &self.steps, documents: &documents };
                let fix = fix::discovery(error, &seen, self.route, oauth, &self.outbound).await;
                let is_told =
                    |step: &Step| step.is("authorization_server") && step.why() == error.to_string();
                if !self.steps.last().is_some_and(is_told) {
                    self.steps.push(Step::new("authorization_server", "none", &error.to_string()));
                }
                self.fail_last(&fix);
                self.unreached(oauth)
            }
            Upstream::Protected(Ok(discovered)) => {
                let step = server(oauth, &discovered);
                self.steps.push(step);
                let (url, policy) = (&discovered.server.token_endpoint, &self.route.issuer_policy);
                let why = "codes are redeemed and tokens refreshed there";
                self.endpoint("token_endpoint", url, policy, why).await;
                self.identity(oauth, &discovered.server).await
            }
        }
    }

    /// Where the way ends early, whoever has to register Postern by hand can be told where people come back to all the same.
    fn unreached(&mut self, oauth: &OauthCredential) -> String {
        if let Some(issuer) = &oauth.issuer {
            let why = "this is what to register there, as long as `credential.issuer` stays as it is";
            let step = Step::new("identity", "not looked at", why).fact("issuer", issuer.as_str());
            self.steps.push(step.fact("redirect_uri", self.redirect_uri(issuer)));
        }
        String::new()
    }

    /// Whether the gateway may go to an endpoint that it has been told of.
    async fn endpoint(&mut self, step: &'static str, url: &str, policy: &AddressPolicy, why: &str) {
        let Some((host, port)) = fix::place(url) else { return };
        let step = match self.outbound.vet(&host, port, policy).await {
            Ok(addresses) => Step::new(step, "allowed", why).fact("addresses", fix::texts(&addresses)),
            Err(error) => {
                let decision = if error.is_transient() { "unavailable" } else { "refused" };
                let fix = fix::address(&self.outbound, &host, port, &error).await;
                let fix = fix.replace(fix::ALLOW_PRIVATE, &fix::allow_host(&host));
                Step::new(step, decision, &error.to_string()).failed(&fix)
            }
        };
        self.steps.push(step.fact("url", url));
    }

    /// A route whose credential needs no authorization server of the upstream's.
    async fn without_discovery(&mut self) -> String {
        let upstream = &self.route.upstream;
        let answer = probe(&self.outbound, &upstream.url, &upstream.policy).await;
        self.steps.extend(self.eyes.take().steps);
        match (&self.route.credential, answer) {
            (_, Probe::Unreachable(_)) => {
                let url = &upstream.url;
                self.fail_last(&format!(
                    "see that the MCP server answers at {url} from here, or correct `upstream.url`"
                ));
            }
            (Credential::None, Probe::Challenged { .. }) => {
                self.fail_last("write `credential.kind: oauth`, or `header` with what the upstream wants");
            }
            (Credential::None, Probe::Open) => return "the upstream asks for no token".into(),
            (Credential::UpstreamInject(provider, _), _) => return injected(provider),
            (_, Probe::Open) => {
                return "the upstream asks for no token; the credential of the route was not sent".into();
            }
            (_, Probe::Challenged { .. }) => {
                return "the upstream asks for the credential that the route has; it was not sent, so whether it is good is not known".into();
            }
        }
        String::new()
    }

    fn fail_last(&mut self, fix: &str) {
        if let Some(last) = self.steps.pop() {
            self.steps.push(last.failed(fix));
        }
    }
}

fn injected(provider: &IdentityProvider) -> String {
    format!(
        "the upstream answers; nobody is sent to its authorization server, since the token is the one of provider {}",
        provider.name
    )
}

/// The authorization server that users would be sent to.
fn server(oauth: &OauthCredential, discovered: &Discovered) -> Step {
    let Discovered { server, resource, scopes } = discovered;
    let profile = oauth.profile_at(&server.issuer);
    let is_configured = oauth.authorization_endpoint.is_some() && oauth.token_endpoint.is_some();
    let (decision, why) = match (server.is_published, is_configured) {
        (_, true) => ("configured", "both endpoints are in the configuration, so nothing is discovered"),
        (true, false) => ("chosen", "its metadata passed every check"),
        (false, false) => {
            ("assumed", "nothing is published; a server of revision 2025-03-26 would have these fixed paths")
        }
    };
    let pkce = match (is_configured, profile.hides_pkce, server.is_published) {
        (true, ..) => "S256, not checked",
        (false, true, _) => "S256, whether it is announced or not",
        (false, false, true) => "S256, announced",
        (false, false, false) => "S256, assumed",
    };
    let resource = match resource {
        Some(resource) => resource.clone(),
        None => format!("not sent, since profile {} refuses it", profile.name),
    };
    let scope = match profile.join(scopes) {
        scope if scope.is_empty() => "none, so the server decides".to_owned(),
        scope => scope,
    };
    Step::new("authorization_server", decision, why)
        .fact("issuer", server.issuer.as_str())
        .fact("profile", chosen(oauth.profile, profile))
        .fact("authorization_endpoint", server.authorization_endpoint.as_str())
        .fact("token_endpoint", server.token_endpoint.as_str())
        .fact("registration_endpoint", server.registration_endpoint.clone())
        .fact("revocation_endpoint", server.revocation_endpoint.clone())
        .fact("pkce", pkce)
        .fact("iss_promised", server.iss_parameter)
        .fact("client_authentication", server.auth_methods.clone())
        .fact("takes_client_documents", server.cimd)
        .fact("scope", scope)
        .fact("resource", Value::from(resource))
}

fn chosen(named: Option<&Profile>, used: &Profile) -> String {
    match (named, used.name) {
        (Some(_), name) => format!("{name}, by its name in the configuration"),
        (None, "standard") => "standard, since the issuer is no provider that is known to deviate".to_owned(),
        (None, name) => format!("{name}, by the issuer"),
    }
}
