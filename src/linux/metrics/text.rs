//! The metrics: which there are, and the two text formats in which Prometheus reads them, made from the status document.
//!
//! Must never touch the system, nor leave out what one of the formats wants: all lines of a family together, none twice.

use crate::records::{Value, column, records, thousandths, unescape};

/// What the older format is called, and OpenMetrics.
const TEXT_KIND: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All there are. The columns:
///
/// - the name, and how those of its samples end: for OpenMetrics that is no part of the family's name
/// - the type, and the unit
/// - the section of the status document whose records are looked at
/// - the field with the number; `1`: each record counts; `*`: every field is one; `?`: whether panzer is reloading
/// - the label, and the field with its value; numbers with the same value are added up
/// - what it is
///
/// Texts, since a table of their parts would be twice as large.
const FAMILIES: [&str; 14] = [
    "panzer_info||gauge||panzer|1|version|version|What runs.",
    "panzer_start_time_seconds||gauge|seconds|panzer|started_at_seconds|||When panzer was started, since 1970.",
    "panzer_workers_wanted||gauge||panzer|workers|||How many workers there are to be.",
    "panzer_workers||gauge||workers|1|state|state|Workers by state.",
    "panzer_generation||gauge||panzer|generation|||The generation of the last good reload.",
    "panzer_reloading||gauge||panzer|?|||Whether a reload is under way.",
    "panzer_restarts|_total|counter||restarts|*|reason||Workers that were started again, by reason.",
    "panzer_reloads|_total|counter||reloads|*|result||Reloads that are over, by result.",
    "panzer_listener_queue_length||gauge||listeners|queue|listener|address|Connections that no worker has taken yet.",
    "panzer_listener_queue_limit||gauge||listeners|queue_limit|listener|address|How many connections may wait.",
    "panzer_worker_cpu_seconds|_total|counter|seconds|workers|cpu_seconds|slot|slot|CPU time of a slot's processes.",
    "panzer_worker_memory_bytes||gauge|bytes|workers|memory_bytes|slot|slot|Resident memory of a slot's processes.",
    "panzer_time_to_ready_seconds||histogram|seconds|histograms|*|le||From a worker's start until it was ready.",
    "panzer_time_to_stop_seconds||histogram|seconds|histograms|*|le||From telling a worker to stop until its end.",
];

/// What is counted even where there is none.
const STATES: &str = "waiting|starting|ready|stopping|ended";

/// Writes the metrics, and says what the format is called.
pub(super) fn render(document: &str, open_metrics: bool, out: &mut Vec<u8>) -> &'static str {
    for family in &FAMILIES {
        render_family(family, document, open_metrics, out);
    }
    if !open_metrics {
        return TEXT_KIND;
    }
    push(out, &["# EOF\n"]);
    OPEN_KIND
}

/// Whether every slot has a ready worker; writes the words for it.
pub(super) fn readiness(document: &str, out: &mut Vec<u8>) -> bool {
    // It is the first record.
    let Some((_, panzer)) = records(document).next() else { return false };
    if panzer.get("state") == Some("stopping") {
        push(out, &["stopping\n"]);
        return false;
    }
    let [ready, workers] = ["ready", "workers"].map(|name| panzer.get(name).unwrap_or("?"));
    push(out, &[ready, " of ", workers, " workers are ready\n"]);
    let ready = thousandths(ready);
    ready.is_some() && ready >= thousandths(workers)
}

/// One line: how its name ends, the label's value, and the number in thousandths.
struct Sample<'a> {
    ending: &'a str,
    value: &'a str,
    number: u64,
}

