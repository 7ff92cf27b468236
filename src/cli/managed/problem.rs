//! What Postern has against a request (RFC 9457), and what whoever gave the command can do about it.
use std::fmt;

use http::{StatusCode, header};
use serde::Deserialize;

use super::table::plain;
use crate::challenge;
use crate::outbound::Response;

/// As it is told.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    document: Document,
    advice: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Document {
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    errors: Vec<Member>,
    #[serde(default)]
    request_id: Option<String>,
}

/// What is wrong with one member of what was sent.
#[derive(Debug, Deserialize)]
struct Member {
    /// Of the body, a JSON pointer.
    #[serde(default)]
    pointer: Option<String>,
    /// Of the query.
    #[serde(default)]
    parameter: Option<String>,
    #[serde(default)]
    detail: String,
}

impl Problem {
    /// `server`: what people call it.
    pub fn of(response: &Response, server: &str) -> Self {
        let document = response.json::<Document>().ok();
        let advice = match response.status {
            StatusCode::UNAUTHORIZED => Some(
                "the token is not, or no longer, good there: `postern service-accounts list` says which there are".to_owned(),
            ),
            StatusCode::FORBIDDEN => missing_scope(response),
            StatusCode::NOT_FOUND if document.is_none() => {
                Some(format!("is Postern at {server}, and does its configuration have `managed`?"))
            }
            StatusCode::MISDIRECTED_REQUEST => {
                Some("Postern goes by another name: give its `server.public_url` to --server".to_owned())
            }
            StatusCode::PRECONDITION_FAILED => {
                Some("look at it again, and give the version that it has now to --if-match".to_owned())
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => later(response),
            _ => None,
        };
        Self { status: response.status, document: document.unwrap_or_default(), advice }
    }
}

fn missing_scope(response: &Response) -> Option<String> {
    let challenge = challenge::bearer(response.headers.get_all(header::WWW_AUTHENTICATE).iter())?;
    let scope = challenge.scope?.replace(' ', ",");
    Some(format!("make one that has it: `postern service-accounts create NAME --api {scope}`"))
}

fn later(response: &Response) -> Option<String> {
    let seconds: u32 = response.headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(format!("try again in {seconds} seconds"))
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Document { title, detail, errors, request_id } = &self.document;
        // What is wrong with one member is said with its name.
        let detail = detail.as_ref().filter(|detail| errors.iter().all(|member| member.detail != **detail));
        match detail.or(title.as_ref()) {
            Some(said) => formatter.write_str(&plain(said))?,
            None => write!(formatter, "the answer is {}", self.status)?,
        }
        for Member { pointer, parameter, detail } in errors {
            let pointer = pointer.as_deref().map(|pointer| pointer.trim_start_matches(['#', '/']));
            match pointer.filter(|pointer| !pointer.is_empty()).or(parameter.as_deref()) {
                Some(name) => write!(formatter, "\n  {}: {}", plain(name), plain(detail))?,
                None => write!(formatter, "\n  {}", plain(detail))?,
            }
        }
        if let Some(advice) = &self.advice {
            write!(formatter, "\n{advice}")?;
        }
        match request_id {
            Some(id) => write!(formatter, "\nrequest {}", plain(id)),
            None => Ok(()),
        }
    }
}
