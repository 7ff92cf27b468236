//! Holds the floor plan of `src/lib.rs`: imports point downwards, Pingora stays on the ground floor,
//! no module is a drawer for everything, no file outgrows its reader. And that no file of tests is left out of the programs that
//! run them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;

/// From the top down. A module may name those on lower lines; on one line, each other as long as no ring comes
/// of it. The stages stand in the order of a request, last first: a later one may name an earlier one. `route`,
/// `mcp`, `challenge` and `origin` are stages or serve them, but only read what they are given, so the OAuth half
/// above them may use them too.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["server"],
    &["gateway", "background", "upstream"],
    &["web", "api"],
    &["respond"],
    &["trap"],
    &["inject"],
    &["credential"],
    &["policy"],
    &["authn"],
    &["oauth::server"],
    &["oauth::client"],
    &["managed"],
    &["route", "mcp", "challenge", "origin"],
    &["store", "outbound", "seal", "jose", "telemetry", "config", "expression"],
    &["clock", "failpoint", "map"],
];

/// Outside the floors: who may name them, and what they may name.
const ANNEXES: &[(&str, &[&str], &[&str])] = &[("demo", &["cli"], &["seal", "clock"])];

const MAY_NAME_PINGORA: &[&str] = &["server", "gateway", "upstream", "background"];
const DRAWERS: &[&str] = &["utils", "util", "common", "types", "helpers", "helper", "prelude", "misc"];
const LONGEST_FILE: usize = 400;

