//! As whom Postern would come to the authorization server: registered by hand, by its own document, or by registering there.
use std::time::Duration;

use super::Visit;
use super::fix;
use super::report::Step;
use crate::clock::Clock;
use crate::config::OauthCredential;
use crate::oauth::client::client_key::ClientKey;
use crate::oauth::client::discover::AuthorizationServer;
use crate::oauth::client::issuer_key;
use crate::oauth::client::manage::deregister;
use crate::oauth::client::ourselves::wanted;
use crate::oauth::client::register::{AuthMethod, RegisterError, Registration, place, register};

impl Visit<'_> {
    pub(super) fn redirect_uri(&self, issuer: &str) -> String {
        self.ourselves.redirect_uri(&issuer_key(issuer))
    }

    /// Returns what is fine about it.
    pub(super) async fn identity(&mut self, oauth: &OauthCredential, server: &AuthorizationServer) -> String {
        let issuer = &server.issuer;
        if let Some(known) = self.ourselves.configured(&self.route.credential, server) {
            let why = "`credential.client_id` is written: the redirect uri has to be registered for it there";
            let step = self.known(server, &known, Step::new("identity", "configured", why));
            let is_documented = oauth.authorization_endpoint.is_none() || oauth.token_endpoint.is_none();
            let advice = (is_documented && server.is_published).then(|| unlisted(server, &known)).flatten();
            self.push(step.advice(advice));
            self.assumed(server);
            return format!("an authorization can begin at {issuer}, as the client {}", known.client_id);
        }
        if let Some(known) = self.ourselves.by_document(server) {
            let why = "the server takes client documents, and this is ours: it has to be able to fetch it";
            self.push(self.known(server, &known, Step::new("identity", "document", why)));
            return format!("an authorization can begin at {issuer}, as the client {}", known.client_id);
        }
        let documents = match (server.cimd, self.ourselves.has_documents()) {
            (false, _) => "the server takes no client documents",
            (true, false) => "our client document cannot be fetched, since `server.public_url` is not https",
            (true, true) => "there is no client document",
        };
        let (endpoint, method) = match place(server, wanted(&self.route.credential)) {
            Ok((endpoint, method)) => (endpoint.to_owned(), method),
            Err(error) => {
                let why = format!("no `credential.client_id` is written, {documents}, and {error}");
                let step = Step::new("identity", "none", &why);
                let step = step.fact("redirect_uri", self.redirect_uri(issuer));
                self.push(step.failed(&self.by_hand(issuer)));
                return String::new();
            }
        };
        let why = format!(
            "no `credential.client_id` is written, and {documents}: postern registers, once, and keeps that in its store, which was not looked at"
        );
        let step = Step::new("identity", "registration", &why)
            .fact("registration_endpoint", endpoint.as_str())
            .fact("redirect_uri", self.redirect_uri(issuer))
            .fact("auth_method", method.as_str())
            .fact("jwks_uri", (method == AuthMethod::PrivateKeyJwt).then(|| self.keys_url(issuer)));
        self.push(step);
        let policy = &self.route.upstream.policy;
        self.endpoint("registration_endpoint", &endpoint, policy, "postern registers there").await;
        if self.registers && !self.steps.last().is_some_and(Step::has_failed) {
            return self.register(server).await;
        }
        self.assumed(server);
        format!(
            "an authorization can begin at {issuer}, once postern has registered there (--register tries that)"
        )
    }

    /// Registers for real, and tidies up.
    async fn register(&mut self, server: &AuthorizationServer) -> String {
        let (issuer, policy) = (&server.issuer, &self.route.upstream.policy);
        let wanted = wanted(&self.route.credential);
        let wants_key = AuthMethod::for_new_client(server, wanted) == Some(AuthMethod::PrivateKeyJwt);
        let key = wants_key.then(|| ClientKey::fleeting(issuer)).flatten();
        let redirect_uri = self.redirect_uri(issuer);
        let applicant = self.ourselves.applicant(&redirect_uri, key.as_ref(), wanted);
        let now = Clock::system().now();
        let registered = register(&self.outbound, policy, server, &applicant, now).await;
        let asked = self.eyes.take().steps.pop();
        let asked = asked.unwrap_or_default().about("registration");
        let registration = match registered {
            Ok(registration) => registration,
            Err(error) => {
                let fix = self.unregistered(&error, server).await;
                self.push(asked.decided("failed", &error.to_string()).failed(&fix));
                return String::new();
            }
        };
        let id = &registration.client_id;
        let step = asked.decided("registered", "the server knows us by this id now");
        self.push(lasting(step.fact("client_id", id.as_str()), &registration, now));
        let Some(management) = &registration.management else {
            let why = format!("the server has no way to delete a registration (rfc 7592): {id} stays there");
            self.push(Step::new("registration", "kept", &why));
            return format!("an authorization can begin at {issuer}; registering there works");
        };
        let is_gone = deregister(&self.outbound, policy, management).await;
        let asked = self.eyes.take().steps.pop().unwrap_or_default().about("registration");
        self.push(match is_gone {
            true => asked.decided("deleted", "it was only to try it (rfc 7592)"),
            false => asked.decided("kept", &format!("it could not be deleted: {id} stays there")),
        });
        format!("an authorization can begin at {issuer}; registering there works")
    }

    async fn unregistered(&self, error: &RegisterError, server: &AuthorizationServer) -> String {
        let endpoint = server.registration_endpoint.as_deref().unwrap_or_default();
        match error {
            RegisterError::Unavailable => {
                format!("see that {endpoint} answers from here, or try again later")
            }
            RegisterError::Address => match fix::place(endpoint) {
                Some((host, _)) => fix::allow_host(&host),
                None => self.by_hand(&server.issuer),
            },
            _ => self.by_hand(&server.issuer),
        }
    }

    /// Facts of an identity that is known without asking.
    fn known(&self, server: &AuthorizationServer, known: &Registration, step: Step) -> Step {
        let is_proven = known.auth_method == AuthMethod::PrivateKeyJwt;
        step.fact("client_id", known.client_id.as_str())
            .fact("redirect_uri", known.redirect_uri.as_str())
            .fact("auth_method", known.auth_method.as_str())
            .fact("jwks_uri", is_proven.then(|| self.keys_url(&server.issuer)))
    }

    /// Paths that nobody has published are a guess, and only trying tells.
    fn assumed(&mut self, server: &AuthorizationServer) {
        if !server.is_published {
            let why =
                "the upstream asks for a token, but nobody publishes which authorization server gives it";
            let fix = "the upstream's operator publishes resource metadata (rfc 9728), or write `credential.issuer`; \
                       where nothing is published at all, `credential.authorization_endpoint`, `credential.token_endpoint` \
                       and `credential.client_id`; for a server of revision 2025-03-26, --register tries its fixed paths";
            self.push(Step::new("authorization_server", "not known", why).failed(fix));
        }
    }

    fn keys_url(&self, issuer: &str) -> String {
        self.ourselves.keys_url(&issuer_key(issuer))
    }

    fn by_hand(&self, issuer: &str) -> String {
        format!(
            "register postern at {issuer} by hand, with the redirect uri {}, and write the `credential.client_id` (and `credential.client_secret`) it gets",
            self.redirect_uri(issuer)
        )
    }

    fn push(&mut self, step: Step) {
        self.steps.push(step);
    }
}

fn lasting(step: Step, registration: &Registration, now: std::time::SystemTime) -> Step {
    let left = registration.expires_at.and_then(|end| end.duration_since(now).ok());
    step.fact("auth_method", registration.auth_method.as_str())
        .fact("secret_expires_in_seconds", left.as_ref().map(Duration::as_secs))
}

/// A way to prove ourselves that the server does not name.
fn unlisted(server: &AuthorizationServer, known: &Registration) -> Option<String> {
    let method = known.auth_method.as_str();
    let is_listed = server.auth_methods.iter().any(|listed| listed == method);
    (!is_listed).then(|| {
        format!(
            "the server does not name {method} but {}: should it refuse to redeem codes, write `credential.token_endpoint_auth_method`, with `credential.client_secret` where that needs one",
            server.auth_methods.join(", ")
        )
    })
}
