//! The metrics: which there are, and the two text formats in which Prometheus reads them, made from the status document.
//!
//! Must never touch the system, nor leave out what one of the formats wants: all lines of a family together, none twice.

use std::fmt::Write;

use crate::records::{Value, records, thousandths, unescape};

/// What the older format is called, and OpenMetrics.
const TEXT_KIND: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All there are. The columns:
///
/// - the name, without the ending that a counter's and an info's samples have; its last word may be a unit
/// - the type
/// - the section of the status document whose records are looked at
/// - the field with the number; `1`: each record counts; `*`: every field is one; `?`: whether panzer is reloading; `[`:
///   the record of that name has buckets
/// - the label, and the field with its value; numbers with the same value are added up
/// - what it is
///
/// Texts, since a table of their parts would be twice as large.
const FAMILIES: [&str; 14] = [
    "panzer info panzer 1 version version What runs.",
    "panzer_start_time_seconds gauge panzer started_at_seconds - - When panzer was started, since 1970.",
    "panzer_workers_wanted gauge panzer workers - - How many workers there are to be.",
    "panzer_workers gauge workers 1 state state Workers by state.",
    "panzer_generation gauge panzer generation - - The generation of the last good reload.",
    "panzer_reloading gauge panzer ? - - Whether a reload is under way.",
    "panzer_restarts counter restarts * reason - Workers that were started again, by the reason.",
    "panzer_reloads counter reloads * result - Reloads that are over, by result.",
    "panzer_listener_queue_length gauge listeners queue listener address Connections that no worker has taken yet.",
    "panzer_listener_queue_limit gauge listeners queue_limit listener address How many connections may wait.",
    "panzer_worker_cpu_seconds counter workers cpu_seconds slot slot CPU time of the processes of a slot.",
    "panzer_worker_memory_bytes gauge workers memory_bytes slot slot Resident memory of the processes of a slot.",
    "panzer_time_to_ready_seconds histogram histograms [ le - From a worker's start until it was ready.",
    "panzer_time_to_stop_seconds histogram histograms [ le - From telling a worker to stop until its end.",
];

/// What is counted even where there is none.
const STATES: &str = "waiting starting ready stopping ended";

/// The metrics, and their format's name.
pub(super) fn render(document: &str, open_metrics: bool) -> (&'static str, String) {
    let mut out = String::new();
    for family in FAMILIES {
        render_family(family, document, open_metrics, &mut out);
    }
    if !open_metrics {
        return (TEXT_KIND, out);
    }
    out.push_str("# EOF\n");
    (OPEN_KIND, out)
}

/// Whether every slot has a ready worker, and the words for it.
#[inline(never)]
pub(super) fn readiness(document: &str) -> (bool, String) {
    // It is the first record.
    let number = |name| records(document).next()?.1.get(name);
    let (ready, workers) = (number("ready").unwrap_or("?"), number("workers").unwrap_or("?"));
    let all = thousandths(ready).zip(thousandths(workers)).is_some_and(|(ready, workers)| ready >= workers);
    let mut words = String::new();
    push(&mut words, &[ready, " of ", workers, " workers are ready\n"]);
    (all, words)
}

/// Takes the next column.
fn column<'a>(rest: &mut &'a str) -> &'a str {
    let (column, after) = rest.split_once(' ').unwrap_or((rest, ""));
    *rest = after;
    column
}

/// One family's lines, where it has samples.
#[inline(never)]
fn render_family(mut row: &str, document: &str, open_metrics: bool, out: &mut String) {
    let row = &mut row;
    let (name, kind, section) = (column(row), column(row), column(row));
    let (source, label, field, help) = (column(row), column(row), column(row), *row);
    let suffix = match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    let start = out.len();
    // OpenMetrics counts the ending as no part of the family's name; the older format has no infos.
    let named = if open_metrics { "" } else { suffix };
    let shown_kind = if kind == "info" && !open_metrics { "gauge" } else { kind };
    push(out, &["# HELP ", name, named, " ", help, "\n# TYPE ", name, named, " ", shown_kind, "\n"]);
    if let Some((_, unit @ ("seconds" | "bytes"))) = name.rsplit_once('_').filter(|_| open_metrics) {
        push(out, &["# UNIT ", name, " ", unit, "\n"]);
    }
    let samples = out.len();
    let mut sums: Vec<(&str, u64)> = Vec::new();
    let mut add = |label, number| match sums.iter_mut().rev().find(|(known, _)| *known == label) {
        Some((_, sum)) => *sum += number,
        None => sums.push((label, number)),
    };
    let mut states = if label == "state" { STATES } else { "" };
    while !states.is_empty() {
        add(column(&mut states), 0);
    }
    for (found, record) in records(document) {
        if found != section {
            continue;
        }
        let value = record.get(field).unwrap_or_default();
        match source {
            "1" => add(value, 1000),
            "?" => add(value, if record.get("state") == Some("reloading") { 1000 } else { 0 }),
            "*" | "[" => {
                let is_other = |metric| name.strip_prefix("panzer_") != Some(metric);
                if record.get("metric").is_some_and(is_other) {
                    continue;
                }
                for (bound, value) in record.fields() {
                    let Value::Number(number) = value else { continue };
                    match (source, bound) {
                        ("*", _) => add(bound, thousandths(number).unwrap_or(0)),
                        (_, "sum") => push(out, &[name, "_sum ", number, "\n"]),
                        (_, _) => {
                            start_sample(&[name, "_bucket"], label, bound, out);
                            push(out, &[number, "\n"]);
                            if bound == "+Inf" {
                                push(out, &[name, "_count ", number, "\n"]);
                            }
                        }
                    }
                }
            }
            _ => {
                if let Some(number) = record.thousandths(source) {
                    add(value, number);
                }
            }
        }
    }
    for (value, number) in sums {
        start_sample(&[name, suffix], label, value, out);
        let _ = write!(out, "{}", number / 1000);
        if number % 1000 > 0 {
            let _ = write!(out, ".{:03}", number % 1000);
        }
        out.push('\n');
    }
    if out.len() == samples {
        out.truncate(start);
    }
}

/// Everything up to the number.
fn start_sample(name: &[&str], label: &str, value: &str, out: &mut String) {
    push(out, name);
    if label != "-" {
        push(out, &["{", label, "=\""]);
        for c in unescape(value).chars() {
            if matches!(c, '\n' | '"' | '\\') {
                out.push('\\');
            }
            out.push(if c == '\n' { 'n' } else { c });
        }
        // One bound is to have one name in both formats (OpenMetrics, "Canonical Numbers").
        let is_whole = label == "le" && value.bytes().all(|byte| byte.is_ascii_digit());
        push(out, &[if is_whole { ".0" } else { "" }, "\"}"]);
    }
    out.push(' ');
}

/// One call for many, which is smaller.
pub(super) fn push(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}
