//! People who manage connections: what they ask of `/api/v1` in their browser's session.
use std::time::SystemTime;

use serde_json::{Value, json};

use super::browser::Browser;
use super::client::{Client, Tokens};
use super::cookies::Site;
use super::gateway::{Builder, Gateway, PASSWORD_HASH};
use super::mcp::{McpAnswer, McpRequest};
use super::upstream::Upstream;

/// Alice administers the gateway; the scripted upstreams may be added.
pub fn builder() -> Builder {
    let user = |name: &str| json!({"username": name, "password_hash": PASSWORD_HASH});
    Gateway::builder()
        .with("login.local.users", ["alice", "bob", "carol"].map(user).into())
        .with("managed", json!({"administrators": ["alice"], "allow_hosts": ["127.0.0.1"]}))
}

/// Somebody at a browser.
pub struct Person<'g> {
    pub name: &'static str,
    pub browser: Browser,
    pub gateway: &'g Gateway,
    csrf: String,
}

/// What was asked for, to be bent.
pub struct Wish<'p> {
    person: &'p Person<'p>,
    method: &'static str,
    path: String,
    body: Option<Value>,
    headers: Vec<(&'static str, String)>,
}

impl<'g> Person<'g> {
    pub async fn sign_in(gateway: &'g Gateway, name: &'static str) -> Self {
        let mut browser = Browser::of(name).through(gateway);
        let page = browser.go(&gateway.url("/connections")).await.page();
        if page.forms().iter().any(|form| form.has_field("password")) {
            browser.sign_in(&page).await;
        }
        let mut person = Person { name, browser, gateway, csrf: String::new() };
        let connections = person.ask("GET", "/connections").send().await;
        person.csrf = connections.json()["csrf"].as_str().expect("csrf").to_owned();
        person
    }

    pub fn ask(&self, method: &'static str, path: &str) -> Wish<'_> {
        Wish { person: self, method, path: path.to_owned(), body: None, headers: Vec::new() }
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ask("GET", path).done(200).await
    }

    /// A new organisation with these members; its id.
    pub async fn organization(&self, name: &str, members: &[(&str, &str)]) -> String {
        let made = self.ask("POST", "/organizations").with(json!({"name": name})).done(201).await;
        let id = made["id"].as_str().expect("id").to_owned();
        for (user, role) in members {
            let path = format!("/organizations/{id}/members/{user}");
            self.ask("PUT", &path).with(json!({"role": role})).done(200).await;
        }
        id
    }

    /// Adds a server; what the API says of it.
    pub async fn add(&self, organization: Option<&str>, upstream: &Upstream, more: Value) -> Value {
        let auth = json!({"mode": "oauth_dynamic"});
        let sharing = if organization.is_some() { "multi_user" } else { "single_user" };
        let mut body = json!({"name": "Tracker", "url": upstream.url(), "auth": auth, "sharing": sharing});
        if let Some(organization) = organization {
            body["organization"] = organization.into();
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.ask("POST", "/configurations").with(body).done(201).await
    }

    pub async fn assign(&self, configuration: &Value, user: &str) {
        let path = format!("/configurations/{}/assignments/{user}", id(configuration));
        self.ask("PUT", &path).done(200).await;
    }

    pub async fn unassign(&self, configuration: &Value, user: &str) {
        let path = format!("/configurations/{}/assignments/{user}", id(configuration));
        self.ask("DELETE", &path).done(204).await;
    }

    /// Lets an application of theirs in at an address of the gateway.
    pub async fn let_in(&mut self, client: &Client, url: &str) -> Tokens {
        client.sign_in(&mut self.browser, path(url)).await
    }
}

impl Wish<'_> {
    pub fn with(self, body: Value) -> Self {
        Wish { body: Some(body), ..self }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub async fn send(self) -> McpAnswer {
        let Person { browser, gateway, csrf, .. } = self.person;
        let url = gateway.url(&format!("/api/v1{}", self.path));
        let home = gateway.url("/").parse().expect("URL");
        let cookie = browser.jar.header(&home, self.method, Site::Origin, SystemTime::now());
        let mut request = gateway.http.request(self.method.parse().expect("method"), url);
        request = request.header("sec-fetch-site", "same-origin").header("x-csrf-token", csrf.as_str());
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if let Some(body) = &self.body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        McpAnswer::of(request.send().await.expect("answer")).await
    }

    /// The answer's document, once it has this status.
    #[track_caller]
    pub fn done(self, status: u16) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        let asked = format!("{} {}", self.method, self.path);
        async move {
            let answer = self.send().await;
            assert_eq!(answer.status, status, "{asked} at {caller}: {}", answer.body);
            match answer.body.is_empty() {
                true => Value::Null,
                false => answer.json(),
            }
        }
    }
}

pub fn id(document: &Value) -> &str {
    document["id"].as_str().expect("id")
}

/// The address of its route.
pub fn address(configuration: &Value) -> &str {
    configuration["route"]["url"].as_str().expect("address")
}

/// Of an address at the gateway: its path, without the slash it begins with.
pub fn path(url: &str) -> &str {
    url.splitn(4, '/').nth(3).expect("path")
}

pub async fn ping(gateway: &Gateway, url: &str, token: &str) -> McpAnswer {
    call_at(gateway, url, token).call("ping", json!({})).await
}

pub fn call_at(gateway: &Gateway, url: &str, token: &str) -> McpRequest {
    gateway.mcp(path(url)).bearer(token)
}
