//! Certificates of the listeners, read and proven to work before a port is opened.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};

use super::checked::Checker;
use super::expiry::{self, Expiry, Use};
use super::file::{self, ClientCertificates};
use super::report::Key;

/// A certificate of ours with its key, ready for a certificate resolver of rustls (ring).
#[derive(Clone)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    pub expiry: Option<Expiry>,
}

/// What clients have to bring, beside the name they ask for.
#[derive(Clone, Default)]
pub struct Handshake {
    /// TLS 1.2 is not spoken.
    pub only_13: bool,
    pub clients: Option<ClientAuthorities>,
}

/// Who vouches for clients.
#[derive(Clone)]
pub struct ClientAuthorities {
    pub roots: Arc<RootCertStore>,
    /// Whoever brings no certificate is sent away.
    pub required: bool,
    /// Of the one that ends first.
    pub expiry: Option<Expiry>,
}

/// Checks the rest of `server.tls`.
pub(super) fn handshake(check: &mut Checker<'_>, at: &Key, written: &file::Tls) -> Handshake {
    let usual = match written.client_ca_file {
        Some(_) => ClientCertificates::Required,
        None => ClientCertificates::Off,
    };
    let wanted = written.client_certificates.unwrap_or(usual);
    let clients = match (&written.client_ca_file, wanted) {
        (Some(path), _) => client_authorities(check, &at.child("client_ca_file"), path, wanted),
        (None, ClientCertificates::Off) => None,
        (None, _) => {
            let what = "needs to know who vouches for clients";
            check.refuse(&at.child("client_certificates"), what, "add `server.tls.client_ca_file`");
            None
        }
    };
    Handshake { only_13: written.min_version == Some(file::TlsVersion::Tls13), clients }
}

/// `None` where they are not asked about, or cannot be read.
fn client_authorities(
    check: &mut Checker<'_>,
    key: &Key,
    path: &Path,
    wanted: ClientCertificates,
) -> Option<ClientAuthorities> {
    let pem = check.read(key, path)?;
    let found: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.unwrap_or_default();
    let mut roots = RootCertStore::empty();
    let is_read = !found.is_empty() && found.iter().all(|root| roots.add(root.clone()).is_ok());
    if !is_read {
        let what = format!("{} holds no readable authorities", path.display());
        check.refuse(key, what, "name a PEM file with at least one CERTIFICATE block");
        return None;
    }
    if wanted == ClientCertificates::Off {
        return None;
    }
    let expiry = expiry::first(check, (key, path), Use::ClientAuthority, &found);
    let required = wanted == ClientCertificates::Required;
    Some(ClientAuthorities { roots: Arc::new(roots), required, expiry })
}

/// Reads all certificates, each with its key. What is wrong is recorded and left out.
pub(super) fn load(check: &mut Checker<'_>, list: &Key, written: &[file::Certificate]) -> Vec<Certificate> {
    if written.is_empty() {
        check.refuse(list, "is empty", "add an entry with `cert_file` and `key_file`, or leave `tls` out");
    }
    let entries = written.iter().enumerate();
    entries.filter_map(|(index, entry)| certificate(check, &list.item(index), entry)).collect()
}

fn certificate(check: &mut Checker<'_>, at: &Key, written: &file::Certificate) -> Option<Certificate> {
    // Both are read before either is given up, so that both problems show at once.
    let chain = chain(check, &at.child("cert_file"), written);
    let key = private_key(check, &at.child("key_file"), written);
    let (chain, key) = (chain?, key?);
    let provider = rustls::crypto::ring::default_provider();
    let signing = match provider.key_provider.load_private_key(key) {
        Ok(signing) => signing,
        Err(_) => {
            let what = format!("{} holds a private key that cannot be used", written.key_file.display());
            check.refuse(&at.child("key_file"), what, "use an RSA (2048 bits or more), ECDSA or Ed25519 key");
            return None;
        }
    };
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            let what =
                format!("{} is not the key of {}", written.key_file.display(), written.cert_file.display());
            check.refuse(&at.child("key_file"), what, "name the key that the certificate was made for");
            return None;
        }
        Err(_) => {
            let what = format!("{} holds a certificate that cannot be read", written.cert_file.display());
            check.refuse(&at.child("cert_file"), what, "name a PEM file with an X.509 certificate");
            return None;
        }
    }
    // What comes with it in the chain is for clients, who may know another way to an authority.
    let shown = certified.cert.get(..1).unwrap_or_default();
    let expiry = expiry::first(check, (&at.child("cert_file"), &written.cert_file), Use::Server, shown);
    Some(Certificate { key: Arc::new(certified), expiry })
}

fn chain(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Certificate,
) -> Option<Vec<CertificateDer<'static>>> {
    let pem = check.read(key, &written.cert_file)?;
    let found: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Some(chain),
        _ => {
            let what = format!("{} holds no readable certificate", written.cert_file.display());
            check.refuse(key, what, "name a PEM file with at least one CERTIFICATE block");
            None
        }
    }
}

fn private_key(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Certificate,
) -> Option<PrivateKeyDer<'static>> {
    let pem = zeroize::Zeroizing::new(check.read(key, &written.key_file)?);
    let found: Result<Vec<_>, PemError> = PrivateKeyDer::pem_slice_iter(&pem).collect();
    let mut keys = found.unwrap_or_default();
    if keys.len() != 1 {
        let what = match keys.len() {
            0 => format!("{} holds no readable private key", written.key_file.display()),
            count => format!("{} holds {count} private keys", written.key_file.display()),
        };
        check.refuse(key, what, "name a PEM file with exactly one unencrypted PRIVATE KEY block");
    }
    let only = keys.pop()?;
    keys.is_empty().then_some(only)
}
