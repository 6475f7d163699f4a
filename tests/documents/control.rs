//! docs/control.md: each field and each metric that it explains is there, and no other; its commands are commands.

use std::fs;

use crate::control::status::all_ready;
use crate::metrics::{METRICS, served};
use crate::support::control::{assert_fails, ctl, printed};
use crate::support::http::get;
use crate::support::json::Json;
use crate::support::lives::READY;
use crate::support::worker::{panzer, sh};
use crate::support::{wait_for, wait_until};

fn document() -> String {
    fs::read_to_string(super::root().join("docs/control.md")).unwrap()
}

/// The rows of the first table behind this heading; each is its cells.
#[track_caller]
fn table(heading: &str) -> Vec<Vec<String>> {
    let document = document();
    let (_, behind) = document.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let lines = behind.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    // The heading of the table, and the line below it.
    lines.skip(2).map(cells).collect()
}

/// The cells of a row.
fn cells(row: &str) -> Vec<String> {
    let inside = row.strip_prefix('|').and_then(|rest| rest.strip_suffix('|')).unwrap_or(row);
    inside.split('|').map(|cell| cell.trim().to_string()).collect()
}

/// What stands in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Makes sure that the table behind a heading explains exactly the fields of these records, in their order.
#[track_caller]
fn assert_explains(heading: &str, records: &[Json]) {
    let rows = table(heading);
    let explained: Vec<String> =
        rows.iter().flat_map(|row| quoted(&row[0]).map(str::to_string).collect::<Vec<_>>()).collect();
    assert!(!records.is_empty(), "{heading}");
    for record in records {
        assert_eq!(record.names(), explained, "{heading}: what there is, and what docs/control.md explains");
    }
    for row in &rows {
        let [names, unit, meaning] = &row[..] else { panic!("not | field | unit | meaning |: {row:?}") };
        assert!(!meaning.is_empty(), "{row:?}");
        for name in quoted(names) {
            for (end, expected) in [("_seconds", "seconds"), ("_seconds_ago", "seconds"), ("_bytes", "bytes")] {
                assert!(!name.ends_with(end) || unit == expected, "{row:?}");
            }
        }
    }
}

#[test]
fn every_field_of_the_status_is_explained_and_no_other() {
    let running = panzer("-n 2 --ready exec -l 127.0.0.1:0", &sh("exec sleep 1000")).start();
    let status = running.wait_status("all are ready", all_ready);
    for section in ["panzer", "restarts", "reloads"] {
        assert_explains(&format!("### `{section}`"), &[status.get(section).clone()]);
    }
    for section in ["listeners", "workers", "histograms"] {
        assert_explains(&format!("### `{section}`"), status.get(section).list());
    }
    let text = document();
    let (_, fields) = text.split_once("\n## Status fields\n").unwrap();
    let (fields, _) = fields.split_once("\n## ").unwrap();
    let sections: Vec<&str> = fields.lines().filter_map(|line| line.strip_prefix("### ")).flat_map(quoted).collect();
    assert_eq!(sections, status.names());
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn every_metric_is_explained_and_no_other() {
    let text = document();
    let (_, metrics) = text.split_once("| metric | type | unit | meaning |\n| --- | --- | --- | --- |\n").unwrap();
    let rows = metrics.lines().take_while(|line| line.starts_with('|'));
    let mut explained = Vec::new();
    for row in rows {
        let cells = cells(row);
        let [name, kind, unit, meaning] = &cells[..] else { panic!("{row}") };
        let name = quoted(name).next().unwrap();
        let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
        assert!(!meaning.is_empty(), "{row}");
        for unit_in_name in ["seconds", "bytes"] {
            let has_unit = name.trim_end_matches("_total").ends_with(unit_in_name);
            assert!(!has_unit || unit == unit_in_name, "{row}");
        }
        explained.push((name.to_string(), kind.to_string(), labels.trim_end_matches('}').to_string()));
    }
    // That these are what is served is another test's to prove: tests/metrics.rs.
    let known: Vec<(String, String, String)> = METRICS
        .iter()
        .map(|(name, kind, labels)| ((*name).to_string(), (*kind).to_string(), labels.join(",")))
        .collect();
    assert_eq!(explained, known, "docs/control.md, and what is served");
    let (service, addr) = served("-n 1 --ready fd -l 127.0.0.1:0", READY);
    let body = wait_for("the metrics are served", || get(&addr, "/metrics").ok()).body;
    let types: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let expected: Vec<String> = explained.iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
    assert_eq!(types, expected, "in the order of docs/control.md");
    service.end();
}

#[test]
fn the_pages_are_those_that_are_explained() {
    let (service, addr) = served("-n 1 --ready fd", READY);
    let pages = table("## Metrics");
    assert_eq!(pages.len(), 3);
    for row in pages {
        let page = quoted(&row[0]).next().unwrap().to_string();
        wait_until(&page, || get(&addr, &page).is_ok_and(|answer| answer.status == 200));
    }
    service.end();
}

#[test]
fn every_command_in_the_documents_is_one() {
    let mut tried = 0;
    for line in super::code_lines() {
        let Some(words) = line.strip_prefix("$ panzer ctl ") else { continue };
        // It gets as far as looking for panzer.
        let output = ctl("--control /no/such/socket").args(words.split_ascii_whitespace()).run();
        if !words.contains("top") {
            assert_fails(&output, 125, &["panzer: cannot ", "/no/such/socket"]);
        }
        tried += 1;
    }
    assert!(tried >= 2, "only {tried} commands were found");
    let help = ctl("--help").run().stdout;
    for row in table("## Commands") {
        let command = quoted(&row[0]).next().unwrap();
        let word = command.split(' ').nth(2).unwrap();
        assert!(help.contains(word), "{command} is not in the help: {help}");
    }
}

/// The tables with this as their first heading: that line, and those behind it that begin with a number.
fn shown<'a>(lines: &[&'a str], first: &str) -> Vec<Vec<&'a str>> {
    let is_row = |line: &&&str| line.trim_start().starts_with(|c: char| c.is_ascii_digit());
    let begins = |at: &usize| lines[*at].split_ascii_whitespace().next() == Some(first);
    let whole = |at: usize| {
        let rows = lines[at + 1..].iter().take_while(is_row);
        std::iter::once(&lines[at]).chain(rows).copied().collect()
    };
    (0..lines.len()).filter(begins).map(whole).collect()
}

