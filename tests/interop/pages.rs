//! The pages as a person meets them: every page of `postern demo` in headless Chromium, in narrow and wide windows,
//! light and dark, with JavaScript and without.
//!
//! Everything is done by keyboard alone: sign-in by one click and by password, a wrong password, yes and no at both
//! authorization servers, sign-out, dead ends. Each page keeps its policy without a complaint of the browser, does
//! not scroll sideways, can be read (contrast) and worked by keyboard. `SCREENSHOTS=directory` keeps pictures. The
//! work is done by `tests/interop/pages.mjs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use support::node;

async fn walk(name: &str) {
    let lines = node::run("run.mjs", &[name]).await;
    let passed = format!("{name}: pass");
    assert!(lines.iter().any(|line| line.starts_with(&passed)), "{lines:?}");
}

#[tokio::test]
async fn narrow() {
    walk("pages-narrow").await;
}

#[tokio::test]
async fn wide() {
    walk("pages-wide").await;
}

#[tokio::test]
async fn narrow_without_script() {
    walk("pages-narrow-without-script").await;
}

#[tokio::test]
async fn wide_without_script() {
    walk("pages-wide-without-script").await;
}

#[tokio::test]
async fn every_window_of_the_script_has_its_test() {
    let mut listed = node::run("run.mjs", &["list"]).await;
    listed.retain(|name| name.starts_with("pages-"));
    let tested = ["pages-narrow", "pages-wide", "pages-narrow-without-script", "pages-wide-without-script"];
    assert_eq!(listed, tested);
}
