//! Holds `tests/conformance.md`, the table of security rules and their tests, to what the sources say: a test that is
//! named there exists, a test that carries the number of a rule stands in its row, no rule is left out, and what peers pin or get
//! wrong has a test of that very name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const TABLE: &str = include_str!("conformance.md");

/// What comes after the rules: scores, which `tests/interop` compares itself.
const SCORES: &str = "\n## Official suite";

/// Rules that must have a row: shelf, first and last number.
const REQUIRED: [(&str, u32, u32); 19] = [
    ("AS-", 1, 5),
    ("AS-", 10, 22),
    ("AS-", 30, 41),
    ("AS-", 50, 51),
    ("AS-", 60, 63),
    ("AS-", 70, 71),
    ("AS-", 80, 81),
    ("RS-", 1, 14),
    ("T", 1, 61),
    ("F", 17, 20),
    ("F", 26, 36),
    ("R", 17, 24),
    ("spec AS-", 1, 22),
    ("spec RS-", 1, 13),
    ("pom ", 1, 44),
    ("pom B", 1, 24),
    ("brk15 ", 1, 20),
    ("brk25 ", 1, 20),
    ("brk35 ", 1, 20),
];

/// How the name of a test spells a shelf.
const SHELVES: [(&str, &str); 5] =
    [("sr_as_", "AS-"), ("sr_rs_", "RS-"), ("sr_t", "T"), ("sr_f", "F"), ("sr_r", "R")];

#[test]
fn the_table_says_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    for directory in ["src", "tests"] {
        read(&root.join(directory), &mut tests);
    }
    assert!(tests.len() > 200, "the sources were not found");
    let found = violations(TABLE, &tests);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// Adds the names of all test functions below a directory.
fn read(directory: &Path, tests: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            tests.extend(test_functions(&std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// Functions with an attribute that makes them tests: `#[test]`, `#[tokio::test]` with or without arguments.
fn test_functions(text: &str) -> Vec<String> {
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else if !line.starts_with("//") {
            let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some((name, _)) = function.filter(|_| is_test).and_then(|rest| rest.split_once('(')) {
                found.push(name.to_owned());
            }
            is_test = false;
        }
    }
    found
}

/// The rules that a test says it proves: `sr_t10_sr_as_10_…` → T10, AS-10; `pom_24_pom_b6_…` → pom 24, pom B06; `brk15_01_…` →
/// brk15 01.
fn claimed(test: &str) -> Vec<String> {
    let mut rules = Vec::new();
    let places = |prefix: &str| {
        let places = test.match_indices(prefix).map(|(at, _)| at);
        places.filter(|at| *at == 0 || test[..*at].ends_with('_')).collect::<Vec<_>>()
    };
    for at in places("sr_") {
        for (spelled, shelf) in SHELVES {
            let Some(rest) = test[at..].strip_prefix(spelled) else { continue };
            let digits = rest.split('_').next().unwrap_or_default();
            if digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
                rules.push(format!("{shelf}{digits}"));
            }
        }
    }
    for at in places("pom_") {
        let word = test[at..].split('_').nth(1).unwrap_or_default();
        let (shelf, digits) = word.strip_prefix('b').map_or(("pom ", word), |digits| ("pom B", digits));
        if (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            rules.push(format!("{shelf}{digits:0>2}"));
        }
    }
    for shelf in ["brk15", "brk25", "brk35"] {
        for at in places(&format!("{shelf}_")) {
            let digits = test[at..].split('_').nth(1).unwrap_or_default();
            if digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
                rules.push(format!("{shelf} {digits}"));
            }
        }
    }
    rules
}

/// What stands in a row.
struct Row {
    tests: BTreeSet<String>,
    /// It says what is missing.
    is_open: bool,
}

/// Tests by rule, and what is wrong with the rows themselves.
fn rows(table: &str) -> (BTreeMap<String, Row>, Vec<String>) {
    let (mut rows, mut wrong) = (BTreeMap::new(), Vec::new());
    let rules = table.split(SCORES).next().unwrap_or_default();
    for line in rules.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [rule, demanded, tests] = cells.as_slice() else {
            wrong.push(format!("not three cells: {line}"));
            continue;
        };
        if *rule == "clause" || rule.starts_with('-') {
            continue;
        }
        let named: BTreeSet<String> = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        // What is missing is said in words, and so is why.
        let reason = tests.split_once("not yet: ").map(|(_, reason)| reason.trim());
        if demanded.is_empty() {
            wrong.push(format!("{rule}: does not say what is demanded"));
        }
        if named.is_empty() && reason.is_none() || reason.is_some_and(str::is_empty) {
            wrong.push(format!("{rule}: has neither a test nor a reason after `not yet: `"));
        }
        let row = Row { tests: named, is_open: reason.is_some() };
        if rows.insert((*rule).to_owned(), row).is_some() {
            wrong.push(format!("{rule}: has two rows"));
        }
    }
    (rows, wrong)
}

