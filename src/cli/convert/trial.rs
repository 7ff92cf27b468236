//! A route that was made → what Postern would say of it, were its providers and variables there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::written::{self, Route};
use crate::config::{self, Environment, Process};

/// Every variable is set; there is nothing else.
struct Variables;

impl Environment for Variables {
    fn var(&self, _: &str) -> Option<String> {
        Some("set".to_owned())
    }

    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn mode(&self, _: &Path) -> io::Result<u32> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn real(&self, _: &Path) -> io::Result<PathBuf> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn run(&self, _: &[String]) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn now(&self) -> SystemTime {
        Process.now()
    }
}

/// Where Postern and others are in the trial; nobody is there (RFC 2606 §2).
const AROUND: &str = "server: {public_url: \"https://postern.invalid\", listen: [\"127.0.0.1:8080\"]}\n";
const ELSEWHERE: &str = "https://elsewhere.invalid/mcp";

/// Each problem in one line, by the key in Postern's words. None: the route passes `postern validate`.
pub fn problems(route: &Route) -> Vec<String> {
    let provider = route.credential.provider.as_deref().unwrap_or("none");
    let mut tried = route.clone();
    tried.url.get_or_insert_with(|| ELSEWHERE.to_owned());
    let text = format!(
        "{AROUND}login: {{oidc: [{{name: \"{provider}\", issuer: \"https://provider.invalid\", client_id: postern, \
         client_secret: {{env: SECRET}}}}]}}\nroutes:\n{}",
        written::route(&tried)
    );
    let Err(report) = config::parse(&text, "trial", &Variables) else { return Vec::new() };
    let problem = |problem: &config::Problem| {
        let key = problem.key.to_string();
        let key = key.strip_prefix("routes[0].").unwrap_or(&key);
        let write = if problem.write.is_empty() { String::new() } else { format!("; {}", problem.write) };
        format!("its route would be refused: {key}: {}{write}", problem.what)
    };
    report.problems.iter().map(problem).collect()
}
