//! `kind: aws_sigv4`: a service of AWS and who may be which role there → what requests are signed for, and the roles in the
//! order in which they are tried.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::super::checked::{Checker, bare_host};
use super::super::file;
use super::super::oidc::IdentityProvider;
use super::super::policy;
use super::super::report::Key;
use super::{Around, Credential, provider};
use crate::expression::{Facts, Name, Names, Program, compile_of_caller};
use crate::jose;

/// Requests that are signed with the credentials of a role (AWS Signature Version 4), which the user gets for their ID token.
#[derive(Clone)]
pub struct AwsSigv4 {
    pub region: String,
    /// As the signature names it.
    pub service: String,
    /// Who has signed the user in.
    pub provider: Arc<IdentityProvider>,
    /// The first that fits is taken.
    roles: Vec<Role>,
    fallback_role: Option<String>,
    /// The claim that the role's session is named after.
    pub session_name_claim: String,
    /// How long the role's credentials last. 15 minutes to 12 hours.
    pub duration: Duration,
    /// The token service (STS). `None`: that of the region.
    pub sts_endpoint: Option<String>,
}

#[derive(Clone)]
struct Role {
    who: Who,
    arn: String,
}

/// Who has a role.
#[derive(Clone)]
enum Who {
    /// Of whom the ID token says one of these.
    Says { claim: String, values: Vec<String> },
    /// Of whom this holds.
    When(Arc<Program>),
}

/// What the conditions of the roles come to for a caller, in their order; `None` could not be decided. It is part of what a
/// role's credentials depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held(Vec<Option<bool>>);

impl AwsSigv4 {
    /// Everything that a role's credentials depend on which is not about the user.
    #[must_use]
    pub fn facts(&self) -> String {
        let Self { region, service, session_name_claim, .. } = self;
        let endpoint = self.sts_endpoint.as_deref().unwrap_or_default();
        let mut facts = format!("{region}\0{service}\0{endpoint}\0{session_name_claim}\0{:?}", self.duration);
        for Role { who, arn } in &self.roles {
            match who {
                Who::Says { claim, values } => {
                    facts.extend(["\0", claim, "\0", arn, "\0", &values.join("\0")]);
                }
                Who::When(program) => facts.extend(["\0\0", program.text(), "\0", arn]),
            }
        }
        facts.extend(["\0", self.fallback_role.as_deref().unwrap_or_default()]);
        facts
    }

    /// Whether it takes more of a user than who they are.
    #[must_use]
    pub fn needs_attributes(&self) -> bool {
        let of_user = Names::of(&[Name::CallerEmail, Name::CallerGroups, Name::CallerClaims]);
        self.conditions().any(|program| program.uses().meets(of_user))
    }

    fn conditions(&self) -> impl Iterator<Item = &Program> {
        self.roles.iter().filter_map(|role| match &role.who {
            Who::When(program) => Some(&**program),
            Who::Says { .. } => None,
        })
    }

    /// What the conditions come to.
    #[must_use]
    pub fn held(&self, facts: &dyn Facts) -> Held {
        Held(self.conditions().map(|program| program.holds(facts).ok()).collect())
    }

    /// The role of somebody about whom their ID token says this, and of whom that held. `None`: they have none. A condition that
    /// could not be decided ends the search: those behind it are for whom it does not hold.
    #[must_use]
    pub fn role(&self, subject: &str, claims: &Map<String, Value>, held: &Held) -> Option<&str> {
        let mut held = held.0.iter();
        for role in &self.roles {
            let is_theirs = match &role.who {
                Who::When(_) => held.next().copied().flatten()?,
                Who::Says { claim, values } => {
                    said(subject, claims, claim).iter().any(|said| values.contains(said))
                }
            };
            if is_theirs {
                return Some(&role.arn);
            }
        }
        self.fallback_role.as_deref()
    }

    /// What the role's session is called: 2 to 64 letters, digits and some signs. It is seen in the logs of AWS.
    #[must_use]
    pub fn session_name(&self, subject: &str, claims: &Map<String, Value>) -> String {
        let said = said(subject, claims, &self.session_name_claim);
        let name = said.first().map_or(subject, String::as_str);
        let is_fit = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        let name: String = name.chars().map(|c| if is_fit(c) { c } else { '-' }).take(64).collect();
        if name.len() < 2 { format!("user-{name}") } else { name }
    }
}

/// What a claim says: one text or several.
fn said(subject: &str, claims: &Map<String, Value>, claim: &str) -> Vec<String> {
    match claim {
        "sub" => vec![subject.to_owned()],
        claim => jose::texts(claims.get(claim)),
    }
}

