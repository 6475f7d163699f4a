//! `--metrics`: what is served, whether it is true, and the process that serves it.

mod child;
mod http;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::control::document::BUCKETS;
use crate::control::status::all_ready;
use crate::servers::is_installed;
use crate::support::control::head;
use crate::support::http::{Answer, get, get_with};
use crate::support::json::Json;
use crate::support::lives::{GATED, READY, Service};
use crate::support::load::Addr;
use crate::support::ports::{free_port, local};
use crate::support::worker::text;
use crate::support::{process, wait_for, wait_until};

/// Every metric: its type and the names of its labels.
pub(crate) const METRICS: &[(&str, &str, &[&str])] = &[
    ("panzer_info", "gauge", &["version"]),
    ("panzer_start_time_seconds", "gauge", &[]),
    ("panzer_workers_wanted", "gauge", &[]),
    ("panzer_workers", "gauge", &["state"]),
    ("panzer_generation", "gauge", &[]),
    ("panzer_reloading", "gauge", &[]),
    ("panzer_restarts_total", "counter", &["reason"]),
    ("panzer_reloads_total", "counter", &["result"]),
    ("panzer_listener_queue_length", "gauge", &["listener"]),
    ("panzer_listener_queue_limit", "gauge", &["listener"]),
    ("panzer_worker_cpu_seconds_total", "counter", &["slot"]),
    ("panzer_worker_memory_bytes", "gauge", &["slot"]),
    ("panzer_time_to_ready_seconds", "histogram", &[]),
    ("panzer_time_to_stop_seconds", "histogram", &[]),
];

const OPENMETRICS: &str = "Accept: application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n";

/// A service whose metrics are served at the address.
#[track_caller]
pub(crate) fn served(options: &str, script: &str) -> (Service, Addr) {
    let port = free_port();
    let service = Service::start(&format!("{options} --metrics 127.0.0.1:{port}"), script);
    service.running.wait_status("all are ready", all_ready);
    (service, Addr::Tcp(local(port)))
}

/// Waits for an answer: what serves them begins after panzer itself, and is replaced when it dies.
#[track_caller]
fn answer(addr: &Addr, path: &str, headers: &str) -> Answer {
    wait_for("the metrics are served", || get_with(addr, path, headers).ok())
}

/// The metrics as text.
#[track_caller]
fn scrape(addr: &Addr) -> String {
    let answer = answer(addr, "/metrics", "");
    assert_eq!((answer.status, answer.header("Content-Type")), (200, "text/plain; version=0.0.4; charset=utf-8"));
    answer.body
}

/// The metrics as OpenMetrics.
#[track_caller]
fn scrape_open(addr: &Addr) -> String {
    let answer = answer(addr, "/metrics", OPENMETRICS);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((answer.status, answer.header("Content-Type")), (200, kind));
    answer.body
}

/// What a text of metrics holds.
#[derive(Debug, Default)]
struct Metrics {
    /// The type of each family.
    types: BTreeMap<String, String>,
    /// The families that have a help text.
    helped: Vec<String>,
    /// The value of each sample, by its name and labels as written: `panzer_workers{state="ready"}`.
    samples: BTreeMap<String, String>,
}

impl Metrics {
    #[track_caller]
    fn parse(text: &str) -> Metrics {
        let mut metrics = Metrics::default();
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(metrics.types.insert(name.to_string(), kind.to_string()), None, "twice: {line}");
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty(), "{line}");
                metrics.helped.push(name.to_string());
            } else if !line.starts_with("# UNIT ") {
                assert!(!line.starts_with('#'), "{line}");
                let (sample, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap_or_else(|_| panic!("no number: {line}"));
                assert_eq!(metrics.samples.insert(sample.to_string(), value.to_string()), None, "twice: {line}");
            }
        }
        metrics
    }

    /// The value of a sample.
    #[track_caller]
    fn get(&self, sample: &str) -> f64 {
        self.samples.get(sample).unwrap_or_else(|| panic!("no {sample} in {self:#?}")).parse().unwrap()
    }

    /// A whole number.
    #[track_caller]
    fn number(&self, sample: &str) -> u64 {
        let value = self.samples.get(sample).unwrap_or_else(|| panic!("no {sample} in {self:#?}"));
        value.parse().unwrap_or_else(|_| panic!("no whole number: {sample} {value}"))
    }
}

#[track_caller]
fn metrics(addr: &Addr) -> Metrics {
    Metrics::parse(&scrape(addr))
}