#[test]
fn the_source_keeps_to_the_floor_plan() {
    let sources = read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(!sources.is_empty());
    let violations = violations(&sources);
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

/// A file below `src`: its path there, and its text.
type Source = (String, String);

fn read_sources(root: &Path) -> Vec<Source> {
    let (mut sources, mut directories) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // The scripts' packages, not ours.
                directories.extend((!path.ends_with("node_modules")).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                sources.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    sources.sort();
    sources
}

fn violations(sources: &[Source]) -> Vec<String> {
    let tests = test_files(sources);
    let (mut found, mut arrows) = (Vec::new(), BTreeSet::new());
    for (file, text) in sources.iter().filter(|(file, _)| !tests.contains(file)) {
        let path = module_path(file);
        for drawer in path.iter().filter(|name| DRAWERS.contains(&name.as_str())) {
            found.push(format!(
                "{file}: a module named {drawer} says nothing; put the thing where it is made"
            ));
        }
        let lines = before_tests(text).lines().count();
        if lines > LONGEST_FILE {
            found.push(format!("{file}: {lines} lines before its tests, {LONGEST_FILE} are enough"));
        }
        let code = code_of(before_tests(text));
        let from = if file == "main.rs" { Some("main".to_owned()) } else { module(&path) };
        if names_pingora(&code) && !from.as_deref().is_some_and(|from| MAY_NAME_PINGORA.contains(&from)) {
            found.push(format!("{file}: names pingora off the ground floor"));
        }
        // A request takes the snapshot once, and its handlers get it from there; `web::router` is built at start.
        if path.first().is_some_and(|first| first == "web") && path.len() > 1 && code.contains(".snapshot()")
        {
            found.push(format!("{file}: takes a snapshot of its own; the request has one in `web::About`"));
        }
        // The floor plan itself (lib.rs) and the mere directory (oauth) have no floor.
        let Some(from) = from else { continue };
        for target in imports(&code, &path, file == "main.rs").iter().filter_map(|target| module(target)) {
            if target != from {
                if let Err(why) = judge(&from, &target) {
                    found.push(format!("{file}: {why}"));
                }
                arrows.insert((from.clone(), target));
            }
        }
    }
    for (from, to) in arrows.iter().filter(|(from, to)| floor(from) == floor(to) && floor(from).is_some()) {
        if reaches(&arrows, to, from) {
            found.push(format!("{from} and {to} name each other, on one floor only one way is allowed"));
        }
    }
    found
}

fn judge(from: &str, to: &str) -> Result<(), String> {
    for (annex, by, of) in ANNEXES {
        if from == *annex && !of.contains(&to) || to == *annex && !by.contains(&from) {
            return Err(format!("{from} may not name {to}"));
        }
        if from == *annex || to == *annex {
            return Ok(());
        }
    }
    match (floor(from), floor(to)) {
        (Some(above), Some(below)) if above <= below => Ok(()),
        (Some(_), Some(_)) => Err(format!("{from} names {to}, which stands above it")),
        (None, _) => Err(format!("{from} has no place in the floor plan")),
        (_, None) => Err(format!("{to} has no place in the floor plan")),
    }
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// Whether arrows within the floor of `to` lead from `from` to `to`.
fn reaches(arrows: &BTreeSet<(String, String)>, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(here) = open.pop() {
        if here == to {
            return true;
        }
        if floor(&here) == floor(to) && seen.insert(here.clone()) {
            open.extend(arrows.iter().filter(|(start, _)| *start == here).map(|(_, end)| end.clone()));
        }
    }
    false
}

/// `oauth/server/token.rs` → `[oauth, server, token]`.
fn module_path(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').filter(|name| !matches!(*name, "lib" | "main" | "mod")).map(str::to_owned).collect()
}

/// The entry of the floor plan a path belongs to; none for items of the crate root and for `oauth` as such.
fn module(path: &[String]) -> Option<String> {
    match path {
        [oauth, part, ..] if oauth == "oauth" => Some(format!("oauth::{part}")),
        [first, ..] if first != "oauth" && first.starts_with(char::is_lowercase) => Some(first.clone()),
        _ => None,
    }
}

/// Everything before the inline tests, which stand last.
fn before_tests(text: &str) -> &str {
    let is_tests =
        |rest: &str| rest.trim_start().starts_with("mod ") && rest.split(';').next().unwrap().contains('{');
    let marks = text.match_indices("#[cfg(test)]").map(|(at, mark)| (at, &text[at + mark.len()..]));
    marks.into_iter().find(|(_, rest)| is_tests(rest)).map_or(text, |(at, _)| &text[..at])
}

/// Files that are compiled for tests only: `#[cfg(test)] mod name;` in the file above them.
fn test_files(sources: &[Source]) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for (file, text) in sources {
        for rest in text.split("#[cfg(test)]").skip(1) {
            let declared = rest.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            let Some((name, _)) = declared.strip_prefix("mod ").and_then(|rest| rest.split_once(';')) else {
                continue;
            };
            let path = [module_path(file), vec![name.to_owned()]].concat().join("/");
            files.extend([format!("{path}.rs"), format!("{path}/mod.rs")]);
        }
    }
    files
}

/// Without comments: what they mention binds nobody.
fn code_of(text: &str) -> String {
    let code = |line: &str| {
        line.split(" //").next().filter(|line| !line.trim_start().starts_with("//")).map(str::to_owned)
    };
    text.lines().filter_map(code).collect::<Vec<_>>().join("\n")
}

fn names_pingora(code: &str) -> bool {
    words(code).any(|(_, word, rest)| word.starts_with("pingora") && rest.starts_with("::"))
}

/// Identifiers with their place and what follows them.
fn words(code: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let starts = code.char_indices().scan(false, move |inside, (at, c)| {
        let first = part(c) && !*inside;
        *inside = part(c);
        Some(first.then_some(at))
    });
    starts.flatten().map(move |at| {
        let end = code[at..].find(|c| !part(c)).map_or(code.len(), |length| at + length);
        (at, &code[at..end], &code[end..])
    })
}

/// Absolute paths of all that the code names through `crate::`, `super::` and, in `main.rs`, the library's name.
fn imports(code: &str, here: &[String], is_main: bool) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, word, rest) in words(code) {
        // The middle of a path has been read with its beginning.
        if code[..at].ends_with("::") || !rest.starts_with("::") {
            continue;
        }
        match word {
            "crate" => tree(&rest[2..], &[], &mut found),
            "postern" if is_main => tree(&rest[2..], &[], &mut found),
            "super" => tree(&rest[2..], here.split_last().map_or(&[], |(_, above)| above), &mut found),
            _ => {}
        }
    }
    found
}

/// Reads `a::b`, `a::{b, c::d}`, `super::a`; adds what it finds below `base`.
fn tree(text: &str, base: &[String], found: &mut Vec<Vec<String>>) {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (at, c) in group.char_indices() {
            if depth == 0 && (c == ',' || c == '}') {
                tree(&group[start..at], base, found);
                start = at + 1;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => return,
                '}' => depth -= 1,
                _ => {}
            }
        }
        return;
    }
    let Some((0, word, rest)) = words(text).next() else {
        return;
    };
    let path = match word {
        "super" => base.split_last().map_or(Vec::new(), |(_, above)| above.to_vec()),
        "self" => base.to_vec(),
        _ => [base, &[word.to_owned()]].concat(),
    };
    match rest.strip_prefix("::") {
        Some(rest) if !rest.starts_with('<') && !rest.starts_with('*') => tree(rest, &path, found),
        _ => found.push(path),
    }
}

