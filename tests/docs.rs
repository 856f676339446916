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
