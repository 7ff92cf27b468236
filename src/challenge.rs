//! Reads and prints `WWW-Authenticate` (RFC 9110 §11.6.1, RFC 6750 §3, RFC 9728 §5.1), and says what a
//! challenge asks for. Pure text in, plain data out; both the proxied path and the probe before authorization
//! use it, so it sits below both.
//!
//! Reading is strict first. What the grammar rejects gets a second, lenient look, because servers in the field
//! forget commas and leave URLs unquoted. Neither way ever moves a parameter from one challenge to another.

use std::collections::HashSet;

use http::{HeaderValue, StatusCode};

/// A longer header value is not read at all.
const VALUE_LIMIT: usize = 16 * 1024;
const URL_LIMIT: usize = 2048;
const SCOPE_LIMIT: usize = 4096;
const ERROR_LIMIT: usize = 128;
const DESCRIPTION_LIMIT: usize = 512;

/// What a `Bearer` challenge says. A parameter outside its character set or length counts as absent; unknown
/// ones are dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bearer {
    /// Where the protected resource metadata is (RFC 9728 §5.1). Visible ASCII, otherwise as received: not yet
    /// checked to be a URL, and not to be followed without the address policy.
    pub resource_metadata: Option<String>,
    /// Scope tokens, one space between (RFC 6749 §3.3). Never empty.
    pub scope: Option<String>,
    /// Error code (RFC 6750 §3.1).
    pub error: Option<String>,
    /// A stranger's words: printable ASCII, to be logged rather than shown.
    pub error_description: Option<String>,
}

impl Bearer {
    /// The scope tokens, in order.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scope.as_deref().unwrap_or_default().split(' ').filter(|token| !token.is_empty())
    }
}

/// The `Bearer` challenge among all header values, or `None` when there is none that can be relied on. Of several
/// the one that says most counts: an insufficient scope before resource metadata before a scope.
pub fn bearer<'a>(values: impl Iterator<Item = &'a HeaderValue>) -> Option<Bearer> {
    let mut best: Option<(u8, Bearer)> = None;
    for value in values.filter(|value| value.len() <= VALUE_LIMIT) {
        for challenge in read(value) {
            let Some(bearer) = challenge.bearer() else {
                continue;
            };
            let weight = 4 * u8::from(bearer.error.as_deref() == Some(INSUFFICIENT_SCOPE))
                + 2 * u8::from(bearer.resource_metadata.is_some())
                + u8::from(bearer.scope.is_some());
            if best.as_ref().is_none_or(|(most, _)| weight > *most) {
                best = Some((weight, bearer));
            }
        }
    }
    best.map(|(_, bearer)| bearer)
}

/// The schemes of all challenges, as written. A stranger's text.
pub fn schemes<'a>(values: impl Iterator<Item = &'a HeaderValue>) -> Vec<String> {
    let read = values.filter(|value| value.len() <= VALUE_LIMIT).flat_map(read);
    read.map(|challenge| challenge.scheme).collect()
}

const INSUFFICIENT_SCOPE: &str = "insufficient_scope";

/// What an upstream's answer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing to do with authorization: the answer is the answer.
    NotChallenged,
    /// No token, or one that is no longer good. `scopes` are those it names as needed, often none.
    Connect { scopes: Vec<String> },
    /// The token is good but carries too little (RFC 6750 §3.1, `insufficient_scope`).
    StepUp { scopes: Vec<String> },
}

/// Judges an answer by its status and its `Bearer` challenge. Every 401 counts, even without a challenge; a 403
/// counts only when it says that scope is what is missing.
pub fn judge(status: StatusCode, bearer: Option<&Bearer>) -> Judgement {
    let scopes = || bearer.map(|bearer| bearer.scopes().map(str::to_owned).collect()).unwrap_or_default();
    let error = bearer.and_then(|bearer| bearer.error.as_deref());
    match (status, error) {
        (StatusCode::UNAUTHORIZED, _) => Judgement::Connect { scopes: scopes() },
        (StatusCode::FORBIDDEN, Some(INSUFFICIENT_SCOPE)) => Judgement::StepUp { scopes: scopes() },
        _ => Judgement::NotChallenged,
    }
}