/// What the check says about files planted here.
fn planted(files: &[(&str, &str)]) -> String {
    violations(&files.iter().map(|(file, text)| (file.to_string(), text.to_string())).collect::<Vec<_>>())
        .join("\n")
}

#[test]
fn what_is_allowed_passes() {
    let long_tests =
        format!("//! x\n#[cfg(test)]\nmod tests {{ use crate::cli::Run;\n{}}}", "\n".repeat(500));
    let said = planted(&[
        ("lib.rs", "pub mod cli;\npub mod oauth;"),
        ("main.rs", "fn main() -> ExitCode { postern::cli::run() }"),
        ("cli/mod.rs", "use crate::{demo, server::{self, Server}};\nuse super::config::Config;"),
        ("server.rs", "use pingora_core::services::Service;\nuse crate::gateway::Gateway;"),
        (
            "credential/mod.rs",
            "use crate::policy::Permit;\nuse crate::oauth::client::refresh;\npub mod resolve;",
        ),
        (
            "credential/resolve.rs",
            "use super::Credential;\n// use crate::respond::Reply;\n//! [`crate::server`]",
        ),
        (
            "oauth/client/discover.rs",
            "use crate::outbound::Outbound; use super::super::client::x; // crate::web::y",
        ),
        ("store/embedded.rs", "fn f() -> crate::seal::Sealer<'_> { crate::clock::now() }"),
        ("store/mod.rs", "#[cfg(test)]\npub mod suite;\npub mod embedded;"),
        ("store/suite.rs", "use crate::server::Server;"),
        ("demo/mod.rs", "use crate::seal::random; use crate::clock::Clock; use axum::Router;"),
        ("telemetry.rs", "const QUIET: &str = \"pingora_core=warn\";"),
        ("challenge.rs", &long_tests),
    ]);
    assert_eq!(said, "");
}

#[test]
fn what_is_planted_is_found() {
    let long = "\n".repeat(401);
    let cases: &[(&str, &str, &str)] = &[
        ("store/mod.rs", "use crate::server::Server;", "store names server"),
        ("authn.rs", "use crate::policy::Permit;", "authn names policy"),
        ("trap.rs", "fn f() { crate::respond::reply() }", "trap names respond"),
        ("seal.rs", "use crate::{clock, web::pages};", "seal names web"),
        (
            "config/file.rs",
            "use crate::{\n    clock::{Clock, now},\n    oauth::{client::token, server},\n};",
            "config names oauth::server",
        ),
        (
            "oauth/client/token.rs",
            "use super::super::server::token::Code;",
            "oauth::client names oauth::server",
        ),
        ("policy.rs", "use super::credential::resolve;", "policy names credential"),
        ("inject.rs", "use pingora_http::RequestHeader;", "pingora off the ground floor"),
        ("lib.rs", "pub fn f(_: pingora::Error) {}", "pingora off the ground floor"),
        ("demo/mod.rs", "use crate::config::Config;", "demo may not name config"),
        ("gateway/mod.rs", "use crate::demo::run;", "gateway may not name demo"),
        ("route.rs", "use crate::attic::Box;", "attic has no place"),
        ("attic.rs", "use crate::clock::Clock;", "attic has no place"),
        ("web/utils.rs", "", "named utils"),
        ("common/mod.rs", "", "named common"),
        ("web/pages.rs", &long, "401 lines"),
        ("web/home.rs", "fn f() { web.authority.snapshot() }", "takes a snapshot of its own"),
    ];
    for (file, text, expected) in cases {
        let said = planted(&[(file, text)]);
        assert!(said.contains(expected), "{file}: {text}: {said:?}");
    }
}

#[test]
fn rings_on_one_floor_are_found() {
    let two = planted(&[("store.rs", "use crate::seal::Seal;"), ("seal.rs", "use crate::store::Store;")]);
    assert!(two.contains("name each other"), "{two}");
    let three = planted(&[
        ("store.rs", "use crate::seal::Seal;"),
        ("seal.rs", "use crate::config::Config;"),
        ("config.rs", "use crate::store::Store;"),
    ]);
    assert!(three.contains("name each other"), "{three}");
}

