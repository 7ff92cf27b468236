//! What is known of a user besides who they are: rules may look at it.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// As the configuration has it for a local user, and an issuer for its own. Of whom nothing is known, everything is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Verified; empty otherwise.
    pub email: String,
    pub groups: Vec<String>,
    /// Those that the configuration names.
    pub claims: Map<String, Value>,
}

impl Attributes {
    /// Out of what an issuer says of somebody. `kept`: the claims to keep; `groups`: theirs.
    pub fn of(said: &Map<String, Value>, groups: Vec<String>, kept: &[String]) -> Self {
        // An address that nobody has verified may be anybody's.
        let is_verified = said.get("email_verified").is_some_and(|flag| *flag == Value::Bool(true));
        let email = said.get("email").and_then(Value::as_str).filter(|_| is_verified);
        let claims = kept.iter().filter_map(|name| said.get(name).map(|value| (name.clone(), value.clone())));
        Self { email: email.unwrap_or_default().to_owned(), groups, claims: claims.collect() }
    }
}
