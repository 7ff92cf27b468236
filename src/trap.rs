//! Status and `WWW-Authenticate` of an upstream answer in, [`Verdict`] out. An upstream's challenge is never passed
//! on: it names an authorization server and a resource that are none of the client's business.
use http::{HeaderMap, StatusCode, header};

use crate::challenge::{self, Judgement};
use crate::credential::Source;

/// What happens with an upstream answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Goes to the client.
    Pass,
    /// The token was refused and another one can be had: get it and send the request again.
    Refresh,
    /// The user has to authorize at the upstream. `refused`: the token that was sent is dead for good;
    /// otherwise nobody knows, because the request could not be sent twice.
    Connect { scopes: Vec<String>, refused: bool },
    /// The user has to allow more (RFC 6750 §3.1 `insufficient_scope`).
    StepUp { scopes: Vec<String> },
    /// The upstream refused a credential no user can do anything about: the operator has to look.
    Misconfigured,
}

/// `attempt` counts from one; `replayable`: the request body is still held completely.
pub fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    sent: &Source,
    attempt: u32,
    replayable: bool,
) -> Verdict {
    if status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN {
        return Verdict::Pass;
    }
    let bearer = challenge::bearer(headers.get_all(header::WWW_AUTHENTICATE).iter());
    match (challenge::judge(status, bearer.as_ref()), sent) {
        (Judgement::NotChallenged, _) => Verdict::Pass,
        (_, Source::None | Source::Fixed) => Verdict::Misconfigured,
        (Judgement::StepUp { scopes }, _) => Verdict::StepUp { scopes },
        (Judgement::Connect { scopes }, Source::Anonymous) => Verdict::Connect {
            scopes,
            refused: false,
        },
        (Judgement::Connect { scopes }, Source::Connection { refreshable, .. }) => {
            match (refreshable, attempt) {
                (true, 1) if replayable => Verdict::Refresh,
                (true, 1) => Verdict::Connect {
                    scopes,
                    refused: false,
                },
                _ => Verdict::Connect {
                    scopes,
                    refused: true,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )]
    use super::*;
    use http::HeaderValue;

    fn connection(refreshable: bool) -> Source {
        Source::Connection {
            key: "k".into(),
            incarnation: "i".into(),
            generation: 3,
            refreshable,
        }
    }

    fn headers(challenge: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_str(challenge).unwrap(),
        );
        headers
    }

    #[test]
    fn a_refused_token_is_refreshed_once_then_the_user_is_asked() {
        let challenge = headers("Bearer error=\"invalid_token\"");
        let judge = |source, attempt, replayable| {
            judge(StatusCode::UNAUTHORIZED, &challenge, &source, attempt, replayable)
        };
        assert_eq!(judge(connection(true), 1, true), Verdict::Refresh);
        assert_eq!(
            judge(connection(true), 1, false),
            Verdict::Connect {
                scopes: vec![],
                refused: false
            }
        );
        assert_eq!(
            judge(connection(true), 2, true),
            Verdict::Connect {
                scopes: vec![],
                refused: true
            }
        );
        assert_eq!(
            judge(connection(false), 1, true),
            Verdict::Connect {
                scopes: vec![],
                refused: true
            }
        );
        assert_eq!(
            judge(Source::Anonymous, 1, true),
            Verdict::Connect {
                scopes: vec![],
                refused: false
            }
        );
        assert_eq!(judge(Source::Fixed, 1, true), Verdict::Misconfigured);
        assert_eq!(judge(Source::None, 1, true), Verdict::Misconfigured);
    }

    #[test]
    fn a_403_is_a_challenge_only_when_it_says_so() {
        let step_up = headers("Bearer error=\"insufficient_scope\", scope=\"files:write files:read\"");
        let verdict = judge(StatusCode::FORBIDDEN, &step_up, &connection(true), 1, true);
        assert_eq!(
            verdict,
            Verdict::StepUp {
                scopes: vec!["files:write".into(), "files:read".into()]
            }
        );
        assert_eq!(
            judge(
                StatusCode::FORBIDDEN,
                &HeaderMap::new(),
                &connection(true),
                1,
                true
            ),
            Verdict::Pass
        );
        assert_eq!(
            judge(StatusCode::NOT_FOUND, &step_up, &connection(true), 1, true),
            Verdict::Pass
        );
        // A 401 needs no header at all to be one.
        assert_eq!(
            judge(
                StatusCode::UNAUTHORIZED,
                &HeaderMap::new(),
                &connection(true),
                1,
                true
            ),
            Verdict::Refresh
        );
    }
}