/// One family's lines, where it has samples.
fn render_family<'a>(mut row: &'a str, document: &'a str, open_metrics: bool, out: &mut Vec<u8>) {
    let mut columns: [&str; 9] = std::array::from_fn(|_| column(&mut row));
    let [name, ending, _, unit, section, source, label, field, _] = columns;
    let mut samples: Vec<Sample<'_>> = Vec::new();
    let mut add = |ending: &'a str, value: &'a str, number| {
        let known = samples.iter_mut().rev().find(|known| known.value == value && known.ending == ending);
        match known {
            Some(known) => known.number += number,
            None => samples.push(Sample { ending, value, number }),
        }
    };
    let mut states = if label == "state" { STATES } else { "" };
    while !states.is_empty() {
        add(ending, column(&mut states), 0);
    }
    for (found, record) in records(document) {
        if found != section {
            continue;
        }
        let value = record.get(field).unwrap_or("");
        match source {
            "1" => add(ending, value, 1000),
            "?" => add(ending, value, if record.get("state") == Some("reloading") { 1000 } else { 0 }),
            "*" => {
                // There are histograms of several names.
                if record.get("metric").is_some_and(|metric| !name.ends_with(metric)) {
                    continue;
                }
                for (bound, value) in record.fields() {
                    let Value::Number(number) = value else { continue };
                    let number = thousandths(number).unwrap_or(0);
                    if label != "le" {
                        add(ending, bound, number);
                    } else if bound == "sum" {
                        add("_sum", "", number);
                    } else {
                        add("_bucket", bound, number);
                        if bound == "+Inf" {
                            add("_count", "", number);
                        }
                    }
                }
            }
            _ => {
                if let Some(number) = record.thousandths(source) {
                    add(ending, value, number);
                }
            }
        }
    }
    if samples.is_empty() {
        return;
    }
    let header = if open_metrics { "# HELP 0 8\n# TYPE 0 2\n" } else { "# HELP 01 8\n# TYPE 01 2\n" };
    fill_in(header, &columns, out);
    if open_metrics && !unit.is_empty() {
        fill_in("# UNIT 0 3\n", &columns, out);
    }
    for Sample { ending, value, number } in samples {
        // From here on it is this sample's.
        columns[1] = ending;
        fill_in(if value.is_empty() { "01" } else { "01{6=\"" }, &columns, out);
        if !value.is_empty() {
            for byte in unescape(value).bytes() {
                if matches!(byte, b'\n' | b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(if byte == b'\n' { b'n' } else { byte });
            }
            // One bound is to have one name in both formats (OpenMetrics, "Canonical Numbers").
            let is_whole = label == "le" && value.bytes().all(|byte| byte.is_ascii_digit());
            push(out, &[if is_whole { ".0\"}" } else { "\"}" }]);
        }
        push(out, &[" ", &(number / 1000).to_string()]);
        if number % 1000 > 0 {
            // Its first digit keeps the zeros of the others.
            let digits = (1000 + number % 1000).to_string();
            push(out, &[".", digits.get(1..).unwrap_or("")]);
        }
        out.push(b'\n');
    }
}

/// Writes a text in which digits stand for columns.
fn fill_in(template: &str, columns: &[&str], out: &mut Vec<u8>) {
    for byte in template.bytes() {
        match columns.get(usize::from(byte.wrapping_sub(b'0'))) {
            Some(column) => push(out, &[column]),
            None => out.push(byte),
        }
    }
}

/// One call for many, which is smaller.
pub(super) fn push(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"panzer":
{"version":"0.1.0","pid":7,"started_at_seconds":1700000000.123,"state":"reloading","generation":1,"workers":3,"ready":2}
,"listeners":[
{"address":"tcp://0.0.0.0:8080","queue":0,"queue_limit":4096}
,{"address":"unix:///a \"b\"\\\n\u00e9{}=,","queue":3,"queue_limit":128}
,{"address":"udp://0.0.0.0:53","queue":null,"queue_limit":null}
,{"address":"tcp://0.0.0.0:8080","queue":2,"queue_limit":1}
],"workers":[
{"slot":0,"state":"ready","cpu_seconds":1.23,"memory_bytes":12345678,"status":"}\n"}
,{"slot":0,"state":"starting","cpu_seconds":0.005,"memory_bytes":1000,"status":null}
,{"slot":1,"state":"waiting","cpu_seconds":null,"memory_bytes":null}
,{"slot":10,"state":"ready","cpu_seconds":0,"memory_bytes":5}
],"restarts":
{"exit":0,"signal":12}
,"reloads":
{"ok":1,"failed":0}
,"histograms":[
{"metric":"time_to_ready_seconds","0.01":0,"1":2,"+Inf":3,"sum":1.2}
,{"metric":"time_to_stop_seconds","0.01":0,"1":0,"+Inf":0,"sum":0}
]}
"#;

    fn rendered(document: &str, open_metrics: bool) -> (&'static str, String) {
        let mut out = Vec::new();
        let kind = render(document, open_metrics, &mut out);
        (kind, String::from_utf8(out).unwrap())
    }

    const TEXT: &str = r#"# HELP panzer_info What runs.
