//! Where state is kept: in this instance, or in a Redis that many share.
use std::path::PathBuf;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{SecretSlice, SecretString};
use url::Url;

use super::checked::{Checker, bare_host};
use super::file;
use super::report::Key;
use super::secret;

const EXAMPLE: &str = "write a URL like redis://127.0.0.1:6379/0 or rediss://redis.example.com:6380/0";
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Where state is kept.
#[derive(Clone)]
pub enum Store {
    /// In `server.data_dir`.
    Embedded,
    Redis(Box<Redis>),
}

/// A Redis or Valkey, and how to get at it. Has no `Debug`: it holds secrets.
#[derive(Clone)]
pub struct Redis {
    pub topology: Topology,
    /// At least one; for [`Topology::Standalone`] exactly one.
    pub addresses: Vec<Address>,
    pub tls: bool,
    /// 0 for a cluster.
    pub database: i64,
    pub prefix: String,
    pub username: Option<String>,
    pub password: Option<SecretString>,
    pub sentinel_username: Option<String>,
    pub sentinel_password: Option<SecretString>,
    /// PEM. `None`: the system's.
    pub authorities: Option<Vec<u8>>,
    pub client_certificate: Option<ClientCertificate>,
    /// Replicas that have to confirm what must not get lost.
    pub replicas: u32,
}

/// How the servers belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    Standalone,
    /// The addresses are those of the Sentinels.
    Sentinel {
        master: String,
    },
    /// The addresses are those of some nodes.
    Cluster,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Name or IP address, IPv6 without brackets.
    Tcp(String, u16),
    Unix(PathBuf),
}

/// Certificate and key towards Redis, PEM.
#[derive(Clone)]
pub struct ClientCertificate {
    pub certificate: Vec<u8>,
    pub key: SecretSlice<u8>,
}

/// What one URL says.
struct Server {
    address: Address,
    tls: bool,
    database: i64,
}

/// Checks the section. `keys`: whether sealing keys are configured.
pub(super) fn check(check: &mut Checker<'_>, written: Option<&file::Store>, keys: bool) -> Store {
    let key = Key::top("store");
    let Some(written) = written else {
        return Store::Embedded;
    };
    if written.kind != Some(file::StoreKind::Redis) {
        for name in names_of_redis(written) {
            check.refuse(
                &key.child(name),
                "belongs to `kind: redis`",
                "leave it out, or write `kind: redis`",
            );
        }
        return Store::Embedded;
    }
    if !keys {
        let what = "instances on one Redis need the same sealing keys, and none are configured";
        let write = "make one with `postern keys generate` and name it in `sealing_keys` of every instance";
        check.refuse(&key.child("kind"), what, write);
    }
    redis(check, &key, written).map_or(Store::Embedded, |redis| Store::Redis(Box::new(redis)))
}

fn redis(check: &mut Checker<'_>, key: &Key, written: &file::Store) -> Option<Redis> {
    let topology = topology(check, key, written);
    let servers = servers(check, key, written, &topology);
    let password =
        written.password.as_ref().map(|secret| secret::resolve(check, &key.child("password"), secret));
    let sentinel_password = written
        .sentinel_password
        .as_ref()
        .map(|secret| secret::resolve(check, &key.child("sentinel_password"), secret));
    let prefix = written.prefix.clone().unwrap_or_else(|| "postern:".to_owned());
    if prefix.contains(['{', '}']) || prefix.len() > 64 {
        let write = "write at most 64 characters without braces, which Redis Cluster reads as a hash tag";
        check.refuse(&key.child("prefix"), "is not a prefix", write);
    }
    let first = servers.first()?;
    let (tls, database) = (first.tls, first.database);
    if servers.iter().any(|server| server.tls != tls || server.database != database) {
        check.refuse(
            &key.child("urls"),
            "differ in scheme or database number",
            "write the same scheme and database in each",
        );
    }
    if topology == Topology::Cluster && database != 0 {
        check.refuse(
            &key.child("urls"),
            "name a database, and a cluster has just one",
            "leave out the number",
        );
    }
    let local = servers.iter().all(|server| is_local(&server.address));
    if !local && !written.allow_insecure.unwrap_or(false) {
        if !tls {
            let write = "write rediss://, or `allow_insecure: true` where the network is yours alone";
            check.refuse(&key.child("urls"), "lead beyond this machine without TLS", write);
        }
        if password.is_none() {
            let write =
                "write `password: {file: PATH}`, or `allow_insecure: true` where the network is yours alone";
            check.refuse(&key.child("urls"), "lead beyond this machine and no password is given", write);
        }
    }
    let authorities = written.ca_file.as_ref().filter(|_| tls).and_then(|path| {
        let key = key.child("ca_file");
        let pem = check.read(&key, path)?;
        if !CertificateDer::pem_slice_iter(&pem).any(|certificate| certificate.is_ok()) {
            let what = format!("{} holds no readable certificate", path.display());
            check.refuse(&key, what, "name a PEM file with at least one CERTIFICATE block");
        }
        Some(pem)
    });
    for name in ["ca_file", "cert_file", "key_file"].into_iter().filter(|_| !tls) {
        if names_of_redis(written).any(|given| given == name) {
            check.refuse(
                &key.child(name),
                "is for TLS, which the URLs do not ask for",
                "write rediss:// or leave it out",
            );
        }
    }
    let client_certificate = if tls { client_certificate(check, key, written) } else { None };
    Some(Redis {
        topology,
        addresses: servers.into_iter().map(|server| server.address).collect(),
        tls,
        database,
        prefix,
        username: written.username.clone(),
        password: password.flatten(),
        sentinel_username: written.sentinel_username.clone(),
        sentinel_password: sentinel_password.flatten(),
        authorities,
        client_certificate,
        replicas: written.replicas.unwrap_or(0),
    })
}

