//! Metrics over HTTP: what is asked wrongly, and where it is served.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{answer, metrics, served};
use crate::control::status::all_ready;
use crate::support::binders::{is_root, left_out};
use crate::support::control::assert_fails;
use crate::support::http::{connect, send};
use crate::support::lives::READY;
use crate::support::load::Addr;
use crate::support::panzer::Panzer;
use crate::support::ports::{free_port, local};
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, text};

#[test]
fn what_is_asked_wrongly_is_told_so() {
    let (service, addr) = served("-n 1 --ready fd", READY);
    let whole = answer(&addr, "/metrics", "");
    for (request, status) in [
        ("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("GET /metricsx HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        ("DELETE /livez HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("garbage\r\n\r\n", 400),
        ("GET\r\n\r\n", 400),
        ("GET /metrics\r\n\r\n", 400),
        ("\r\n\r\n\r\n", 400),
        ("GET /metrics HTTP/9.9\r\n\r\n", 400),
        ("GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", 400),
        ("GET /metrics HTTP/1.0\r\n\r\n", 200),
        ("GET /metrics HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\nGET /livez HTTP/1.1\r\n\r\n", 200),
    ] {
        let answer = send(&addr, request.as_bytes()).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        assert_eq!(answer.status, status, "{request:?}: {answer:?}");
        assert_eq!(answer.header("Content-Length"), answer.body.len().to_string(), "{request:?}");
        assert_eq!(answer.header("Connection"), "close");
    }
    let huge = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000));
    assert_eq!(send(&addr, huge.as_bytes()).unwrap().status, 431);
    let large = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(7500));
    assert_eq!(send(&addr, large.as_bytes()).unwrap().status, 200);
    let head = send(&addr, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let length: usize = head.header("Content-Length").parse().unwrap();
    assert!(length.abs_diff(whole.body.len()) < 100, "the answer's length without the answer");
    // Head and body may come in pieces.
    let mut connection = connect(&addr).unwrap();
    for byte in b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" {
        connection.write_all(&[*byte]).unwrap();
    }
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.trim_end().ends_with("ok"), "{answer}");
    service.end();
}

#[test]
fn a_unix_path_serves_too() {
    let scratch = Scratch::new();
    let path = scratch.path("metrics.sock");
    let options = format!("-n 2 --ready exec --metrics unix://{}?mode=660", path.display());
    let running = panzer(&options, &["sleep", "1000"]).start();
    running.wait_status("all are ready", all_ready);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
    let addr = Addr::Unix(path.clone());
    assert_eq!(metrics(&addr).number("panzer_workers_wanted"), 2);
    running.ends_with(libc::SIGTERM, 0);
    assert!(!path.exists(), "it is removed at the end");
}

#[test]
fn an_address_that_cannot_be_had_is_refused_at_the_start() {
    let scratch = Scratch::new();
    let started = text(scratch.path("started"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let itself = [taken.as_str()];
    let mut cases = vec![
        (taken.as_str(), &itself[..]),
        ("unix:///no/such/directory/socket", &["/no/such/directory/socket"]),
        ("udp://127.0.0.1:9100", &["udp"]),
        ("nonsense:", &["nonsense"]),
        ("99999", &["99999"]),
        ("", &["--metrics"]),
    ];
    if !is_root() {
        cases.push(("127.0.0.1:80", &["127.0.0.1:80", "denied"]));
    }
    for (address, parts) in cases {
        let refused = Panzer::new(["-n", "1", "--metrics", address, "--", "touch", &started]).run();
        assert_fails(&refused, 125, &[&["panzer: cannot "], parts].concat());
    }
    drop(listener);
    assert!(!Path::new(&started).exists(), "nothing was started");
    assert_fails(&panzer("--metrics 9100", &["true"]).run(), 125, &["panzer: cannot use --metrics: it needs -n"]);
    if is_root() {
        left_out("a privileged port for metrics: root may have each of them");
    }
}

#[test]
fn the_address_may_be_given_by_a_variable() {
    let port = free_port();
    let running =
        panzer("-n 1 --ready exec", &["sleep", "1000"]).env("PANZER_METRICS", format!("127.0.0.1:{port}")).start();
    assert_eq!(answer(&Addr::Tcp(local(port)), "/livez", "").status, 200);
    running.ends_with(libc::SIGTERM, 0);
    // In init mode a variable that an image has set for all its commands does nothing.
    let output = panzer("", &["true"]).env("PANZER_METRICS", "9100").env("PANZER_CONTROL", "/tmp/x").run();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
