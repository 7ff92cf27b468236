//! What a route demands of single calls, compiled from its configuration. `policy` decides by it.
use std::collections::HashMap;

use crate::mcp::Message;

/// The demands of one route.
#[derive(Default)]
pub struct Rules {
    /// What a call of a tool needs besides the scopes of the route.
    tool_scopes: HashMap<String, Vec<String>>,
}

impl Rules {
    pub fn new<'c>(tool_scopes: impl IntoIterator<Item = (&'c String, &'c Vec<String>)>) -> Self {
        let tool_scopes = tool_scopes.into_iter().map(|(tool, scopes)| (tool.clone(), scopes.clone()));
        Self { tool_scopes: tool_scopes.collect() }
    }

    /// Whether it takes the body of a request to decide on it.
    pub fn need_message(&self) -> bool {
        !self.tool_scopes.is_empty()
    }

    /// Scopes that are needed for what is asked, besides those of the route.
    pub fn scopes_for(&self, message: &Message) -> &[String] {
        let tool = message.name.as_ref().filter(|_| message.method.as_deref() == Some("tools/call"));
        tool.and_then(|tool| self.tool_scopes.get(tool)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether something here needs it.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes().any(|own| own == scope)
    }

    /// Every scope that something here needs.
    pub fn scopes(&self) -> impl Iterator<Item = &String> {
        self.tool_scopes.values().flatten()
    }
}