/// One `Bearer` challenge of our own. Whatever is put in, exactly one challenge with these parameters comes out.
#[derive(Debug, Clone, Copy)]
pub struct Print<'a> {
    /// Characters outside visible ASCII are left out.
    pub resource_metadata: &'a str,
    /// Tokens that are not scope tokens are left out, the whole parameter when none remains.
    pub scope: Option<&'a str>,
    pub error: Option<&'a str>,
    /// RFC 6750 §3 allows neither quotes nor backslashes here: a quote becomes `'`, the rest is left out.
    pub error_description: Option<&'a str>,
}

impl Print<'_> {
    /// The value of a `WWW-Authenticate` header.
    pub fn header_value(&self) -> HeaderValue {
        let mut text = String::with_capacity(256);
        text.push_str("Bearer ");
        push_parameter(
            &mut text,
            "resource_metadata",
            self.resource_metadata.chars().filter(char::is_ascii_graphic),
        );
        if let Some(scope) = self.scope.and_then(|scope| scope_of(scope, is_scope_token)) {
            text.push_str(", ");
            push_parameter(&mut text, "scope", scope.chars());
        }
        if let Some(error) = self.error {
            text.push_str(", ");
            push_parameter(&mut text, "error", error.chars().filter(|char| is_text(*char)));
        }
        if let Some(description) = self.error_description {
            let plain = description.chars().map(|char| if char == '"' { '\'' } else { char });
            text.push_str(", ");
            push_parameter(&mut text, "error_description", plain.filter(|char| is_text(*char)));
        }
        // Only visible ASCII and spaces got this far, which every header value may hold.
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Bearer"))
    }
}

impl From<Print<'_>> for HeaderValue {
    fn from(print: Print<'_>) -> Self {
        print.header_value()
    }
}

fn push_parameter(text: &mut String, name: &str, value: impl Iterator<Item = char>) {
    text.push_str(name);
    text.push_str("=\"");
    for char in value {
        if matches!(char, '"' | '\\') {
            text.push('\\');
        }
        text.push(char);
    }
    text.push('"');
}

/// Characters of `error` and `error_description` (RFC 6750 §3): printable ASCII without `"` and `\`.
fn is_text(char: char) -> bool {
    matches!(char, ' '..='~') && !matches!(char, '"' | '\\')
}

fn is_scope_token(token: &str) -> bool {
    token.chars().all(|char| char != ' ' && is_text(char))
}

/// Scope tokens that are accepted, one space between; nothing when none is.
fn scope_of(text: &str, accepted: impl Fn(&str) -> bool) -> Option<String> {
    let tokens: Vec<&str> = text.split(' ').filter(|token| !token.is_empty() && accepted(token)).collect();
    if tokens.is_empty() { None } else { Some(tokens.join(" ")) }
}

/// One challenge as read, parameters in order, names in lower case, values without their quoting.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
    /// Whether something in it made no sense, so that none of it can be relied on.
    broken: bool,
}

impl Challenge {
    fn new(scheme: &str) -> Self {
        Self { scheme: scheme.to_owned(), parameters: Vec::new(), broken: false }
    }

    /// The same parameter twice makes the whole challenge void (RFC 9110 §11.2): which one counts would depend on
    /// who reads it.
    fn bearer(self) -> Option<Bearer> {
        if self.broken || !self.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut seen = HashSet::new();
        if !self.parameters.iter().all(|(name, _)| seen.insert(name.as_str())) {
            return None;
        }
        let mut bearer = Bearer::default();
        for (name, value) in self.parameters {
            match name.as_str() {
                "resource_metadata" => {
                    let good = !value.is_empty() && value.len() <= URL_LIMIT;
                    let good = good && value.bytes().all(|byte| byte.is_ascii_graphic());
                    bearer.resource_metadata = good.then_some(value);
                }
                "scope" => {
                    let good = value.len() <= SCOPE_LIMIT && value.chars().all(is_text);
                    bearer.scope = if good { scope_of(&value, |_| true) } else { None };
                }
                "error" => bearer.error = text_within(value, ERROR_LIMIT),
                "error_description" => bearer.error_description = text_within(value, DESCRIPTION_LIMIT),
                _ => {}
            }
        }
        Some(bearer)
    }
}

