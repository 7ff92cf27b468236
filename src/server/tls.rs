//! TLS of the listeners: the certificate whose name the client asked for, else the first.
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::listeners::tls::Acceptor;
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use webpki::EndEntityCert;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::StartError;
use crate::config::{Expiry, Server};
use crate::telemetry::Metrics;

/// More of a subject is not kept, characters.
const SUBJECT_MOST: usize = 256;

/// What all TLS listeners share. On a change it is made anew, so that no session outlives what it was allowed by.
#[derive(Clone)]
pub struct Tls {
    requests: Arc<ArcSwap<Acceptor>>,
    bytes: Arc<ArcSwap<Acceptor>>,
}

/// What is spoken inside (RFC 7301).
const REQUESTS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Whatever it is, it is not ours to choose.
const BYTES: [&[u8]; 0] = [];

#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

/// `None` where the configuration has no certificates. They were read and checked with the configuration.
pub fn certificates(server: &Server) -> Result<Option<Tls>, StartError> {
    if server.tls.is_empty() {
        return Ok(None);
    }
    let shared = |acceptor| Arc::new(ArcSwap::from_pointee(acceptor));
    Ok(Some(Tls { requests: shared(acceptor(server, &REQUESTS)?), bytes: shared(acceptor(server, &BYTES)?) }))
}

impl Tls {
    /// From the next handshake on this holds.
    pub fn replace(&self, server: &Server) -> Result<(), StartError> {
        let (requests, bytes) = (acceptor(server, &REQUESTS)?, acceptor(server, &BYTES)?);
        self.requests.store(Arc::new(requests));
        self.bytes.store(Arc::new(bytes));
        Ok(())
    }

    /// Shakes hands for HTTP/2 and HTTP/1.1.
    pub fn acceptor(&self) -> Arc<Acceptor> {
        self.requests.load_full()
    }

    /// Shakes hands for whatever follows.
    pub fn acceptor_of_bytes(&self) -> Arc<Acceptor> {
        self.bytes.load_full()
    }
}

/// Has the metrics say when what is in use ends, and nothing more of what was in use `before`.
pub fn show_expiries(metrics: &Metrics, server: &Server, before: Option<&Server>) {
    let shown = |expiry: &Expiry| [expiry.of.name().to_owned(), expiry.file.clone()];
    let now: Vec<_> = server.expiries().map(shown).collect();
    for gone in before.into_iter().flat_map(Server::expiries).map(shown).filter(|shown| !now.contains(shown))
    {
        // One file may have been named twice.
        metrics.certificates.remove_label_values(&gone).ok();
    }
    for expiry in server.expiries() {
        metrics.certificates.with_label_values(&shown(expiry)).set(expiry.at);
    }
}

fn acceptor(server: &Server, protocols: &[&[u8]]) -> Result<Acceptor, StartError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error: &dyn std::fmt::Display| StartError::Tls(error.to_string());
    let versions: &[_] = if server.handshake.only_13 { &[&TLS13] } else { &[&TLS13, &TLS12] };
    let clients = match &server.handshake.clients {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(clients) => {
            let roots = Arc::clone(&clients.roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
            let verifier = if clients.required { verifier } else { verifier.allow_unauthenticated() };
            verifier.build().map_err(|error| failed(&error))?
        }
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| failed(&error))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(ByName(server.tls.iter().map(|tls| Arc::clone(&tls.key)).collect())));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Acceptor::from_server_config(Arc::new(config)))
}

/// Who a client has proven to be: the subject of its certificate, in the order in which it is written there.
pub fn subject(certificate: &[u8]) -> String {
    let name = X509Certificate::from_der(certificate).map(|(_, read)| read.subject().to_string());
    name.unwrap_or_default().chars().filter(|character| !character.is_control()).take(SUBJECT_MOST).collect()
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let fits = |key: &&Arc<CertifiedKey>| {
            let name = asked.as_ref()?;
            EndEntityCert::try_from(key.end_entity_cert().ok()?)
                .ok()?
                .verify_is_valid_for_subject_name(name)
                .ok()
        };
        self.0.iter().find(|key| fits(key).is_some()).or_else(|| self.0.first()).cloned()
    }
}
