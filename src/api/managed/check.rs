//! Whether a configuration may be written so.
use secrecy::ExposeSecret as _;
use url::Url;

use super::{Desk, Refused, name};
use crate::managed::record::{Auth, Configuration};
use crate::managed::{self, header};

/// Of an URL, bytes.
const LONGEST_URL: usize = 2048;
/// Of one kind.
const MOST_HEADERS: usize = 20;
const MOST_SCOPES: usize = 50;

impl Desk<'_> {
    /// Whether it may be written so, and the form in which it is kept.
    pub(super) fn check(&self, configuration: &mut Configuration) -> Result<(), Refused> {
        configuration.name = name(&configuration.name)?;
        self.check_url(&configuration.url)?;
        if configuration.headers.len() > MOST_HEADERS {
            return Err(Refused::Invalid("headers", format!("are more than {MOST_HEADERS}")));
        }
        let bad = |what: &'static str, name: &str, why: header::BadHeader| {
            Refused::Invalid(what, format!("{name} {why}"))
        };
        for written in &configuration.headers {
            header::check(&written.name, &written.value, false)
                .map_err(|why| bad("headers", &written.name, why))?;
        }
        match &configuration.auth {
            Auth::StaticHeaders(headers) if headers.is_empty() || headers.len() > MOST_HEADERS => {
                let why = format!("have to be 1 to {MOST_HEADERS}");
                return Err(Refused::Invalid("auth.headers", why));
            }
            Auth::StaticHeaders(headers) => {
                for written in headers {
                    header::check(&written.name, written.value.expose_secret(), true)
                        .map_err(|why| bad("auth.headers", &written.name, why))?;
                }
            }
            Auth::OauthStatic { client_id, .. } if client_id.trim().is_empty() => {
                return Err(Refused::Invalid("auth.client_id", "is missing".to_owned()));
            }
            Auth::None | Auth::OauthDynamic | Auth::OauthStatic { .. } => {}
        }
        let is_scope = |scope: &String| {
            !scope.is_empty() && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
        };
        match &configuration.scopes {
            Some(scopes) if scopes.len() > MOST_SCOPES || !scopes.iter().all(is_scope) => {
                let why = format!("are not scopes of RFC 6749 §3.3, or more than {MOST_SCOPES}");
                Err(Refused::Invalid("scopes", why))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_url(&self, written: &str) -> Result<Url, Refused> {
        let invalid = |why: &str| Refused::Invalid("url", why.to_owned());
        if written.len() > LONGEST_URL {
            return Err(invalid("is too long"));
        }
        let url = Url::parse(written).map_err(|_| invalid("is not a URL"))?;
        let host = managed::host(&url).ok_or_else(|| invalid("has no host"))?;
        let is_listed = self.settings.private_hosts.contains(&host);
        match url.scheme() {
            "https" => {}
            "http" if is_listed => {}
            _ => return Err(invalid("has to begin with https://")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("may not have a user or a password in it: use static headers"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("may not have a query or a fragment"));
        }
        // The parser drops and turns what others may read otherwise.
        let is_plain = written.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'\\');
        if !is_plain || written.split('/').any(|part| matches!(part, "." | "..")) || written.contains("%2") {
            return Err(invalid("can be read in more than one way"));
        }
        let is_local = host == "localhost" || host.ends_with(".localhost") || !host.contains(['.', ':']);
        match is_local && !is_listed {
            true => Err(invalid("names a host of this network")),
            false => Ok(url),
        }
    }
}
