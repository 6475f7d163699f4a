//! HTTP as bytes: what a client asks for, and how an answer begins.
//!
//! Must never touch the system nor panic: these bytes come from a network.

use super::text::push;
use crate::records::thousandths;

/// A head that is longer than this is refused.
pub(super) const LONGEST_HEAD: usize = 8192;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    /// `/metrics`
    Metrics,
    /// `/livez`
    Livez,
    /// `/readyz`
    Readyz,
    /// The request is none.
    Bad,
    /// There is no such page.
    NotFound,
    /// Pages are only read.
    NotAllowed,
    /// The head is longer than [`LONGEST_HEAD`].
    TooLarge,
    /// panzer does not answer.
    Unavailable,
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    /// What is asked for.
    pub(super) page: Page,
    /// Only the head of the answer is wanted.
    pub(super) is_head: bool,
    /// OpenMetrics is preferred to the older text format.
    pub(super) open_metrics: bool,
}

/// What `bytes`, all that has come, ask for; `None`: there is more to come.
pub(super) fn parse(bytes: &[u8]) -> Option<Request> {
    let mut request = Request { page: Page::TooLarge, is_head: false, open_metrics: false };
    let mut rest = bytes;
    let (mut open_metrics, mut text) = (0, 0);
    let mut is_first = true;
    while let Some(mut line) = line(&mut rest) {
        if is_first {
            is_first = false;
            (request.page, request.is_head) = first_line(line);
        } else if line.is_empty() {
            request.open_metrics = open_metrics > text;
            return Some(request);
        } else {
            match cut(&mut line, b':') {
                Some(name) if !name.is_empty() && name.iter().all(u8::is_ascii_graphic) => {
                    if is(name, b"accept") {
                        weigh(line, &mut open_metrics, &mut text);
                    }
                }
                Some(_) | None => request.page = Page::Bad,
            }
        }
        // No more is read once it is clear that it is no request at all.
        if request.page == Page::Bad {
            return Some(request);
        }
    }
    request.page = Page::TooLarge;
    (bytes.len() >= LONGEST_HEAD).then_some(request)
}

/// `GET /metrics HTTP/1.1`: the page, and whether only the head is wanted.
fn first_line(mut line: &[u8]) -> (Page, bool) {
    let (method, target) = (part(&mut line, b' '), part(&mut line, b' '));
    // What is said to a proxy: `http://host/metrics`.
    let mut path = target.strip_prefix(b"http://").unwrap_or(target);
    part(&mut path, b'/');
    let is_head = method == b"HEAD";
    let page = if line.len() != 8 || !line.starts_with(b"HTTP/1.") {
        Page::Bad
    } else {
        match part(&mut path, b'?') {
            b"metrics" => Page::Metrics,
            b"livez" => Page::Livez,
            b"readyz" => Page::Readyz,
            _ => Page::NotFound,
        }
    };
    let is_written = !is_head && method != b"GET" && !matches!(page, Page::Bad | Page::NotFound);
    (if is_written { Page::NotAllowed } else { page }, is_head)
}

/// Takes what an Accept header says of OpenMetrics and of the older format (RFC 9110, 12.5.1).
fn weigh(mut header: &[u8], open_metrics: &mut u64, text: &mut u64) {
    while !header.is_empty() {
        let mut range = part(&mut header, b',');
        let kind = part(&mut range, b';').trim_ascii();
        let (mut quality, mut is_known_version) = (1000, true);
        while !range.is_empty() {
            let mut value = part(&mut range, b';');
            let name = part(&mut value, b'=').trim_ascii();
            if is(name, b"q") {
                // What is no number is no wish.
                quality = std::str::from_utf8(value.trim_ascii()).ok().and_then(thousandths).unwrap_or(0);
            } else if is(name, b"version") {
                is_known_version = value.trim_ascii() == b"1.0.0";
            }
        }
        // Whatever else it takes, it has named the one format and not the other.
        let weight = match (is(kind, b"application/openmetrics-text") && is_known_version, is(kind, b"text/plain")) {
            (true, _) => &mut *open_metrics,
            (false, true) => &mut *text,
            (false, false) => continue,
        };
        *weight = quality.max(*weight);
    }
}

