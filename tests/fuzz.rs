//! What comes from outside, mutated: whatever it is, there is a value or a refusal of one line, and no panic.
//!
//! `TEST_SEED` makes the same cases again.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use panzer::cli::options::{OPTIONS, Takes};
use panzer::cli::{self, Elsewhere};
use panzer::records::{self, Value};
use panzer::supervisor::commands;
use panzer::supervisor::notice::{self, Notice};

use crate::control::status::all_ready;
use crate::metrics::served;
use crate::support::control::{body, connect, exchange};
use crate::support::http::get;
use crate::support::json::Json;
use crate::support::lives::READY;
use crate::support::load::Addr;
use crate::support::random::Random;
use crate::support::wait_for;
use crate::support::worker::panzer;

/// How many cases each parser is given.
const CASES: u32 = 20_000;
/// How many requests go over a socket.
const REQUESTS: u32 = 400;

/// Bytes that mean something to one of the parsers, or to somebody on the way.
const SPECIAL: &[u8] = b"\0\n\r\t \"\\/:;=?&,.[]{}|<>-+_%@#~'`09azAZ\x1b\x7f\x80\xc3\xe2\xf0\xff";

/// A number from 0 to `limit` - 1; 0 where there is none.
fn pick(random: &mut Random, limit: usize) -> usize {
    usize::try_from(random.below(u64::try_from(limit.max(1)).unwrap())).unwrap()
}

fn one_of<'a, T: ?Sized>(random: &mut Random, all: &[&'a T]) -> &'a T {
    all[pick(random, all.len())]
}

/// One of the seeds with up to six changes.
fn mutated(random: &mut Random, seeds: &[&[u8]]) -> Vec<u8> {
    let mut bytes = one_of(random, seeds).to_vec();
    for _ in 0..random.below(7) {
        let at = pick(random, bytes.len() + 1);
        let end = at + pick(random, bytes.len() - at + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => bytes.insert(at, SPECIAL[pick(random, SPECIAL.len())]),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            4 => {
                let other = one_of(random, seeds);
                let from = pick(random, other.len());
                bytes.splice(at..end, other[from..].iter().copied());
            }
            5 => bytes.truncate(at),
            6 => {
                let (byte, count) = (SPECIAL[pick(random, SPECIAL.len())], pick(random, 300));
                bytes.splice(at..at, std::iter::repeat_n(byte, count));
            }
            _ => bytes.splice(at..at, random.below(u64::MAX).to_string().into_bytes()).for_each(drop),
        }
        bytes.truncate(10_000);
    }
    bytes
}

/// Gives a parser its cases; the one that fails it is shown.
#[track_caller]
fn fuzz(seeds: &[&[u8]], mut check: impl FnMut(&[u8])) {
    struct Shown<'a>(&'a [u8]);
    impl Drop for Shown<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("with {:?}", self.0.escape_ascii().to_string());
            }
        }
    }
    let mut random = Random::new();
    for seed in seeds {
        check(seed);
    }
    for _ in 0..CASES {
        let case = mutated(&mut random, seeds);
        let shown = Shown(&case);
        check(shown.0);
    }
}

const REQUEST_SEEDS: &[&[u8]] = &[
    b"status",
    b"reload",
    b"reload wait",
    b"restart 2",
    b"scale 12",
    b"stop",
    b"signal USR2",
    b"signal SIGRTMIN+3 1",
    b"signal 15 0",
];

