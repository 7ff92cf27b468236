//! One request to the management API, as operations see it: who asks is proven.
use axum::extract::Query;
use axum::http::{HeaderMap, Uri};
use data_encoding::BASE64URL_NOPAD;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::condition;
use super::problem::{Kind, Problem};
use crate::api::managed::{Actor, Desk};
use crate::web::endpoints::is_type;
use crate::web::{About, Web};

/// Of a body, bytes.
const LONGEST: usize = 48 * 1024;
/// Of a name in a path, bytes.
const LONGEST_NAME: usize = 512;
/// Of what is said about a body, characters.
const LONGEST_WORDS: usize = 200;

pub struct Call<'a> {
    pub web: &'a Web,
    pub about: &'a About,
    pub actor: &'a Actor,
    /// What stands in the path for its names, decoded.
    pub parameters: &'a [String],
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

impl Call<'_> {
    pub fn desk(&self) -> Result<Desk<'_>, Problem> {
        Desk::new(&self.web.authority, &self.about.snapshot, self.actor).ok_or_else(Problem::nothing)
    }

    /// The name at this place of the path.
    pub fn name(&self, index: usize) -> Result<&str, Problem> {
        let name = self.parameters.get(index).map(String::as_str);
        name.filter(|name| (1..=LONGEST_NAME).contains(&name.len())).ok_or_else(Problem::nothing)
    }

    /// The user at this place of the path: their name, or where that cannot stand in a path, `~` and its base64url.
    pub fn user(&self, index: usize) -> Result<String, Problem> {
        let written = self.name(index)?;
        let user = match written.strip_prefix('~') {
            None => Some(written.to_owned()),
            Some(encoded) => {
                let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).ok();
                bytes.and_then(|bytes| String::from_utf8(bytes).ok())
            }
        };
        let is_fit = |user: &String| !user.is_empty() && !user.chars().any(char::is_control);
        user.filter(is_fit).ok_or_else(Problem::nothing)
    }

    pub fn query<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        match Query::try_from_uri(self.uri) {
            Ok(Query(query)) => Ok(query),
            Err(error) => Err(Problem::new(Kind::Malformed, bounded(&error.body_text()))),
        }
    }

    pub fn body<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        if self.body.len() > LONGEST {
            return Err(Problem::new(Kind::TooLarge, format!("It may have {LONGEST} bytes.")));
        }
        // No form of a foreign page can say so.
        if !is_type(self.headers, "application/json") {
            let detail = "Send JSON, with the content type application/json.";
            return Err(Problem::new(Kind::UnsupportedMediaType, detail));
        }
        serde_json::from_slice(self.body).map_err(|error| match error.classify() {
            Category::Data => Problem::of_member("", bounded(&error.to_string())),
            Category::Syntax | Category::Eof | Category::Io => {
                Problem::new(Kind::Malformed, format!("The body is no JSON: {}", bounded(&error.to_string())))
            }
        })
    }

    /// The version that is to be changed; `None`: any.
    pub fn expected(&self) -> Option<u64> {
        condition::expected(self.headers)
    }

    /// Before requests to others' servers, which cost more.
    pub fn may_reach_out(&self) -> Result<(), Problem> {
        match self.web.limits.authorization(&self.actor.name) {
            true => Ok(()),
            false => Err(Problem::new(Kind::TooManyRequests, "Wait a minute.")),
        }
    }
}

/// How a user is written in a path.
pub fn segment(user: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@');
    let is_dots = matches!(user, "." | "..");
    match !is_dots && user.bytes().all(is_plain) {
        true => user.to_owned(),
        false => format!("~{}", BASE64URL_NOPAD.encode(user.as_bytes())),
    }
}

fn bounded(words: &str) -> String {
    words.chars().take(LONGEST_WORDS).collect()
}
