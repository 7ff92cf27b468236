//! Answers of the scripted servers.

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::body::half;

pub fn json_answer(status: u16, body: &Value) -> Response {
    let headers = [("content-type", "application/json"), ("cache-control", "no-store")];
    (StatusCode::from_u16(status).expect("status"), headers, body.to_string()).into_response()
}

/// Any answer; headers are sent as they are.
pub fn http_answer(status: u16, headers: &[(String, String)], body: &str) -> Response {
    let mut answer = Response::builder().status(status);
    for (name, value) in headers {
        answer = answer.header(name, value);
    }
    answer.body(Body::from(body.to_owned())).expect("answer")
}

/// The announced length is that of the whole, the body breaks off in the middle.
pub fn half_answer(content: &str) -> Response {
    let headers =
        [("content-type", "application/json".to_owned()), ("content-length", content.len().to_string())];
    (headers, half(content)).into_response()
}

pub fn error(status: u16, code: &str) -> Response {
    json_answer(status, &json!({"error": code}))
}

pub fn page(body: &str) -> Response {
    ([("content-type", "text/html; charset=utf-8")], format!("<!doctype html><title>Upstream</title>{body}"))
        .into_response()
}

pub fn refuse(why: &str) -> Response {
    (StatusCode::BAD_REQUEST, why.to_owned()).into_response()
}