#[test]
fn the_parser_of_requests_gives_a_command_or_a_refusal_of_one_line() {
    let mut taken = 0;
    fuzz(REQUEST_SEEDS, |line| match commands::parse(line) {
        Ok(_) => {
            taken += 1;
            assert!(line.iter().all(u8::is_ascii_graphic) || line.contains(&b' '), "it holds what is no word");
            assert!(!line.iter().any(u8::is_ascii_control), "a control character is part of no command");
        }
        Err(error) => {
            assert!(error.starts_with("cannot "), "{error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    });
    assert!(taken > CASES / 20, "only {taken} were commands");
}

#[test]
fn the_parser_of_notifications_takes_nothing_that_it_should_not() {
    let seeds: &[&[u8]] = &[
        b"READY=1",
        b"READY=1\nSTATUS=Processing requests\xe2\x80\xa6\nMAINPID=4711",
        b"RELOADING=1\nMONOTONIC_USEC=123456789",
        b"STOPPING=1",
        b"WATCHDOG=1\nWATCHDOG_USEC=20000000",
        b"WATCHDOG=trigger",
        b"EXTEND_TIMEOUT_USEC=5000000",
        b"FDSTORE=1\nFDNAME=foo\nBARRIER=1",
        b"STATUS=\x1b[31m\n\n=\n==",
    ];
    let ten_years = 10 * 365 * 24 * 3600;
    let mut told = 0;
    fuzz(seeds, |message| {
        let notices = notice::parse(message);
        assert!(notices.len() <= message.split(|byte| *byte == b'\n').count());
        for notice in notices {
            told += 1;
            match notice {
                Notice::Status(text) => {
                    assert!(text.chars().count() <= 200 && !text.contains(char::is_control), "{text:?}");
                }
                Notice::MainProcess(pid) => assert!(pid >= 0, "{pid}"),
                Notice::ExtendTimeout(time) => assert!(time.as_secs() <= ten_years, "{time:?}"),
                Notice::BeatInterval(time) => assert!(!time.is_zero() && time.as_secs() <= ten_years, "{time:?}"),
                Notice::Ready | Notice::Stopping | Notice::Reloading | Notice::Beat | Notice::Trigger => {}
            }
        }
    });
    assert!(told > CASES / 4, "only {told} were understood");
}

/// Values that options take, and what is nearly one.
const VALUE_SEEDS: &[&[u8]] = &[
    b"3",
    b"auto",
    b"500ms",
    b"10s",
    b"5m",
    b"1h",
    b"512M",
    b"1G",
    b"022",
    b"100ms:30s",
    b"1h~10m",
    b"TERM/25/KILL",
    b"QUIT/3.5/TERM/1/KILL",
    b"HUP=reload",
    b"USR1=forward:TERM",
    b"SIGRTMIN+3",
    b"8080",
    b"web=127.0.0.1:8080",
    b"tcp://[::1]:80?v6only&nonblock",
    b"unix:///run/a.sock?mode=660",
    b"unix://@name",
    b"udp://0.0.0.0:53",
    b"delay:3s",
    b"notify",
    b"systemd,server-starter,einhorn",
    b"/var/run/x",
    b"off",
    b"always",
    b"per-worker",
    b"json",
    b"www:www",
    b"",
    b"18446744073709551616",
    b"99999999999h",
    b"-1",
    b"0",
];

/// A word of a command line.
fn word(random: &mut Random) -> OsString {
    let option = &OPTIONS[pick(random, OPTIONS.len())];
    let value = mutated(random, VALUE_SEEDS);
    OsString::from_vec(match random.below(8) {
        0 => format!("--{}", option.long).into_bytes(),
        1 | 2 => [format!("--{}=", option.long).into_bytes(), value].concat(),
        3 => format!("-{}", option.short.unwrap_or('n')).into_bytes(),
        4 => [format!("-{}", option.short.unwrap_or('n')).into_bytes(), value].concat(),
        5 => mutated(random, &[format!("--{}", option.long).as_bytes(), b"--", b"-", b"-qv", b"--no-group"]),
        6 => b"--".to_vec(),
        _ => value,
    })
}

#[test]
fn the_command_line_gives_a_configuration_or_a_refusal_of_one_line() {
    let mut random = Random::new();
    let mut taken = 0;
    for _ in 0..CASES {
        let mut words: Vec<OsString> = (0..random.below(8)).map(|_| word(&mut random)).collect();
        if random.below(2) == 0 {
            words.extend(["--", "true"].map(OsString::from));
        }
        let set: Vec<(String, OsString)> = (0..random.below(3))
            .filter_map(|_| {
                let name = OPTIONS[pick(&mut random, OPTIONS.len())].variable()?;
                Some((name, OsString::from_vec(mutated(&mut random, VALUE_SEEDS))))
            })
            .collect();
        let variable = |name: &str| set.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        // A file of lines made of the same words.
        let pieces: Vec<String> =
            (0..random.below(6)).map(|_| word(&mut random).to_string_lossy().into_owned()).collect();
        let text = pieces.join(["\n", " ", "=", "\n-- "][pick(&mut random, 4)]);
        let read = |_: &Path| Ok(text.clone());
        let file = (random.below(2) == 0).then_some(Path::new("/etc/panzer.conf"));
        match cli::parse(words.clone(), Elsewhere { variable: &variable, read: &read, file }) {
            Ok(config) => {
                taken += 1;
                assert!(config.show.is_some() || !config.command.is_empty(), "{words:?} {set:?}");
            }
            Err(error) => {
                let line = error.to_string();
                assert!(line.starts_with("cannot "), "{words:?} {set:?}: {line}");
                assert!(!line.contains(|c: char| c.is_ascii_control()), "{words:?} {set:?}: {line:?}");
            }
        }
    }
    assert!(taken > CASES / 50, "only {taken} were configurations");
}

#[test]
fn every_option_takes_a_value_or_says_what_is_wrong_with_it() {
    fuzz(VALUE_SEEDS, |value| {
        for option in OPTIONS {
            let mut config = panzer::config::Config::default();
            let text = String::from_utf8_lossy(value);
            let read = match option.takes {
                Takes::One(_, set) | Takes::Many(_, set) => set(&mut config, &text),
                Takes::Path(_, set) => set(&mut config, &OsString::from_vec(value.to_vec())),
                Takes::Nothing(_) | Takes::Show(_) => Ok(()),
            };
            if let Err(cause) = read {
                assert!(!cause.is_empty(), "--{}", option.long);
            }
        }
    });
}

/// A document with most of what can be in one.
const DOCUMENT: &str = r#"{"panzer":
{"version":"0.1.0","pid":7,"uptime_seconds":93.120,"state":"reloading","reload_result":null,"reload_message":null}
,"listeners":[
{"address":"tcp://0.0.0.0:8080","name":"tcp-8080","origin":"listen","queue":0,"queue_limit":4096}
,{"address":"unix:///run/\"a\\b\".sock","name":"a","origin":"shared","queue":null,"queue_limit":4096}
],"workers":[
{"slot":0,"pid":31,"cpu_seconds":1.23,"memory_bytes":12345678,"last_end":"was killed by SIGKILL","status":"\u0001 \ud83e\udd80 é☃"}
,{"slot":0,"pid":null,"cpu_seconds":null,"last_end":null,"status":"{\"panzer\":[1,2]}"}
],"restarts":
{"exit":0,"failure":18446744073709551615,"signal":1}
,"reloads":
{"ok":1,"failed":0}
,"histograms":[
{"metric":"time_to_ready_seconds","0.01":0,"+Inf":3,"sum":1.234}
]}
"#;

#[test]
fn the_reader_of_records_reads_what_it_can_and_passes_over_the_rest() {
    let read = |text: &str| -> usize {
        let mut fields = 0;
        for (section, record) in records::records(text) {
            assert!(!section.contains('\n'));
            for (name, value) in record.fields() {
                fields += 1;
                let _ = record.get(name);
                let _ = record.thousandths(name);
                match value {
                    Value::Text(escaped) => drop(records::unescape(escaped)),
                    Value::Number(number) => drop(records::thousandths(number)),
                    Value::Null => {}
                }
            }
        }
        fields
    };
    let whole = read(DOCUMENT);
    assert_eq!(records::records(DOCUMENT).count(), 8);
    assert_eq!(whole, 6 + 5 + 5 + 6 + 5 + 3 + 2 + 4);
    let progress: &[u8] =
        b"{\"generation\":2,\"done\":1,\"of\":3}\n{\"generation\":2,\"result\":\"ok\",\"message\":\"x\"}\n";
    fuzz(&[DOCUMENT.as_bytes(), progress], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let most = text.matches('"').count();
        assert!(read(&text) <= most, "more fields than there are names");
        let _ = records::unescape(&text);
        let _ = records::thousandths(&text);
    });
}

/// A text of letters that are simple, escaped, long or rare.
fn any_text(random: &mut Random) -> String {
    let letters =
        ['a', ' ', '"', '\\', '/', '\n', '\t', '\u{1}', '\u{7f}', 'é', '☃', '🦀', '{', '}', ',', ':', '\u{2028}'];
    (0..random.below(20)).map(|_| letters[pick(random, letters.len())]).collect()
}

/// The text as JSON, each letter in one of the ways in which it may be written.
fn quoted(random: &mut Random, text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        let code = u32::from(letter);
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            '\n' if random.below(2) == 0 => out.push_str("\\n"),
            '\t' if random.below(2) == 0 => out.push_str("\\t"),
            _ if code < 32 || (code < 0x1_0000 && random.below(4) == 0) => out.push_str(&format!("\\u{code:04x}")),
            _ => out.push(letter),
        }
    }
    out + "\""
}