fn topology(check: &mut Checker<'_>, key: &Key, written: &file::Store) -> Topology {
    let topology = match written.topology {
        None | Some(file::StoreTopology::Standalone) => Topology::Standalone,
        Some(file::StoreTopology::Cluster) => Topology::Cluster,
        Some(file::StoreTopology::Sentinel) => {
            if written.master.is_none() {
                let write = "write `master:` with the name in `sentinel monitor NAME …`";
                check.refuse(&key.child("topology"), "sentinel needs the name of the primary", write);
            }
            Topology::Sentinel { master: written.master.clone().unwrap_or_default() }
        }
    };
    if !matches!(topology, Topology::Sentinel { .. }) {
        let of_sentinel =
            names_of_redis(written).filter(|name| *name == "master" || name.starts_with("sentinel_"));
        for name in of_sentinel {
            check.refuse(&key.child(name), "belongs to `topology: sentinel`", "leave it out");
        }
    }
    topology
}

fn servers(check: &mut Checker<'_>, key: &Key, written: &file::Store, topology: &Topology) -> Vec<Server> {
    let list = key.child("urls");
    let urls = written.urls.as_deref().unwrap_or_default();
    if urls.is_empty() {
        let write = "write `urls: [\"redis://127.0.0.1:6379/0\"]`";
        check.refuse(&list, "no address of Redis is given", write);
    }
    if urls.len() > 1 && *topology == Topology::Standalone {
        let write = "write `topology: sentinel` or `topology: cluster`, or leave one URL";
        check.refuse(&list, "several addresses, and nothing says how they belong together", write);
    }
    let port = if matches!(topology, Topology::Sentinel { .. }) { SENTINEL_PORT } else { PORT };
    let mut servers = Vec::with_capacity(urls.len());
    for (index, url) in urls.iter().enumerate() {
        match server(url, port) {
            Ok(server) => servers.push(server),
            Err(what) => check.refuse(&list.item(index), what, EXAMPLE),
        }
    }
    servers
}

fn server(written: &str, default_port: u16) -> Result<Server, &'static str> {
    let url = Url::parse(written).map_err(|_| "is not a URL")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("carries credentials; they belong into `username` and `password`");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("carries more than an address and a database number");
    }
    let tls = match url.scheme() {
        "redis" | "valkey" => false,
        "rediss" | "valkeys" => true,
        "unix" if url.host().is_none() && url.path().len() > 1 => {
            return Ok(Server { address: Address::Unix(url.path().into()), tls: false, database: 0 });
        }
        _ => return Err("is not a Redis URL"),
    };
    let host = bare_host(&url);
    if host.is_empty() {
        return Err("has no host");
    }
    let database = match url.path().trim_start_matches('/') {
        "" => 0,
        number => number.parse::<u16>().map_err(|_| "has a path that is no database number")?.into(),
    };
    Ok(Server { address: Address::Tcp(host, url.port().unwrap_or(default_port)), tls, database })
}

fn client_certificate(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Store,
) -> Option<ClientCertificate> {
    let (certificate, private_key) = match (&written.cert_file, &written.key_file) {
        (None, None) => return None,
        (Some(certificate), Some(private_key)) => (certificate, private_key),
        (Some(_), None) => {
            check.refuse(&key.child("cert_file"), "has no key beside it", "name its key in `key_file`");
            return None;
        }
        (None, Some(_)) => {
            check.refuse(&key.child("key_file"), "has no certificate beside it", "name it in `cert_file`");
            return None;
        }
    };
    let pem = check.read(&key.child("cert_file"), certificate)?;
    if !CertificateDer::pem_slice_iter(&pem).any(|certificate| certificate.is_ok()) {
        let what = format!("{} holds no readable certificate", certificate.display());
        check.refuse(&key.child("cert_file"), what, "name a PEM file with a CERTIFICATE block");
    }
    let key_pem = check.read(&key.child("key_file"), private_key)?;
    if PrivateKeyDer::from_pem_slice(&key_pem).is_err() {
        let what = format!("{} holds no readable private key", private_key.display());
        check.refuse(&key.child("key_file"), what, "name a PEM file with a PRIVATE KEY block");
    }
    Some(ClientCertificate { certificate: pem, key: key_pem.into() })
}

fn is_local(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp(host, _) => {
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

/// The keys of the section that are written and mean nothing to the embedded store.
fn names_of_redis(written: &file::Store) -> impl Iterator<Item = &'static str> {
    [
        ("urls", written.urls.is_some()),
        ("prefix", written.prefix.is_some()),
        ("topology", written.topology.is_some()),
        ("master", written.master.is_some()),
        ("username", written.username.is_some()),
        ("password", written.password.is_some()),
        ("sentinel_username", written.sentinel_username.is_some()),
        ("sentinel_password", written.sentinel_password.is_some()),
        ("ca_file", written.ca_file.is_some()),
        ("cert_file", written.cert_file.is_some()),
        ("key_file", written.key_file.is_some()),
        ("replicas", written.replicas.is_some()),
        ("allow_insecure", written.allow_insecure.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
}
