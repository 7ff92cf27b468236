//! What discovery must be sure of before it believes a document: where documents may lie, which resource a document
//! speaks for, which URLs are fit to be used. Pure functions over strings; issuers and resources are never rewritten.
use url::{Host, Url};

use super::DiscoverError;
use crate::outbound::AddressPolicy;

/// An http(s) URL without user, password and fragment whose text is what it parses to, so that no two readers can
/// take it differently (`java\nscript:`, `https:evil`, `\@`). http only where the policy allows the host.
/// A single slash at the end may be there or not.
pub(super) fn safe_url(text: &str, policy: &AddressPolicy) -> Result<Url, DiscoverError> {
    let url = Url::parse(text).map_err(|_| DiscoverError::Invalid("not a url"))?;
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() {
        return Err(DiscoverError::Invalid("url without a host"));
    }
    match url.scheme() {
        "https" => {}
        "http" if policy.allows_private(bare(host)) => {}
        "http" => return Err(DiscoverError::Refused),
        _ => return Err(DiscoverError::Invalid("url of another scheme than https")),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(DiscoverError::Invalid("url with user, password or fragment"));
    }
    if without_slash(url.as_str()) != without_slash(text) {
        return Err(DiscoverError::Invalid("url in another than its plain form"));
    }
    Ok(url)
}

/// RFC 8414 §2: an issuer has neither query nor fragment.
pub(super) fn issuer_url(issuer: &str, policy: &AddressPolicy) -> Result<Url, DiscoverError> {
    let url = safe_url(issuer, policy)?;
    match url.query() {
        None => Ok(url),
        Some(_) => Err(DiscoverError::Invalid("issuer with a query")),
    }
}

/// Where a server's resource metadata may lie: path inserted, then the root (RFC 9728 §3.1). One entry where the
/// server has no path.
pub(super) fn resource_metadata_urls(upstream: &Url) -> Vec<String> {
    let root = format!("{}/.well-known/oauth-protected-resource", origin(upstream));
    match path(upstream) {
        "" => vec![root],
        path => vec![format!("{root}{path}"), root],
    }
}

/// Where an issuer's metadata may lie, in the order of the MCP specification: RFC 8414, OpenID path inserted,
/// OpenID path appended. A slash at the end of the issuer does not count here.
pub(super) fn server_metadata_urls(issuer: &Url) -> Vec<String> {
    let (origin, path) = (origin(issuer), path(issuer));
    let mut urls = vec![
        format!("{origin}/.well-known/oauth-authorization-server{path}"),
        format!("{origin}/.well-known/openid-configuration{path}"),
    ];
    if !path.is_empty() {
        urls.push(format!("{origin}{path}/.well-known/openid-configuration"));
    }
    urls
}

/// Whether a 401 of this upstream may send us to `hint` for its metadata: same host, or a host that the operator
/// allowed. Anything else would let one header make us fetch any URL.
pub(super) fn may_follow(hint: &str, upstream: &Url, policy: &AddressPolicy) -> bool {
    safe_url(hint, policy)
        .is_ok_and(|hint| hint.host_str() == upstream.host_str() || policy.allows_private(bare_host(&hint)))
}

/// Whether a document for `resource` speaks for the server at `upstream` (RFC 9728 §3.3). Besides equality this takes
/// what the official SDKs take: same origin, and a path that contains the server's, cut at a segment.
pub(super) fn resource_matches(resource: &str, upstream: &Url, configured: Option<&str>) -> bool {
    if configured.is_some_and(|configured| without_slash(configured) == without_slash(resource)) {
        return true;
    }
    if without_slash(resource) == without_slash(upstream.as_str()) {
        return true;
    }
    let Ok(named) = Url::parse(resource) else {
        return false;
    };
    let plain = named.username().is_empty()
        && named.password().is_none()
        && named.query().is_none()
        && named.fragment().is_none();
    plain && named.origin() == upstream.origin() && is_within(path(upstream), path(&named))
}

