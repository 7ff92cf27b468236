//! The section `server.tls`.
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Tls {
    /// Certificates with their keys. The name the client asks for picks one; the first is the fallback.
    pub(in crate::config) certificates: Vec<Certificate>,
    /// The lowest version of TLS that is spoken, `1.2` or `1.3`. Default: `1.2`.
    pub(in crate::config) min_version: Option<TlsVersion>,
    /// PEM file with the authorities that vouch for clients. Default: none.
    pub(in crate::config) client_ca_file: Option<PathBuf>,
    /// Whether clients are asked for a certificate, and sent away without one. Default: `required` where there is a `client_ca_file`,
    /// else `off`.
    pub(in crate::config) client_certificates: Option<ClientCertificates>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Certificate {
    /// PEM file with the certificate and its chain, leaf first.
    pub(in crate::config) cert_file: PathBuf,
    /// PEM file with the private key of the certificate.
    pub(in crate::config) key_file: PathBuf,
}

/// A version of TLS.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum TlsVersion {
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// Whether clients need a certificate.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ClientCertificates {
    Off,
    Optional,
    Required,
}
