//! Requests that Postern makes itself: whom they trust, and whom they ask about names.
use std::net::{IpAddr, SocketAddr};
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
    /// Empty: those of the system.
    pub name_servers: Vec<SocketAddr>,
}

pub(super) fn check(check: &mut Checker<'_>, written: Option<file::Outbound>) -> Outbound {
    let names = written.as_ref().and_then(|section| section.name_servers.as_deref());
    let name_servers = name_servers(check, names.unwrap_or_default());
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
    Outbound { ca_files, ca_certificates, name_servers }
}

/// Where name servers listen unless something else is written.
const DNS: u16 = 53;

fn name_servers(check: &mut Checker<'_>, written: &[String]) -> Vec<SocketAddr> {
    let list = Key::top("outbound").child("name_servers");
    let mut servers = Vec::new();
    for (index, text) in written.iter().enumerate() {
        let with_port = || text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, DNS));
        match text.parse().ok().or_else(with_port) {
            Some(server) => servers.push(server),
            None => {
                let write = "write an IP address, like 10.0.0.2 or 127.0.0.1:5353";
                check.refuse(&list.item(index), "is no address of a name server", write);
            }
        }
    }
    servers
}
