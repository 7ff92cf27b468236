//! `postern demo --agent`: a program without people. It gets a service account, limited to one route and one hour, and calls
//! a tool with its token, as a scheduled job would.
use std::time::Duration;

use http::{HeaderValue, header};
use serde_json::{Value, json};

use super::println;
use crate::config::{Config, Route};
use crate::oauth::server::service::{self, Wanted};
use crate::outbound::{AddressPolicy, Outbound, Request, Settings};
use crate::server::foundation::{Foundation, Purpose};

/// What the built-in configuration gains for the agent: nobody has to connect to this one first.
pub const ROUTE: &str = "
  - name: open
    path: /open
    upstream: {url: \"http://127.0.0.1:8081/open/mcp\", allow_private: true}
    credential: {kind: none}
";
const NAME: &str = "demo-agent";
const LIFETIME: Duration = Duration::from_secs(3600);
/// Until the gateway listens.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(100);

/// Makes the account, and lets the agent call as soon as the gateway answers.
pub fn start(config: &Config) -> Result<(), String> {
    let needs_nobody = |route: &&Route| !route.credential.is_of_user();
    let route = config.routes.iter().find(needs_nobody);
    let route =
        route.ok_or("the agent needs a route whose upstream wants no user: `credential: {kind: none}`")?;
    let url = format!("{}{}", config.server.public_url.origin(), route.path);
    let token = account(config, &route.name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    std::thread::spawn(move || runtime.block_on(call(&url, &token)));
    Ok(())
}

/// A new service account in place of the one of the last time; its token.
fn account(config: &Config, route: &str) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let parts = Foundation::lay(config, Purpose::Command, None).map_err(|error| error.to_string())?;
    let wanted = Wanted {
        name: NAME.into(),
        routes: vec![route.to_owned()],
        acts_for: None,
        api: Vec::new(),
        lifetime: LIFETIME,
    };
    let made = runtime.block_on(async {
        service::revoke(&parts.records, NAME).await?;
        service::create(&parts.records, wanted, parts.clock.now()).await
    });
    made.map_err(|error| error.to_string())?
        .ok_or_else(|| format!("there is a service account {NAME} already"))
}

async fn call(url: &str, token: &str) {
    let said = match attempt(url, token).await {
        Ok(text) => format!("the tool says: {text}"),
        Err(why) => format!("no answer: {why}"),
    };
    println(&format!("\nThe agent has called `whoami` at {url} with a service account's token; {said}\n"));
}

async fn attempt(url: &str, token: &str) -> Result<String, String> {
    let outbound =
        Outbound::new(Settings { ca_certificates: Vec::new(), forbidden: Vec::new(), ..Settings::default() });
    let outbound = outbound.map_err(|error| error.to_string())?;
    let host =
        url::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    let policy = AddressPolicy::allowing([host]);
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami"}});
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).map_err(|error| error.to_string())?;
    bearer.set_sensitive(true);
    let mut last = String::new();
    for _ in 0..TRIES {
        let request = Request::post_json(url, &message).map_err(|error| error.to_string())?;
        let request = request
            .header(header::AUTHORIZATION, bearer.clone())
            .header(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        match outbound.send(request, &policy).await {
            Ok(answer) if answer.status == http::StatusCode::OK => {
                let answer: Value = answer.json().map_err(|error| error.to_string())?;
                let text = answer.pointer("/result/content/0/text").and_then(Value::as_str);
                return text.map(str::to_owned).ok_or_else(|| "no text in it".to_owned());
            }
            Ok(answer) => last = format!("status {}", answer.status.as_u16()),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(last)
}