#[test]
fn the_reader_of_records_agrees_with_a_strict_one() {
    let mut random = Random::new();
    for _ in 0..CASES {
        let texts: Vec<String> = (0..3).map(|_| any_text(&mut random)).collect();
        let [a, b, c] = [0, 1, 2].map(|index: usize| quoted(&mut random, &texts[index]));
        let number = format!("{}.{:03}", random.below(1 << 40), random.below(1000));
        let line = format!("{{\"a\":{a},\"number\":{number},\"b\":{b},\"none\":null,\"c\":{c}}}");
        let strict = Json::parse(&line);
        let all: Vec<_> = records::records(&line).collect();
        let [(_, record)] = all[..] else { panic!("{} records in {line}", all.len()) };
        let names: Vec<&str> = record.fields().map(|(name, _)| name).collect();
        assert_eq!(names, strict.names(), "{line}");
        for (name, text) in ["a", "b", "c"].iter().zip(&texts) {
            assert_eq!(strict.get(name).text(), text, "{line}");
            assert_eq!(&records::unescape(record.get(name).unwrap()), text, "{line}");
        }
        let whole: String = number.chars().filter(char::is_ascii_digit).collect();
        assert_eq!(record.thousandths("number"), whole.parse().ok(), "{line}");
        assert_eq!(record.get("none"), None);
    }
}

