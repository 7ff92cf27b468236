//! Clients and upstreams nobody here wrote go through the whole flow: the client signs in once, its person passes
//! the pages in headless Chromium, and a tool of an upstream that demands its own token is called. The official
//! conformance suite tests the authorization server, finds the same in an MCP server with and without the gateway, and takes
//! the gateway for a client.
//!
//! The work is done by `tests/interop/run.mjs`; a test here is one of its cases: `client_registration_upstream`,
//! `conformance_…`, `identity_oidc`, where people sign in through an identity provider, `foreign_…`, where that provider
//! stands in our place, `life_…`, all that happens to a client after it has signed in, `upstream_…`, all that happens to a
//! connection to a server nobody here wrote, `lists_…`, what clients see where rules hide a part, or `step_up_…`, how they get
//! a scope that a rule wants.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use support::node;
use tokio::sync::Semaphore;

/// A case is a browser, a client and two servers: more than two at once starve one another on a small machine.
static TURNS: Semaphore = Semaphore::const_new(2);

async fn passes(name: &str) {
    let _turn = TURNS.acquire().await.expect("never closed");
    let lines = node::run("run.mjs", &[name]).await;
    let passed = format!("{name}: pass");
    assert!(lines.iter().any(|line| line.starts_with(&passed)), "skipped: {lines:?}");
}

macro_rules! cases {
    ($($name:ident)*) => {
        const CASES: &[&str] = &[$(stringify!($name)),*];

        $(#[tokio::test]
        async fn $name() {
            passes(&stringify!($name).replace('_', "-")).await;
        })*
    };
}

cases! {
    sdk1_dcr_example
    sdk1_dcr_oidc
    sdk1_dcr_fastmcp
    sdk1_cimd_example
    sdk1_cimd_oidc
    sdk2_dcr_example
    sdk2_dcr_oidc
    sdk2_dcr_fastmcp
    sdk2_cimd_example
    sdk2_cimd_oidc
    mcp_remote_dcr_example
    mcp_remote_dcr_oidc
    mcp_remote_dcr_fastmcp
    mcp_remote_cimd_example
    mcp_remote_cimd_oidc
    python_dcr_example
    python_dcr_oidc
    python_dcr_fastmcp
    python_cimd_example
    python_cimd_oidc
    conformance_authorization_server
    conformance_server_2025_11_25
    conformance_server_2026_07_28
    conformance_client_2025_11_25_sdk1
    conformance_client_2025_11_25_sdk2
    conformance_client_2025_11_25_python
    conformance_client_2026_07_28_sdk2
    conformance_client_2026_07_28_python
    identity_oidc
    foreign_jwt
    foreign_opaque
    life_sdk1
    life_sdk2
    life_mcp_remote
    life_python
    life_inspector
    upstream_example
    upstream_oidc
    upstream_fastmcp
    lists_sdk1
    lists_sdk2
    step_up_sdk1
    step_up_sdk2
}

#[tokio::test]
async fn every_case_of_the_script_has_its_test() {
    let mut listed = node::run("run.mjs", &["list"]).await;
    listed.retain(|name| !name.starts_with("pages-")); // those are tests/interop/pages.rs
    let tested: Vec<String> = CASES.iter().map(|name| name.replace('_', "-")).collect();
    assert_eq!(tested, listed);
}