fn text_within(value: String, limit: usize) -> Option<String> {
    (!value.is_empty() && value.len() <= limit && value.chars().all(is_text)).then_some(value)
}

fn read(value: &HeaderValue) -> Vec<Challenge> {
    if let Ok(text) = value.to_str()
        && let Some(challenges) = strict(text)
    {
        return challenges;
    }
    lenient(&String::from_utf8_lossy(value.as_bytes()))
}

/// By the grammar, or not at all. Token68 credentials are outside of what the library reads.
fn strict(text: &str) -> Option<Vec<Challenge>> {
    let own = |challenge: http_auth::ChallengeRef<'_>| Challenge {
        parameters: challenge
            .params
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_unescaped()))
            .collect(),
        ..Challenge::new(challenge.scheme)
    };
    Some(http_auth::parse_challenges(text).ok()?.into_iter().map(own).collect())
}

/// Word by word, once through. A word before `=` is a parameter of the challenge at hand, a word of its own opens
/// the next challenge, so that confusion loses parameters instead of mixing them.
fn lenient(text: &str) -> Vec<Challenge> {
    let mut scan = Scan { rest: text };
    let mut challenges: Vec<Challenge> = Vec::new();
    while scan.skip_separators() {
        let word = scan.take_while(|char| !is_separator(char) && !matches!(char, '=' | '"'));
        let after_word = scan.rest;
        scan.take_while(is_blank);
        let value = if !word.is_empty() && scan.skip('=') { Some(scan.value()) } else { None };
        match (value, challenges.last_mut()) {
            (Some(Value::Is(value)), Some(challenge)) if is_token(word) => {
                challenge.parameters.push((word.to_ascii_lowercase(), value));
            }
            // The rest of a token68, or junk that has the shape of a parameter.
            (Some(Value::Is(_) | Value::Missing), _) => {}
            (Some(Value::Broken), Some(challenge)) => challenge.broken = true,
            (Some(Value::Broken), None) => {}
            (None, _) if is_token(word) && !after_word.starts_with('"') => {
                challenges.push(Challenge::new(word))
            }
            (None, last) => {
                // A quote or an equals sign where no value is: what came before may have ended too early.
                let stray = scan.take_while(|char| !is_separator(char));
                if let Some(challenge) = last
                    && stray.contains('"')
                {
                    challenge.broken = true;
                }
            }
        }
    }
    challenges
}

/// What follows an equals sign.
enum Value {
    Is(String),
    Missing,
    /// A quoted string that never ends, or goes on after its end.
    Broken,
}

struct Scan<'a> {
    rest: &'a str,
}