const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    around: &Around<'_>,
) -> Option<Credential> {
    let provider =
        provider(check, &key.child("subject_provider"), written.subject_provider.as_deref(), around.login);
    let region = word(check, &key.child("region"), written.region.as_deref(), "eu-central-1");
    let service = word(check, &key.child("service"), written.service.as_deref(), "bedrock-agentcore");
    let roles = roles(check, &key.child("roles"), written.roles.as_deref().unwrap_or_default());
    let fallback = key.child("fallback_role");
    let fallback_role = written.fallback_role.clone().filter(|arn| arn_is_fit(check, &fallback, arn));
    if roles.is_empty() && written.fallback_role.is_none() {
        check.refuse(&key.child("roles"), "names no role", "write `roles`, `fallback_role` or both");
    }
    if written.session_name_claim.as_ref().is_some_and(String::is_empty) {
        check.refuse(&key.child("session_name_claim"), "is empty", "write the name of a claim, like email");
    }
    let at = key.child("duration");
    let duration = check.duration(&at, written.duration.as_deref(), 60 * MINUTE, 15 * MINUTE, 720 * MINUTE);
    let at = key.child("sts_endpoint");
    if let Some(url) = written.sts_endpoint.as_ref().and_then(|text| check.url(&at, text, true)) {
        let host = bare_host(&url);
        if url.scheme() == "http" && !around.private.contains(&host) {
            check.refuse(&at, "is http", format!("write https://, or add {host} to `upstream.allow_hosts`"));
        } else if url.query().is_some() {
            check.refuse(&at, "contains a query", "leave out `?` and what follows");
        }
    }
    Some(Credential::AwsSigv4(Arc::new(AwsSigv4 {
        region: region?,
        service: service?,
        provider: provider?,
        roles,
        fallback_role,
        session_name_claim: written.session_name_claim.clone().unwrap_or_else(|| "sub".to_owned()),
        duration,
        sts_endpoint: written.sts_endpoint.clone(),
    })))
}

/// A region or a service as signatures name it.
fn word(check: &mut Checker<'_>, key: &Key, written: Option<&str>, example: &str) -> Option<String> {
    let is_fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match written {
        Some(word) if !word.is_empty() && word.chars().all(is_fit) => Some(word.to_owned()),
        Some(_) => {
            let write = format!("write lower-case letters, digits and `-`, like {example}");
            check.refuse(key, "is no name that AWS gives", write);
            None
        }
        None => {
            check.refuse(key, "is missing", format!("write it as AWS does, like {example}"));
            None
        }
    }
}

/// In the order in which they are tried: by priority, those of one priority as they are written.
fn roles(check: &mut Checker<'_>, list: &Key, written: &[file::AwsRole]) -> Vec<Role> {
    let mut roles = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let key = list.item(index);
        arn_is_fit(check, &key.child("arn"), &entry.arn);
        if let Some(who) = who(check, &key, entry) {
            roles.push((entry.priority.unwrap_or_default(), Role { who, arn: entry.arn.clone() }));
        }
    }
    roles.sort_by_key(|(priority, _)| *priority);
    roles.into_iter().map(|(_, role)| role).collect()
}

/// By a claim with its values, or by a condition.
fn who(check: &mut Checker<'_>, key: &Key, written: &file::AwsRole) -> Option<Who> {
    if let Some(when) = &written.when {
        if written.claim.is_some() || written.values.is_some() {
            let write = "leave one out; a condition may speak of `caller.groups` and `caller.claims`";
            check.refuse(&key.child("when"), "stands beside `claim` or `values`", write);
        }
        let read = compile_of_caller(when);
        return policy::program(check, &key.child("when"), read).map(|program| Who::When(Arc::new(program)));
    }
    let claim = written.claim.clone().unwrap_or_default();
    if claim.is_empty() {
        let what = if written.claim.is_some() { "is empty" } else { "is missing" };
        let write = "write the name of a claim, like groups, or a condition as `when`";
        check.refuse(&key.child("claim"), what, write);
    }
    let values = written.values.clone().unwrap_or_default();
    if values.is_empty() {
        check.refuse(&key.child("values"), "names no value", "write those that have the role");
    }
    Some(Who::Says { claim, values })
}