# TYPE panzer_info gauge
panzer_info{version="0.1.0"} 1
# HELP panzer_start_time_seconds When panzer was started, since 1970.
# TYPE panzer_start_time_seconds gauge
panzer_start_time_seconds 1700000000.123
# HELP panzer_workers_wanted How many workers there are to be.
# TYPE panzer_workers_wanted gauge
panzer_workers_wanted 3
# HELP panzer_workers Workers by state.
# TYPE panzer_workers gauge
panzer_workers{state="waiting"} 1
panzer_workers{state="starting"} 1
panzer_workers{state="ready"} 2
panzer_workers{state="stopping"} 0
panzer_workers{state="ended"} 0
# HELP panzer_generation The generation of the last good reload.
# TYPE panzer_generation gauge
panzer_generation 1
# HELP panzer_reloading Whether a reload is under way.
# TYPE panzer_reloading gauge
panzer_reloading 1
# HELP panzer_restarts_total Workers that were started again, by reason.
# TYPE panzer_restarts_total counter
panzer_restarts_total{reason="exit"} 0
panzer_restarts_total{reason="signal"} 12
# HELP panzer_reloads_total Reloads that are over, by result.
# TYPE panzer_reloads_total counter
panzer_reloads_total{result="ok"} 1
panzer_reloads_total{result="failed"} 0
# HELP panzer_listener_queue_length Connections that no worker has taken yet.
# TYPE panzer_listener_queue_length gauge
panzer_listener_queue_length{listener="tcp://0.0.0.0:8080"} 2
panzer_listener_queue_length{listener="unix:///a \"b\"\\\né{}=,"} 3
# HELP panzer_listener_queue_limit How many connections may wait.
# TYPE panzer_listener_queue_limit gauge
panzer_listener_queue_limit{listener="tcp://0.0.0.0:8080"} 4097
panzer_listener_queue_limit{listener="unix:///a \"b\"\\\né{}=,"} 128
# HELP panzer_worker_cpu_seconds_total CPU time of a slot's processes.
# TYPE panzer_worker_cpu_seconds_total counter
panzer_worker_cpu_seconds_total{slot="0"} 1.235
panzer_worker_cpu_seconds_total{slot="10"} 0
# HELP panzer_worker_memory_bytes Resident memory of a slot's processes.
# TYPE panzer_worker_memory_bytes gauge
panzer_worker_memory_bytes{slot="0"} 12346678
panzer_worker_memory_bytes{slot="10"} 5
# HELP panzer_time_to_ready_seconds From a worker's start until it was ready.
# TYPE panzer_time_to_ready_seconds histogram
panzer_time_to_ready_seconds_bucket{le="0.01"} 0
panzer_time_to_ready_seconds_bucket{le="1.0"} 2
panzer_time_to_ready_seconds_bucket{le="+Inf"} 3
panzer_time_to_ready_seconds_count 3
panzer_time_to_ready_seconds_sum 1.200
# HELP panzer_time_to_stop_seconds From telling a worker to stop until its end.
# TYPE panzer_time_to_stop_seconds histogram
panzer_time_to_stop_seconds_bucket{le="0.01"} 0
panzer_time_to_stop_seconds_bucket{le="1.0"} 0
panzer_time_to_stop_seconds_bucket{le="+Inf"} 0
panzer_time_to_stop_seconds_count 0
panzer_time_to_stop_seconds_sum 0
"#;

    #[test]
    fn every_metric_is_written_as_the_older_format_wants_it() {
        assert_eq!(rendered(DOCUMENT, false), (TEXT_KIND, TEXT.to_owned()));
    }

    #[test]
    fn open_metrics_has_the_same_samples_and_other_headers() {
        let (kind, text) = rendered(DOCUMENT, true);
        assert_eq!(kind, OPEN_KIND);
        assert!(text.ends_with("_sum 0\n# EOF\n"));
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        assert_eq!(samples(&text), samples(TEXT));
        let cpu = "# HELP panzer_worker_cpu_seconds CPU time of a slot's processes.\n\
            # TYPE panzer_worker_cpu_seconds counter\n# UNIT panzer_worker_cpu_seconds seconds\n\
            panzer_worker_cpu_seconds_total{slot=\"0\"} 1.235\n";
        assert!(text.contains(cpu), "{text}");
    }

    #[test]
    fn what_the_document_does_not_hold_is_left_out() {
        assert_eq!(rendered("", false).1, rendered("{}\n\0", false).1);
        let states = "# HELP panzer_workers Workers by state.\n# TYPE panzer_workers gauge\n";
        let (_, text) = rendered("", true);
        assert!(text.starts_with(states) && text.ends_with("{state=\"ended\"} 0\n# EOF\n"), "{text}");
        for end in 0..DOCUMENT.len() {
            // The only character of two bytes is escaped.
            assert!(rendered(DOCUMENT.get(..end).unwrap(), true).1.ends_with("# EOF\n"));
        }
    }

    #[test]
    fn a_unit_is_the_last_word_of_its_name() {
        for row in FAMILIES {
            let columns: Vec<&str> = row.split('|').collect();
            let [name, ending, kind, unit, .., help] = columns[..] else { panic!("{row}") };
            assert_eq!(columns.len(), 9, "{row}");
            assert_eq!(ending == "_total", kind == "counter", "{row}");
            let last = name.rsplit('_').next().unwrap();
            assert_eq!(unit, if ["seconds", "bytes"].contains(&last) { last } else { "" }, "{row}");
            assert!(help.ends_with('.') && !help.contains(['\\', '"', '\n']), "{row}");
        }
    }

    #[test]
    fn ready_is_when_every_slot_has_a_ready_worker() {
        let said = |document: &str| {
            let mut out = Vec::new();
            let is_ready = readiness(document, &mut out);
            (is_ready, String::from_utf8(out).unwrap())
        };
        assert_eq!(said(DOCUMENT), (false, "2 of 3 workers are ready\n".to_owned()));
        assert_eq!(said("{\"ready\":10,\"workers\":10}\n"), (true, "10 of 10 workers are ready\n".to_owned()));
        assert!(said("{\"ready\":10,\"workers\":9}\n").0);
        let stopping = "{\"state\":\"stopping\",\"ready\":9,\"workers\":9}\n";
        assert_eq!(said(stopping), (false, "stopping\n".to_owned()));
        assert!(!said("{\"ready\":9,\"workers\":10}\n").0);
        assert!(!said("{\"workers\":null}\n").0);
        assert!(!said("").0);
    }
}