impl<'a> Scan<'a> {
    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|char| !wanted(char)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    fn skip(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Moves to the next word. False at the end.
    fn skip_separators(&mut self) -> bool {
        self.take_while(is_separator);
        !self.rest.is_empty()
    }

    fn value(&mut self) -> Value {
        let before = self.rest;
        self.take_while(is_blank);
        if self.skip('"') {
            return self.quoted();
        }
        // `a== b`: what follows the padding of a token68 is no value of it.
        if before.starts_with('=') {
            self.take_while(|char| char == '=');
            return Value::Missing;
        }
        // Unquoted URLs hold more than token characters, a semicolon among them.
        let value = self.take_while(|char| !is_blank(char) && !matches!(char, ',' | '"'));
        match value {
            _ if self.rest.starts_with('"') => {
                self.take_while(|char| !is_blank(char) && char != ',');
                Value::Broken
            }
            "" => Value::Missing,
            value => Value::Is(value.to_owned()),
        }
    }

    fn quoted(&mut self) -> Value {
        let mut value = String::new();
        let mut chars = self.rest.chars();
        loop {
            match chars.next() {
                Some('"') => break,
                Some('\\') => value.extend(chars.next()),
                Some(char) => value.push(char),
                None => {
                    self.rest = "";
                    return Value::Broken;
                }
            }
        }
        self.rest = chars.as_str();
        if self.take_while(|char| !is_separator(char)).is_empty() { Value::Is(value) } else { Value::Broken }
    }
}

fn is_blank(char: char) -> bool {
    matches!(char, ' ' | '\t')
}

fn is_separator(char: char) -> bool {
    is_blank(char) || matches!(char, ',' | ';')
}

/// RFC 9110 §5.6.2.
fn is_token(word: &str) -> bool {
    !word.is_empty()
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn read_all(values: &[&str]) -> Option<Bearer> {
        let values: Vec<HeaderValue> =
            values.iter().map(|value| HeaderValue::from_bytes(value.as_bytes()).unwrap()).collect();
        bearer(values.iter())
    }

    fn parts(value: &str) -> Option<(Option<String>, Option<String>, Option<String>)> {
        read_all(&[value]).map(|bearer| (bearer.resource_metadata, bearer.scope, bearer.error))
    }

    type Expected<'a> = Option<(Option<&'a str>, Option<&'a str>, Option<&'a str>)>;