/// Waits until the metrics are like this; they may be a moment old.
#[track_caller]
fn wait_metrics(addr: &Addr, what: &str, is_so: impl Fn(&Metrics) -> bool) -> Metrics {
    wait_for(&format!("the metrics: {what}"), || Some(metrics(addr)).filter(|metrics| is_so(metrics)))
}

/// Feeds a text to a checking program, which must have nothing to say.
#[track_caller]
fn assert_accepts(command: &mut Command, text: &str) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it was found");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{command:?}: {}: {said}\n{text}", output.status);
}

/// A panzer of which everything can be seen: with listeners, restarts and both results of a reload.
#[track_caller]
fn with_everything() -> (Service, Addr) {
    let script = "[ $PANZER_GENERATION = 3 ] && exit 7\nexec $PROBE - ready sleep >/dev/null";
    let options =
        "-n 3 --ready fd --backoff 0:0 -l 127.0.0.1:0 -l unix://$DIR/a\\\"quoted\\\".sock -l udp://127.0.0.1:0";
    let (service, addr) = served(&options.replace("\\\"", "\""), script);
    service.reload(2, 3);
    service.running.kill_worker(1);
    service.running.wait_status("all are ready", all_ready);
    service.running.signal(libc::SIGHUP);
    service.wait_line("cannot reload to generation 3");
    // Use is measured once a second.
    wait_metrics(&addr, "the failed reload, and what each worker uses", |metrics| {
        // One that was measured while it executed its program had almost none.
        let uses = |slot: u32| {
            let memory = metrics.samples.get(&format!("panzer_worker_memory_bytes{{slot=\"{slot}\"}}"));
            memory.is_some_and(|bytes| bytes.parse::<u64>().unwrap() > 10_000)
        };
        metrics.number("panzer_reloads_total{result=\"failed\"}") == 1 && (0..3).all(uses)
    });
    (service, addr)
}

// The formats

#[test]
fn promtool_has_nothing_to_say_against_the_metrics() {
    let promtool = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers/bin/promtool");
    if !is_installed("promtool", &[text(&promtool)], "") {
        return;
    }
    let (service, addr) = with_everything();
    assert_accepts(Command::new(&promtool).args(["check", "metrics"]), &scrape(&addr));
    service.end();
}

#[test]
fn the_openmetrics_format_is_read_by_another_implementation() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers/python");
    let python = "/usr/bin/python3".to_string();
    if !is_installed("prometheus_client", std::slice::from_ref(&python), &text(library.join("prometheus_client"))) {
        return;
    }
    let (service, addr) = with_everything();
    let script = "import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read
assert len(list(read(sys.stdin.read()))) == int(sys.argv[1])";
    let mut command = Command::new(python);
    command.env("PYTHONPATH", library).env("PYTHONDONTWRITEBYTECODE", "1").args(["-c", script]);
    assert_accepts(command.arg(METRICS.len().to_string()), &scrape_open(&addr));
    service.end();
}

/// A bucket's bound, which is a floating point number in OpenMetrics, and the same in both formats.
fn le(bound: &str) -> String {
    if bound.bytes().all(|byte| byte.is_ascii_digit()) { format!("{bound}.0") } else { bound.to_string() }
}

/// The name of a sample and the names of its labels.
fn name_and_labels(sample: &str) -> (&str, Vec<&str>) {
    let Some((name, labels)) = sample.split_once('{') else { return (sample, Vec::new()) };
    let labels = labels.strip_suffix('}').unwrap().split("\",").map(|label| label.split_once('=').unwrap().0);
    (name, labels.collect())
}

