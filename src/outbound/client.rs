//! The client itself: judge the URL, resolve and judge its addresses, connect to exactly those, read within
//! limits.
//!
//! Each request has a `reqwest::Client` of its own, because the pinned addresses belong to that one request and
//! nothing is pooled. What is dear to make, the TLS configuration with its roots, is made once.

use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use reqwest::dns::{Name, Resolve, Resolving};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use super::Error;
use super::address::{AddressPolicy, Class, classify};
use super::message::{Request, Response};
use super::names::{Names, Vetted};
use super::watch::{Count, Watch};

pub(super) const RESOLVE_LIMIT: Duration = Duration::from_secs(3);
/// A name with more answers than this is tried at the first ones only; all are judged.
const ADDRESSES_TRIED: usize = 16;
/// How far a deadline has to be passed for a process to have been stopped, and how long it then looks for an answer.
const AT_THE_DOOR: Duration = Duration::from_millis(500);
/// Longer than any honest URL, shorter than what servers refuse.
const URL_LIMIT: usize = 8 * 1024;
/// Of a stranger's text in an error.
const REASON_LIMIT: usize = 200;
const HEADER_LIST_LIMIT: u32 = 64 * 1024;
const USER_AGENT: &str = concat!("postern/", env!("CARGO_PKG_VERSION"));

/// What is fixed at start.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Trusted in addition to the system's roots.
    pub ca_certificates: Vec<CertificateDer<'static>>,
    /// Sockets that are never connected to, whatever a policy allows: Postern's own admin listener, its store.
    /// An unspecified address stands for every address of this machine.
    pub forbidden: Vec<SocketAddr>,
    /// Who is asked about names. Empty: whom the system asks.
    pub name_servers: Vec<SocketAddr>,
}

/// Why no client could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// `position` counts the given certificates from 1.
    #[error("ca certificate {position} is not usable: {reason}")]
    Certificate { position: usize, reason: String },
    #[error("tls cannot be set up: {0}")]
    Tls(String),
}

/// The client. Cloning shares it.
#[derive(Clone)]
pub struct Outbound {
    shared: Arc<Shared>,
    pub(super) watch: Option<Watch>,
    pub(super) count: Option<Arc<dyn Count>>,
}

struct Shared {
    tls: ClientConfig,
    roots: Vec<CertificateDer<'static>>,
    forbidden: Vec<SocketAddr>,
    names: Names,
}

/// As `timeout_at`, with the deadline for the rest. A process that was stopped meanwhile finds the deadline long over and
/// the answer at its door: it looks there before it gives up, since the answer may be all there is of a refresh token.
async fn answer_by<T>(deadline: Instant, answer: impl Future<Output = T>) -> Result<(T, Instant), Elapsed> {
    let mut answer = pin!(answer);
    match timeout_at(deadline, &mut answer).await {
        Ok(answer) => Ok((answer, deadline)),
        Err(_) if Instant::now() > deadline + AT_THE_DOOR => {
            let deadline = Instant::now() + AT_THE_DOOR;
            timeout_at(deadline, answer).await.map(|answer| (answer, deadline))
        }
        Err(elapsed) => Err(elapsed),
    }
}

