//! `awsSts`: roles by claims or by expressions on them → `kind: aws_sigv4`.

use regex::Regex;

use super::super::section::{Findings, Lost, Section};
use super::super::written::{Credential, Field};
use super::{Around, UNKNOWN, needed_provider};

/// What ToolHive signs for where nothing is said.
const SERVICE: &str = "aws-mcp";
const ROLE_CLAIM: &str = "groups";

pub(super) fn convert(keys: &mut Section, _: Around<'_>, found: &mut Findings) -> Result<Credential, Lost> {
    let provider = needed_provider(keys, "subjectProviderName", found)?;
    let region = keys.needed("region", found)?;
    let service = keys.words("service", found)?.unwrap_or_else(|| SERVICE.to_owned());
    let claim = keys.words("roleClaim", found)?.unwrap_or_else(|| ROLE_CLAIM.to_owned());
    let roles = roles(keys.sections("roleMappings", found)?, &claim, found)?;
    let mut credential = Credential::new("aws_sigv4")
        .with("subject_provider", Field::Text(provider.clone()))
        .with("region", Field::Text(region))
        .with("service", Field::Text(service));
    if !roles.is_empty() {
        credential = credential.with("roles", Field::List(roles));
    }
    credential.provider = Some(provider);
    credential.notes.push("AWS is shown the provider's ID token; the roles have to trust it.".to_owned());
    let duration = keys.whole("sessionDuration", found)?.map(|seconds| format!("{seconds}s"));
    Ok(credential
        .with_text("fallback_role", keys.words("fallbackRoleArn", found)?)
        .with_text("session_name_claim", keys.words("sessionNameClaim", found)?)
        .with_text("duration", duration))
}

/// All of them or none: with one left out, its people would have the role of a later one.
fn roles(mappings: Vec<Section>, claim: &str, found: &mut Findings) -> Result<Vec<Field>, Lost> {
    // Where ToolHive reads no priority, the role is tried last; where Postern reads none, first.
    let has_priorities = mappings.iter().any(|mapping| mapping.has("priority"));
    let last = has_priorities.then_some(i64::from(i32::MAX));
    let mut roles = Vec::with_capacity(mappings.len());
    let mut is_lost = None;
    for mut mapping in mappings {
        match role(&mut mapping, claim, last, found) {
            Ok(role) => roles.push(role),
            Err(lost) => is_lost = Some(lost),
        }
        mapping.rest(found, |_| Some(UNKNOWN));
    }
    is_lost.map_or(Ok(roles), Err)
}

fn role(mapping: &mut Section, claim: &str, last: Option<i64>, found: &mut Findings) -> Result<Field, Lost> {
    let (value, matcher) = (mapping.words("claim", found)?, mapping.words("matcher", found)?);
    let arn = mapping.needed("roleArn", found)?;
    let priority = mapping.whole("priority", found)?.or(last);
    let (claim, value) = match (value, matcher) {
        (Some(value), None) => (claim.to_owned(), value),
        (None, Some(matcher)) => compared(&matcher).ok_or_else(|| {
            let reason = "is an expression; a role is had by a value of one claim, and without this one others would get its people";
            found.lose(&mapping.place.child("matcher"), reason)
        })?,
        _ => return Err(found.lose(&mapping.place, "has not one of `claim` and `matcher`")),
    };
    let mut entries = vec![
        ("claim", Field::Text(claim)),
        ("values", Field::List(vec![Field::Text(value)])),
        ("arn", Field::Text(arn)),
    ];
    entries.extend(priority.map(|priority| ("priority", Field::Number(priority))));
    Ok(Field::Map(entries))
}

/// Claim and value of an expression that does nothing but compare them.
fn compared(matcher: &str) -> Option<(String, String)> {
    let text = r#"["']([^"'\\]+)["']"#;
    let of = |shape: &str, claim: usize, value: usize| {
        let found = Regex::new(shape).ok()?.captures(matcher)?;
        Some((found.get(claim)?.as_str().to_owned(), found.get(value)?.as_str().to_owned()))
    };
    let contains = format!(r"^\s*{text}\s+in\s+claims\s*\[\s*{text}\s*\]\s*$");
    let equals = format!(r"^\s*claims\s*\[\s*{text}\s*\]\s*==\s*{text}\s*$");
    of(&contains, 2, 1).or_else(|| of(&equals, 1, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_expression_that_compares_is_a_claim_and_a_value() {
        let pair = |claim: &str, value: &str| Some((claim.to_owned(), value.to_owned()));
        assert_eq!(compared(r#" "admins" in claims["groups"] "#), pair("groups", "admins"));
        assert_eq!(compared(r#"claims['hd'] == "example.com""#), pair("hd", "example.com"));
        for other in [
            r#"claims["sub"] == "a" && !("act" in claims)"#,
            r#"!("admins" in claims["groups"])"#,
            r#"claims["sub"] != "a""#,
            r#""act" in claims"#,
            r#"claims["a"] == "b\"c""#,
            "true",
        ] {
            assert_eq!(compared(other), None, "{other}");
        }
    }
}
