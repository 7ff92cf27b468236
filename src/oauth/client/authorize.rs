//! The authorization request that the browser carries to an upstream authorization server, and the check of the
//! `iss` that comes back. Pure: randomness is an argument, nothing is sent from here.
use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use ring::digest;
use secrecy::{ExposeSecret, SecretString};

use super::discover::AuthorizationServer;
use crate::config::Profile;

/// A PKCE pair, method S256 (RFC 7636). The verifier stays with us until the code is exchanged.
#[derive(Clone)]
pub struct Pkce {
    pub verifier: SecretString,
    /// Base64url of the verifier's SHA-256: public.
    pub challenge: String,
}

impl Pkce {
    /// `random`: 32 bytes of a cryptographic source, fresh for every authorization.
    pub fn new(random: [u8; 32]) -> Self {
        let verifier = SecretString::from(BASE64URL_NOPAD.encode(&random));
        let challenge = digest::digest(&digest::SHA256, verifier.expose_secret().as_bytes());
        Pkce { verifier, challenge: BASE64URL_NOPAD.encode(challenge.as_ref()) }
    }
}

/// Names that neither the endpoint's own query nor the configuration may set.
const OWN_PARAMETERS: [&str; 8] = [
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "redirect_uri",
    "resource",
    "response_type",
    "scope",
    "state",
];

/// The URL to send the browser to (RFC 6749 §4.1.1, RFC 7636 §4.3, RFC 8707 §2.1). A query that the endpoint already
/// has is kept (RFC 6749 §3.1), less what would double one of our parameters.
///
/// `challenge` is [`Pkce::challenge`]. `resource` goes out byte for byte, never as a re-serialised URL, where the server may be told. Without
/// `scopes` there is no `scope` parameter and the server decides. `configured` comes before what `profile` or the endpoint's
/// query say; a name that the request sets itself is ignored.
#[expect(clippy::too_many_arguments, reason = "each is one parameter of the request")]
pub fn authorization_url(
    server: &AuthorizationServer,
    client_id: &str,
    redirect_uri: &str,
    state: &str,
    challenge: &str,
    resource: Option<&str>,
    scopes: &[String],
    profile: &Profile,
    configured: &BTreeMap<String, String>,
) -> String {
    let (endpoint, kept) = match server.authorization_endpoint.split_once('?') {
        Some((endpoint, query)) => (endpoint, without(query, configured)),
        None => (server.authorization_endpoint.as_str(), String::new()),
    };
    let mut query = form_urlencoded::Serializer::new(String::new());
    query
        .append_pair("response_type", "code")
        .append_pair("client_id", client_id)
        .append_pair("redirect_uri", redirect_uri)
        .append_pair("state", state)
        .append_pair("code_challenge", challenge)
        .append_pair("code_challenge_method", "S256")
        .extend_pairs(resource.map(|resource| ("resource", resource)));
    if !scopes.is_empty() {
        query.append_pair("scope", &profile.join(scopes));
    }
    for (name, value) in configured.iter().filter(|(name, _)| !OWN_PARAMETERS.contains(&name.as_str())) {
        query.append_pair(name, value);
    }
    // OpenID Connect Core §11: without this an OpenID provider ignores the wish for a refresh token.
    let is_wish = !profile.needs_no_prompt && scopes.iter().any(|scope| scope == "offline_access");
    let consent = is_wish.then_some(("prompt", "consent"));
    let mut said: Vec<&str> = Vec::new();
    for (name, value) in profile.authorization_params.iter().copied().chain(consent) {
        let is_said = configured.contains_key(name) || said.contains(&name);
        if !is_said && !kept.split('&').any(|pair| parameter_name(pair) == name) {
            query.append_pair(name, value);
            said.push(name);
        }
    }
    let separator = if kept.is_empty() { "" } else { "&" };
    format!("{endpoint}?{kept}{separator}{}", query.finish())
}

/// The answer names another issuer than the one the request went to, or none where one was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authorization response does not come from the expected issuer")]
pub struct IssuerMismatch;

