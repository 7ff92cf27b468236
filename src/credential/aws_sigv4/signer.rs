//! A request and the credentials of a role → the request, signed (AWS Signature Version 4).
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningParams, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use http::request::Parts;
use http::{HeaderName, HeaderValue};

/// What is not signed, because it changes on the way: proxies and the connection itself have their say there.
const UNSIGNED: [&str; 15] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
];
/// Headers of the signature: a client has none of them.
const OURS: &str = "x-amz-";

/// Signs for one service with the credentials of one role.
pub struct Signer {
    identity: Identity,
    region: String,
    service: String,
}

/// The request cannot be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsignable;

impl Signer {
    pub fn new(credentials: Credentials, region: &str, service: &str) -> Self {
        Self { identity: credentials.into(), region: region.to_owned(), service: service.to_owned() }
    }

    /// Signs the head as it will be sent, with a body that is known as a whole. `origin`: scheme and authority of the upstream.
    pub fn sign(
        &self,
        head: &mut Parts,
        origin: &str,
        body: &[u8],
        now: SystemTime,
    ) -> Result<(), Unsignable> {
        let foreign: Vec<HeaderName> =
            head.headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
        for name in foreign {
            head.headers.remove(name);
        }
        let signed = |name: &HeaderName| !UNSIGNED.contains(&name.as_str());
        // One value that is no text, and no other of the same name is signed either.
        let is_text =
            |name: &HeaderName| head.headers.get_all(name).iter().all(|value| value.to_str().is_ok());
        let headers = head.headers.iter().filter(|(name, _)| signed(name) && is_text(name));
        let headers = headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let path = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let request = SignableRequest::new(
            head.method.as_str(),
            format!("{origin}{path}"),
            headers,
            SignableBody::Bytes(body),
        );
        let params = v4::SigningParams::builder()
            .identity(&self.identity)
            .region(&self.region)
            .name(&self.service)
            .time(now)
            .settings(SigningSettings::default())
            .build()
            .map_err(|_| Unsignable)?;
        let (instructions, _) = sign(request.map_err(|_| Unsignable)?, &SigningParams::V4(params))
            .map_err(|_| Unsignable)?
            .into_parts();
        let (additions, _) = instructions.into_parts();
        for addition in additions {
            let mut value = HeaderValue::from_str(addition.value()).map_err(|_| Unsignable)?;
            value.set_sensitive(true);
            head.headers.insert(HeaderName::from_static(addition.name()), value);
        }
        Ok(())
    }
}
