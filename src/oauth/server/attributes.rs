//! What is known of a user besides their name, as their identity provider says it: rules may look at it.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Of whom nothing is known, everything is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Verified; empty otherwise.
    pub email: String,
    pub groups: Vec<String>,
    /// Those that the configuration names.
    pub claims: Map<String, Value>,
}
