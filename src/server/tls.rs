//! TLS of the listeners: the certificate whose name the client asked for, else the first.
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::listeners::tls::TlsSettings;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use webpki::EndEntityCert;

use super::StartError;
use crate::config::Server;

/// What all TLS listeners share.
#[derive(Clone)]
pub struct Tls(Arc<ByName>);

#[derive(Debug)]
struct ByName(ArcSwap<Vec<Arc<CertifiedKey>>>);

/// `None` where the configuration has no certificates. They were read and checked with the configuration.
pub fn certificates(server: &Server) -> Option<Tls> {
    (!server.tls.is_empty()).then(|| Tls(Arc::new(ByName(ArcSwap::from_pointee(server.tls.clone())))))
}

impl Tls {
    /// From the next handshake on these are shown.
    pub fn replace(&self, server: &Server) {
        self.0.0.store(Arc::new(server.tls.clone()));
    }

    /// Settings of one listener: HTTP/2 and HTTP/1.1.
    pub fn listener(&self) -> Result<TlsSettings, StartError> {
        // The paths are not read where there is a resolver.
        let mut settings =
            TlsSettings::intermediate("", "").map_err(|error| StartError::Tls(error.to_string()))?;
        settings.set_cert_resolver(Arc::clone(&self.0) as Arc<dyn ResolvesServerCert>);
        settings.enable_h2();
        Ok(settings)
    }
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
        let keys = self.0.load();
        keys.iter().find(|key| fits(key).is_some()).or_else(|| keys.first()).cloned()
    }
}