impl Outbound {
    /// Loads the system's roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured) and adds the given ones. System
    /// roots that cannot be read are passed over; check [`roots`](Self::roots) for having none at all.
    pub fn new(settings: Settings) -> Result<Self, SetupError> {
        let mut store = RootCertStore::empty();
        let mut roots = Vec::new();
        for certificate in rustls_native_certs::load_native_certs().certs {
            if store.add(certificate.clone()).is_ok() {
                roots.push(certificate);
            }
        }
        for (index, certificate) in settings.ca_certificates.into_iter().enumerate() {
            store.add(certificate.clone()).map_err(|error| SetupError::Certificate {
                position: index + 1,
                reason: error.to_string(),
            })?;
            roots.push(certificate);
        }
        // The provider is named here so that nothing depends on a process-wide default.
        let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| SetupError::Tls(error.to_string()))?
            .with_root_certificates(store)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let names = Names::of(settings.name_servers);
        Ok(Self {
            shared: Arc::new(Shared { tls, roots, forbidden: settings.forbidden, names }),
            watch: None,
            count: None,
        })
    }

    pub(super) fn names(&self) -> &Names {
        &self.shared.names
    }

    /// Every certificate that is trusted as a root: the system's and the configured ones.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.shared.roots
    }

    /// Resolves a host (a name, or an address with or without brackets) and says where connections may go.
    /// Refused when any single answer is not allowed: a name that mixes public and internal addresses is an
    /// attack or a mistake. The caller must connect to one of the returned addresses and not resolve again.
    pub async fn vet(&self, host: &str, port: u16, policy: &AddressPolicy) -> Result<Vec<SocketAddr>, Error> {
        let vetted = self.vet_for_a_while(host, port, policy).await?;
        Ok(vetted.addresses.into_iter().map(|place| place.address).collect())
    }

    /// The same, with how long it stays so.
    pub async fn vet_for_a_while(
        &self,
        host: &str,
        port: u16,
        policy: &AddressPolicy,
    ) -> Result<Vetted, Error> {
        let target = || format!("{}:{port}", printable(host, REASON_LIMIT));
        let private = policy.allows_private(host);
        let bracketed =
            if host.contains(':') && !host.starts_with('[') { &format!("[{host}]") } else { host };
        // The parser of `url`, so that `0x7f.1` is an address here as it is there.
        let name = match Host::parse(bracketed) {
            Ok(Host::Ipv4(address)) => {
                return self
                    .judge([(address, port).into()], private, target)
                    .map(|vetted| Vetted::of(vetted, None));
            }
            Ok(Host::Ipv6(address)) => {
                return self
                    .judge([(address, port).into()], private, target)
                    .map(|vetted| Vetted::of(vetted, None));
            }
            Ok(Host::Domain(name)) => name,
            Err(_) => {
                return Err(Error::Refused { target: target(), reason: "host is not valid" });
            }
        };
        let unresolved = |reason: &str| Error::NotSent { target: target(), reason: reason.into() };
        let (addresses, fresh_for) = self.names().addresses(&name, port).await.map_err(unresolved)?;
        self.judge(addresses, private, target).map(|vetted| Vetted::of(vetted, fresh_for))
    }

    pub(super) fn judge(
        &self,
        addresses: impl IntoIterator<Item = SocketAddr>,
        private: bool,
        target: impl Fn() -> String,
    ) -> Result<Vec<SocketAddr>, Error> {
        let mut vetted = Vec::new();
        for address in addresses {
            let objection = match classify(address.ip()) {
                Class::Forbidden => Some("it has a special-use address"),
                Class::Private if !private => Some("it has a private address"),
                Class::Private | Class::Public if self.is_own(address) => Some("it is an internal listener"),
                Class::Private | Class::Public => None,
            };
            if let Some(reason) = objection {
                return Err(Error::Refused { target: target(), reason });
            }
            if vetted.len() < ADDRESSES_TRIED {
                vetted.push(address);
            }
        }
        if vetted.is_empty() {
            return Err(Error::NotSent { target: target(), reason: "name has no address".into() });
        }
        Ok(vetted)
    }

    fn is_own(&self, address: SocketAddr) -> bool {
        self.shared.forbidden.iter().any(|own| {
            let own_ip = own.ip().to_canonical();
            own.port() == address.port()
                && (own_ip == address.ip() || (own_ip.is_unspecified() && is_local(address.ip())))
        })
    }

    /// What [`Outbound::send`] does, with nobody looking on.
    pub(super) async fn exchange(&self, request: Request, policy: &AddressPolicy) -> Result<Response, Error> {
        let deadline = Instant::now() + request.limits.total;
        let Destination { url, host, port, target } = Destination::parse(&request.url, policy)?;
        let not_sent = |reason: String| Error::NotSent { target: target.clone(), reason };
        let unknown = |reason: String| Error::Unknown { target: target.clone(), reason };
        let cannot_build = |_| Error::Refused { target: target.clone(), reason: "request cannot be built" };

        let vetted = match timeout_at(deadline, self.vet(&host, port, policy)).await {
            Ok(vetted) => vetted?,
            Err(_) => return Err(not_sent("name resolution timed out".into())),
        };
        let client = self.pinned(&host, &vetted, request.limits.connect, policy).map_err(cannot_build)?;
        let mut outgoing = client.request(request.method, url).headers(request.headers);
        if let Some(body) = request.body {
            outgoing = outgoing.body(body);
        }
        let outgoing = outgoing.build().map_err(cannot_build)?;

        let (mut answer, deadline) = match answer_by(deadline, client.execute(outgoing)).await {
            Ok((Ok(answer), deadline)) => (answer, deadline),
            // Nothing is pooled or retried, so a connect error means that not one byte of the request left.
            Ok((Err(error), _)) if error.is_connect() => return Err(not_sent(root_cause(&error))),
            Ok((Err(error), _)) => return Err(unknown(root_cause(&error))),
            Err(_) => return Err(unknown("timed out".into())),
        };
        let (status, headers) = (answer.status(), std::mem::take(answer.headers_mut()));
        let mut body = BytesMut::new();
        if request.head_only {
            return Ok(Response { status, headers, body: body.freeze() });
        }
        loop {
            let chunk = match timeout_at(deadline, answer.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => {
                    return Ok(Response { status, headers, body: body.freeze() });
                }
                Ok(Err(error)) => return Err(unknown(root_cause(&error))),
                Err(_) => return Err(unknown("timed out".into())),
            };
            if chunk.len() > request.limits.body.saturating_sub(body.len()) {
                return Err(Error::TooLarge { target, limit: request.limits.body });
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// A client that can reach these addresses of this host and nothing else.
    fn pinned(
        &self,
        host: &str,
        vetted: &[SocketAddr],
        connect: Duration,
        policy: &AddressPolicy,
    ) -> reqwest::Result<reqwest::Client> {
        reqwest::Client::builder()
            .tls_backend_preconfigured(self.shared.tls.clone())
            .resolve_to_addrs(host, vetted)
            .dns_resolver(NoResolver)
            .https_only(!policy.allows_private(host))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .http2_max_header_list_size(HEADER_LIST_LIMIT)
            .user_agent(USER_AGENT)
            .connect_timeout(connect)
            .build()
    }
}

/// Where a URL leads, once its form is found acceptable. Says nothing about addresses yet.
struct Destination {
    url: Url,
    /// Lower case, IPv6 without brackets.
    host: String,
    port: u16,
    target: String,
}

impl Destination {
    fn parse(raw: &str, policy: &AddressPolicy) -> Result<Self, Error> {
        let malformed = |reason| Error::Refused { target: "outgoing request".into(), reason };
        // The URL parser forgives what follows; two parsers that forgive differently are how checks are evaded.
        if raw.len() > URL_LIMIT {
            return Err(malformed("url is too long"));
        }
        if raw.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'\\') {
            return Err(malformed("url has white space, control characters or backslashes"));
        }
        let Some((_, rest)) = raw.split_once("://") else {
            return Err(malformed("url is not absolute"));
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.is_empty() {
            return Err(malformed("url has no host"));
        }
        let url = Url::parse(raw).map_err(|_| malformed("url is not valid"))?;
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(malformed("url has no host")),
        };
        let Some(port) = url.port_or_known_default() else {
            return Err(malformed("url is neither https nor http"));
        };
        let target = format!("{}://{}:{port}", url.scheme(), url.host_str().unwrap_or_default());
        let objection = match url.scheme() {
            "https" | "http" if authority.contains('@') => Some("url carries user information"),
            "https" | "http" if url.fragment().is_some() => Some("url has a fragment"),
            "https" => None,
            "http" if policy.allows_private(&host) => None,
            "http" => Some("plain http is not allowed for this host"),
            _ => Some("url is neither https nor http"),
        };
        match objection {
            Some(reason) => Err(Error::Refused { target, reason }),
            None => Ok(Self { url, host, port, target }),
        }
    }
}

/// Stands in for the system's resolver. The vetted addresses are the only ones a client knows, so a name that
/// was not vetted leads nowhere.
struct NoResolver;

impl Resolve for NoResolver {
    fn resolve(&self, _name: Name) -> Resolving {
        Box::pin(std::future::ready(Err("name was not vetted".into())))
    }
}

/// Whether the address is one of this machine's: only those can be bound. Touches no network.
fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

/// The innermost error says what happened ("connection refused", "UnknownIssuer"); the outer ones repeat the URL.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn StdError = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if cause.is::<reqwest::Error>() {
        "request failed".into()
    } else {
        printable(&cause.to_string(), REASON_LIMIT)
    }
}

