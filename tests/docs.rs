//! The documentation lists every configuration key and every counter of the code, and no others.

use std::collections::BTreeSet;
use std::path::Path;

use metadata_exchange::config::KEYS;
use metadata_exchange::counters::Counter;

/// README.md and everything in docs/.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let pages = docs.chain([root.join("README.md")]);
    let pages = pages.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let page = |path: std::path::PathBuf| {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        (name, std::fs::read_to_string(path).unwrap())
    };
    pages.map(page).collect()
}

/// The names that the first cells of each table have: `` | `name`, `other` | ... ``.
fn tables(page: &str) -> Vec<Vec<&str>> {
    let mut tables = vec![Vec::new()];
    for line in page.lines() {
        let Some(row) = line.strip_prefix('|') else {
            tables.push(Vec::new());
            continue;
        };
        let cell = row.split('|').next().unwrap_or_default().trim();
        if let (true, Some(table)) = (cell.starts_with('`'), tables.last_mut()) {
            table.extend(cell.split('`').skip(1).step_by(2));
        }
    }
    tables.retain(|table| !table.is_empty());
    tables
}

/// Whether `table` is one of `names`: most of its rows are.
fn is_about(table: &[&str], names: &BTreeSet<&str>) -> bool {
    let known = table.iter().filter(|name| names.contains(*name)).count();
    known * 2 > table.len()
}

/// Each name has its own row in a table of such names, and there are no other rows.
fn assert_documented(names: &BTreeSet<&str>) {
    let pages = pages();
    let mut documented = BTreeSet::new();
    for (page, text) in &pages {
        for table in tables(text) {
            if is_about(&table, names) {
                for name in table {
                    assert!(names.contains(name), "{page}: the code has no {name}");
                    documented.insert(name);
                }
            }
        }
    }
    let missing: Vec<_> = names.difference(&documented).collect();
    assert!(
        missing.is_empty(),
        "no table in README.md or docs/ has a row for {missing:?}"
    );
}

#[test]
fn every_configuration_key_has_a_row_and_no_row_is_of_another() {
    assert_documented(&KEYS.into_iter().map(|(key, _)| key).collect());
}

#[test]
fn every_counter_has_a_row_and_no_row_is_of_another() {
    assert_documented(&Counter::ALL.into_iter().map(|(_, name)| name).collect());
}

/// The tests that a page cites: `` `module::{one,other}_name` ``, and the files of tests.
fn citations(page: &str) -> impl Iterator<Item = &str> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted.filter(|text| {
        let is_of_name =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:{}, ".contains(c);
        text.contains("::") && text.chars().all(is_of_name) && text.contains('_')
    })
}

/// All names of `a{b,c}d`.
fn expanded(citation: &str) -> Vec<String> {
    let Some((start, (choices, end))) = citation
        .split_once('{')
        .and_then(|(start, rest)| Some((start, rest.split_once('}')?)))
    else {
        return vec![citation.to_owned()];
    };
    let choices = choices.split(',').map(str::trim);
    choices
        .map(|choice| format!("{start}{choice}{end}"))
        .collect()
}

/// The text of the test files with this name.
fn tests_in(module: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [
        "envoy-test/tests/scenarios",
        "envoy-test/tests/tcp",
        "wasm-host/tests/filter",
        "tests/core",
    ];
    let files = folders.map(|folder| root.join(folder).join(module).with_extension("rs"));
    files
        .map(|file| std::fs::read_to_string(file).unwrap_or_default())
        .concat()
}

#[test]
fn every_cited_test_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = pages();
    for page in ["SECURITY.md", "deploy/istio/README.md"] {
        pages.push((
            page.to_owned(),
            std::fs::read_to_string(root.join(page)).unwrap(),
        ));
    }
    let mut missing = Vec::new();
    let mut found = 0;
    for (page, text) in &pages {
        for name in citations(text).flat_map(expanded) {
            let module = name.split("::").next().unwrap_or_default();
            let test = name.rsplit("::").next().unwrap_or_default();
            if tests_in(module).contains(&format!("fn {test}(")) {
                found += 1;
            } else {
                missing.push(format!("{page}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such test: {missing:#?}");
    assert!(found > 20, "only {found} citations were found");
}
