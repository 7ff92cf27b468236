//! The routes of one host by the segments of their paths. A look-up walks down the path of the request, so its cost is
//! the depth of what is configured and not the number of routes.
use std::iter::successors;
use std::sync::Arc;

use super::{Matched, Route};
use crate::map::Map;

/// A path and everything below it.
#[derive(Default)]
pub struct Tree {
    route: Option<Arc<Route>>,
    below: Map<Box<str>, Tree>,
}

impl Tree {
    pub fn insert(&mut self, route: Arc<Route>) {
        let mut tree = self;
        for segment in route.path.split('/').skip(1) {
            tree = tree.below.entry(segment.into()).or_default();
        }
        tree.route = Some(route);
    }

    /// The longest route that `path` lies in, on a path-segment boundary. `path` is canonical.
    pub fn find<'a>(&'a self, path: &'a str) -> Option<Matched<'a>> {
        self.down(path).filter_map(|(tree, rest)| Some(Matched { route: tree.route.as_ref()?, rest })).last()
    }

    /// The route of this very path.
    pub fn at(&self, path: &str) -> Option<&Arc<Route>> {
        self.down(path).find(|(_, rest)| rest.is_empty())?.0.route.as_ref()
    }

    /// From here down along `path`, each time with what is left of it.
    fn down<'t, 'p>(&'t self, path: &'p str) -> impl Iterator<Item = (&'t Tree, &'p str)> {
        successors(Some((self, path)), |(tree, rest)| {
            let below = rest.strip_prefix('/')?;
            let (segment, rest) = below.split_at(below.find('/').unwrap_or(below.len()));
            Some((tree.below.get(segment)?, rest))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use proptest::collection::btree_set;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::{self, Process};
    use crate::route::{RouteError, Table};

    const HOST: &str = "127.0.0.1:8080";

    /// Routes of these paths, named by their number.
    fn table<'p>(paths: impl IntoIterator<Item = &'p str>) -> Table {
        let routes: Vec<_> = paths
            .into_iter()
            .enumerate()
            .map(|(number, path)| {
                json!({
                    "name": format!("r{number}"),
                    "path": path,
                    "upstream": {"url": "https://mcp.example/mcp"},
                    "credential": {"kind": "none"},
                })
            })
            .collect();
        let hash = "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8";
        let written = json!({
            "server": {"public_url": format!("http://{HOST}"), "listen": ["127.0.0.1:8080"]},
            "login": {"local": {"users": [{"username": "alice", "password_hash": hash}]}},
            "routes": routes,
        });
        let config = config::parse(&written.to_string(), "test", &Process);
        let config = config.unwrap_or_else(|report| panic!("{report}"));
        Table::new(&config.server.public_url, &config.routes)
    }

    /// The same, by looking at every route there is.
    fn found_by_looking<'t>(table: &'t Table, path: &'t str) -> Option<(&'t str, &'t str)> {
        let within = |route: &'t Arc<Route>| {
            let rest = path.strip_prefix(route.path.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then_some((route.name.as_str(), rest))
        };
        table.iter().filter_map(within).min_by_key(|(_, rest)| rest.len())
    }

    #[test]
    fn a_path_leads_to_the_longest_route_it_lies_in() {
        let table = table(["/a", "/a/b/c", "/ab"]);
        let find = |path| table.find(HOST, path).map(|found| (found.route.path.as_str(), found.rest)).ok();
        assert_eq!(find("/a"), Some(("/a", "")));
        assert_eq!(find("/a/b"), Some(("/a", "/b")));
        assert_eq!(find("/a/b/c/d"), Some(("/a/b/c", "/d")));
        assert_eq!(find("/ab/c"), Some(("/ab", "/c")));
        assert_eq!((find("/abc"), find("/b"), find("")), (None, None, None));
        assert_eq!(table.find("other.example", "/a").err(), Some(RouteError::UnknownHost));
        assert!(table.by_resource("http://127.0.0.1:8080/a/").is_some());
        assert!(table.by_resource("http://127.0.0.1:8080/a/b").is_none(), "lies in a route and is none");
    }

    #[test]
    fn a_route_at_the_root_takes_what_no_other_takes() {
        let table = table(["/", "/a/b"]);
        let find = |path| table.find(HOST, path).map(|found| (found.route.path.as_str(), found.rest)).ok();
        assert_eq!(find(""), Some(("", "")));
        assert_eq!(find("/a/c"), Some(("", "/a/c")));
        assert_eq!(find("/a/b/c"), Some(("/a/b", "/c")));
        let metadata =
            |path| table.metadata(HOST, path).and_then(Result::ok).map(|route| route.path.as_str());
        assert_eq!(metadata("/.well-known/oauth-protected-resource"), Some(""));
        assert_eq!(metadata("/.well-known/oauth-protected-resource/a/b"), Some("/a/b"));
        assert_eq!(metadata("/.well-known/oauth-protected-resource/a"), None);
        assert_eq!(metadata("/.well-known/oauth-protected-resources"), None);
    }

    fn path() -> impl Strategy<Value = String> {
        "(/(a|b|ab)){0,4}"
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_found_is_what_looking_at_every_route_finds(
            paths in btree_set(path(), 0..12),
            asked in proptest::collection::vec(path(), 32),
        ) {
            let table = table(paths.iter().map(|path| if path.is_empty() { "/" } else { path.as_str() }));
            for path in &asked {
                let found = table.find(HOST, path).ok().map(|found| (found.route.name.as_str(), found.rest));
                prop_assert_eq!(found, found_by_looking(&table, path), "{}", path);
                let document = format!("/.well-known/oauth-protected-resource{path}");
                let at = table.metadata(HOST, &document).and_then(Result::ok).map(|route| route.path.as_str());
                prop_assert_eq!(at, paths.get(path).map(String::as_str));
            }
        }
    }
}
