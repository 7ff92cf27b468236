//! What is asked before an application is let in.
use askama::Template;

use super::{ADDRESS_LENGTH, address, capped, plain, scope_list, strip};

/// The question whether an application may act for the user. Posts `csrf`, `flow` and `decision`
/// (`allow` or `deny`) to `/oauth/consent`.
///
/// Shows what the MCP security practices ask for: the client, the redirect target, the scopes, what is asked
/// for upstream, and a warning where the redirect target is this computer.
#[derive(Template)]
#[template(path = "consent.html")]
pub struct Consent<'a> {
    pub csrf: &'a str,
    /// Names the flow the answer belongs to; opaque to the page.
    pub flow: &'a str,
    /// Who is signed in.
    pub user: &'a str,
    /// What the client calls itself. Unverified.
    pub client_name: Option<&'a str>,
    /// Host of the client's metadata document (CIMD); `None` for a client that registered itself.
    pub client_host: Option<&'a str>,
    /// Whoever runs this gateway has listed the client.
    pub client_listed: bool,
    /// Host (and port, if any) the browser goes to with the code.
    pub redirect_host: &'a str,
    /// The whole redirect URI, shown as text.
    pub redirect_uri: &'a str,
    /// Whether the redirect URI leads to this computer.
    pub redirect_loopback: bool,
    /// What people know the route by.
    pub server_name: &'a str,
    /// Who has added it, where it was added at run time.
    pub added: Option<Added<'a>>,
    /// The route's canonical URL.
    pub resource: &'a str,
    /// Those of the route.
    pub scopes: &'a [String],
    /// What else the user agrees to, in the operator's words.
    pub agreements: &'a [String],
    /// What the user's connection may do at the upstream, where there is one already.
    pub connected: &'a [String],
    /// The authorization that follows at the upstream's authorization server; `None` when none is needed.
    pub upstream: Option<ConsentUpstream<'a>>,
    /// One more sentence for the user, for example that the upstream could not be asked.
    pub upstream_note: Option<&'a str>,
}

/// An MCP server that was added at run time.
pub struct Added<'a> {
    /// The organisation's name; `None`: the user has added it.
    pub organization: Option<&'a str>,
    /// Host of the server.
    pub host: &'a str,
}

/// What the upstream's authorization server will ask next.
pub struct ConsentUpstream<'a> {
    /// Host of the upstream MCP server.
    pub server_host: &'a str,
    /// Host of its authorization server.
    pub issuer_host: &'a str,
    /// What Postern will ask for there; may be empty.
    pub scopes: &'a [String],
}

impl Added<'_> {
    fn shown_organization(&self) -> Option<String> {
        self.organization.map(plain)
    }
}

impl Consent<'_> {
    fn shown_server_name(&self) -> String {
        plain(self.server_name)
    }

    fn client_label(&self) -> String {
        self.client_name.map(plain).unwrap_or_default()
    }

    /// Whether anything is left of the name once it is cleaned.
    fn has_name(&self) -> bool {
        !self.client_label().is_empty()
    }

    fn shown_client_host(&self) -> Option<String> {
        self.client_host.map(address)
    }

    fn shown_redirect_host(&self) -> String {
        address(self.redirect_host)
    }

    fn shown_redirect_uri(&self) -> String {
        capped(strip(self.redirect_uri), 2 * ADDRESS_LENGTH)
    }

    fn shown_scopes(&self) -> Vec<String> {
        scope_list(self.scopes)
    }

    fn shown_agreements(&self) -> Vec<String> {
        scope_list(self.agreements)
    }

    fn shown_connected(&self) -> Vec<String> {
        scope_list(self.connected)
    }
}

impl ConsentUpstream<'_> {
    fn shown_issuer_host(&self) -> String {
        address(self.issuer_host)
    }

    fn shown_server_host(&self) -> String {
        address(self.server_host)
    }

    fn shown_scopes(&self) -> Vec<String> {
        scope_list(self.scopes)
    }
}
