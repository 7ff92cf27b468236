//! URL mode elicitation (MCP 2025-11-25 and 2026-07-28): the client itself leads its person to a page, and repeats the call
//! afterwards. What is read here decides nothing but in which words a call is answered that cannot go on anyway.
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use serde_json::value::RawValue;

/// JSON-RPC error code of a call that needs an elicitation first (2025-11-25).
const REQUIRED: i32 = -32042;
/// The methods whose callers know what to do with it.
const METHODS: [&str; 3] = ["tools/call", "prompts/get", "resources/read"];
/// A longer id is not repeated, bytes.
const LONGEST_ID: usize = 256;
/// Our question among those of a server.
const KEY: &str = "postern/connect";

/// A call that can be answered by an elicitation, of a client that takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elicitable {
    /// `id` as JSON.
    id: String,
    /// Revision 2026-07-28 or later.
    is_mirrored: bool,
    /// The person was asked before and said no.
    pub is_declined: bool,
}

#[derive(Deserialize)]
struct Call<'b> {
    #[serde(borrow)]
    id: &'b RawValue,
    method: String,
    #[serde(default)]
    params: Params,
}

#[derive(Default, Deserialize)]
struct Params {
    #[serde(rename = "_meta", default)]
    meta: Meta,
    #[serde(rename = "inputResponses", default)]
    responses: Responses,
}

#[derive(Default, Deserialize)]
struct Responses {
    #[serde(rename = "postern/connect")]
    ours: Option<Response>,
}

#[derive(Deserialize)]
struct Response {
    action: String,
}

#[derive(Default, Deserialize)]
struct Meta {
    #[serde(rename = "io.modelcontextprotocol/clientCapabilities", default)]
    capabilities: Capabilities,
}

/// What a client says that it can do.
#[derive(Default, Deserialize)]
pub struct Capabilities {
    elicitation: Option<Elicitation>,
}

#[derive(Deserialize)]
struct Elicitation {
    url: Option<IgnoredAny>,
}

impl Capabilities {
    /// Whether it opens URLs for servers. Without a mode the capability means forms alone.
    pub fn take_urls(&self) -> bool {
        self.elicitation.as_ref().is_some_and(|elicitation| elicitation.url.is_some())
    }
}

impl Elicitable {
    /// `is_mirrored`: the revision is one whose requests say themselves what their client can do; otherwise `is_declared`
    /// says whether its session began with that.
    pub fn read(body: &[u8], is_mirrored: bool, is_declared: bool) -> Option<Self> {
        let call: Call<'_> = serde_json::from_slice(body).ok()?;
        let takes = if is_mirrored { call.params.meta.capabilities.take_urls() } else { is_declared };
        let id = call.id.get();
        let is_id = id.len() <= LONGEST_ID
            && id.starts_with(['"', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
        let is_declined = call.params.responses.ours.is_some_and(|response| response.action != "accept");
        (takes && is_id && METHODS.contains(&call.method.as_str())).then(|| Self {
            id: id.to_owned(),
            is_mirrored,
            is_declined,
        })
    }

    /// The answer, as a JSON-RPC message. `id`: names the elicitation, where a revision has names for them.
    pub fn answer(&self, url: &str, id: &str, message: &str) -> String {
        let call = &self.id;
        if self.is_mirrored {
            let asked = json!({"method": "elicitation/create", "params": {"mode": "url", "url": url, "message": message}});
            let result = json!({"resultType": "input_required", "inputRequests": {KEY: asked}});
            return format!(r#"{{"jsonrpc":"2.0","id":{call},"result":{result}}}"#);
        }
        let asked = json!({"mode": "url", "elicitationId": id, "url": url, "message": message});
        let error = json!({"code": REQUIRED, "message": message, "data": {"elicitations": [asked]}});
        format!(r#"{{"jsonrpc":"2.0","id":{call},"error":{error}}}"#)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    const META: &str = r#""_meta":{"io.modelcontextprotocol/clientCapabilities":{"elicitation":{"url":{}}}}"#;

    #[test]
    fn only_calls_of_clients_that_take_urls_are_answered_so() {
        let call = |params: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{{params}}}}}"#)
        };
        let reads = |body: &str, is_mirrored, is_declared| {
            Elicitable::read(body.as_bytes(), is_mirrored, is_declared).is_some()
        };
        assert!(reads(&call(""), false, true));
        assert!(!reads(&call(""), false, false));
        assert!(!reads(&call(META), false, false), "of a session, its beginning counts");
        assert!(reads(&call(META), true, false));
        for other in [
            "",
            r#""_meta":{"io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}}"#,
            r#""_meta":{"io.modelcontextprotocol/clientCapabilities":{"elicitation":{"form":{}}}}"#,
        ] {
            assert!(!reads(&call(other), true, true), "{other}");
        }
        for body in [
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#,
            r#"{"jsonrpc":"2.0","method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"tools/call"}"#,
            "[]",
            "nonsense",
        ] {
            assert!(!reads(body, false, true), "{body}");
        }
    }

    #[test]
    fn each_revision_is_answered_in_its_own_words() {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":"a\"b","method":"prompts/get","params":{{"name":"p",{META}}}}}"#
        );
        let said = |is_mirrored| {
            let call = Elicitable::read(body.as_bytes(), is_mirrored, true).unwrap();
            serde_json::from_str::<serde_json::Value>(&call.answer("https://gw/c", "e1", "Connect")).unwrap()
        };
        let asked = json!({"mode": "url", "url": "https://gw/c", "message": "Connect"});
        let later = said(true);
        assert_eq!(
            (&later["id"], &later["result"]["resultType"]),
            (&json!("a\"b"), &json!("input_required"))
        );
        assert_eq!(
            later["result"]["inputRequests"][KEY],
            json!({"method": "elicitation/create", "params": asked})
        );
        let earlier = said(false);
        assert_eq!(earlier["error"]["code"], -32042);
        let elicitation = &earlier["error"]["data"]["elicitations"][0];
        assert_eq!((&elicitation["url"], &elicitation["elicitationId"]), (&asked["url"], &json!("e1")));
    }

    #[test]
    fn who_has_said_no_is_not_asked_again() {
        let declined = |action: &str| {
            let responses = json!({KEY: {"action": action}, "of the server": {"action": "decline"}});
            let body = format!(
                r#"{{"id":1,"method":"tools/call","params":{{"inputResponses":{responses},{META}}}}}"#
            );
            Elicitable::read(body.as_bytes(), true, false).unwrap().is_declined
        };
        assert!(!declined("accept"));
        assert!(declined("decline"));
        assert!(declined("cancel"));
    }
}
