//! The facts of one request, as expressions ask for them.
use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, header};

use super::Question;
use crate::expression::{Facts, List, Map, Name, Table, Value};
use crate::mcp::{self, ItemKind, Message};

/// What the rules are asked about.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// An item as a list shows it, and how it would be used.
    Item {
        method: &'static str,
        kind: ItemKind,
        name: &'a str,
    },
    Message(&'a Message),
    /// There is no message.
    Nothing,
    /// It has yet to arrive.
    ToCome,
    /// The request is none of MCP: nothing of it is known, and nothing about it is allowed for the protocol's sake.
    Plain,
}

impl<'a> Subject<'a> {
    /// Whether it is part of talking to a server at all, and uses nothing that the server offers.
    pub(super) fn keeps_going(self) -> bool {
        let method = match self {
            Self::Item { .. } | Self::ToCome | Self::Plain => return false,
            Self::Nothing => return true,
            Self::Message(message) => message.method.as_deref(),
        };
        // Without a method it is the client's answer to something that the server asked.
        method.is_none_or(|method| {
            method.starts_with("notifications/")
                || matches!(
                    method,
                    "initialize"
                        | "ping"
                        | "server/discover"
                        | "logging/setLevel"
                        | "tools/list"
                        | "prompts/list"
                        | "resources/list"
                        | "resources/templates/list"
                        | "subscriptions/listen"
                )
        })
    }

    fn method(self) -> Option<&'a str> {
        match self {
            Self::Item { method, .. } => Some(method),
            Self::Message(message) => Some(message.method.as_deref().unwrap_or_default()),
            Self::Nothing => Some(""),
            Self::ToCome | Self::Plain => None,
        }
    }

    /// The name of an item of this kind; empty where it is of another.
    fn item(self, wanted: ItemKind) -> Option<&'a str> {
        let (kind, name) = match self {
            Self::Item { kind, name, .. } => (kind, name),
            Self::Message(Message { item: Some(item), .. }) => (item.kind, item.name.as_str()),
            Self::Message(_) | Self::Nothing => return Some(""),
            Self::ToCome | Self::Plain => return None,
        };
        Some(if kind == wanted { name } else { "" })
    }
}

pub(super) struct Known<'a> {
    question: &'a Question<'a>,
    subject: Subject<'a>,
    headers: Headers<'a>,
}

impl<'a> Known<'a> {
    pub(super) fn new(question: &'a Question<'a>, subject: Subject<'a>) -> Self {
        Self { question, subject, headers: Headers(question.request.headers) }
    }
}

impl Facts for Known<'_> {
    fn fact(&self, name: Name) -> Option<Value<'_>> {
        let Question { caller, attributes, route, request, .. } = self.question;
        Some(match name {
            Name::CallerSubject => Value::text(caller.subject()),
            Name::CallerIssuer => Value::text(caller.issuer()),
            Name::CallerEmail => Value::text(&attributes.email),
            Name::CallerGroups => Value::List(List::Texts(&attributes.groups)),
            Name::CallerClaims => Value::Map(Map::Json(&attributes.claims)),
            Name::CallerClient => Value::text(caller.client()),
            Name::CallerMachine => Value::Bool(caller.is_machine()),
            Name::RequestMethod => Value::text(request.method.as_str()),
            Name::RequestPath => Value::text(request.path),
            Name::RequestHeaders => Value::Map(Map::Table(&self.headers)),
            Name::RequestSource => Value::Text(request.source.map(written).unwrap_or_default()),
            Name::RequestTime => Value::Time(request.time),
            Name::McpRevision if matches!(self.subject, Subject::Plain) => return None,
            Name::McpRevision => Value::text(mcp::revision(request.headers).unwrap_or_default()),
            Name::McpMethod => Value::text(self.subject.method()?),
            Name::McpTool => Value::text(self.subject.item(ItemKind::Tool)?),
            Name::McpPrompt => Value::text(self.subject.item(ItemKind::Prompt)?),
            Name::McpResource => Value::text(self.subject.item(ItemKind::Resource)?),
            Name::McpArguments => match self.subject {
                Subject::Message(message) => Value::Map(Map::Json(&message.arguments)),
                Subject::Item { .. } | Subject::Nothing | Subject::ToCome | Subject::Plain => return None,
            },
            Name::RouteName => Value::text(&route.name),
            Name::RouteScopes => Value::List(List::Texts(&route.scopes)),
        })
    }
}

fn written(address: IpAddr) -> Cow<'static, str> {
    Cow::Owned(address.to_canonical().to_string())
}

/// Header lines by name; several of one name are joined by commas (RFC 9110 §5.3).
struct Headers<'a>(&'a HeaderMap);

impl Table for Headers<'_> {
    fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        // Who calls is known without them, and a rule is no place for a secret.
        let hidden = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE, mcp::SESSION_ID];
        if hidden.iter().any(|hidden| hidden == name) {
            return None;
        }
        let mut lines = self.0.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
        let first = lines.next()?;
        Some(lines.fold(first, |all, line| Cow::Owned(format!("{all}, {line}"))))
    }
}
