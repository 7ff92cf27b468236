//! A gateway with a way to a credential of one's own: the upstream believes a header that names the caller, signed with a
//! key that both have.
//!
//! ```sh
//! SIGNING_KEY=… cargo run --example credential_strategy -- postern.yaml
//! ```
//!
//! A route asks for it so, and says what the header is called:
//!
//! ```yaml
//! credential: {kind: custom, strategy: signed_caller, with: {header: X-Caller}}
//! ```
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use data_encoding::BASE64URL_NOPAD;
use http::HeaderName;
use postern::credential::{Ask, Released, Strategy, Withheld};
use postern::server::Builder;
use ring::hmac;

/// The header is good for so long.
const LIFETIME: Duration = Duration::from_secs(60);

struct SignedCaller {
    key: hmac::Key,
}

#[async_trait]
impl Strategy for SignedCaller {
    async fn resolve(&self, ask: &Ask<'_>, with: &serde_json::Value) -> Result<Released, Withheld> {
        let name = with.get("header").and_then(|name| HeaderName::try_from(name.as_str()?).ok());
        let name = name.ok_or(Withheld::Refused)?;
        // A program that acts for nobody is nobody to this upstream.
        let user = ask.permit.caller().user().ok_or(Withheld::Refused)?;
        let end = (ask.now + LIFETIME).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let said = BASE64URL_NOPAD.encode(format!("{user}\n{end}").as_bytes());
        let tag = BASE64URL_NOPAD.encode(hmac::sign(&self.key, said.as_bytes()).as_ref());
        Ok(Released { name, value: format!("{said}.{tag}").into() })
    }
}

fn main() -> ExitCode {
    let (Some(config), Ok(key)) = (std::env::args_os().nth(1), std::env::var("SIGNING_KEY")) else {
        eprintln!("usage: SIGNING_KEY=… credential_strategy CONFIG");
        return ExitCode::FAILURE;
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    match Builder::new(config).strategy("signed_caller", SignedCaller { key }).run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