#[test]
fn every_metric_is_there_with_its_type_its_help_and_its_labels() {
    let (service, addr) = with_everything();
    for (body, is_open) in [(scrape(&addr), false), (scrape_open(&addr), true)] {
        assert_eq!(body.ends_with("\n# EOF\n"), is_open, "{body}");
        assert_eq!(body.matches("# EOF").count(), usize::from(is_open));
        let metrics = Metrics::parse(&body);
        let family = |name: &str| match is_open {
            true => name.strip_suffix("_total").unwrap_or(name).to_string(),
            false => name.to_string(),
        };
        let types: BTreeMap<String, String> =
            METRICS.iter().map(|(name, kind, _)| (family(name), (*kind).to_string())).collect();
        let mut shown = metrics.types.clone();
        // OpenMetrics has a type of its own for it, and another name for its family.
        if is_open && shown.get("panzer").is_some_and(|kind| kind == "info") {
            shown.remove("panzer");
            shown.insert("panzer_info".to_string(), "gauge".to_string());
        }
        assert_eq!(shown, types);
        assert_eq!(metrics.helped.len(), METRICS.len());
        for (name, kind, labels) in METRICS {
            let of = |sample: &&String| name_and_labels(sample).0 == *name;
            if *kind == "histogram" {
                for bound in BUCKETS.map(le) {
                    let sample = format!("{name}_bucket{{le=\"{bound}\"}}");
                    assert!(metrics.samples.contains_key(&sample), "{sample}");
                }
                assert_eq!(
                    metrics.number(&format!("{name}_count")),
                    metrics.number(&format!("{name}_bucket{{le=\"+Inf\"}}"))
                );
                assert!(metrics.get(&format!("{name}_sum")) >= 0.0);
            } else {
                let found: Vec<&String> = metrics.samples.keys().filter(of).collect();
                assert!(!found.is_empty(), "{name}");
                assert!(found.iter().all(|sample| name_and_labels(sample).1 == *labels), "{found:?}");
            }
        }
        let histograms = |name: &str| ["_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end));
        for sample in metrics.samples.keys() {
            let (name, _) = name_and_labels(sample);
            assert!(METRICS.iter().any(|(known, ..)| *known == name) || histograms(name), "{sample} is unknown");
        }
    }
    service.end();
}

#[test]
fn the_format_is_the_one_that_is_preferred() {
    let (service, addr) = served("-n 1 --ready fd", READY);
    for (accept, is_open) in [
        ("", false),
        ("Accept: */*\r\n", false),
        ("Accept: text/plain\r\n", false),
        ("Accept: text/html, image/png;q=0.9\r\n", false),
        ("accept: application/openmetrics-text\r\n", true),
        ("ACCEPT:application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n", true),
        // What Prometheus 2.42 sends.
        (
            "Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n",
            true,
        ),
        ("Accept: application/openmetrics-text;q=0.1, text/plain;q=0.9\r\n", false),
        ("Accept: application/openmetrics-text;q=0, */*\r\n", false),
    ] {
        let answer = answer(&addr, "/metrics", accept);
        let kind = answer.header("Content-Type");
        assert_eq!(kind.starts_with("application/openmetrics-text"), is_open, "{accept}: {kind}");
        assert_eq!(answer.body.ends_with("# EOF\n"), is_open, "{accept}");
        assert_eq!(answer.header("Content-Length"), answer.body.len().to_string());
        assert_eq!(answer.header("Connection"), "close");
    }
    service.end();
}

// The values

#[test]
fn the_metrics_say_what_the_status_says() {
    let (service, addr) = with_everything();
    let status = service.running.wait_status("it is calm", |status| head(status, "state").text() == "running");
    let metrics = metrics(&addr);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(metrics.number(&format!("panzer_info{{version=\"{version}\"}}")), 1);
    let started = head(&status, "started_at_seconds").decimal();
    assert!((metrics.get("panzer_start_time_seconds") - started).abs() < 0.01);
    assert_eq!(metrics.number("panzer_workers_wanted"), 3);
    assert_eq!(metrics.number("panzer_generation"), 2);
    assert_eq!(metrics.number("panzer_reloading"), 0);
    for state in ["waiting", "starting", "ready", "stopping", "ended"] {
        let shown = status.get("workers").list().iter().filter(|row| row.get("state").text() == state).count();
        assert_eq!(metrics.number(&format!("panzer_workers{{state=\"{state}\"}}")), u64::try_from(shown).unwrap());
    }
    for (record, sample) in [("restarts", "panzer_restarts_total{reason"), ("reloads", "panzer_reloads_total{result")] {
        for name in status.get(record).names() {
            let value = metrics.number(&format!("{sample}=\"{name}\"}}"));
            assert_eq!(value, status.get(record).get(name).number(), "{name}");
        }
    }
    assert_eq!(status.get("restarts").get("signal").number(), 1);
    for listener in status.get("listeners").list() {
        let address = listener.get("address").text().replace('\\', "\\\\").replace('"', "\\\"");
        for (field, name) in [("queue", "length"), ("queue_limit", "limit")] {
            let sample = format!("panzer_listener_queue_{name}{{listener=\"{address}\"}}");
            let shown = metrics.samples.get(&sample).map(|value| Json::Number(value.clone())).unwrap_or(Json::Null);
            assert_eq!(shown, *listener.get(field), "{sample}");
        }
    }
    for (histogram, name) in status.get("histograms").list().iter().zip(["ready", "stop"]) {
        assert_eq!(histogram.get("metric").text(), format!("time_to_{name}_seconds"));
        for bound in BUCKETS {
            let sample = format!("panzer_time_to_{name}_seconds_bucket{{le=\"{}\"}}", le(bound));
            assert_eq!(metrics.number(&sample), histogram.get(bound).number(), "{sample}");
        }
        assert_eq!(metrics.get(&format!("panzer_time_to_{name}_seconds_sum")), histogram.get("sum").decimal());
    }
    for slot in 0..3 {
        assert!(metrics.number(&format!("panzer_worker_memory_bytes{{slot=\"{slot}\"}}")) > 10_000);
        assert!(metrics.get(&format!("panzer_worker_cpu_seconds_total{{slot=\"{slot}\"}}")) >= 0.0);
    }
    service.end();
}

#[test]
fn values_change_with_what_happens() {
    let (service, addr) = served("-n 2 --ready fd --backoff 0:0", GATED);
    let before = metrics(&addr);
    assert_eq!(before.number("panzer_restarts_total{reason=\"signal\"}"), 0);
    assert_eq!(before.number("panzer_time_to_ready_seconds_count"), 2);
    service.running.kill_worker(0);
    wait_metrics(&addr, "one restart", |metrics| {
        metrics.number("panzer_restarts_total{reason=\"signal\"}") == 1
            && metrics.number("panzer_time_to_ready_seconds_count") == 3
    });
    service.running.signal(libc::SIGHUP);
    let during = wait_metrics(&addr, "a reload", |metrics| metrics.number("panzer_reloading") == 1);
    assert_eq!(during.number("panzer_generation"), 1);
    wait_metrics(&addr, "one starts", |metrics| metrics.number("panzer_workers{state=\"starting\"}") == 1);
    service.touch("go.0");
    service.touch("go.1");
    let after = wait_metrics(&addr, "it is over", |metrics| {
        metrics.number("panzer_generation") == 2 && metrics.number("panzer_time_to_stop_seconds_count") == 2
    });
    assert_eq!(after.number("panzer_reloads_total{result=\"ok\"}"), 1);
    assert_eq!(after.number("panzer_reloading"), 0);
    assert_eq!(after.number("panzer_time_to_ready_seconds_count"), 5);
    service.running.ask("scale 4").unwrap();
    wait_metrics(&addr, "two more are wanted", |metrics| metrics.number("panzer_workers_wanted") == 4);
    service.running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn the_cpu_seconds_of_a_slot_never_go_back() {
    let (service, addr) = served("-n 1 --ready fd --backoff 0:0", "(while :; do :; done) & exec $PROBE - ready sleep");
    let mut last = 0.0;
    for _ in 0..3 {
        let name = "panzer_worker_cpu_seconds_total{slot=\"0\"}";
        let metrics = wait_metrics(&addr, "it has worked", |metrics| metrics.get(name) > last + 0.05);
        last = metrics.get(name);
    }
    service.end();
}

// Health

#[test]
fn livez_and_readyz_tell_about_panzer_and_its_workers() {
    let port = free_port();
    let addr = Addr::Tcp(local(port));
    let script = "exec $PROBE - wait=$DIR/go.$PANZER_WORKER_ID ready sleep >/dev/null";
    let service = Service::start(&format!("-n 3 --ready fd --backoff 1h:1h --metrics {port}"), script);
    service.running.wait_generation(1, 3);
    for ready in 0..3 {
        let expected = format!("{ready} of 3 workers are ready");
        wait_until(&expected, || {
            let answer = answer(&addr, "/readyz", "");
            assert_eq!(answer.status, 503);
            answer.body.trim_end() == expected
        });
        let alive = answer(&addr, "/livez", "");
        assert_eq!((alive.status, alive.body.trim_end()), (200, "ok"));
        service.touch(&format!("go.{ready}"));
    }
    wait_until("all are ready", || answer(&addr, "/readyz", "").status == 200);
    service.running.signal(libc::SIGTERM);
    service.running.wait_exit();
}

#[test]
fn a_panzer_that_does_not_answer_is_not_alive() {
    let (service, addr) = served("-n 1 --ready fd", READY);
    assert_eq!(answer(&addr, "/livez", "").status, 200);
    process::send_signal(service.running.panzer_pid(), libc::SIGSTOP);
    wait_until("it is not alive", || get(&addr, "/livez").unwrap().status == 503);
    assert_eq!(get(&addr, "/readyz").unwrap().status, 503);
    process::send_signal(service.running.panzer_pid(), libc::SIGCONT);
    wait_until("it is alive again", || answer(&addr, "/livez", "").status == 200);
    assert_eq!(answer(&addr, "/readyz", "").status, 200);
    service.end();
}
