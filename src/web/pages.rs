//! The pages a person sees, as functions from plain values to HTML.
//!
//! They stand apart from the endpoints so that the words and the escaping are tested without a server.
//! Every page works without JavaScript under the policy
//! `default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'`;
//! the stylesheet is [`STYLE`], served at [`STYLE_PATH`].
//!
//! Names, addresses and scopes come from strangers. They are shown as text only, never as a link, and without
//! the characters that make text look like something else (see [`plain`]). Escaping is the template engine's.

pub mod connections;
mod consent;

use askama::Template;

use self::connections::Offer;
pub use self::consent::{Added, Consent, ConsentUpstream};

/// The stylesheet of all pages.
pub const STYLE: &str = include_str!("style.css");

/// Where the pages look for [`STYLE`].
pub const STYLE_PATH: &str = "/oauth/style.css";

/// Longest name, in characters, that is shown whole.
const NAME_LENGTH: usize = 80;
/// Longest address, in characters, that is shown whole. A valid host name has at most 253.
const ADDRESS_LENGTH: usize = 255;
/// How many scopes of one list are shown; the page says how many more there are.
const SCOPES_SHOWN: usize = 60;

/// The sign-in form. Posts `csrf`, `next`, `username` and `password` to `/login`, or `csrf`, `next` and
/// `one_click=1` from the second form.
#[derive(Template)]
#[template(path = "login.html")]
pub struct Login<'a> {
    pub csrf: &'a str,
    /// Where to go afterwards; opaque to the page.
    pub next: &'a str,
    /// What the user typed last time, or empty.
    pub username: &'a str,
    /// Why the last attempt failed, in a sentence for the user.
    pub error: Option<&'a str>,
    /// The user who may sign in with one button; `None` leaves that form out.
    pub one_click: Option<&'a str>,
    /// Who else may say who somebody is.
    pub providers: Vec<Provider<'a>>,
    /// Whether anybody has a password here.
    pub has_passwords: bool,
}

/// A way in through an identity provider.
pub struct Provider<'a> {
    pub label: &'a str,
    pub url: String,
}

impl Login<'_> {
    fn starts_at_username(&self) -> bool {
        self.one_click.is_none() && self.username.is_empty()
    }

    fn starts_at_password(&self) -> bool {
        self.one_click.is_none() && !self.username.is_empty()
    }
}

#[derive(Template)]
#[template(path = "moved.html")]
struct Moved<'a> {
    url: &'a str,
}

/// Whether somebody who is signed in goes to another identity provider as well.
#[derive(Template)]
#[template(path = "leg.html")]
pub struct Leg<'a> {
    pub csrf: &'a str,
    /// Who is signed in, for people to read.
    pub user: &'a str,
    /// What people call the provider.
    pub label: &'a str,
    /// Its short name.
    pub provider: &'a str,
    /// The page of ours to go to from there.
    pub next: &'a str,
}

/// An error, said to a person.
#[derive(Template)]
#[template(path = "problem.html")]
pub struct Problem<'a> {
    /// HTTP status of the answer.
    pub status: u16,
    /// A few words, also the page's title.
    pub title: &'a str,
    /// What happened and what the reader can do.
    pub message: &'a str,
}

impl Problem<'_> {
    /// The message may repeat words of a stranger, so it is cleaned like a name but allowed to be a paragraph.
    fn shown_message(&self) -> String {
        capped(strip(self.message), 1000)
    }
}

#[derive(Template)]
#[template(path = "signed_out.html")]
struct SignedOut;

/// The user's own page. One form per server, application and browser; each carries `csrf`.
#[derive(Template)]
#[template(path = "account.html")]
pub struct Account<'a> {
    pub csrf: &'a str,
    pub user: &'a str,
    pub servers: Vec<connections::Server<'a>>,
    /// How many of them wait for their user.
    pub missing: usize,
    pub applications: Vec<Application>,
    pub sessions: Vec<Browser>,
}

/// An application that the user has let in at a server.
pub struct Application {
    pub name: Option<String>,
    pub client: String,
    pub route: String,
    pub scopes: Vec<String>,
    /// A date.
    pub since: String,
    /// Who has let it in, where the user was not asked.
    pub decided_by: Option<String>,
}

/// A browser that is signed in.
pub struct Browser {
    pub id: String,
    pub agent: Option<String>,
    /// A date.
    pub since: String,
    /// Whether it is the one that looks at the page.
    pub is_this: bool,
}

impl Application {
    fn shown_name(&self) -> String {
        self.name
            .as_deref()
            .map(plain)
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "An application".to_owned())
    }
}