    fn check(cases: &[(&str, Expected<'_>)]) {
        for (value, expected) in cases {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            let expected =
                expected.map(|(metadata, scope, error)| (owned(metadata), owned(scope), owned(error)));
            assert_eq!(parts(value), expected, "{value}");
        }
    }

    const URL: Option<&str> = Some("https://a.test/m");

    #[test]
    fn by_the_grammar() {
        check(&[
            (r#"Bearer"#, Some((None, None, None))),
            (
                r#"Bearer resource_metadata="https://a.test/m", scope="a b", error="invalid_token""#,
                Some((URL, Some("a b"), Some("invalid_token"))),
            ),
            (r#"bEARER Resource_Metadata = "https://a.test/m" , SCOPE=a"#, Some((URL, Some("a"), None))),
            (r#"Bearer scope="a:\b \/c""#, Some((None, Some("a:b /c"), None))),
            (r#"Basic realm="Bearer scope=\"x\"", Bearer scope="y""#, Some((None, Some("y"), None))),
            (r#"Bearer scope="a, Basic realm=b""#, Some((None, Some("a, Basic realm=b"), None))),
            (r#", ,Bearer error=x,,"#, Some((None, None, Some("x")))),
            (r#"Basic realm="a""#, None),
            (r#"Bearers scope="a""#, None),
            (r#"DPoP resource_metadata="https://a.test/m""#, None),
            ("", None),
        ]);
    }

    #[test]
    fn as_servers_in_the_field_write_it() {
        check(&[
            // Commas missing, doubled or replaced.
            (
                r#"Bearer error="x" scope="a b" resource_metadata="https://a.test/m""#,
                Some((URL, Some("a b"), Some("x"))),
            ),
            (r#"Bearer error="x"; scope="a""#, Some((None, Some("a"), Some("x")))),
            (r#"Bearer  error="x",scope="a""#, Some((None, Some("a"), Some("x")))),
            (r#"Bearer, error="x""#, Some((None, None, Some("x")))),
            // URLs without quotes.
            (r#"Bearer resource_metadata=https://a.test/m"#, Some((URL, None, None))),
            (r#"Bearer resource_metadata=https://a.test/m, scope=a"#, Some((URL, Some("a"), None))),
            (
                r#"Bearer resource_metadata=https://a.test/m?x=y;z scope=a"#,
                Some((Some("https://a.test/m?x=y;z"), Some("a"), None)),
            ),
            // Token68 of other schemes.
            (r#"Negotiate YII/b2U==, Bearer scope="a""#, Some((None, Some("a"), None))),
            (r#"Negotiate YII=, Bearer scope="a""#, Some((None, Some("a"), None))),
            (r#"Negotiate YII/b, Bearer scope="a""#, Some((None, Some("a"), None))),
            // Text outside ASCII next to what matters.
            ("Bearer realm=\"Größe\", scope=\"a\"", Some((None, Some("a"), None))),
            ("Bearer scope=\"a\",\terror=\"x\"", Some((None, Some("a"), Some("x")))),
        ]);
    }

    #[test]
    fn challenges_do_not_mix() {
        check(&[
            (
                r#"Bearer scope="a", Basic realm="b", resource_metadata="https://a.test/m""#,
                Some((None, Some("a"), None)),
            ),
            (
                r#"Basic realm="b", scope="c" resource_metadata=https://a.test/m, Bearer error="x" "#,
                Some((None, None, Some("x"))),
            ),
            (r#"Bearer scope="a" Basic error="b" error="c""#, Some((None, Some("a"), None))),
            (r#"scope="a", Bearer error="x" y"#, Some((None, None, Some("x")))),
            (r#"Bearer error="x" stray scope="b""#, Some((None, None, Some("x")))),
        ]);
        let split = [r#"Bearer scope="a""#, r#"Basic realm="b""#, r#"Bearer error="x""#];
        assert_eq!(read_all(&split).unwrap(), Bearer { scope: Some("a".into()), ..Bearer::default() });
    }

    #[test]
    fn a_challenge_that_contradicts_itself_is_void() {
        check(&[
            (r#"Bearer scope="a", scope="a""#, None),
            (r#"Bearer scope="a" SCOPE="b""#, None),
            (r#"Bearer realm="a", realm="b", scope="c""#, None),
            (r#"Bearer scope="a", scope="b", Bearer scope="c""#, Some((None, Some("c"), None))),
            (r#"Bearer scope="never ends"#, None),
            (r#"Bearer scope="a"b", error="x""#, None),
            (r#"Bearer error="x" scope="a"error="y""#, None),
            (r#"Bearer error="x" scope=a"b""#, None),
            (r#"Bearer error="x" "a""#, None),
            (r#"Bearer scope="a\"#, None),
        ]);
    }

    #[test]
    fn values_outside_their_set_count_as_absent() {
        check(&[
            (r#"Bearer scope="a\"b""#, Some((None, None, None))),
            (r#"Bearer scope="a\\b", error="x""#, Some((None, None, Some("x")))),
            (r#"Bearer scope="  a   b ""#, Some((None, Some("a b"), None))),
            (r#"Bearer scope="   ""#, Some((None, None, None))),
            ("Bearer scope=\"a\tb\"", Some((None, None, None))),
            ("Bearer scope=\"ä\"", Some((None, None, None))),
            (r#"Bearer resource_metadata="https://a.test/ m""#, Some((None, None, None))),
            ("Bearer resource_metadata=\"https://ä.test/\"", Some((None, None, None))),
            (r#"Bearer resource_metadata="", error="""#, Some((None, None, None))),
        ]);
        for (name, limit) in [
            ("resource_metadata", URL_LIMIT),
            ("scope", SCOPE_LIMIT),
            ("error", ERROR_LIMIT),
            ("error_description", DESCRIPTION_LIMIT),
        ] {
            let with = |length| read_all(&[&format!("Bearer {name}={}", "a".repeat(length))]).unwrap();
            assert_ne!(with(limit), Bearer::default(), "{name}");
            assert_eq!(with(limit + 1), Bearer::default(), "{name}");
        }
    }

    #[test]
    fn the_challenge_that_says_most_counts() {
        let scope = r#"Bearer scope="a""#;
        let metadata = r#"Bearer resource_metadata="https://a.test/m""#;
        let insufficient = r#"Bearer error="insufficient_scope", scope="b""#;
        assert_eq!(read_all(&["Bearer", scope]).unwrap().scope.as_deref(), Some("a"));
        assert_eq!(read_all(&[scope, metadata]).unwrap().resource_metadata.as_deref(), URL);
        assert_eq!(read_all(&[metadata, insufficient]).unwrap().scope.as_deref(), Some("b"));
        assert_eq!(read_all(&[insufficient, metadata]).unwrap().scope.as_deref(), Some("b"));
        assert_eq!(read_all(&[scope, r#"Bearer scope="b""#]).unwrap().scope.as_deref(), Some("a"));
        assert_eq!(read_all(&[]), None);
    }

    /// T54: long values are bounded or linear. Only the work is checked here, so the limit is passed by.
    #[test]
    fn sr_t54_long_values() {
        for unit in ["a=\"", "a=", ",", "Bearer ", "a=b ", "\\\"", "a=\"\\", "=", "\"", "a =", "x=y,"] {
            let text = unit.repeat(1024 * 1024 / unit.len());
            lenient(&text);
            let value = HeaderValue::from_str(&format!("Bearer scope=a {text}")).unwrap();
            assert_eq!(bearer([&value].into_iter()), None);
        }
        let fitting = format!("Bearer scope=a, realm=\"{}\"", "b".repeat(VALUE_LIMIT - 24));
        assert_eq!(fitting.len(), VALUE_LIMIT);
        assert!(read_all(&[&fitting]).is_some());
        assert_eq!(read_all(&[&format!("{fitting} ")]), None);
    }

    #[test]
    fn judgement() {
        let with = |error: Option<&str>| Bearer {
            error: error.map(str::to_owned),
            scope: Some("a b".into()),
            ..Bearer::default()
        };
        let scopes = vec!["a".to_owned(), "b".to_owned()];
        let insufficient = with(Some("insufficient_scope"));
        for (status, bearer, expected) in [
            (401, None, Judgement::Connect { scopes: vec![] }),
            (401, Some(with(None)), Judgement::Connect { scopes: scopes.clone() }),
            (401, Some(insufficient.clone()), Judgement::Connect { scopes: scopes.clone() }),
            (403, Some(insufficient.clone()), Judgement::StepUp { scopes }),
            (403, Some(with(Some("invalid_token"))), Judgement::NotChallenged),
            (403, Some(with(None)), Judgement::NotChallenged),
            (403, None, Judgement::NotChallenged),
            (200, Some(insufficient.clone()), Judgement::NotChallenged),
            (400, Some(insufficient.clone()), Judgement::NotChallenged),
            (407, Some(insufficient), Judgement::NotChallenged),
        ] {
            assert_eq!(
                judge(StatusCode::from_u16(status).unwrap(), bearer.as_ref()),
                expected,
                "{status} {bearer:?}"
            );
        }
    }

    #[test]
    fn printed() {
        let print = Print {
            resource_metadata: "https://a.test/m",
            scope: None,
            error: None,
            error_description: None,
        };
        assert_eq!(print.header_value(), r#"Bearer resource_metadata="https://a.test/m""#);
        let full = Print {
            scope: Some("mcp:access  b"),
            error: Some("invalid_token"),
            error_description: Some("token has \"expired\"\\\r\nX: y"),
            ..print
        };
        assert_eq!(
            HeaderValue::from(full),
            r#"Bearer resource_metadata="https://a.test/m", scope="mcp:access b", error="invalid_token", error_description="token has 'expired'X: y""#
        );
        let hostile = Print {
            resource_metadata: "https://a.test/\"\\\r\n é",
            scope: Some(r#"a" , error="x b\ c"#),
            ..print
        };
        assert_eq!(hostile.header_value(), r#"Bearer resource_metadata="https://a.test/\"\\", scope=", c""#);
    }

    fn scheme() -> impl Strategy<Value = String> {
        prop_oneof![Just("Bearer".to_owned()), "[A-Za-z][A-Za-z0-9-]{0,8}"]
    }

    /// Parameters by the grammar: name, value, whether it is printed as a quoted string.
    fn parameters() -> impl Strategy<Value = Vec<(String, String, bool)>> {
        let name = prop_oneof![
            Just("scope".to_owned()),
            Just("error".to_owned()),
            Just("resource_metadata".to_owned()),
            "[a-z_*]{1,6}",
        ];
        let parameter = prop_oneof![
            (name.clone(), "[ -~]{0,12}", Just(true)),
            (name, "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,8}", Just(false)),
        ];
        prop::collection::vec(parameter, 1..5)
    }

    proptest! {
        #[test]
        fn print_then_read_is_identity(
            metadata in "https://[a-z]{1,9}/[!-~]{0,40}",
            scope in prop::option::of("[!#-\\[\\]-~]{1,9}( [!#-\\[\\]-~]{1,9}){0,4}"),
            error in prop::option::of("[a-z_]{1,20}"),
            description in prop::option::of("[!#-\\[\\]-~][ !#-\\[\\]-~]{0,40}"),
        ) {
            let printed = Print {
                resource_metadata: &metadata,
                scope: scope.as_deref(),
                error: error.as_deref(),
                error_description: description.as_deref(),
            }.header_value();
            let expected = Bearer { resource_metadata: Some(metadata.clone()), scope: scope.clone(), error: error.clone(), error_description: description.clone() };
            prop_assert_eq!(bearer([&printed].into_iter()), Some(expected));
            prop_assert_eq!(strict(printed.to_str().unwrap()).unwrap().len(), 1);
        }

        /// T39: whatever goes in, one strict Bearer challenge with the parameters in their order comes out.
        #[test]
        fn sr_t39_one_challenge_whatever_goes_in(metadata in ".{0,30}", scope in ".{0,30}", error in ".{0,30}", description in ".{0,30}") {
            let printed = Print {
                resource_metadata: &metadata, scope: Some(&scope), error: Some(&error), error_description: Some(&description),
            }.header_value();
            let challenges = strict(printed.to_str().unwrap()).unwrap();
            prop_assert_eq!(challenges.len(), 1);
            prop_assert_eq!(&challenges[0].scheme, "Bearer");
            let names: Vec<&str> = challenges[0].parameters.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "scope").collect();
            prop_assert_eq!(names, ["resource_metadata", "error", "error_description"]);
        }

        /// Where the strict reader understands something, the lenient one understands the same.
        #[test]
        fn lenient_agrees_with_strict(challenges in prop::collection::vec((scheme(), parameters()), 0..4)) {
            let mut text = Vec::new();
            let mut expected = Vec::new();
            for (scheme, parameters) in &challenges {
                let printed: Vec<String> = parameters.iter().map(|(name, value, quoted)| {
                    if !quoted { return format!("{name}={value}"); }
                    let mut printed = String::new();
                    push_parameter(&mut printed, name, value.chars());
                    printed
                }).collect();
                text.push(format!("{scheme} {}", printed.join(", ")));
                let parameters = parameters.iter().map(|(name, value, _)| (name.clone(), value.clone())).collect();
                expected.push(Challenge { parameters, ..Challenge::new(scheme) });
            }
            let text = text.join(", ");
            if !text.is_empty() {
                prop_assert_eq!(&strict(&text).unwrap(), &expected);
            }
            prop_assert_eq!(&lenient(&text), &expected);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), tail in "[\"\\\\=,; \tBearscope]{0,60}") {
            let mut bytes = bytes;
            bytes.retain(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
            for text in [bytes, tail.into_bytes()] {
                let value = HeaderValue::from_bytes(&text).unwrap();
                if let Some(bearer) = bearer([&value].into_iter()) {
                    let values = [&bearer.resource_metadata, &bearer.scope, &bearer.error, &bearer.error_description];
                    for text in values.into_iter().flatten() {
                        prop_assert!(!text.is_empty() && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
                    }
                }
            }
        }
    }
}
