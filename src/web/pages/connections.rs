//! How a connection stands, on the page of one server and among others, and what came of trying.
use askama::Template;

use super::{address, plain, render, scope_list};

/// A server, and how the user's connection there stands. `connection.html` shows it.
pub struct Server<'a> {
    /// Of its route, as in addresses.
    pub name: &'a str,
    /// What people know it by.
    pub title: String,
    pub resource: &'a str,
    /// The state, in a sentence.
    pub words: String,
    pub mood: Mood,
    pub held: Option<Held<'a>>,
    pub offer: Offer,
    /// The user hands over a secret, and is sent nowhere.
    pub is_key: bool,
    pub can_disconnect: bool,
}

/// How much the state wants to be seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Dim,
    Plain,
    Warn,
    Bad,
}

/// The button that leads to the authorization server, if any does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    Nothing,
    Connect,
    /// Although there is one that works.
    Reconnect,
}

/// What there is of a connection.
pub struct Held<'a> {
    /// A date.
    pub since: String,
    pub issuer_host: String,
    pub scopes: &'a [String],
}

/// The page of one server alone.
#[derive(Template)]
#[template(path = "server.html")]
pub struct OneServer<'a> {
    pub csrf: &'a str,
    pub user: &'a str,
    pub server: Server<'a>,
    /// Whether an application can work with it now.
    pub is_ready: bool,
    pub return_to: Option<&'a str>,
    /// What the way back is called.
    pub return_label: String,
    /// Where the user's own secret for this server comes from.
    pub hint: Option<&'a str>,
    /// What is wrong with the one that was entered.
    pub error: Option<&'a str>,
}

/// What came of a way through several authorization servers, where not all went well.
#[derive(Template)]
#[template(path = "not_connected.html")]
pub struct NotConnected<'a> {
    pub status: u16,
    /// Name of the route, and why it is not connected.
    pub failed: Vec<(&'a str, &'static str)>,
    pub done: Vec<&'a str>,
    /// Where to go next, and what that is called.
    pub onward: String,
    pub label: String,
}

impl Server<'_> {
    pub(super) fn notice(&self) -> &'static str {
        match self.mood {
            Mood::Dim => "dim",
            Mood::Plain => "",
            Mood::Warn => "notice warn",
            Mood::Bad => "notice bad",
        }
    }

    /// A server that waits for nothing but its user gets the loud button.
    pub(super) fn is_quiet(&self) -> bool {
        self.offer == Offer::Reconnect || self.mood == Mood::Plain
    }
}

impl Held<'_> {
    pub(super) fn shown_issuer_host(&self) -> String {
        address(&self.issuer_host)
    }

    pub(super) fn shown_scopes(&self) -> Vec<String> {
        scope_list(self.scopes)
    }
}

/// The page of one server alone.
pub fn one_server(page: &OneServer<'_>) -> String {
    render(page)
}

/// The page about what failed.
pub fn not_connected(page: &NotConnected<'_>) -> String {
    render(page)
}

/// What a link back to this address is called.
pub fn label(host: &str) -> String {
    format!("Go back to {}", plain(&address(host)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn page(offer: Offer, mood: Mood, is_ready: bool, return_to: Option<&str>) -> String {
        let scopes = ["files:read".to_owned(), "\"><script>alert(1)</script>".to_owned()];
        one_server(&OneServer {
            csrf: "c",
            user: "<b>alice</b>",
            server: Server {
                title: "files".to_owned(),
                name: "files",
                resource: "https://gw.example/files",
                words: "A sentence.".to_owned(),
                mood,
                held: Some(Held {
                    since: "2026-01-31".to_owned(),
                    issuer_host: "login.example<i>".to_owned(),
                    scopes: &scopes,
                }),
                offer,
                is_key: false,
                can_disconnect: true,
            },
            is_ready,
            return_to,
            return_label: label("app.example\u{202e}<i>"),
            hint: None,
            error: None,
        })
    }

    #[test]
    fn what_upstreams_say_is_text() {
        let html = page(Offer::Reconnect, Mood::Plain, true, Some("https://app.example/?a=1&b=\"x"));
        assert!(!html.contains("<script") && !html.contains("<b>alice") && !html.contains("<i>"), "{html}");
        assert!(html.contains("<code>files:read</code>") && !html.contains("style="));
        assert!(html.contains(r#"href="https://app.example/?a=1&#38;b=&#34;x""#), "{html}");
        assert!(html.contains("Go back to app.example") && !html.contains('\u{202e}'));
    }

    #[test]
    fn one_server_has_one_button_at_the_most_and_the_way_back_once() {
        for (offer, forms) in [(Offer::Nothing, 0), (Offer::Connect, 1), (Offer::Reconnect, 1)] {
            for (is_ready, link) in [(true, r#"<a class="button" href="/x""#), (false, r#"quiet" href="/x""#)]
            {
                let html = page(offer, Mood::Bad, is_ready, Some("/x"));
                assert_eq!(html.matches("<form").count(), forms);
                assert_eq!(html.matches(r#"name="anew""#).count(), usize::from(offer == Offer::Reconnect));
                assert_eq!(
                    (html.matches(r#"href="/x""#).count(), html.matches(link).count()),
                    (1, 1),
                    "{html}"
                );
                assert_eq!(html.contains("It is done"), is_ready);
            }
            assert!(!page(offer, Mood::Bad, true, None).contains("Go back"));
        }
    }
}