fn violations(table: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let (rows, mut found) = rows(table);
    let required = REQUIRED
        .iter()
        .flat_map(|(shelf, first, last)| (*first..=*last).map(move |number| format!("{shelf}{number:02}")));
    found.extend(required.filter(|rule| !rows.contains_key(rule)).map(|rule| format!("{rule}: has no row")));
    for (rule, row) in &rows {
        let is_named = row.tests.iter().any(|test| claimed(test).contains(rule));
        if ["pom ", "brk"].iter().any(|peer| rule.starts_with(peer)) && !is_named && !row.is_open {
            found.push(format!("{rule}: has no test of its name"));
        }
        for test in row.tests.iter().filter(|test| !tests.contains(*test)) {
            found.push(format!("{rule}: there is no test {test}"));
        }
    }
    for test in tests {
        for rule in claimed(test) {
            if !rows.get(&rule).is_some_and(|row| row.tests.contains(test)) {
                found.push(format!("{rule}: {test} is missing in its row"));
            }
        }
    }
    found
}

#[test]
fn names_are_read_as_they_are_meant() {
    assert_eq!(claimed("sr_t10_sr_as_10_a_page"), ["T10", "AS-10"]);
    assert_eq!(claimed("sr_rs_01_spec_rs_1_the_metadata"), ["RS-01"]);
    assert_eq!(claimed("sr_f26_pom_41_a_storm"), ["F26", "pom 41"]);
    assert_eq!(claimed("sr_r01_a_thousand_callers"), ["R01"]);
    assert_eq!(claimed("pom_24_a_document"), ["pom 24"]);
    assert_eq!(claimed("sr_t18_pom_33_pom_b6_an_answer"), ["T18", "pom 33", "pom B06"]);
    assert_eq!(claimed("pom_b24_a_token"), ["pom B24"]);
    assert_eq!(claimed("brk15_09_brk35_16_one_refresh"), ["brk15 09", "brk35 16"]);
    for other in [
        "sr_cl_09_x",
        "sr_r1_x",
        "sr_f126_x",
        "f34_x",
        "sr_s04_x",
        "sr_token_x",
        "spec_as_10_x",
        "no_sr",
        "usr_t10_x",
        "pom_x",
        "pom_b",
        "pom_124_x",
        "epom_24_x",
        "brk15_x",
        "brk15_1_x",
        "brk45_01_x",
    ] {
        assert!(claimed(other).is_empty(), "{other}: {:?}", claimed(other));
    }
    let text = "#[test]\nfn a() {}\nfn b() {}\n    #[tokio::test(flavor = \"x\")]\n    /// c\n    async fn c() {}\n#[cfg(test)]\nfn d() {}\n";
    assert_eq!(test_functions(text), ["a", "c"]);
}

#[test]
fn what_is_planted_is_found() {
    let tests = BTreeSet::from(["sr_as_10_a".to_owned(), "b".to_owned(), "pom_b6_a".to_owned()]);
    let said = |table: &str| violations(table, &tests).join("\n");
    let fine = said("| AS-10 | x | `sr_as_10_a`, `b`; not yet: half of it |");
    let about = |rule: &str| fine.lines().any(|line| line.starts_with(rule));
    assert!(!about("AS-10") && about("AS-11: has no row"), "{fine}");
    let fine = said("| pom 24 | x | `b`; not yet: its own test |\n| pom B06 | x | `pom_b6_a`, `b` |");
    let about = |rule: &str| fine.lines().any(|line| line.starts_with(rule));
    assert!(!about("pom 24") && !about("pom B06") && about("pom 25: has no row"), "{fine}");
    for (table, expected) in [
        ("| AS-10 | x | `sr_as_10_a`, `gone` |", "AS-10: there is no test gone"),
        ("| AS-10 | x | `b` |", "AS-10: sr_as_10_a is missing in its row"),
        ("| AS-11 | x | `sr_as_10_a` |", "AS-10: sr_as_10_a is missing in its row"),
        ("| AS-10 | x | soon |", "AS-10: has neither a test nor a reason"),
        ("| AS-10 | x | not yet: |", "AS-10: has neither a test nor a reason"),
        ("| AS-10 | | `b` |", "AS-10: does not say what is demanded"),
        ("| AS-10 | x |", "not three cells"),
        ("| AS-10 | x | `b` |\n| AS-10 | x | `b` |", "AS-10: has two rows"),
        ("| pom 24 | x | `b` |", "pom 24: has no test of its name"),
        ("| pom B06 | x | `b` |", "pom B06: pom_b6_a is missing in its row"),
        ("| brk15 02 | x | `b` |", "brk15 02: has no test of its name"),
        ("| brk15 02 | x | `b` |", "brk35 20: has no row"),
        ("| AS-10 | x | `b` |", "pom B24: has no row"),
    ] {
        assert!(said(table).contains(expected), "{table}: {}", said(table));
    }
}