/// Certificates, host names and documents are a stranger's text: one line of visible ASCII, of so many characters.
pub fn printable(text: &str, limit: usize) -> String {
    text.chars()
        .take(limit)
        .map(|char| if char == ' ' || char.is_ascii_graphic() { char } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn judge(addresses: &[&str], private: bool) -> Result<usize, Error> {
        let outbound = Outbound::new(Settings::default()).unwrap();
        let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        outbound.judge(addresses, private, || "name:443".into()).map(|vetted| vetted.len())
    }

    /// T59: what a resolver may say about one name.
    #[test]
    fn sr_t59_one_bad_answer_refuses_the_name() {
        assert_eq!(judge(&["8.8.8.8:443", "[2001:4860:4860::8888]:443"], false), Ok(2));
        for mixed in
            [["8.8.8.8:443", "10.0.0.1:443"], ["10.0.0.1:443", "8.8.8.8:443"], ["8.8.8.8:443", "[::1]:443"]]
        {
            assert!(matches!(judge(&mixed, false), Err(Error::Refused { .. })), "{mixed:?}");
            assert_eq!(judge(&mixed, true), Ok(2));
        }
        for private in [false, true] {
            let refused = judge(&["8.8.8.8:443", "169.254.169.254:443"], private);
            assert!(matches!(refused, Err(Error::Refused { .. })));
            assert!(matches!(judge(&[], private), Err(Error::NotSent { .. })));
        }
    }

    #[test]
    fn many_answers_are_all_judged_and_few_tried() {
        let mut many: Vec<String> = (1..=40).map(|last| format!("8.8.8.{last}:443")).collect();
        assert_eq!(judge(&many.iter().map(String::as_str).collect::<Vec<_>>(), false), Ok(ADDRESSES_TRIED));
        many.push("10.0.0.1:443".into());
        assert!(judge(&many.iter().map(String::as_str).collect::<Vec<_>>(), false).is_err());
    }
}
