//! A browser without JavaScript: cookies, redirects, meta refresh, forms, and the rules that decide attacks
//! (`Sec-Fetch-Site`, `Origin`, `SameSite`, `form-action`). It remembers every step it took.

use std::time::SystemTime;

use url::Url;

use super::client::Callback;
use super::cookies::{Jar, Site};
use super::gateway::Gateway;
use super::html::{Form, meta_refresh};
use super::http_client;
pub use super::page::{Arrival, Hop, Page};

/// More steps than any honest sign-in takes.
const MOST_STEPS: usize = 25;

pub struct Browser {
    pub jar: Jar,
    /// Every request and what came back, oldest first.
    pub hops: Vec<Hop>,
    username: String,
    password: String,
    /// The client's redirect URI: the browser stops before it and hands the URL over.
    client: Option<String>,
    http: reqwest::Client,
}

/// A navigation about to be made.
struct Step {
    method: &'static str,
    url: Url,
    body: Option<String>,
    site: Site,
    /// The page it started from.
    from: Option<Url>,
    /// After a form was sent: the page's `form-action` still watches the redirects.
    form_bound: bool,
}

impl Browser {
    /// The browser of the local user `alice`; nobody is signed in yet.
    pub fn new() -> Self {
        Self::of("alice")
    }

    /// The browser of somebody who signs in under this name (password `pw`, as in the tests' configuration).
    pub fn of(username: &str) -> Self {
        Browser {
            jar: Jar::default(),
            hops: Vec::new(),
            username: username.into(),
            password: "pw".into(),
            client: None,
            http: http_client(&[]),
        }
    }

    /// Trusts another certificate as well.
    pub fn trusting(mut self, roots: &[reqwest::Certificate]) -> Self {
        self.http = http_client(roots);
        self
    }

    /// Reaches the gateway as this one is reached: of several instances, this one.
    pub fn through(mut self, gateway: &Gateway) -> Self {
        self.http = gateway.http.clone();
        self
    }

    /// From now on, URLs that begin like this belong to the client and are not fetched.
    pub fn stop_before(&mut self, redirect_uri: &str) {
        self.client = Some(redirect_uri.into());
    }

    /// Opens a URL as if typed, and follows wherever it leads.
    pub async fn go(&mut self, url: &str) -> Arrival {
        self.open(url, Site::None, None).await
    }

    /// Follows a link on another site to `url`.
    pub async fn follow_from(&mut self, elsewhere: &str, url: &str) -> Arrival {
        let from = Url::parse(elsewhere).expect("url");
        let site = Site::between(&from, &Url::parse(url).expect("url"));
        self.open(url, site, Some(from)).await
    }

    /// Opens a URL as if typed and takes one step only: no redirect is followed.
    pub async fn peek(&mut self, url: &str) -> Page {
        let url = Url::parse(url).expect("url");
        self.fetch(&Step { method: "GET", url, body: None, site: Site::None, from: None, form_bound: false })
            .await
    }

    async fn open(&mut self, url: &str, site: Site, from: Option<Url>) -> Arrival {
        let url = Url::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        self.walk(Step { method: "GET", url, body: None, site, from, form_bound: false }).await
    }

    /// Presses the button with this label and follows wherever it leads.
    pub async fn press(&mut self, page: &Page, label: &str) -> Arrival {
        let form = page.form_with_button(label);
        let button = form.button(label).cloned().expect("just found");
        let chosen = [(button.name.as_str(), button.value.as_str())];
        self.submit(page, &form, if button.name.is_empty() { &[] } else { &chosen }).await
    }

    /// Sends a form with these fields on top of its own, and follows wherever it leads.
    pub async fn submit(&mut self, page: &Page, form: &Form, fields: &[(&str, &str)]) -> Arrival {
        let step = Self::sending(page, form, fields);
        self.walk(step).await
    }

    /// Sends a form and takes one step only.
    pub async fn submit_once(&mut self, page: &Page, form: &Form, fields: &[(&str, &str)]) -> Page {
        let step = Self::sending(page, form, fields);
        self.fetch(&step).await
    }

