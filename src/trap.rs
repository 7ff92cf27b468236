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
    /// As [`Verdict::Refresh`], but the request cannot be sent again: the client does that.
    Later,
    /// The upstream refused a credential no user can do anything about: the operator has to look.
    Misconfigured,
}

/// `refreshed`: a newer token was fetched for this request already; `replayable`: the request can be sent once more.
pub fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    sent: &Source,
    refreshed: bool,
    replayable: bool,
) -> Verdict {
    if status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN {
        return Verdict::Pass;
    }
    let bearer = challenge::bearer(headers.get_all(header::WWW_AUTHENTICATE).iter());
    match (challenge::judge(status, bearer.as_ref()), sent) {
        (Judgement::NotChallenged, _) => Verdict::Pass,
        // The operator says that there is nothing to be put in: whatever the upstream means, it means the client.
        (_, Source::None) => Verdict::Pass,
        (_, Source::Fixed | Source::Minted | Source::Custom) => Verdict::Misconfigured,
        // What an exchanged token may do is the operator's to say, in the exchange; asking the user changes nothing.
        (Judgement::StepUp { .. }, Source::Exchanged { .. }) => Verdict::Pass,
        (Judgement::Connect { .. }, Source::Exchanged { renewable: true, .. }) if !refreshed => {
            match replayable {
                true => Verdict::Refresh,
                false => Verdict::Later,
            }
        }
        // Nor is another one better than the one that was got just now.
        (Judgement::Connect { .. }, Source::Exchanged { .. }) => Verdict::Misconfigured,
        (Judgement::StepUp { scopes }, _) => Verdict::StepUp { scopes },
        (Judgement::Connect { scopes }, Source::Anonymous) => Verdict::Connect { scopes, refused: false },
        (Judgement::Connect { scopes }, Source::Connection { refreshable: true, .. }) if !refreshed => {
            if replayable {
                Verdict::Refresh
            } else {
                Verdict::Connect { scopes, refused: false }
            }
        }
        (Judgement::Connect { scopes }, Source::Connection { .. }) => {
            Verdict::Connect { scopes, refused: true }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use http::HeaderValue;

    fn connection(refreshable: bool) -> Source {
        Source::Connection { key: "k".into(), incarnation: "i".into(), generation: 3, refreshable }
    }

    fn headers(challenge: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_str(challenge).unwrap());
        headers
    }

    #[test]
    fn a_refused_token_is_refreshed_once_then_the_user_is_asked() {
        let challenge = headers("Bearer error=\"invalid_token\"");
        let judge = |source, refreshed, replayable| {
            judge(StatusCode::UNAUTHORIZED, &challenge, &source, refreshed, replayable)
        };
        assert_eq!(judge(connection(true), false, true), Verdict::Refresh);
        assert_eq!(
            judge(connection(true), false, false),
            Verdict::Connect { scopes: vec![], refused: false }
        );
        assert_eq!(judge(connection(true), true, true), Verdict::Connect { scopes: vec![], refused: true });
        assert_eq!(judge(connection(false), false, true), Verdict::Connect { scopes: vec![], refused: true });
        assert_eq!(
            judge(Source::Anonymous, false, true),
            Verdict::Connect { scopes: vec![], refused: false }
        );
        assert_eq!(judge(Source::Fixed, false, true), Verdict::Misconfigured);
        assert_eq!(judge(Source::None, false, true), Verdict::Pass);
    }

    #[test]
    fn a_refused_token_that_was_exchanged_is_exchanged_anew_once_and_is_no_matter_for_the_user() {
        let exchanged =
            |renewable| Source::Exchanged { key: "k".into(), id: "i".into(), renewable, of: None };
        let judge = |status, source, refreshed, replayable| {
            let challenge = headers("Bearer error=\"invalid_token\"");
            judge(status, &challenge, &source, refreshed, replayable)
        };
        let (refused, forbidden) = (StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN);
        assert_eq!(judge(refused, exchanged(true), false, true), Verdict::Refresh);
        assert_eq!(judge(refused, exchanged(true), false, false), Verdict::Later);
        assert_eq!(judge(refused, exchanged(true), true, true), Verdict::Misconfigured);
        assert_eq!(judge(refused, exchanged(false), false, true), Verdict::Misconfigured);
        assert_eq!(judge(forbidden, exchanged(true), false, true), Verdict::Pass);
        let step_up = headers("Bearer error=\"insufficient_scope\", scope=\"x\"");
        assert_eq!(super::judge(forbidden, &step_up, &exchanged(true), false, true), Verdict::Pass);
    }

    #[test]
    fn a_403_is_a_challenge_only_when_it_says_so() {
        let step_up = headers("Bearer error=\"insufficient_scope\", scope=\"files:write files:read\"");
        let verdict = judge(StatusCode::FORBIDDEN, &step_up, &connection(true), false, true);
        assert_eq!(verdict, Verdict::StepUp { scopes: vec!["files:write".into(), "files:read".into()] });
        assert_eq!(
            judge(StatusCode::FORBIDDEN, &HeaderMap::new(), &connection(true), false, true),
            Verdict::Pass
        );
        assert_eq!(judge(StatusCode::NOT_FOUND, &step_up, &connection(true), false, true), Verdict::Pass);
        // A 401 needs no header at all to be one.
        assert_eq!(
            judge(StatusCode::UNAUTHORIZED, &HeaderMap::new(), &connection(true), false, true),
            Verdict::Refresh
        );
    }
}