/// Makes sure that in each row the state begins where its heading does.
#[track_caller]
fn assert_states_are_left_aligned(workers: &[&str]) {
    let at = workers[0].find("STATE").unwrap();
    assert!(workers.len() > 1, "no worker: {workers:?}");
    for row in &workers[1..] {
        let (before, state) = row.split_at(at);
        let states = ["waiting ", "starting ", "ready ", "stopping ", "ended "];
        let is_state = before.ends_with(' ') && states.iter().any(|name| state.starts_with(name));
        assert!(is_state, "STATE is left-aligned:\n{}", workers.join("\n"));
    }
}

#[test]
fn the_tables_in_the_documents_are_as_they_are_printed() {
    let running = panzer("-n 2 --ready exec -l 127.0.0.1:0", &sh("exec sleep 1000")).start();
    running.wait_status("all are ready", all_ready);
    let output = running.ctl("status");
    let printed: Vec<&str> = printed(&output, 0).lines().collect();
    let samples = super::code_lines();
    let samples: Vec<&str> = samples.iter().map(String::as_str).collect();
    let words = |line: &str| line.split_ascii_whitespace().map(str::to_string).collect::<Vec<_>>();
    for first in ["LISTENER", "SLOT"] {
        let table = &shown(&printed, first)[0];
        let samples = shown(&samples, first);
        assert!(samples.len() >= 2, "one in README.md, one in docs/control.md: {samples:?}");
        for sample in samples.iter().chain([table]) {
            assert_eq!(words(sample[0]), words(table[0]), "what the documents show, and what is printed");
            if first == "SLOT" {
                assert_states_are_left_aligned(sample);
            }
        }
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn the_protocol_is_what_is_explained() {
    let running = panzer("-n 2 --ready exec", &sh("exec sleep 1000")).start();
    running.wait_status("all are ready", all_ready);
    for row in table("## The protocol") {
        for request in quoted(&row[0]) {
            let request = request.replace("SLOT", "1").replace("SIG", "URG").replace(" N", " 2");
            if request != "stop" {
                let body = running.ask(&request).unwrap_or_else(|error| panic!("{request}: {error}"));
                assert!(body.ends_with('\n'), "{request}: {body}");
                running
                    .wait_status("it is calm", |status| all_ready(status) && status.get("workers").list().len() == 2);
            }
        }
    }
    assert_eq!(running.ask("stop").unwrap(), "stopping 2 workers\n");
    running.wait_exit();
}
