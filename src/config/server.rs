//! The front of the house: the public URL, the listeners and what concerns the process.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::{Host, Url};

use super::checked::Checker;
use super::expiry::Expiry;
use super::file::{self, AccessLog, AuditLog, ForwardedHeader};
use super::proxies;
use super::report::Key;
use super::tls::{self, Certificate, Handshake};

/// The section `server`, resolved.
#[derive(Clone)]
pub struct Server {
    pub public_url: PublicUrl,
    /// At least one.
    pub listen: Vec<Listen>,
    /// At least one where a listener has TLS. The first is the fallback.
    pub tls: Vec<Certificate>,
    /// What else TLS listeners ask of clients.
    pub handshake: Handshake,
    /// Whom to believe when they say whose a request is.
    pub trusted_proxies: Vec<IpNet>,
    /// Where they say it.
    pub forwarded_header: ForwardedHeader,
    /// `host:port`, an IP literal, port 0 allowed. `None`: no admin listener.
    pub admin: Option<String>,
    /// As written; relative paths count from the working directory.
    pub data_dir: PathBuf,
    /// At least 1.
    pub threads: usize,
    pub access_log: AccessLog,
    pub audit_log: AuditLog,
    /// Origins as browsers send them (RFC 6454 §6.2): lower case, no default port, no slash.
    pub allowed_origins: Vec<String>,
    /// Where challenges of a certificate authority are answered: an origin.
    pub acme_challenge: Option<Url>,
    /// The longest time that running requests get after SIGTERM.
    pub drain_timeout: Duration,
    /// Whether a change of its files is taken in at once.
    pub watch: bool,
    /// The longest time that a successor gets to serve.
    pub upgrade_timeout: Duration,
}

impl Server {
    /// Where it listens.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let texts = self.listen.iter().map(|listen| listen.address.as_str());
        texts.chain(self.admin.as_deref()).filter_map(|text| text.parse().ok())
    }
}

/// The origin under which clients reach Postern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    origin: String,
    authority: String,
    host: String,
    port: u16,
    https: bool,
    loopback: bool,
}

impl PublicUrl {
    /// `scheme://host[:port]`, no slash at the end, no default port.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// `host[:port]` without the scheme's default port: what a client sends as `Host`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Lower case; an IPv6 literal is in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, also where it is the scheme's default.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Whether the host is 127.0.0.0/8, ::1 or `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.loopback
    }
}

impl Server {
    /// Whether an address is that of a balancer whose word counts.
    #[must_use]
    pub fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address.to_canonical()))
    }

    /// When what TLS listeners go by ends.
    pub fn expiries(&self) -> impl Iterator<Item = &Expiry> {
        let clients = self.handshake.clients.iter().filter_map(|clients| clients.expiry.as_ref());
        self.tls.iter().filter_map(|certificate| certificate.expiry.as_ref()).chain(clients)
    }
}

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// `host:port` as written; the host is an IP literal, port 0 is allowed.
    pub address: String,
    pub tls: bool,
    /// Connections begin with a header of the PROXY protocol.
    pub proxied: bool,
}

impl Listen {
    /// Whether only this machine can reach the address.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
    }
}

/// Checks `server`. `None`: the public URL could not be read, so nothing could be built on it.
pub(super) fn check(check: &mut Checker<'_>, written: &file::Server) -> Option<Server> {
    let key = Key::top("server");
    let public_url = public_url(check, &key.child("public_url"), &written.public_url);
    let mut listen = listen(check, &key.child("listen"), &written.listen, written.tls.is_some());
    let (tls, handshake) = match &written.tls {
        Some(section) => (
            tls::load(check, &key.child("tls").child("certificates"), &section.certificates),
            tls::handshake(check, &key.child("tls"), section),
        ),
        None => Default::default(),
    };
    let trusted_proxies = proxies::check(check, &key, written, &mut listen);
    let admin = match written.admin.as_deref() {
        Some("off") => None,
        Some(address) => {
            admin(check, &key.child("admin"), address, &listen);
            Some(address.to_owned())
        }
        None => Some("127.0.0.1:9090".to_owned()),
    };
    let data_dir = written.data_dir.clone().unwrap_or_else(|| PathBuf::from("./postern-data"));
    if data_dir.as_os_str().is_empty() {
        check.refuse(&key.child("data_dir"), "is empty", "write a directory, like /var/lib/postern");
    }
    let threads =
        written.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let most = 1024;
    if threads > most {
        check.refuse(&key.child("threads"), "is out of range", format!("write a number from 1 to {most}"));
    }
    let drain_timeout = check.duration(
        &key.child("drain_timeout"),
        written.drain_timeout.as_deref(),
        Duration::from_secs(30),
        Duration::ZERO,
        Duration::from_secs(24 * 60 * 60),
    );
    let upgrade_timeout = check.duration(
        &key.child("upgrade_timeout"),
        written.upgrade_timeout.as_deref(),
        Duration::from_secs(30),
        Duration::from_millis(100),
        Duration::from_secs(60 * 60),
    );
    let allowed_origins =
        origins(check, &key.child("allowed_origins"), written.allowed_origins.as_deref().unwrap_or_default());
    let acme_challenge = written.acme_challenge.as_deref();
    let acme_challenge = acme_challenge.and_then(|text| origin(check, &key.child("acme_challenge"), text));
    let access_log = written.access_log.unwrap_or(AccessLog::Json);
    // Who wants no line for each call gets none.
    let usual = if access_log == AccessLog::Off { AuditLog::Changes } else { AuditLog::All };
    Some(Server {
        public_url: public_url?,
        listen,
        tls,
        handshake,
        trusted_proxies,
        forwarded_header: written.forwarded_header.unwrap_or_default(),
        admin,
        data_dir,
        threads,
        access_log,
        audit_log: written.audit_log.unwrap_or(usual),
        allowed_origins,
        acme_challenge,
        drain_timeout,
        watch: written.watch.unwrap_or(false),
        upgrade_timeout,
    })
}