impl Browser {
    fn shown_agent(&self) -> Option<String> {
        self.agent.as_deref().map(plain).filter(|agent| !agent.is_empty())
    }
}

/// The front page. With a user it carries the sign-out form (`csrf` to `/logout`), else a link to `/login`.
#[derive(Template)]
#[template(path = "home.html")]
pub struct Home<'a> {
    pub csrf: &'a str,
    pub user: Option<&'a str>,
    /// The servers to list; empty leaves the list out.
    pub servers: &'a [Server<'a>],
}

/// One line of the list on the front page.
pub struct Server<'a> {
    pub name: &'a str,
    pub resource: &'a str,
}

impl Server<'_> {
    fn shown_name(&self) -> String {
        plain(self.name)
    }
}

/// The sign-in page.
pub fn login(page: &Login<'_>) -> String {
    render(page)
}

/// The consent page.
pub fn consent(page: &Consent<'_>) -> String {
    render(page)
}

/// A page that moves the browser on to `url`, to be sent with status 200 and `no-store`.
///
/// Chromium applies `form-action` to the redirects that follow a POST, so answers to our forms move on this
/// way. `url` is an absolute http(s) URL or a path on this origin; the caller has checked that the browser may
/// go there. Anything else (`javascript:`, `//host`) yields an error page as a last line of defence.
pub fn moved(url: &str) -> String {
    if !may_move_to(url) {
        return problem(&Problem {
            status: 400,
            title: "This address cannot be opened",
            message: "The application asked to be returned to an address that a browser should not follow.",
        });
    }
    render(&Moved { url })
}

/// The error page.
pub fn problem(page: &Problem<'_>) -> String {
    render(page)
}

/// The page after signing out.
pub fn signed_out() -> String {
    render(&SignedOut)
}

/// The user's own page.
pub fn account(page: &Account<'_>) -> String {
    render(page)
}

/// The front page.
pub fn home(page: &Home<'_>) -> String {
    render(page)
}

/// Text from a stranger as one line that is safe to look at: control, bidirectional, invisible and private-use
/// characters are gone, white space is single, stacks of accents are cut, and it has at most 80 characters.
/// The result still needs HTML escaping.
pub fn plain(text: &str) -> String {
    capped(strip(text), NAME_LENGTH)
}

pub fn leg(page: &Leg<'_>) -> String {
    render(page)
}

/// Writing into a `String` does not fail, so neither does a template of ours; the sentence is for the compiler.
pub(super) fn render(template: &impl Template) -> String {
    template
        .render()
        .unwrap_or_else(|_| "<!doctype html><title>Postern</title><p>This page failed.".to_owned())
}

/// Whether the moving page may carry this address. A browser takes `\` for `/` and drops tabs and line ends,
/// so neither is let through.
fn may_move_to(url: &str) -> bool {
    if url.chars().any(|c| c.is_control() || c == '\\' || c == ' ') {
        return false;
    }
    if url.starts_with('/') {
        return !url.starts_with("//");
    }
    url::Url::parse(url).is_ok_and(|parsed| matches!(parsed.scheme(), "http" | "https") && parsed.has_host())
}

/// A host as text. What is too long loses its beginning: the end says who owns it.
pub(super) fn address(host: &str) -> String {
    let host = strip(host);
    let length = host.chars().count();
    if length <= ADDRESS_LENGTH {
        return host;
    }
    std::iter::once('…').chain(host.chars().skip(length - ADDRESS_LENGTH + 1)).collect()
}

fn scope_list(scopes: &[String]) -> Vec<String> {
    let mut shown: Vec<String> = scopes.iter().take(SCOPES_SHOWN).map(|scope| plain(scope)).collect();
    if let Some(more) = scopes.len().checked_sub(SCOPES_SHOWN).filter(|more| *more > 0) {
        shown.push(format!("and {more} more"));
    }
    shown
}

fn capped(text: String, length: usize) -> String {
    if text.chars().count() <= length {
        return text;
    }
    text.chars().take(length.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

fn strip(text: &str) -> String {
    let mut kept = String::new();
    let mut accents = 0;
    for c in text.chars() {
        if c.is_whitespace() {
            if !kept.is_empty() && !kept.ends_with(' ') {
                kept.push(' ');
            }
            continue;
        }
        if is_deceptive(c) {
            continue;
        }
        accents = if is_accent(c) { accents + 1 } else { 0 };
        if accents <= 2 {
            kept.push(c);
        }
    }
    if kept.ends_with(' ') {
        kept.pop();
    }
    kept
}

/// Characters without a face of their own, or that change how their neighbours are laid out (Unicode
/// `Default_Ignorable_Code_Point`, the bidirectional controls, interlinear marks, private use).
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..='\u{10ffff}')
}