/// Whether `name` is this one, which is in small letters, or the same in capital ones.
fn is(name: &[u8], small: &[u8]) -> bool {
    // What has this bit set already stays as it is.
    name.len() == small.len() && name.iter().zip(small).all(|(byte, small)| byte | 0x20 == *small)
}

/// The next line without its end; `None` where it has none yet.
fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let line = cut(rest, b'\n')?;
    match line.split_last() {
        Some((b'\r', line)) => Some(line),
        Some(_) | None => Some(line),
    }
}

/// Takes what stands before `separator`, and that off; `None`: there is none.
fn cut<'a>(rest: &mut &'a [u8], separator: u8) -> Option<&'a [u8]> {
    let at = rest.iter().position(|byte| *byte == separator)?;
    let (before, after) = rest.split_at_checked(at)?;
    *rest = after.get(1..)?;
    Some(before)
}

/// As [`cut`]; where there is none it takes all.
fn part<'a>(rest: &mut &'a [u8], separator: u8) -> &'a [u8] {
    cut(rest, separator).unwrap_or_else(|| std::mem::take(rest))
}

/// A whole answer; without a body the status is that too.
pub(super) fn answer(page: Page, is_head: bool, kind: &str, body: &[u8]) -> Vec<u8> {
    let status = match page {
        Page::Metrics | Page::Livez | Page::Readyz => "200 OK",
        Page::Bad => "400 Bad Request",
        Page::NotFound => "404 Not Found",
        Page::NotAllowed => "405 Method Not Allowed",
        Page::TooLarge => "431 Request Header Fields Too Large",
        Page::Unavailable => "503 Service Unavailable",
    };
    let body = if body.is_empty() { status.as_bytes() } else { body };
    let length = body.len().to_string();
    let mut bytes = Vec::new();
    push(&mut bytes, &["HTTP/1.1 ", status, "\r\nContent-Type: ", kind, "\r\nContent-Length: ", &length]);
    push(&mut bytes, &["\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n"]);
    if !is_head {
        bytes.extend_from_slice(body);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(head: &str) -> Option<Page> {
        parse(head.as_bytes()).map(|request| request.page)
    }

    #[test]
    fn requests_are_read_when_all_of_the_head_is_there() {
        let whole = "GET /metrics?x=1 HTTP/1.1\r\nHost: a:1\r\nX-Empty:\r\n\r\n";
        assert_eq!(page(whole), Some(Page::Metrics));
        for length in 0..whole.len() {
            assert_eq!(parse(&whole.as_bytes()[..length]), None, "{length}");
        }
        assert_eq!(page("GET /livez HTTP/1.0\n\n"), Some(Page::Livez));
        assert_eq!(page("GET http://host:9100/readyz HTTP/1.1\r\n\r\n"), Some(Page::Readyz));
        let head = parse(b"HEAD /metrics HTTP/1.1\r\n\r\nmore").unwrap();
        assert!(head.is_head && head.page == Page::Metrics);
    }

    #[test]
    fn what_is_not_served_is_refused_by_its_kind() {
        let cases = [
            ("GET / HTTP/1.1\r\n\r\n", Page::NotFound),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", Page::NotFound),
            ("GET http:// HTTP/1.1\r\n\r\n", Page::NotFound),
            ("POST /x HTTP/1.1\r\n\r\n", Page::NotFound),
            ("POST /metrics HTTP/1.1\r\n\r\n", Page::NotAllowed),
            ("get /metrics HTTP/1.1\r\n\r\n", Page::NotAllowed),
            ("GET /metrics HTTP/2.0\r\n", Page::Bad),
            ("GET /metrics\r\n", Page::Bad),
            ("GET  /metrics HTTP/1.1\r\n", Page::Bad),
            ("GET metrics HTTP/1.1\r\n\r\n", Page::NotFound),
            ("\r\n", Page::Bad),
            ("\0\u{1}\n", Page::Bad),
            ("GET /metrics HTTP/1.1\r\nHost\r\n", Page::Bad),
            ("GET /metrics HTTP/1.1\r\n: x\r\n", Page::Bad),
            ("GET /metrics HTTP/1.1\r\nHost : x\r\n", Page::Bad),
            ("GET /metrics HTTP/1.1\r\nA: b\r\n folded: x\r\n", Page::Bad),
        ];
        for (head, refusal) in cases {
            assert_eq!(page(head), Some(refusal), "{head:?}");
        }
    }

    #[test]
    fn a_head_may_be_so_long_and_no_longer() {
        let start = "GET /metrics HTTP/1.1\r\nA: ";
        let fill = |length: usize| format!("{start}{}", "x".repeat(length - start.len()));
        assert_eq!(page(&fill(LONGEST_HEAD - 1)), None);
        assert_eq!(page(&fill(LONGEST_HEAD)), Some(Page::TooLarge));
        assert_eq!(page(&"x".repeat(LONGEST_HEAD)), Some(Page::TooLarge));
        assert_eq!(page(&(fill(LONGEST_HEAD - 4) + "\r\n\r\n")), Some(Page::Metrics));
    }

    #[test]
    fn the_format_is_the_one_that_accept_prefers() {
        let wants = |accept: &str| {
            let head = format!("GET /metrics HTTP/1.1\r\naCCept:{accept}\r\n\r\n");
            parse(head.as_bytes()).unwrap().open_metrics
        };
        // Prometheus 3.1, 2.42 and before 2.5.
        assert!(wants(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
        ));
        assert!(wants(
            " application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        assert!(!wants("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"));
        assert!(wants("Application/OpenMetrics-Text ; Q = 0.2 , text/*;q=0.1"));
        assert!(wants("text/plain;q=0.5, */*;q=0.8, application/openmetrics-text;q=0.6"));
        assert!(wants("application/openmetrics-text\r\nAccept: text/plain;q=0.9"));
        assert!(!wants("application/openmetrics-text;q=0.1, text/plain"));
        assert!(!wants("application/openmetrics-text;q=0"));
        assert!(!wants("application/openmetrics-text;q=x, text/plain;q=0"));
        assert!(!wants("application/openmetrics-text, text/plain"));
        assert!(!wants("*/*"));
        assert!(!wants(""));
        assert!(!wants(",;,;q,=;;=,"));
    }

    #[test]
    fn what_has_come_so_far_never_changes_what_was_made_of_it() {
        let words: [&[u8]; 16] = [
            b"GET",
            b"HEAD",
            b" ",
            b"/metrics",
            b"http://",
            b"HTTP/1.1",
            b"\r",
            b"\n",
            b"\r\n",
            b"Accept:",
            b":",
            b";q=",
            b"application/openmetrics-text",
            b",",
            b"\xff\0",
            b"0.5",
        ];
        let mut state = 1_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..50_000 {
            let count = random() % 24;
            let mut bytes = if random() % 2 == 0 { b"GET /metrics HTTP/1.1\r\n".to_vec() } else { Vec::new() };
            for _ in 0..count {
                bytes.extend_from_slice(words[usize::try_from(random() % 16).unwrap()]);
            }
            let mut known = None;
            for length in 0..=bytes.len() {
                let now = parse(&bytes[..length]);
                assert!(known.is_none() || known == now, "{:?}", String::from_utf8_lossy(&bytes));
                known = now;
            }
        }
    }

    #[test]
    fn an_answer_to_head_has_the_length_of_what_it_leaves_out() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\
            Allow: GET, HEAD\r\nConnection: close\r\n\r\nok\n";
        assert_eq!(answer(Page::Livez, false, "text/plain", b"ok\n"), whole.as_bytes());
        assert_eq!(answer(Page::Livez, true, "text/plain", b"ok\n"), whole.strip_suffix("ok\n").unwrap().as_bytes());
    }
}