/// RFC 9207 §2.4, before the code is sent anywhere and before an error is shown. `iss` is the decoded parameter of
/// the answer; a repeated one must be refused by whoever reads the query. Plain string comparison, nothing normalised.
pub fn check_issuer(server: &AuthorizationServer, iss: Option<&str>) -> Result<(), IssuerMismatch> {
    match (server.iss_parameter, iss) {
        (_, Some(iss)) if iss == server.issuer => Ok(()),
        (_, Some(_)) => Err(IssuerMismatch),
        (true, None) => Err(IssuerMismatch),
        (false, None) => Ok(()),
    }
}

/// The query of an endpoint, less what the request or the configuration says itself.
fn without(query: &str, configured: &BTreeMap<String, String>) -> String {
    let mut kept = String::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = parameter_name(pair);
        if OWN_PARAMETERS.contains(&name.as_str()) || configured.contains_key(&name) {
            continue;
        }
        if !kept.is_empty() {
            kept.push('&');
        }
        kept.push_str(pair);
    }
    kept
}

/// The decoded name of one `name=value` of a query.
fn parameter_name(pair: &str) -> String {
    form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::collections::HashMap;

    use super::*;

    fn server(authorization_endpoint: &str, iss_parameter: bool) -> AuthorizationServer {
        AuthorizationServer {
            issuer: "https://as.example.com/tenant".into(),
            authorization_endpoint: authorization_endpoint.into(),
            token_endpoint: "https://as.example.com/token".into(),
            registration_endpoint: None,
            revocation_endpoint: None,
            auth_methods: vec!["none".into()],
            cimd: false,
            iss_parameter,
            scopes_supported: Vec::new(),
            is_published: true,
        }
    }

    fn url(endpoint: &str, scopes: &[&str], extra: &[(&str, &str)]) -> String {
        let scopes: Vec<String> = scopes.iter().map(ToString::to_string).collect();
        let extra = extra.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        authorization_url(
            &server(endpoint, true),
            "https://gw.example/oauth/client.json",
            "https://gw.example/oauth/upstream/callback/abc",
            "s t&a+te",
            "c",
            Some("https://mcp.example.com"),
            &scopes,
            Profile::of_issuer(""),
            &extra,
        )
    }

    fn parameters(url: &str) -> HashMap<String, String> {
        let pairs: Vec<_> =
            form_urlencoded::parse(url.split_once('?').unwrap().1.as_bytes()).into_owned().collect();
        let map: HashMap<_, _> = pairs.iter().cloned().collect();
        assert_eq!(map.len(), pairs.len(), "a repeated parameter in {url}");
        map
    }

    #[test]
    fn pkce_is_the_example_of_rfc7636_appendix_b() {
        let random: Vec<u8> = vec![
            116, 24, 223, 180, 151, 153, 224, 37, 79, 250, 96, 125, 216, 173, 187, 186, 22, 212, 37, 77, 105,
            214, 191, 240, 91, 88, 5, 88, 83, 132, 141, 121,
        ];
        let pkce = Pkce::new(random.try_into().unwrap());
        assert_eq!(pkce.verifier.expose_secret(), "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(pkce.challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn everything_is_said_once_and_decodes_to_what_was_given() {
        let url = url("https://as.example.com/authorize", &["a", "b:c"], &[]);
        let sent = parameters(&url);
        assert!(url.starts_with("https://as.example.com/authorize?"));
        assert_eq!(sent["response_type"], "code");
        assert_eq!(sent["redirect_uri"], "https://gw.example/oauth/upstream/callback/abc");
        assert_eq!(sent["state"], "s t&a+te");
        assert_eq!(sent["code_challenge"], "c");
        assert_eq!(sent["code_challenge_method"], "S256");
        assert_eq!(sent["scope"], "a b:c");
        assert_eq!(sent.len(), 8);
    }

    #[test]
    fn the_resource_gains_no_slash_and_an_empty_scope_is_left_out() {
        let sent = parameters(&url("https://as.example.com/a", &[], &[]));
        assert_eq!(sent["resource"], "https://mcp.example.com");
        assert!(!sent.contains_key("scope"));
        assert!(!sent.contains_key("prompt"));
    }

    #[test]
    fn pom_31_the_endpoints_query_is_kept_but_cannot_speak_for_us() {
        let url = url("https://as.example.com/a?tenant=x%2Fy&client_id=evil&res%6Furce=evil", &[], &[]);
        assert!(url.contains("tenant=x%2Fy"));
        let sent = parameters(&url);
        assert_eq!(sent["client_id"], "https://gw.example/oauth/client.json");
        assert_eq!(sent["resource"], "https://mcp.example.com");
    }

    #[test]
    fn pom_31_configured_parameters_are_added_but_cannot_speak_for_us() {
        let extra = [("audience", "api"), ("state", "evil"), ("scope", "evil")];
        let sent = parameters(&url("https://as.example.com/a", &[], &extra));
        assert_eq!(sent["audience"], "api");
        assert_eq!(sent["state"], "s t&a+te");
        assert!(!sent.contains_key("scope"));
    }

    #[test]
    fn pom_31_none_of_our_parameters_can_be_set_from_elsewhere() {
        let honest = url("https://as.example.com/a", &["read"], &[]);
        for name in OWN_PARAMETERS {
            let endpoint = format!("https://as.example.com/a?{name}=evil");
            for bent in [
                url(&endpoint, &["read"], &[]),
                url("https://as.example.com/a", &["read"], &[(name, "evil")]),
            ] {
                assert_eq!(parameters(&bent), parameters(&honest), "{name}");
            }
        }
    }

    #[test]
    fn offline_access_asks_for_consent_unless_a_prompt_is_configured() {
        let scopes = ["offline_access"];
        assert_eq!(parameters(&url("https://as.example.com/a", &scopes, &[]))["prompt"], "consent");
        let login = [("prompt", "login")];
        assert_eq!(parameters(&url("https://as.example.com/a", &scopes, &login))["prompt"], "login");
        assert_eq!(
            parameters(&url("https://as.example.com/a?prompt=login", &scopes, &[]))["prompt"],
            "login"
        );
    }

    #[test]
    fn nothing_is_said_twice_whoever_says_it() {
        let sent = |profile: &str, endpoint: &str, scopes: &[&str], configured: &[(&str, &str)]| {
            let scopes: Vec<String> = scopes.iter().map(ToString::to_string).collect();
            let configured =
                configured.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            let profile = Profile::named(profile).unwrap();
            let (server, to) = (server(endpoint, true), "https://gw.example/cb");
            parameters(&authorization_url(&server, "c", to, "s", "c", None, &scopes, profile, &configured))
        };
        let google = "https://as.example.com/a?access_type=offline&prompt=consent";
        assert_eq!(sent("google", google, &["x"], &[])["prompt"], "consent");
        assert_eq!(sent("google", google, &["x"], &[("prompt", "login")])["prompt"], "login");
        let atlassian = sent("atlassian", "https://as.example.com/a", &["offline_access"], &[]);
        assert_eq!((&*atlassian["prompt"], &*atlassian["audience"]), ("consent", "api.atlassian.com"));
        // It gives refresh tokens without, and asks an administrator with it.
        let entra = sent("entra", "https://as.example.com/a", &["api://x/.default", "offline_access"], &[]);
        assert!(!entra.contains_key("prompt"), "{entra:?}");
    }

    #[test]
    fn spec_cl_18_issuer_table() {
        let right = "https://as.example.com/tenant";
        for (advertised, iss, accepted) in [
            (true, Some(right), true),
            (true, None, false),
            (false, Some(right), true),
            (false, None, true),
            (true, Some("https://attacker.example.com"), false),
            (false, Some("https://attacker.example.com"), false),
            (true, Some("https://as.example.com/tenant/"), false),
            (true, Some("https://AS.example.com/tenant"), false),
            (true, Some("https://as.example.com:443/tenant"), false),
            (true, Some("https://as.example.com/%74enant"), false),
            (false, Some(""), false),
        ] {
            let checked = check_issuer(&server("https://as.example.com/a", advertised), iss);
            assert_eq!(checked.is_ok(), accepted, "{advertised} {iss:?}");
        }
    }
}
