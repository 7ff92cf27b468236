//! "Do you want a token?", asked of an upstream before the user is asked for anything, so that one browser trip can
//! serve both logins. A well-formed request without credential; nothing of the answer's body is read.
use http::{HeaderValue, Method};

use crate::challenge::{self, Bearer, Judgement};
use crate::mcp::{self, OwnRequest};
use crate::outbound::{AddressPolicy, Outbound, Request, Response};

/// In what is told to who looks on.
const STEP: &str = "probe";

/// What an upstream said.
#[derive(Debug)]
pub enum Probe {
    /// It answered, whatever it was, without asking for a token.
    Open,
    /// It asked for a token. `scopes` are those its challenge names.
    Challenged { bearer: Option<Bearer>, scopes: Vec<String> },
    /// No answer to judge by: network, 5xx or 429. The reason is one line without secrets.
    Unreachable(String),
}

/// Probes the MCP server at `url`. Revision 2026-07-28 first; a server that cannot read that (4xx) is asked once more
/// in the words of 2025-11-25.
pub async fn probe(outbound: &Outbound, url: &str, policy: &AddressPolicy) -> Probe {
    let (probe, is_lost) = ask(outbound, url, policy, mcp::probe_request()).await;
    let probe = match (probe, is_lost) {
        (Probe::Open, true) => {
            outbound.remark(STEP, url, "again", || {
                "it cannot read a request of revision 2026-07-28, and gets one of 2025-11-25".to_owned()
            });
            ask(outbound, url, policy, mcp::session_era_probe_request()).await.0
        }
        (probe, _) => probe,
    };
    match &probe {
        Probe::Open => outbound.remark(STEP, url, "open", || "it answers without asking for a token".into()),
        Probe::Challenged { bearer, .. } => outbound.remark(STEP, url, "challenged", || {
            match bearer {
                Some(_) => "it asks for a token",
                None => "it asks for a token, without a Bearer challenge that can be read",
            }
            .to_owned()
        }),
        Probe::Unreachable(reason) => outbound.remark(STEP, url, "unavailable", || reason.clone()),
    }
    probe
}

/// The verdict, and whether the server answered with a 4xx that has nothing to do with tokens.
async fn ask(outbound: &Outbound, url: &str, policy: &AddressPolicy, own: OwnRequest) -> (Probe, bool) {
    let mut request = Request::new(Method::POST, url).head_only();
    request.body = Some(own.body);
    for (name, value) in own.headers {
        request.headers.insert(name, HeaderValue::from_static(value));
    }
    match outbound.send(request, policy).await {
        Ok(response) => (judged(&response), response.status.is_client_error()),
        Err(error) => (Probe::Unreachable(error.to_string()), false),
    }
}

fn judged(response: &Response) -> Probe {
    let status = response.status;
    if status.is_server_error() || status.as_u16() == 429 {
        return Probe::Unreachable(format!("upstream answered {}", status.as_u16()));
    }
    let bearer = challenge::bearer(response.headers.get_all(http::header::WWW_AUTHENTICATE).iter());
    match challenge::judge(status, bearer.as_ref()) {
        Judgement::NotChallenged => Probe::Open,
        Judgement::Connect { scopes } | Judgement::StepUp { scopes } => Probe::Challenged { bearer, scopes },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::oauth::client::stub::{Answer, Stub, local, nobody, outbound};

    async fn probed(stub: &Stub) -> Probe {
        probe(&outbound(), &stub.url("/mcp"), &local()).await
    }

    #[tokio::test]
    async fn a_401_is_a_challenge_with_its_scopes() {
        let stub = Stub::start(|_, base| {
            let challenge = format!("Bearer resource_metadata=\"{base}/prm\", scope=\"mcp:basic mcp:read\"");
            Answer::status(401).header("www-authenticate", &challenge)
        })
        .await;
        let Probe::Challenged { bearer, scopes } = probed(&stub).await else { panic!("not challenged") };
        assert_eq!(bearer.unwrap().resource_metadata, Some(stub.url("/prm")));
        assert_eq!(scopes, ["mcp:basic", "mcp:read"]);
        let seen = stub.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].method, "POST");
        assert_eq!(seen[0].header("mcp-method"), Some("server/discover"));
        assert_eq!(seen[0].header("mcp-protocol-version"), Some("2026-07-28"));
        assert_eq!(seen[0].header("authorization"), None);
    }

    #[tokio::test]
    async fn a_bare_401_is_a_challenge_too() {
        let stub = Stub::start(|_, _| Answer::status(401)).await;
        assert!(matches!(probed(&stub).await, Probe::Challenged { bearer: None, .. }));
    }

    #[tokio::test]
    async fn only_insufficient_scope_makes_a_403_a_challenge() {
        let stub = Stub::start(|_, _| {
            Answer::status(403)
                .header("www-authenticate", "Bearer error=\"insufficient_scope\", scope=\"mcp:write\"")
        })
        .await;
        assert!(matches!(probed(&stub).await, Probe::Challenged { scopes, .. } if scopes == ["mcp:write"]));
        let stub = Stub::start(|_, _| Answer::status(403)).await;
        assert!(matches!(probed(&stub).await, Probe::Open));
    }

    #[tokio::test]
    async fn an_older_server_is_asked_again_in_its_words() {
        let stub = Stub::start(|seen, _| match seen.header("mcp-protocol-version") {
            Some("2026-07-28") => Answer::status(400),
            _ => Answer::status(401),
        })
        .await;
        assert!(matches!(probed(&stub).await, Probe::Challenged { .. }));
        let seen = stub.seen();
        assert_eq!(seen.len(), 2);
        assert!(String::from_utf8_lossy(&seen[1].body).contains("tools/list"));
        assert_eq!(seen[1].header("mcp-session-id"), None);
    }

    #[tokio::test]
    async fn an_answer_without_a_challenge_is_open() {
        for (status, requests) in [(200, 1), (202, 1), (400, 2), (404, 2), (405, 2), (307, 1)] {
            let stub = Stub::start(move |_, _| Answer::status(status).header("location", "/x")).await;
            assert!(matches!(probed(&stub).await, Probe::Open), "{status}");
            assert_eq!(stub.seen().len(), requests, "{status}");
        }
    }

    #[tokio::test]
    async fn an_outage_is_neither_open_nor_a_challenge() {
        for status in [429, 500, 502, 503] {
            let stub = Stub::start(move |_, _| Answer::status(status)).await;
            assert!(matches!(probed(&stub).await, Probe::Unreachable(_)), "{status}");
        }
        let nobody = nobody();
        let url = format!("http://{}/mcp", nobody.local_addr().unwrap());
        assert!(matches!(probe(&outbound(), &url, &local()).await, Probe::Unreachable(_)));
    }

    #[tokio::test]
    async fn an_address_that_is_not_allowed_is_not_asked() {
        let stub = Stub::start(|_, _| Answer::status(401)).await;
        let probe = probe(&outbound(), &stub.url("/mcp"), &AddressPolicy::public()).await;
        assert!(matches!(probe, Probe::Unreachable(_)));
        assert!(stub.seen().is_empty());
    }
}
