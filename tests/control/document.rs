//! The status document: its fields, and what holds of every one.

use crate::support::json::Json;

/// What may stand in a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Whole,
    Decimal,
    Text,
    WholeOrNull,
    DecimalOrNull,
    TextOrNull,
}

impl Kind {
    fn allows(self, value: &Json) -> bool {
        let is_whole = |number: &String| number.bytes().all(|byte| byte.is_ascii_digit());
        match (self, value) {
            (Kind::WholeOrNull | Kind::DecimalOrNull | Kind::TextOrNull, Json::Null) => true,
            (Kind::Whole | Kind::WholeOrNull, Json::Number(number)) => is_whole(number),
            (Kind::Decimal | Kind::DecimalOrNull, Json::Number(number)) => !number.starts_with('-'),
            (Kind::Text | Kind::TextOrNull, Json::Text(_)) => true,
            _ => false,
        }
    }
}

use Kind::{Decimal, DecimalOrNull, Text, TextOrNull, Whole, WholeOrNull};

/// The fields of each kind of record, in their order.
pub(crate) const HEAD: &[(&str, Kind)] = &[
    ("version", Text),
    ("pid", Whole),
    ("started_at_seconds", Decimal),
    ("uptime_seconds", Decimal),
    ("measured_at_seconds", Decimal),
    ("state", Text),
    ("doing", Text),
    ("generation", Whole),
    ("workers", Whole),
    ("ready", Whole),
    ("reload_generation", WholeOrNull),
    ("reload_done", WholeOrNull),
    ("reload_of", WholeOrNull),
    ("reload_result", TextOrNull),
    ("reload_message", TextOrNull),
];
pub(crate) const LISTENER: &[(&str, Kind)] =
    &[("address", Text), ("name", TextOrNull), ("origin", Text), ("queue", WholeOrNull), ("queue_limit", WholeOrNull)];
pub(crate) const WORKER: &[(&str, Kind)] = &[
    ("slot", Whole),
    ("pid", WholeOrNull),
    ("generation", Whole),
    ("state", Text),
    ("uptime_seconds", DecimalOrNull),
    ("restarts", WholeOrNull),
    ("cpu_seconds", DecimalOrNull),
    ("memory_bytes", WholeOrNull),
    ("processes", WholeOrNull),
    ("queue", WholeOrNull),
    ("last_end", TextOrNull),
    ("last_end_reason", TextOrNull),
    ("last_end_seconds_ago", DecimalOrNull),
    ("status", TextOrNull),
];
pub(crate) const RESTARTS: &[(&str, Kind)] = &[
    ("exit", Whole),
    ("failure", Whole),
    ("signal", Whole),
    ("cannot_run", Whole),
    ("not_ready", Whole),
    ("watchdog", Whole),
    ("max_age", Whole),
    ("max_rss", Whole),
    ("asked", Whole),
];
pub(crate) const RELOADS: &[(&str, Kind)] = &[("ok", Whole), ("failed", Whole)];
pub(crate) const BUCKETS: [&str; 10] = ["0.01", "0.03", "0.1", "0.3", "1", "3", "10", "30", "100", "+Inf"];

/// Makes sure that a record has these fields, in this order, with values that they can have.
#[track_caller]
fn assert_record(record: &Json, fields: &[(&str, Kind)]) {
    assert_eq!(record.names(), fields.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, kind) in fields {
        assert!(kind.allows(record.get(name)), "{name} is {:?}, not {kind:?}", record.get(name));
    }
}

/// Makes sure that a document is all that is promised of every one, and returns it.
#[track_caller]
pub(crate) fn assert_document(document: &str) -> Json {
    let status = Json::parse(document);
    assert_eq!(status.names(), ["panzer", "listeners", "workers", "restarts", "reloads", "histograms"]);
    assert_record(status.get("panzer"), HEAD);
    for (list, fields) in [("listeners", LISTENER), ("workers", WORKER)] {
        status.get(list).list().iter().for_each(|record| assert_record(record, fields));
    }
    assert_record(status.get("restarts"), RESTARTS);
    assert_record(status.get("reloads"), RELOADS);
    let histograms = status.get("histograms").list();
    let metrics: Vec<&str> = histograms.iter().map(|one| one.get("metric").text()).collect();
    assert_eq!(metrics, ["time_to_ready_seconds", "time_to_stop_seconds"]);
    for histogram in histograms {
        let mut fields = vec![("metric", Text)];
        fields.extend(BUCKETS.map(|bound| (bound, Whole)));
        fields.push(("sum", Decimal));
        assert_record(histogram, &fields);
        let counts = BUCKETS.map(|bound| histogram.get(bound).number());
        assert!(counts.is_sorted(), "cumulative: {counts:?}");
    }

    // Each record is a line of its own, so that a shell script can do without a parser.
    let records = |list: &str| status.get(list).list().len();
    let lines = [1, 1, 1, records("listeners"), 1, records("workers"), 1, 1, 1, 1, 1, 2, 1];
    assert_eq!(document.lines().count(), lines.iter().sum::<usize>(), "{document}");
    assert!(document.ends_with("\n]}\n"), "{document}");
    for line in document.lines().filter(|line| line.contains("\":")) {
        let record = line.strip_prefix(',').unwrap_or(line);
        if record.ends_with('}') && record.starts_with('{') {
            Json::parse(record);
        } else {
            let between = ["{\"panzer\":", ",\"listeners\":[", "],\"workers\":[", "],\"restarts\":", ",\"reloads\":"];
            assert!(between.contains(&line) || line == ",\"histograms\":[", "{line}");
        }
    }

    let slots: Vec<u64> = status.get("workers").list().iter().map(|row| row.get("slot").number()).collect();
    assert!(slots.is_sorted(), "{slots:?}");
    for row in status.get("workers").list() {
        let state = row.get("state").text();
        assert!(["waiting", "starting", "ready", "stopping", "ended"].contains(&state), "{state}");
        let has_process = !["waiting", "ended"].contains(&state);
        for field in ["pid", "uptime_seconds"] {
            assert_eq!(row.get(field).is_null(), !has_process, "{field}: {row:?}");
        }
        // A process of the last second may not have been measured.
        let measures = ["cpu_seconds", "memory_bytes", "processes"].map(|field| !row.get(field).is_null());
        assert!(measures == [false; 3] || (has_process && measures == [true; 3]), "{row:?}");
        let ends = ["last_end", "last_end_reason", "last_end_seconds_ago"].map(|field| row.get(field).is_null());
        assert!(ends == [true; 3] || ends == [false; 3], "{row:?}");
    }
    status
}
