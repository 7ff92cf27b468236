//! What the browser has before it: a page, or the way to the client.

use reqwest::header::HeaderMap;
use url::Url;

use super::html::{Form, forms, text, unescape};

#[derive(Clone, Debug)]
pub struct Hop {
    pub method: String,
    pub url: Url,
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it led on, by `Location` or meta refresh.
    pub next: Option<String>,
}

/// A page that stays.
#[derive(Clone, Debug)]
pub struct Page {
    pub url: Url,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Page {
    pub fn forms(&self) -> Vec<Form> {
        forms(&self.body)
    }

    /// What a reader sees.
    pub fn text(&self) -> String {
        text(&self.body)
    }

    /// Where it offers to go, which nobody has to.
    pub fn way_back(&self) -> Option<String> {
        let (_, rest) = self.body.split_once("<a class=\"button\" href=\"")?;
        rest.split_once('"').map(|(url, _)| unescape(url))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The form with a button that says this.
    #[track_caller]
    pub fn form_with_button(&self, label: &str) -> Form {
        let form = self.forms().into_iter().find(|form| form.button(label).is_some());
        form.unwrap_or_else(|| panic!("no button {label:?} on {}: {} {}", self.url, self.status, self.text()))
    }

    /// The form whose action ends like this.
    #[track_caller]
    pub fn form_to(&self, action: &str) -> Form {
        let form = self.forms().into_iter().find(|form| form.action.ends_with(action));
        form.unwrap_or_else(|| panic!("no form to {action} on {}: {}", self.url, self.text()))
    }
}

/// Where a walk has ended.
#[derive(Clone, Debug)]
pub enum Arrival {
    Page(Page),
    /// The client's redirect URI, with what it was given. It was not fetched.
    Client(Url),
}

impl Arrival {
    #[track_caller]
    pub fn page(self) -> Page {
        match self {
            Arrival::Page(page) => page,
            Arrival::Client(url) => panic!("went on to the client: {url}"),
        }
    }

    #[track_caller]
    pub fn client(self) -> Url {
        match self {
            Arrival::Client(url) => url,
            Arrival::Page(page) => panic!("stayed on {}: {} {}", page.url, page.status, page.text()),
        }
    }
}
