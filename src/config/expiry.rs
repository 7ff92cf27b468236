//! When certificates end: a figure for whoever watches, and a warning as long as there is time to do something about it.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::checked::Checker;
use super::report::Key;
use crate::clock::unix_seconds;

/// Whoever renews by themselves has done so before: ACME clients with a third of the time left, mostly 30 days.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Shown to clients.
    Server,
    /// Vouches for clients.
    ClientAuthority,
}

/// Until when a certificate is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    pub of: Use,
    /// As written in the configuration.
    pub file: String,
    /// Seconds since 1970 (RFC 5280 §4.1.2.5, `notAfter`).
    pub at: i64,
}

impl Use {
    /// One word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::ClientAuthority => "client_ca",
        }
    }
}

/// Of those in the file at `key` the first to end, with a warning where that is soon. `None`: no end can be read.
pub(super) fn first(
    check: &mut Checker<'_>,
    (key, path): (&Key, &Path),
    of: Use,
    certificates: &[CertificateDer<'_>],
) -> Option<Expiry> {
    let ends = |certificate: &CertificateDer<'_>| {
        X509Certificate::from_der(certificate).ok().map(|(_, read)| read.validity().not_after.timestamp())
    };
    let at = certificates.iter().filter_map(ends).min()?;
    let since_1970 = u64::try_from(at).unwrap_or_default();
    let now = unix_seconds(check.environment().now());
    if since_1970 < now.saturating_add(SOON.as_secs()) {
        let when = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(since_1970));
        let how = if since_1970 <= now { "has ended:" } else { "ends within 14 days:" };
        let what = format!("a certificate of {} {how} {when}", path.display());
        check.warn(key, what, "renew it, and reload");
    }
    Some(Expiry { of, file: path.display().to_string(), at })
}