// Over the socket

#[test]
fn requests_over_the_control_socket_are_refused_in_one_line() {
    let running = panzer("-n 1 --ready exec", &["sleep", "1000"]).start();
    running.wait_status("it is ready", all_ready);
    let pid = running.workers();
    let mut random = Random::new();
    let mut asked = 0;
    while asked < REQUESTS {
        let mut line = mutated(&mut random, REQUEST_SEEDS);
        let first = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        if commands::parse(first).is_ok() {
            continue;
        }
        line.push(b'\n');
        asked += 1;
        let answer = exchange(connect(&running.control_name()).unwrap(), &line);
        let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", line.escape_ascii()));
        let error = body(&answer).expect_err("it is no request");
        assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}");
    }
    assert_eq!(running.workers(), pid);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn what_comes_over_http_gets_an_answer_or_none() {
    let (service, addr) = served("-n 1 --ready fd", READY);
    wait_for("the metrics are served", || get(&addr, "/livez").ok());
    let server = service.running.metrics_child();
    let Addr::Tcp(at) = addr else { panic!("{addr:?}") };
    let seeds: &[&[u8]] = &[
        b"GET /metrics HTTP/1.1\r\nHost: localhost:9100\r\nUser-Agent: Prometheus/2.42.0\r\nAccept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\nAccept-Encoding: gzip\r\nX-Prometheus-Scrape-Timeout-Seconds: 10\r\n\r\n",
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"HEAD /readyz HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET /metrics?name[]=x HTTP/1.1\r\nAccept: text/plain;q=0.0001;q=1e9\r\n\r\n",
    ];
    let mut random = Random::new();
    let mut answered = 0;
    for _ in 0..REQUESTS {
        let request = mutated(&mut random, seeds);
        let mut connection = TcpStream::connect(at).unwrap();
        connection.set_read_timeout(Some(crate::support::deadline_or(std::time::Duration::from_secs(20)))).unwrap();
        // It may be refused before it was all sent.
        let _ = connection.write_all(&request);
        let _ = connection.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        if let Err(error) = connection.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{}", request.escape_ascii());
        }
        if !answer.is_empty() {
            answered += 1;
            let first = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
            let known = ["200", "400", "404", "405", "431", "503"];
            let is_known = first.strip_prefix("HTTP/1.1 ").is_some_and(|status| known.contains(&status));
            assert!(is_known, "{}: {}", request.escape_ascii(), answer.escape_ascii());
        }
    }
    assert!(answered > REQUESTS / 4, "only {answered} were answered");
    assert_eq!(service.running.metrics_child(), server, "it has not died of it");
    service.end();
}