    fn sending(page: &Page, form: &Form, fields: &[(&str, &str)]) -> Step {
        let mut values = form.defaults();
        values.retain(|(name, _)| !fields.iter().any(|(field, _)| field == name));
        values.extend(fields.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(&values).finish();
        let mut url = if form.action.is_empty() {
            page.url.clone()
        } else {
            page.url.join(&form.action).expect("form action")
        };
        let site = Site::between(&page.url, &url);
        let form_bound =
            page.header("content-security-policy").is_some_and(|csp| csp.contains("form-action 'self'"));
        assert!(!form_bound || site == Site::Origin, "form-action 'self' forbids {url}");
        let from = Some(page.url.clone());
        if form.method == "POST" {
            Step { method: "POST", url, body: Some(encoded), site, from, form_bound }
        } else {
            url.set_query(Some(&encoded));
            Step { method: "GET", url, body: None, site, from, form_bound }
        }
    }

    /// Fills in the sign-in form of this page and sends it.
    pub async fn sign_in(&mut self, page: &Page) -> Arrival {
        let form = sign_in_form(page).unwrap_or_else(|| panic!("no sign-in form: {}", page.text()));
        let (username, password) = (self.username.clone(), self.password.clone());
        self.submit(page, &form, &[("username", &username), ("password", &password)]).await
    }

    /// Presses Allow on this consent page.
    pub async fn consent_allow(&mut self, page: &Page) -> Arrival {
        self.press(page, "allow").await
    }

    /// Opens an authorization URL, signs in and consents as often as asked, until it is back at the client.
    pub async fn authorize(&mut self, redirect_uri: &str, url: &str) -> Callback {
        match self.authorize_or_stop(redirect_uri, url).await {
            Arrival::Client(url) => Callback::of(&url),
            Arrival::Page(page) => panic!("stayed on {}: {} {}", page.url, page.status, page.text()),
        }
    }

    /// The same, but a page with neither a sign-in form nor an Allow button is returned.
    pub async fn authorize_or_stop(&mut self, redirect_uri: &str, url: &str) -> Arrival {
        self.stop_before(redirect_uri);
        let mut arrival = self.go(url).await;
        for _ in 0..MOST_STEPS {
            let Arrival::Page(page) = &arrival else {
                return arrival;
            };
            let page = page.clone();
            if page.status != 200 {
                return arrival;
            } else if sign_in_form(&page).is_some() {
                arrival = self.sign_in(&page).await;
            } else if page.forms().iter().any(|form| form.button("allow").is_some()) {
                arrival = self.consent_allow(&page).await;
            } else {
                return arrival;
            }
        }
        panic!("sign-in and consent go round in circles: {:?}", self.trail());
    }

    /// Goes as far as the consent page of Postern itself and stops there.
    pub async fn go_to_consent(&mut self, redirect_uri: &str, url: &str) -> Page {
        self.stop_before(redirect_uri);
        let mut page = self.go(url).await.page();
        if sign_in_form(&page).is_some() {
            page = self.sign_in(&page).await.page();
        }
        page.form_with_button("allow");
        page
    }

    /// Method, URL and status of every step, for messages.
    pub fn trail(&self) -> Vec<String> {
        self.hops.iter().map(|hop| format!("{} {} {}", hop.method, hop.url, hop.status)).collect()
    }

    /// Whether some step went to a URL that begins like this.
    pub fn visited(&self, prefix: &str) -> bool {
        self.hops.iter().any(|hop| hop.url.as_str().starts_with(prefix))
    }

    async fn walk(&mut self, mut step: Step) -> Arrival {
        for _ in 0..MOST_STEPS {
            if self.client.as_ref().is_some_and(|client| step.url.as_str().starts_with(client)) {
                return Arrival::Client(step.url);
            }
            let page = self.fetch(&step).await;
            step = match next_step(&step, &page) {
                Some(next) => next,
                None => return Arrival::Page(page),
            };
        }
        panic!("redirects without end: {:?}", self.trail());
    }

    async fn fetch(&mut self, step: &Step) -> Page {
        let method = step.method.parse().expect("method");
        let mut request = self
            .http
            .request(method, step.url.clone())
            .header("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
            .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Rig")
            .header("sec-fetch-mode", "navigate")
            .header("sec-fetch-dest", "document")
            .header("sec-fetch-site", step.site.header());
        if let Some(cookies) = self.jar.header(&step.url, step.method, step.site, SystemTime::now()) {
            request = request.header("cookie", cookies);
        }
        if let Some(body) = &step.body {
            let origin = step.from.as_ref().map_or("null".into(), |from| from.origin().ascii_serialization());
            let kind = "application/x-www-form-urlencoded";
            request = request.header("origin", origin).header("content-type", kind).body(body.clone());
        }
        let answer =
            request.send().await.unwrap_or_else(|error| panic!("{} {}: {error:?}", step.method, step.url));
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.text().await.unwrap_or_default();
        for cookie in headers.get_all("set-cookie") {
            self.jar.take(&step.url, cookie.to_str().unwrap_or_default(), SystemTime::now());
        }
        let page = Page { url: step.url.clone(), status, headers: headers.clone(), body };
        let next = onward(&page).map(|(target, _)| target);
        self.hops.push(Hop { method: step.method.into(), url: step.url.clone(), status, headers, next });
        page
    }
}

fn sign_in_form(page: &Page) -> Option<Form> {
    page.forms().into_iter().find(|form| form.has_field("username") && form.has_field("password"))
}

/// Where a page leads by itself, and whether by redirect (else by meta refresh).
fn onward(page: &Page) -> Option<(String, bool)> {
    if (300..400).contains(&page.status) {
        return page.header("location").map(|target| (target.to_owned(), true));
    }
    meta_refresh(&page.body).map(|target| (target, false))
}

fn next_step(step: &Step, page: &Page) -> Option<Step> {
    let (target, redirect) = onward(page)?;
    let url = page.url.join(&target).unwrap_or_else(|error| panic!("{target}: {error}"));
    let hop = Site::between(&page.url, &url);
    if !redirect {
        // A meta refresh starts afresh: the page itself is what navigates.
        let from = Some(page.url.clone());
        return Some(Step { method: "GET", url, body: None, site: hop, from, form_bound: false });
    }
    assert!(!step.form_bound || hop == Site::Origin, "form-action 'self' forbids the redirect to {url}");
    let keeps_method = matches!(page.status, 307 | 308);
    Some(Step {
        method: if keeps_method { step.method } else { "GET" },
        body: step.body.clone().filter(|_| keeps_method),
        // One foreign hop marks the rest of the chain.
        site: if step.site == Site::None || step.site > hop { step.site } else { hop },
        from: step.from.clone(),
        form_bound: step.form_bound,
        url,
    })
}
