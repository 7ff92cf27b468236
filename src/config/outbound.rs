//! Requests that Postern makes itself: whom they trust.
use std::path::PathBuf;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::checked::Checker;
use super::file;
use super::report::Key;

/// The section `outbound`, read.
#[derive(Debug, Clone)]
pub struct Outbound {
    pub ca_files: Vec<PathBuf>,
    /// The certificates in `ca_files`, in order.
    pub ca_certificates: Vec<CertificateDer<'static>>,
}

pub(super) fn check(check: &mut Checker<'_>, written: Option<file::Outbound>) -> Outbound {
    let list = Key::top("outbound").child("ca_files");
    let ca_files = written.and_then(|section| section.ca_files).unwrap_or_default();
    let mut ca_certificates = Vec::new();
    for (index, path) in ca_files.iter().enumerate() {
        let key = list.item(index);
        let Some(pem) = check.read(&key, path) else {
            continue;
        };
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match found {
            Ok(found) if !found.is_empty() => ca_certificates.extend(found),
            _ => {
                let what = format!("{} holds no readable certificate", path.display());
                check.refuse(&key, what, "name a PEM file with at least one CERTIFICATE block");
            }
        }
    }
    Outbound { ca_files, ca_certificates }
}
