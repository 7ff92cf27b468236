//! `kind: upstream_inject`: the name of an identity provider → the provider, and which of its tokens.

use super::super::checked::Checker;
use super::super::file::{self, InjectedToken};
use super::super::login::Login;
use super::super::report::Key;
use super::{Credential, provider};

pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Credential,
    login: &Login,
) -> Option<Credential> {
    let provider = provider(check, &key.child("provider"), written.provider.as_deref(), login)?;
    Some(Credential::UpstreamInject(provider, written.token.unwrap_or(InjectedToken::Access)))
}