/// Directories in `tests` that are no programs.
const PARTS: [&str; 2] = ["support", "model"];
/// Programs that `make soak` runs whole.
const ALL_LONG: [&str; 2] = ["measures", "model"];

#[test]
fn every_test_is_in_a_program_and_runs_where_that_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let makefile = std::fs::read_to_string(root.join("Makefile")).unwrap();
    let sources = read_sources(&root.join("tests"));
    assert!(sources.len() > 100);
    let left_out = left_out(&sources, &makefile);
    assert!(left_out.is_empty(), "\n{}\n", left_out.join("\n"));
}

fn left_out(sources: &[Source], makefile: &str) -> Vec<String> {
    let (mut found, mut on_both) = (Vec::new(), String::new());
    let set = |name: &str| {
        let line = makefile.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" :="));
        line.unwrap_or_default().to_owned()
    };
    let long_forms = set("LONG_FORMS");
    for (file, text) in sources {
        let Some((program, name)) = file.rsplit_once('/') else {
            if text.contains("\nmod support;\n") {
                found.push(format!("{file}: leans on the rig, so it belongs to a program of several"));
            }
            continue;
        };
        let name = name.trim_end_matches(".rs");
        if PARTS.iter().any(|part| program.split('/').next() == Some(part)) {
            continue;
        }
        let main = format!("{program}/main.rs");
        let Some((_, main)) = sources.iter().find(|(file, _)| *file == main) else {
            found.push(format!("{file}: there is no {main}"));
            continue;
        };
        if name == "main" {
            match (text.contains("//! Runs on both stores.\n"), text.contains("//! Runs once: ")) {
                (true, false) => on_both.push_str(&format!(" --test {program}")),
                (false, true) => {}
                _ => found
                    .push(format!("{file}: says neither `Runs on both stores.` nor `Runs once: ` and why")),
            }
        } else if !main.lines().any(|line| line == format!("mod {name};")) {
            found.push(format!("{file}: is not in {program}/main.rs, so its tests do not run"));
        }
        let is_long = text.contains("POSTERN_SOAK") && !ALL_LONG.contains(&program);
        if is_long && !long_forms.split(' ').any(|module| module.strip_suffix("::") == Some(name)) {
            found.push(format!("{file}: its long form is not in LONG_FORMS of the Makefile"));
        }
    }
    if set("ON_REDIS_TOO") != on_both {
        found.push(format!("the Makefile: what runs on both stores is ON_REDIS_TOO :={on_both}"));
    }
    found
}

#[test]
fn tests_that_are_left_out_are_found() {
    let makefile = "ON_REDIS_TOO := --test edge\nLONG_FORMS := reload:: upgrade::\n";
    let edge = ("edge/main.rs", "//! x\n//!\n//! Runs on both stores.\n\nmod reload;\n");
    let wire = ("wire/main.rs", "//! x\n//!\n//! Runs once: because.\n\nmod proxy;\n");
    let said = |files: &[(&str, &str)]| {
        let files: Vec<Source> =
            files.iter().map(|(file, text)| (file.to_string(), text.to_string())).collect();
        left_out(&files, makefile).join("\n")
    };
    let fine = [edge, wire, ("edge/reload.rs", "POSTERN_SOAK"), ("wire/proxy.rs", ""), ("model.rs", "")];
    assert_eq!(said(&fine), "");
    for (planted, expected) in [
        (("edge/pools.rs", ""), "edge/pools.rs: is not in edge/main.rs"),
        (("wire/proxy.rs", "POSTERN_SOAK"), "wire/proxy.rs: its long form"),
        (("calls/policy.rs", ""), "there is no calls/main.rs"),
        (("pools.rs", "\nmod support;\n"), "pools.rs: leans on the rig"),
        (("calls/main.rs", "//! x\n"), "calls/main.rs: says neither"),
        (("calls/main.rs", "//! Runs on both stores.\n"), "ON_REDIS_TOO := --test edge --test calls"),
    ] {
        let said = said(&[&fine[..2], &[planted]].concat());
        assert!(said.contains(expected), "{planted:?}: {said:?}");
    }
}
