//! `kind: client_credentials`: a token of Postern's own, the same for everybody (RFC 6749 §4.4).

use std::sync::Arc;

use super::super::checked::Checker;
use super::super::file::{self, TokenEndpointAuthMethod};
use super::super::report::Key;
use super::{Around, Credential, exchange};

pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    around: &Around<'_>,
) -> Option<Credential> {
    // RFC 6749 §4.4: by confidential clients only.
    if written.token_endpoint_auth_method == Some(TokenEndpointAuthMethod::None) {
        let write = "write how the client proves itself, or leave it out";
        check.refuse(
            &key.child("token_endpoint_auth_method"),
            "is none, so anybody could get the token",
            write,
        );
    }
    exchange::check(check, key, written, around).map(Arc::new).map(Credential::ClientCredentials)
}