fn arn_is_fit(check: &mut Checker<'_>, key: &Key, written: &str) -> bool {
    let parts: Vec<&str> = written.splitn(6, ':').collect();
    let is_fit = match parts.as_slice() {
        ["arn", partition, "iam", "", account, resource] => {
            partition.starts_with("aws")
                && account.len() == 12
                && account.bytes().all(|byte| byte.is_ascii_digit())
                && resource.strip_prefix("role/").is_some_and(|name| !name.is_empty())
        }
        _ => false,
    };
    if !is_fit {
        check.refuse(key, "is not the ARN of a role", "write it like arn:aws:iam::123456789012:role/name");
    }
    is_fit
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::config::{Process, parse};
    use serde_json::json;

    fn configured(roles: &str) -> Arc<AwsSigv4> {
        let text = format!(
            r#"{{"server": {{"public_url": "http://127.0.0.1:8080", "listen": ["127.0.0.1:8080"]}},
            "login": {{"oidc": [{{"name": "corp", "issuer": "https://idp.example.com", "client_id": "c"}}]}},
            "routes": [{{"name": "r", "path": "/r", "upstream": {{"url": "https://a.example.com/mcp"}}, "credential":
            {{"kind": "aws_sigv4", "region": "eu-central-1", "service": "s", "subject_provider": "corp", {roles}}}}}]}}"#
        );
        let config = parse(&text, "test", &Process).unwrap_or_else(|report| panic!("{report}"));
        match &config.routes[0].credential {
            Credential::AwsSigv4(aws) => Arc::clone(aws),
            _ => panic!("another kind"),
        }
    }

    fn claims(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_role_of_the_lowest_priority_that_fits_is_taken() {
        let arn = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
        let roles = format!(
            r#""roles": [{{"claim": "groups", "values": ["staff", "all"], "arn": "{}", "priority": 5}},
            {{"claim": "groups", "values": ["admins"], "arn": "{}", "priority": 1}},
            {{"claim": "sub", "values": ["ada"], "arn": "{}", "priority": 5}}]"#,
            arn("staff"),
            arn("admin"),
            arn("ada")
        );
        let aws = configured(&roles);
        let role = |sub: &str, said: Value| aws.role(sub, &claims(said), &Held::default()).map(str::to_owned);
        assert_eq!(role("x", json!({"groups": ["all", "admins"]})), Some(arn("admin")));
        assert_eq!(role("ada", json!({"groups": "staff"})), Some(arn("staff")), "as they are written");
        assert_eq!(role("ada", json!({"sub": "staff"})), Some(arn("ada")));
        for nothing in
            [json!({}), json!({"groups": []}), json!({"groups": "Admins"}), json!({"groups": {"admins": 1}})]
        {
            assert_eq!(role("x", nothing), None);
        }
        let fallback = configured(&format!(r#"{roles}, "fallback_role": "{}""#, arn("guest")));
        assert_eq!(fallback.role("x", &claims(json!({})), &Held::default()), Some(arn("guest").as_str()));
    }

    #[test]
    fn a_condition_gives_a_role_and_where_it_cannot_be_decided_none() {
        struct Groups(Vec<String>);
        impl Facts for Groups {
            fn fact(&self, name: Name) -> Option<crate::expression::Value<'_>> {
                (name == Name::CallerGroups)
                    .then(|| crate::expression::Value::List(crate::expression::List::Texts(&self.0)))
            }
        }
        let arn = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
        let roles = format!(
            r#""roles": [{{"when": "caller.groups.size() > 0 && caller.groups[1] == 'on-call'", "arn": "{}", "priority": 1}},
            {{"claim": "groups", "values": ["boss"], "arn": "{}"}},
            {{"when": "'staff' in caller.groups", "arn": "{}", "priority": 2}}], "fallback_role": "{}""#,
            arn("on-call"),
            arn("boss"),
            arn("staff"),
            arn("guest")
        );
        let aws = configured(&roles);
        assert!(aws.needs_attributes());
        let role = |groups: &[&str], said: Value| {
            let held = aws.held(&Groups(groups.iter().map(ToString::to_string).collect()));
            aws.role("x", &claims(said), &held).map(str::to_owned)
        };
        assert_eq!(role(&["staff", "on-call"], json!({})), Some(arn("on-call")));
        assert_eq!(role(&["staff", "x"], json!({})), Some(arn("staff")));
        assert_eq!(role(&[], json!({})), Some(arn("guest")));
        // There is no second group to look at.
        assert_eq!(role(&["staff"], json!({})), None);
        assert_eq!(role(&["staff"], json!({"groups": "boss"})), Some(arn("boss")), "that is tried before");
    }

    #[test]
    fn sessions_have_names_that_are_allowed() {
        let aws = configured(
            r#""fallback_role": "arn:aws:iam::123456789012:role/r", "session_name_claim": "email""#,
        );
        let name = |sub: &str, said: Value| aws.session_name(sub, &claims(said));
        assert_eq!(name("x", json!({"email": "ada@example.com"})), "ada@example.com");
        assert_eq!(name("auth0|ä 1", json!({})), "auth0---1");
        assert_eq!(name("x", json!({})), "user-x");
        assert_eq!(name(&"y".repeat(99), json!({})).len(), 64);
    }
}