/// Same host, or hosts in one registrable domain (Public Suffix List): what an authorization endpoint must be to its
/// issuer, so that a hostile server cannot borrow an honest server's sign-in page and collect the code (cross-tool
/// account takeover).
pub(super) fn same_site(issuer: &Url, endpoint: &Url) -> bool {
    let (Some(one), Some(other)) = (issuer.host(), endpoint.host()) else {
        return false;
    };
    match (&one, &other) {
        (Host::Domain(one), Host::Domain(other)) if one != other => {
            match (is_known(one), is_known(other)) {
                (true, true) => registrable(one).is_some_and(|domain| registrable(other) == Some(domain)),
                // Of names that only an own network knows, one has to contain the other.
                (false, false) => is_below(one, other) || is_below(other, one),
                _ => false,
            }
        }
        _ => one == other,
    }
}

/// Whether the list has the suffix of this name.
fn is_known(name: &str) -> bool {
    psl::suffix(name.as_bytes()).is_some_and(|suffix| suffix.is_known())
}

fn is_below(host: &str, parent: &str) -> bool {
    parent.contains('.') && host.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

/// The part of a name that somebody has registered.
fn registrable(name: &str) -> Option<&str> {
    let domain = psl::domain(name.as_bytes())?;
    std::str::from_utf8(domain.as_bytes()).ok()
}

/// Scheme, host and port, without a slash at the end.
pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Host as the address policy knows it: an IPv6 literal without brackets.
pub(super) fn bare_host(url: &Url) -> &str {
    bare(url.host_str().unwrap_or_default())
}

pub(super) fn without_slash(text: &str) -> &str {
    text.strip_suffix('/').unwrap_or(text)
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The path without a single slash at the end; empty for the root.
fn path(url: &Url) -> &str {
    without_slash(url.path())
}

fn is_within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn local() -> AddressPolicy {
        AddressPolicy::allowing(["127.0.0.1".to_string(), "::1".to_string()])
    }

    #[test]
    fn sr_t15_only_plain_web_urls_are_safe() {
        for good in [
            "https://as.example.com",
            "https://as.example.com/",
            "https://as.example.com/authorize?tenant=1",
            "https://as.example.com:8443/a/",
            "http://127.0.0.1:3000/authorize",
            "http://[::1]:3000/authorize",
        ] {
            assert!(safe_url(good, &local()).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/authorize",
            "javascript:alert(1)",
            "java\nscript:alert(1)",
            "data:text/html,x",
            "vbscript:x",
            "file:///etc/passwd",
            "ftp://as.example.com/",
            "http://as.example.com/authorize",
            "http://127.0.0.2/authorize",
            "https:as.example.com",
            "https:\\\\as.example.com\\a",
            "https://as.example.com\\@evil.example.com/",
            "https://user@as.example.com/",
            "https://:secret@as.example.com/",
            "https://as.example.com/a#fragment",
            "https://as.example.com/a/../b",
            "https://as.example.com/a b",
            " https://as.example.com/a",
            "https://as.example.com/a\t",
            "HTTPS://as.example.com/a",
            "https://AS.example.com/a",
            "https://as.example.com:443/a",
            "https://2130706433/a",
        ] {
            assert!(safe_url(bad, &local()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_issuer_has_no_query() {
        assert!(issuer_url("https://as.example.com/t", &AddressPolicy::public()).is_ok());
        assert!(issuer_url("https://as.example.com/t?x=1", &AddressPolicy::public()).is_err());
    }

    #[test]
    fn well_known_places_are_in_the_order_of_the_specification() {
        assert_eq!(
            resource_metadata_urls(&url("https://mcp.example.com/a/mcp/")),
            [
                "https://mcp.example.com/.well-known/oauth-protected-resource/a/mcp",
                "https://mcp.example.com/.well-known/oauth-protected-resource",
            ]
        );
        assert_eq!(
            resource_metadata_urls(&url("https://mcp.example.com")),
            ["https://mcp.example.com/.well-known/oauth-protected-resource"]
        );
        assert_eq!(
            server_metadata_urls(&url("https://as.example.com:8443/t1/")),
            [
                "https://as.example.com:8443/.well-known/oauth-authorization-server/t1",
                "https://as.example.com:8443/.well-known/openid-configuration/t1",
                "https://as.example.com:8443/t1/.well-known/openid-configuration",
            ]
        );
        assert_eq!(server_metadata_urls(&url("https://as.example.com/")).len(), 2);
    }

    #[test]
    fn sr_t20_a_document_speaks_for_its_own_server_only() {
        let upstream = url("https://mcp.example.com/a/mcp");
        for (resource, matches) in [
            ("https://mcp.example.com/a/mcp", true),
            ("https://mcp.example.com/a/mcp/", true),
            ("https://mcp.example.com/a", true),
            ("https://mcp.example.com", true),
            ("https://mcp.example.com/", true),
            ("https://MCP.example.com:443/a/mcp", true),
            ("https://mcp.example.com/a/mc", false),
            ("https://mcp.example.com/a/mcp/more", false),
            ("https://mcp.example.com/b", false),
            ("https://mcp.example.com/a/mcp?x=1", false),
            ("https://mcp.example.com/a/mcp#x", false),
            ("https://user@mcp.example.com/a/mcp", false),
            ("http://mcp.example.com/a/mcp", false),
            ("https://mcp.example.com:8443/a/mcp", false),
            ("https://evil.example.com/a/mcp", false),
            ("https://mcp.example.com.evil.example/a/mcp", false),
            ("urn:mcp:a", false),
            ("", false),
        ] {
            assert_eq!(resource_matches(resource, &upstream, None), matches, "{resource}");
        }
        assert!(resource_matches("urn:mcp:a", &upstream, Some("urn:mcp:a")));
    }

    #[test]
    fn pom_24_a_document_is_for_this_server_when_its_path_is_the_servers_or_above_it() {
        for (resource, upstream, matches) in [
            ("https://api.example.com/mcp", "https://api.example.com/mcp", true),
            ("https://api.example.com", "https://api.example.com/mcp", true),
            ("https://api.example.com/", "https://api.example.com/mcp", true),
            ("https://api.example.com", "https://api.example.com/", true),
            ("https://api.example.com/", "https://api.example.com", true),
            ("https://api.example.com/v1", "https://api.example.com/v1/mcp", true),
            ("https://api.example.com/v1/", "https://api.example.com/v1/mcp", true),
            ("https://api.example.com/v1", "https://api.example.com/v1/team/mcp", true),
            ("https://api.example.com/other", "https://api.example.com/mcp", false),
            ("https://api.example.com/mcp", "https://api.example.com/mcp2", false),
            ("https://api.example.com/mcp2", "https://api.example.com/mcp", false),
            ("https://api.example.com/mcp", "https://api.example.com/mcp-evil", false),
            ("https://api.example.com/mcp/sub", "https://api.example.com/mcp", false),
            ("https://api.example.com/mcp", "https://api.example.com", false),
            // One slash at the end says nothing, on either side.
            ("https://api.example.com/mcp/", "https://api.example.com/mcp", true),
            ("https://api.example.com/mcp", "https://api.example.com/mcp/", true),
            ("https://api.example.com/mcp/", "https://api.example.com/mcp/", true),
            ("https://api.example.com/mcp//", "https://api.example.com/mcp", false),
            // Scheme, host and port are one origin, however they are spelled.
            ("http://api.example.com/mcp", "https://api.example.com/mcp", false),
            ("https://other.example.com/mcp", "https://api.example.com/mcp", false),
            ("https://example.com/mcp", "https://api.example.com/mcp", false),
            ("https://API.Example.com/mcp", "https://api.example.com/mcp", true),
            ("https://api.example.com/mcp", "https://API.Example.com/mcp", true),
            ("HTTPS://api.example.com/mcp", "https://api.example.com/mcp", true),
            ("https://api.example.com/MCP", "https://api.example.com/mcp", false),
            ("https://api.example.com:443/mcp", "https://api.example.com/mcp", true),
            ("https://api.example.com/mcp", "https://api.example.com:443/mcp", true),
            ("https://api.example.com:443/mcp", "https://api.example.com:443/mcp", true),
            ("http://api.example.com:80/mcp", "http://api.example.com/mcp", true),
            ("http://api.example.com/mcp", "http://api.example.com:80/mcp", true),
            ("https://api.example.com:8443/mcp", "https://api.example.com:8443/mcp", true),
            ("https://api.example.com:8443/mcp", "https://api.example.com/mcp", false),
            ("https://api.example.com/mcp", "https://api.example.com:8443/mcp", false),
            ("https://api.example.com:80/mcp", "https://api.example.com/mcp", false),
            ("http://api.example.com:443/mcp", "http://api.example.com/mcp", false),
            ("https://[2001:DB8::1]:443/mcp", "https://[2001:db8::1]/mcp", true),
            ("https://[2001:db8::2]/mcp", "https://[2001:db8::1]/mcp", false),
            // Dot segments lead nowhere else than they lead.
            ("https://api.example.com/a/../b", "https://api.example.com/a/mcp", false),
            ("https://api.example.com/a/../b", "https://api.example.com/b/mcp", true),
            ("https://api.example.com/mcp/../mcp-evil", "https://api.example.com/mcp", false),
            ("https://api.example.com/mcp/%2e%2e/evil", "https://api.example.com/mcp", false),
            ("https://api.example.com/mcp", "https://api.example.com/mcp/../evil", false),
            ("", "https://api.example.com/mcp", false),
            ("/mcp", "https://api.example.com/mcp", false),
            ("mcp", "https://api.example.com/mcp", false),
            ("//api.example.com/mcp", "https://api.example.com/mcp", false),
            ("https://", "https://api.example.com/mcp", false),
            ("not a url", "https://api.example.com/mcp", false),
        ] {
            assert_eq!(resource_matches(resource, &url(upstream), None), matches, "{resource} {upstream}");
        }
    }

    #[test]
    fn sr_t57_a_hint_leads_to_the_same_host_only() {
        let upstream = url("https://mcp.example.com/mcp");
        for (hint, followed) in [
            ("https://mcp.example.com/custom/location.json", true),
            ("https://mcp.example.com:8443/x", true),
            ("http://127.0.0.1:9/x", true),
            ("https://other.example.com/x", false),
            ("http://mcp.example.com/x", false),
            ("http://169.254.169.254/latest", false),
            ("https://2130706433/", false),
            ("gopher://mcp.example.com/", false),
            ("https://a@mcp.example.com/", false),
        ] {
            assert_eq!(may_follow(hint, &upstream, &local()), followed, "{hint}");
        }
    }

    #[test]
    fn sr_t19_sites() {
        for (issuer, endpoint, same) in [
            ("https://as.example.com", "https://as.example.com/authorize", true),
            ("https://cf.mcp.example.com", "https://mcp.example.com/authorize", true),
            ("https://example.com", "https://login.example.com/authorize", true),
            ("https://auth.example.com", "https://login.example.com/authorize", true),
            ("https://a.example.co.uk", "https://b.example.co.uk/authorize", true),
            ("https://evil.co.uk", "https://honest.co.uk/authorize", false),
            ("https://co.uk", "https://honest.co.uk/authorize", false),
            ("https://evil.github.io", "https://honest.github.io/authorize", false),
            ("https://evil.test", "https://honest.example.com/authorize", false),
            ("https://badexample.com", "https://example.com/authorize", false),
            ("https://com", "https://example.com/authorize", false),
            ("https://one.internal", "https://other.internal/authorize", false),
            ("https://corp.internal", "https://login.corp.internal/authorize", true),
            ("https://internal", "https://corp.internal/authorize", false),
            ("https://10.0.0.1", "https://1.10.0.0.1.example/authorize", false),
            ("https://10.0.0.1", "https://10.0.0.1:8443/authorize", true),
            ("https://10.0.0.1", "https://10.0.0.2/authorize", false),
        ] {
            assert_eq!(same_site(&url(issuer), &url(endpoint)), same, "{issuer} {endpoint}");
        }
    }
}
