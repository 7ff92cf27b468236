//! What a person sees who opens an MCP address in a browser.
//!
//! The page stands by itself: its style is inside, because the host of a route need not be the one that serves our
//! pages. Its policy lets in that one style, known by its digest, and nothing else.
use std::sync::LazyLock;

use askama::Template;
use data_encoding::BASE64;
use http::HeaderValue;
use ring::digest;

use crate::route::Route;

const STYLE: &str = include_str!("../web/style.css");

/// The policy of the page (CSP level 3, §2.3.1 for the digest).
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let digest = BASE64.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()).as_ref());
    let rules = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    format!("sandbox; default-src 'none'; style-src 'sha256-{digest}'; {rules}").try_into().ok()
});

/// The policy to send with the page. Without one the style would be refused, and nothing else would change.
pub(super) fn policy() -> Option<HeaderValue> {
    POLICY.clone()
}

#[derive(Template)]
#[template(path = "unauthorized.html")]
struct Page<'a> {
    style: &'static str,
    /// The route's canonical URL.
    resource: &'a str,
    /// The route's name.
    name: &'a str,
    /// What went wrong, when it is more than a missing token.
    problem: Option<&'a str>,
}

impl Page<'_> {
    /// The configuration form that most clients read.
    fn snippet(&self) -> String {
        let name = serde_json::Value::from(self.name);
        let resource = serde_json::Value::from(self.resource);
        format!("{{\n  \"mcpServers\": {{\n    {name}: {{\n      \"url\": {resource}\n    }}\n  }}\n}}")
    }
}

/// The page of a route. `problem`: what went wrong, when it is more than a missing token.
pub(super) fn page(route: &Route, problem: Option<&str>) -> String {
    let page = Page { style: STYLE, resource: &route.resource, name: &route.name, problem };
    // Writing into a `String` does not fail; the sentence is for the compiler.
    page.render().unwrap_or_else(|_| "<!doctype html><title>Postern</title><p>This page failed.".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    const SCRIPT: &str = "\"'></style><script>alert(1)</script>";

    #[test]
    fn markup_in_any_value_stays_text() {
        let page = Page { style: STYLE, resource: SCRIPT, name: SCRIPT, problem: Some(SCRIPT) };
        let html = page.render().unwrap();
        assert!(!html.contains("<script") && html.matches("</style>").count() == 1, "{html}");
    }

    #[test]
    fn the_snippet_is_json_whatever_the_name() {
        let page =
            Page { style: STYLE, resource: "https://mcp.example.com/files", name: "a\"b\\", problem: None };
        let value: serde_json::Value = serde_json::from_str(&page.snippet()).unwrap();
        assert_eq!(value["mcpServers"]["a\"b\\"]["url"], "https://mcp.example.com/files");
    }

    #[test]
    fn the_style_stands_in_the_page_as_it_was_digested() {
        assert!(!STYLE.contains('<') && policy().is_some());
        let page = Page { style: STYLE, resource: "r", name: "n", problem: None };
        assert!(page.render().unwrap().contains(&format!("<style>{STYLE}</style>")));
    }
}
