//! What an expression may speak of: every name, its kind, and nothing else.
use super::kind::Kind;

/// A fact about a request. Where there is none, texts and lists are empty: whoever has no e-mail address has `''`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Name {
    CallerSubject,
    CallerIssuer,
    CallerEmail,
    CallerGroups,
    CallerClaims,
    CallerClient,
    CallerMachine,
    RequestMethod,
    RequestPath,
    RequestHeaders,
    RequestSource,
    RequestTime,
    McpRevision,
    McpMethod,
    McpTool,
    McpPrompt,
    McpResource,
    McpArguments,
    RouteName,
    RouteScopes,
}

impl Name {
    pub const ALL: [Self; 20] = [
        Self::CallerSubject,
        Self::CallerIssuer,
        Self::CallerEmail,
        Self::CallerGroups,
        Self::CallerClaims,
        Self::CallerClient,
        Self::CallerMachine,
        Self::RequestMethod,
        Self::RequestPath,
        Self::RequestHeaders,
        Self::RequestSource,
        Self::RequestTime,
        Self::McpRevision,
        Self::McpMethod,
        Self::McpTool,
        Self::McpPrompt,
        Self::McpResource,
        Self::McpArguments,
        Self::RouteName,
        Self::RouteScopes,
    ];

    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            Self::CallerSubject => "caller.subject",
            Self::CallerIssuer => "caller.issuer",
            Self::CallerEmail => "caller.email",
            Self::CallerGroups => "caller.groups",
            Self::CallerClaims => "caller.claims",
            Self::CallerClient => "caller.client",
            Self::CallerMachine => "caller.machine",
            Self::RequestMethod => "request.method",
            Self::RequestPath => "request.path",
            Self::RequestHeaders => "request.headers",
            Self::RequestSource => "request.source",
            Self::RequestTime => "request.time",
            Self::McpRevision => "mcp.revision",
            Self::McpMethod => "mcp.method",
            Self::McpTool => "mcp.tool",
            Self::McpPrompt => "mcp.prompt",
            Self::McpResource => "mcp.resource",
            Self::McpArguments => "mcp.arguments",
            Self::RouteName => "route.name",
            Self::RouteScopes => "route.scopes",
        }
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::CallerMachine => Kind::Bool,
            Self::RequestTime => Kind::Time,
            Self::CallerGroups | Self::RouteScopes => Kind::List(Box::new(Kind::Text)),
            Self::CallerClaims | Self::McpArguments => Kind::Map(Box::new(Kind::Any)),
            Self::RequestHeaders => Kind::Map(Box::new(Kind::Text)),
            _ => Kind::Text,
        }
    }

    pub(super) fn find(root: &str, field: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.text().split_once('.') == Some((root, field)))
    }

    /// All names below `root`, for messages. Empty: there is no such root.
    pub(super) fn below(root: &str) -> String {
        let names = Self::ALL.into_iter().map(Self::text);
        let below = names.filter(|name| name.split_once('.').is_some_and(|(of, _)| of == root));
        below.collect::<Vec<_>>().join(", ")
    }
}

/// A set of names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Names(u32);

impl Names {
    pub const fn of(names: &[Name]) -> Self {
        let (mut bits, mut rest) = (0, names);
        while let [first, more @ ..] = rest {
            bits |= 1 << (*first as u32);
            rest = more;
        }
        Self(bits)
    }

    pub fn has(self, name: Name) -> bool {
        self.meets(Self::of(&[name]))
    }

    /// Whether the two have a name in common.
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