/// An origin: scheme, host, port and nothing else.
fn origin(check: &mut Checker<'_>, key: &Key, written: &str) -> Option<Url> {
    let url = check.url(key, written, true)?;
    if url.path() != "/" || url.query().is_some() || super::checked::has_dot_segment(written) {
        let write = format!("write {}", url.origin().ascii_serialization());
        check.refuse(key, "has a path or a query, but stands for an origin", write);
        return None;
    }
    Some(url)
}

fn public_url(check: &mut Checker<'_>, key: &Key, written: &str) -> Option<PublicUrl> {
    let url = origin(check, key, written)?;
    let loopback = match url.host()? {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    };
    let https = url.scheme() == "https";
    if !https && !loopback {
        let write = format!("write https://{}", url.authority());
        check.refuse(key, "is http on a host that is not loopback", write);
        return None;
    }
    let Some(port) = url.port_or_known_default().filter(|port| *port != 0) else {
        check.refuse(key, "has port 0", "write the port that clients use");
        return None;
    };
    Some(PublicUrl {
        origin: url.origin().ascii_serialization(),
        authority: url.authority().to_owned(),
        host: url.host_str()?.to_owned(),
        port,
        https,
        loopback,
    })
}

fn listen(check: &mut Checker<'_>, list: &Key, written: &[String], has_certificates: bool) -> Vec<Listen> {
    if written.is_empty() {
        check.refuse(list, "is empty", "write at least one address, like [\"127.0.0.1:8080\"]");
    }
    let mut listen: Vec<Listen> = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let key = list.item(index);
        let (address, tls) = match (entry.strip_prefix("https://"), entry.strip_prefix("http://")) {
            (Some(address), _) => (address, true),
            (None, Some(address)) => (address, false),
            (None, None) => (entry.as_str(), has_certificates),
        };
        if tls && !has_certificates {
            check.refuse(&key, "has TLS, but there is no certificate", "add `server.tls.certificates`");
        }
        let Ok(parsed) = address.parse::<SocketAddr>() else {
            let write = "write an IP address and a port, like 0.0.0.0:443 or [::]:443";
            check.refuse(&key, "is not an address to listen on", write);
            continue;
        };
        if parsed.port() != 0 && listen.iter().any(|earlier| earlier.address.parse() == Ok(parsed)) {
            check.refuse(&key, "is listed twice", "keep one entry per address");
        }
        listen.push(Listen { address: address.to_owned(), tls, proxied: false });
    }
    listen
}

fn admin(check: &mut Checker<'_>, key: &Key, written: &str, listen: &[Listen]) {
    match written.parse::<SocketAddr>() {
        Err(_) => {
            let write = "write an IP address and a port, like 127.0.0.1:9090, or \"off\"";
            check.refuse(key, "is not an address to listen on", write);
        }
        Ok(admin) if admin.port() != 0 && listen.iter().any(|public| public.address.parse() == Ok(admin)) => {
            check.refuse(key, "is also in `server.listen`", "give the admin listener a port of its own");
        }
        Ok(_) => {}
    }
}

fn origins(check: &mut Checker<'_>, list: &Key, written: &[String]) -> Vec<String> {
    let mut origins = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        if let Some(url) = origin(check, &list.item(index), entry) {
            origins.push(url.origin().ascii_serialization());
        }
    }
    origins
}

/// Whether `text` is a host as it stands in a `Host` header: a name or an IP literal, IPv6 in brackets, lower case.
pub(super) fn is_host(text: &str) -> bool {
    // `Host::parse` decodes, lower-cases and reads odd forms of IPv4; only what it leaves alone is a plain host.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '[' | ']' | ':');
    text.chars().all(plain)
        && !text.starts_with(['.', '-'])
        && !text.ends_with(['.', '-'])
        && !text.contains("..")
        && Host::parse(text).is_ok_and(|host| host.to_string() == text || is_ipv6(text))
}

fn is_ipv6(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.and_then(|inner| inner.parse::<IpAddr>().ok()).is_some_and(|address| address.is_ipv6())
}
