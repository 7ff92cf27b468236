//! Balancers in front of the listeners, and how they say whose a connection or a request is.
use std::net::IpAddr;

use ipnet::IpNet;

use super::checked::Checker;
use super::file;
use super::report::Key;
use super::server::Listen;

/// Who is trusted. Marks those of `listen` where connections begin with a header of the PROXY protocol.
pub(super) fn check(
    check: &mut Checker<'_>,
    server: &Key,
    written: &file::Server,
    listen: &mut [Listen],
) -> Vec<IpNet> {
    let key = server.child("trusted_proxies");
    let mut trusted = Vec::new();
    for (index, text) in written.trusted_proxies.iter().flatten().enumerate() {
        match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) if network.prefix_len() == 0 => {
                let write = "write the networks of your balancers, like 10.0.0.0/8";
                check.refuse(&key.item(index), "is everybody, who could then be anybody", write);
            }
            Ok(network) => trusted.push(network),
            Err(_) => {
                let write = "write an address, or a network like 10.0.0.0/8";
                check.refuse(&key.item(index), "is not a network", write);
            }
        }
    }
    let has_none = written.trusted_proxies.as_ref().is_none_or(Vec::is_empty);
    if has_none && written.forwarded_header.is_some() {
        let key = server.child("forwarded_header");
        check.refuse(&key, "is believed of nobody", "add `server.trusted_proxies`");
    }
    let key = server.child("proxy_protocol");
    for (index, address) in written.proxy_protocol.iter().flatten().enumerate() {
        let key = key.item(index);
        match listen.iter_mut().find(|listen| listen.address == *address) {
            None => {
                let write = "write one of them, without http:// or https://";
                check.refuse(&key, "is no address of `server.listen`", write);
            }
            Some(listen) if !listen.tls => {
                let write = "name listeners with TLS; to one without, a balancer says it in X-Forwarded-For";
                check.refuse(&key, "has no TLS", write);
            }
            Some(_) if has_none => {
                check.refuse(&key, "has nobody who may connect", "add `server.trusted_proxies`");
            }
            Some(listen) => listen.proxied = true,
        }
    }
    trusted
}