/// Marks that are drawn over the character before them.
fn is_accent(c: char) -> bool {
    matches!(c, '\u{0300}'..='\u{036f}' | '\u{0483}'..='\u{0489}' | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    const SCRIPT: &str = "\"'><script>alert(1)</script>";

    fn assert_tame(html: &str) {
        assert!(!html.contains("<script"), "a script tag got through: {html}");
        assert!(!html.contains("\"'>"), "an attribute was left: {html}");
        assert!(!html.contains("style="), "the policy forbids inline styles");
    }

    fn sample<'a>(name: Option<&'a str>, scopes: &'a [String]) -> Consent<'a> {
        Consent {
            csrf: "c",
            flow: "f",
            user: "alice",
            client_name: name,
            client_host: None,
            client_listed: false,
            redirect_host: "127.0.0.1:5000",
            redirect_uri: "http://127.0.0.1:5000/callback",
            redirect_loopback: true,
            server_name: "files",
            added: None,
            resource: "https://mcp.example.com/files",
            scopes,
            agreements: &[],
            connected: &[],
            upstream: None,
            upstream_note: None,
        }
    }

    #[test]
    fn markup_in_any_value_stays_text() {
        let hostile = [SCRIPT.to_owned()];
        assert_tame(&login(&Login {
            csrf: SCRIPT,
            next: SCRIPT,
            username: SCRIPT,
            error: Some(SCRIPT),
            one_click: Some(SCRIPT),
            providers: Vec::new(),
            has_passwords: true,
        }));
        assert_tame(&consent(&Consent {
            csrf: SCRIPT,
            flow: SCRIPT,
            user: SCRIPT,
            client_name: Some(SCRIPT),
            client_host: Some(SCRIPT),
            client_listed: false,
            redirect_host: SCRIPT,
            redirect_uri: SCRIPT,
            redirect_loopback: true,
            server_name: SCRIPT,
            added: Some(Added { organization: Some(SCRIPT), host: SCRIPT }),
            resource: SCRIPT,
            scopes: &hostile,
            agreements: &hostile,
            connected: &hostile,
            upstream: Some(ConsentUpstream { server_host: SCRIPT, issuer_host: SCRIPT, scopes: &hostile }),
            upstream_note: Some(SCRIPT),
        }));
        assert_tame(&problem(&Problem { status: 400, title: SCRIPT, message: SCRIPT }));
        assert_tame(&home(&Home {
            csrf: SCRIPT,
            user: Some(SCRIPT),
            servers: &[Server { name: SCRIPT, resource: SCRIPT }],
        }));
        assert_tame(&moved(SCRIPT));
        assert_tame(&moved("https://a.example/?x=<script>alert(1)</script>&y=\"'>"));
    }

    #[test]
    fn names_lose_what_would_disguise_them() {
        assert_eq!(plain("Good\u{202e}moc.live\u{202c} App"), "Goodmoc.live App");
        assert_eq!(plain("a\u{200b}b\u{2066}c\u{feff}d\0\u{7f}\u{9b}e"), "abcde");
        assert_eq!(plain("  two \r\n\t words\u{2029} "), "two words");
        assert_eq!(plain("\u{200b}\u{202e}\u{3164} "), "");
        assert_eq!(plain("Cafe\u{301} مرحبا 日本"), "Cafe\u{301} مرحبا 日本");
        assert_eq!(plain(&format!("Z{}!", "\u{0335}".repeat(50))), "Z\u{0335}\u{0335}!");
        assert_eq!(plain(&"é".repeat(80)), "é".repeat(80));
        let long = plain(&"é".repeat(500));
        assert_eq!(long.chars().count(), 80);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn a_long_host_keeps_the_end_that_names_its_owner() {
        let shown = address(&format!("accounts.google.com.{}evil.example", "x.".repeat(200)));
        assert_eq!(shown.chars().count(), ADDRESS_LENGTH);
        assert!(shown.starts_with('…') && shown.ends_with("evil.example"));
    }

    #[test]
    fn consent_says_who_asks_and_where_it_leads() {
        let scopes = ["mcp:access".to_owned()];
        let own = consent(&sample(Some("Editor"), &scopes));
        assert!(own.contains("Identity not verified") && own.contains("registered itself"));
        assert!(own.contains("A program on this computer"));
        assert!(own.contains("127.0.0.1:5000") && own.contains("mcp:access") && own.contains("alice"));
        assert!(own.contains(r#"name="decision" value="allow">Allow<"#));
        assert!(own.contains(r#"name="decision" value="deny" class="quiet">Deny<"#));
        assert!(!own.contains("One more step"));

        assert!(!own.contains("What you agree to"));
        let words = ["Pay in your name".to_owned()];
        let agreeing = consent(&Consent { agreements: &words, ..sample(None, &scopes) });
        assert!(agreeing.contains("What you agree to") && agreeing.contains("Pay in your name"));

        let listed = consent(&Consent { client_listed: true, ..sample(Some("Editor"), &scopes) });
        assert!(listed.contains("has listed it") && !listed.contains("registered itself"));

        let upstream_scopes = ["repo".to_owned()];
        let published = consent(&Consent {
            client_host: Some("editor.example"),
            redirect_host: "editor.example",
            redirect_uri: "https://editor.example/cb",
            redirect_loopback: false,
            upstream: Some(ConsentUpstream {
                server_host: "api.files.example",
                issuer_host: "login.files.example",
                scopes: &upstream_scopes,
            }),
            upstream_note: Some("A sentence."),
            ..sample(None, &scopes)
        });
        assert!(published.contains("Allow an application to use"));
        assert!(published.contains("editor.example") && !published.contains("not verified"));
        assert!(!published.contains("A program on this computer"));
        assert!(published.contains("login.files.example") && published.contains("<code>repo</code>"));
        assert!(published.contains("A sentence."));
    }

    #[test]
    fn addresses_of_strangers_are_never_links() {
        let html = consent(&Consent { redirect_uri: "https://evil.example/cb", ..sample(Some("x"), &[]) });
        assert_eq!(html.matches("href=").count(), 1);
        assert!(html.contains(&format!("href=\"{STYLE_PATH}\"")) && !html.contains("src="));
    }

    #[test]
    fn a_flood_of_scopes_is_cut_and_counted() {
        let scopes: Vec<String> = (0..10_000).map(|n| format!("scope:{n}")).collect();
        let html = consent(&sample(None, &scopes));
        assert!(html.contains("<code>and 9940 more</code>") && html.len() < 16 * 1024);
    }

    #[test]
    fn the_one_button_form_is_there_only_when_offered() {
        let page = Login {
            csrf: "c",
            next: "n",
            username: "",
            error: None,
            one_click: None,
            providers: Vec::new(),
            has_passwords: true,
        };
        let html = login(&page);
        assert_eq!(html.matches("<form").count(), 1);
        assert!(
            html.contains("autofocus") && !html.contains("one_click") && !html.contains("role=\"alert\"")
        );
        let html = login(&Login { one_click: Some("demo"), ..page });
        assert_eq!(html.matches("<form").count(), 2);
        assert!(html.contains("Sign in as demo") && html.contains(r#"name="one_click" value="1""#));
        assert_eq!(html.matches(r#"name="csrf" value="c""#).count(), 2);
    }

    #[test]
    fn the_moving_page_follows_only_web_addresses() {
        let html = moved("https://app.example/cb?code=a&state=b");
        assert!(html.contains(r#"content="0;url=https://app.example/cb?code=a&#38;state=b""#), "{html}");
        assert!(html.contains(r#"href="https://app.example/cb?code=a&#38;state=b""#));
        assert!(moved("/oauth/authorize?x=1").contains("refresh"));
        assert!(moved("http://[::1]:5000/cb").contains("refresh"));
        for bad in [
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            "java\nscript:alert(1)",
            "data:text/html,x",
            "//evil.example",
            "/\\evil.example",
            "/\t/evil.example",
            " https://a.example",
            "'https://a.example",
            "cb",
            "",
        ] {
            assert!(!moved(bad).contains("http-equiv"), "{bad:?} was followed");
        }
    }

    #[test]
    fn home_offers_what_fits_the_visitor() {
        let out = home(&Home { csrf: "c", user: None, servers: &[] });
        assert!(out.contains("href=\"/login\"") && !out.contains("<form") && !out.contains("Servers"));
        let server = [Server { name: "demo", resource: "http://127.0.0.1:8080/demo" }];
        let page = home(&Home { csrf: "c", user: Some("alice"), servers: &server });
        assert!(page.contains(r#"action="/logout""#) && page.contains("alice"));
        assert!(page.contains("http://127.0.0.1:8080/demo"));
        assert!(signed_out().contains("You are signed out"));
    }

    #[test]
    fn the_stylesheet_loads_nothing() {
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
    }
}
