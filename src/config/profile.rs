//! Authorization servers that deviate from the standards, as data: what Postern does differently for them. One is chosen by
//! the issuer that was discovered, or by `credential.profile` where the issuer has another name or nothing is published.
use super::file::RefreshRotation;

/// How one provider deviates.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    /// As in `credential.profile`.
    pub name: &'static str,
    /// The issuers that are known to be such; `*` stands for one segment of the path.
    issuers: &'static [&'static str],
    /// Where it publishes nothing: issuer, authorization endpoint, token endpoint.
    pub endpoints: Option<[&'static str; 3]>,
    /// Nobody can register there without a person: a `client_id` is needed.
    pub registered_by_hand: bool,
    /// It refuses the `resource` parameter (RFC 8707).
    pub refuses_resource: bool,
    /// It takes PKCE with S256 and does not say so.
    pub hides_pkce: bool,
    /// Parameters of the authorization request without which it gives no refresh token.
    pub authorization_params: &'static [(&'static str, &'static str)],
    /// For `offline_access` it gives a refresh token without `prompt=consent`, with which it would ask an administrator.
    pub needs_no_prompt: bool,
    /// Scopes that are asked for besides, wherever any are.
    pub scopes: &'static [&'static str],
    /// What stands between scopes; RFC 6749 §3.3 says a blank.
    pub scope_separator: char,
    /// What a refresh token that comes twice does, where that is known.
    pub refresh_rotation: Option<RefreshRotation>,
}

/// Nothing deviates.
const STANDARD: Profile = Profile {
    name: "standard",
    issuers: &[],
    endpoints: None,
    registered_by_hand: false,
    refuses_resource: false,
    hides_pkce: false,
    authorization_params: &[],
    needs_no_prompt: false,
    scopes: &[],
    scope_separator: ' ',
    refresh_rotation: None,
};

static STANDARD_PROFILE: Profile = STANDARD;

static PROFILES: [Profile; 6] = [
    Profile {
        name: "atlassian",
        issuers: &["https://auth.atlassian.com"],
        registered_by_hand: true,
        authorization_params: &[("audience", "api.atlassian.com"), ("prompt", "consent")],
        scopes: &["offline_access"],
        refresh_rotation: Some(RefreshRotation::Grace),
        ..STANDARD
    },
    Profile {
        name: "entra",
        issuers: &[
            "https://login.microsoftonline.com/*/v2.0",
            "https://login.microsoftonline.us/*/v2.0",
            "https://login.partner.microsoftonline.cn/*/v2.0",
        ],
        registered_by_hand: true,
        refuses_resource: true,
        needs_no_prompt: true,
        hides_pkce: true,
        scopes: &["offline_access"],
        refresh_rotation: Some(RefreshRotation::None),
        ..STANDARD
    },
    Profile {
        name: "github",
        issuers: &["https://github.com/login/oauth"],
        endpoints: Some([
            "https://github.com/login/oauth",
            "https://github.com/login/oauth/authorize",
            "https://github.com/login/oauth/access_token",
        ]),
        registered_by_hand: true,
        hides_pkce: true,
        scope_separator: ',',
        ..STANDARD
    },
    Profile {
        name: "google",
        issuers: &["https://accounts.google.com"],
        registered_by_hand: true,
        authorization_params: &[("access_type", "offline"), ("prompt", "consent")],
        refresh_rotation: Some(RefreshRotation::None),
        ..STANDARD
    },
    Profile {
        name: "notion",
        issuers: &["https://mcp.notion.com"],
        refresh_rotation: Some(RefreshRotation::Strict),
        ..STANDARD
    },
    Profile {
        name: "slack",
        issuers: &["https://slack.com"],
        endpoints: Some([
            "https://slack.com",
            "https://slack.com/oauth/v2_user/authorize",
            "https://slack.com/api/oauth.v2.user.access",
        ]),
        registered_by_hand: true,
        hides_pkce: true,
        scope_separator: ',',
        ..STANDARD
    },
];

impl Profile {
    /// The one of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PROFILES.iter().find(|profile| profile.name == name)
    }

    /// The one that is known to be right for this issuer, else [the standards](STANDARD).
    pub fn of_issuer(issuer: &str) -> &'static Self {
        PROFILES.iter().find(|profile| profile.is_for(issuer)).unwrap_or(&STANDARD_PROFILE)
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PROFILES.iter().map(|profile| profile.name)
    }

    fn is_for(&self, issuer: &str) -> bool {
        self.issuers.iter().any(|pattern| match pattern.split_once('*') {
            None => *pattern == issuer,
            Some((before, after)) => issuer
                .strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(after))
                .is_some_and(|segment| !segment.is_empty() && !segment.contains('/')),
        })
    }

    /// Scopes as one parameter.
    pub fn join(&self, scopes: &[String]) -> String {
        scopes.join(self.scope_separator.encode_utf8(&mut [0; 4]))
    }

    /// Scopes of an answer, of which some still hold several.
    pub fn split(&self, scopes: Vec<String>) -> Vec<String> {
        if self.scope_separator == ' ' {
            return scopes;
        }
        let names = scopes.iter().flat_map(|scope| scope.split(self.scope_separator));
        names.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn an_issuer_is_recognized_whole() {
        for (issuer, name) in [
            ("https://github.com/login/oauth", "github"),
            ("https://github.com/login/oauth/", "standard"),
            ("https://github.com.evil.example/login/oauth", "standard"),
            ("https://login.microsoftonline.com/7f58a0a4-3b4f-4c51-8f53-7f2d8dd5d2f1/v2.0", "entra"),
            ("https://login.microsoftonline.com/common/v2.0", "entra"),
            ("https://login.microsoftonline.com/a/b/v2.0", "standard"),
            ("https://login.microsoftonline.com//v2.0", "standard"),
            ("https://login.microsoftonline.com/v2.0", "standard"),
            ("https://accounts.google.com", "google"),
            ("https://as.example.com", "standard"),
        ] {
            assert_eq!(Profile::of_issuer(issuer).name, name, "{issuer}");
        }
        assert!(Profile::named("standard").is_none(), "it is nobody's name");
        let mut sorted: Vec<_> = Profile::names().collect();
        sorted.sort_unstable();
        assert!(Profile::names().eq(sorted), "in the order of the alphabet");
    }

    #[test]
    fn scopes_are_written_and_read_as_the_provider_does() {
        let scopes = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let github = Profile::named("github").unwrap();
        assert_eq!(github.join(&scopes(&["repo", "gist"])), "repo,gist");
        assert_eq!(github.split(scopes(&["repo,gist", "user"])), scopes(&["repo", "gist", "user"]));
        assert_eq!(github.split(scopes(&[",", ""])), scopes(&[]));
        assert_eq!(STANDARD.join(&scopes(&["a", "b"])), "a b");
        assert_eq!(STANDARD.split(scopes(&["a,b"])), scopes(&["a,b"]), "which is one name");
    }
}
