//! The status for people: a head line, a table of listeners, a table of workers.
//!
//! Pure but for the terminal's size. Must never let through what steers a terminal: a worker may say of itself what it
//! likes.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::termios::tcgetwinsize;

use super::{Variables, of_panzer};
use crate::records::{Record, records, thousandths, unescape};
use crate::supervisor::report::Rounded;

/// What a column holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Words; the column that gets narrower where there is no room.
    Text,
    /// A worker's state, in colour.
    State,
    /// How the life before ended, and what the worker says of itself. As narrow as need be, too.
    End,
    /// A number.
    Number,
    /// The number of connections that wait, with a bar.
    Queue,
    /// Seconds.
    Time,
    /// Seconds of CPU time; live in percent, with a bar.
    Cpu,
    /// Bytes, with a bar.
    Size,
}

impl Shape {
    fn is_flexible(self) -> bool {
        matches!(self, Self::Text | Self::End)
    }

    fn is_left(self) -> bool {
        self.is_flexible() || self == Self::State
    }
}

struct Column {
    heading: &'static str,
    field: &'static str,
    shape: Shape,
}

/// The first line.
const HEAD: [Column; 5] = [
    Column { heading: "panzer ", field: "version", shape: Shape::Text },
    Column { heading: ", pid ", field: "pid", shape: Shape::Text },
    Column { heading: ", up ", field: "uptime_seconds", shape: Shape::Time },
    Column { heading: ", generation ", field: "generation", shape: Shape::Text },
    Column { heading: ": ", field: "doing", shape: Shape::Text },
];

const LISTENERS: [Column; 3] = [
    Column { heading: "LISTENER", field: "address", shape: Shape::Text },
    Column { heading: "QUEUE", field: "queue", shape: Shape::Queue },
    Column { heading: "LIMIT", field: "queue_limit", shape: Shape::Number },
];

const WORKERS: [Column; 10] = [
    Column { heading: "SLOT", field: "slot", shape: Shape::Number },
    Column { heading: "PID", field: "pid", shape: Shape::Number },
    Column { heading: "GEN", field: "generation", shape: Shape::Number },
    Column { heading: "STATE", field: "state", shape: Shape::State },
    Column { heading: "UP", field: "uptime_seconds", shape: Shape::Time },
    Column { heading: "RESTARTS", field: "restarts", shape: Shape::Number },
    Column { heading: "CPU", field: "cpu_seconds", shape: Shape::Cpu },
    Column { heading: "MEM", field: "memory_bytes", shape: Shape::Size },
    // Where no worker has a queue of its own there is no such column.
    Column { heading: "QUEUE", field: "queue", shape: Shape::Queue },
    Column { heading: "LAST END, STATUS", field: "last_end", shape: Shape::End },
];

/// The room between two columns.
const GAP: usize = 2;

/// The least room for text, where it is cut.
const LEAST_TEXT: usize = 10;

/// How long a bar is.
const BAR: u64 = 6;

/// The least room that a table is given.
const LEAST_COLUMNS: usize = 40;

/// What it is shown on.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// The width.
    pub(super) columns: usize,
    /// The height, on a screen that is drawn anew; `None`: as many lines as there are.
    pub(super) lines: Option<usize>,
    pub(super) is_colourful: bool,
    /// The document before, on a screen: CPU time is counted from there.
    pub(super) before: &'a str,
    /// When the CPU times of the present document were looked at: it says that itself.
    pub(super) measured: u64,
}

/// Width and height of a terminal; one that does not know says 0.
pub(super) fn size(terminal: BorrowedFd<'_>) -> (usize, usize) {
    let (columns, lines) = tcgetwinsize(terminal).map_or((0, 0), |size| (size.ws_col, size.ws_row));
    let or = |size: u16, standard: usize| if size == 0 { standard } else { size.into() };
    (or(columns, 80).max(LEAST_COLUMNS), or(lines, 24))
}

/// Whether a terminal may be given colours.
pub(super) fn is_colourful(variable: Variables<'_>) -> bool {
    variable("NO_COLOR").is_none_or(|value| value.is_empty()) && variable("TERM").as_deref() != Some(OsStr::new("dumb"))
}

/// The whole status.
pub(super) fn page(document: &str, view: &View<'_>) -> String {
    let mut out = String::new();
    let view = &View { measured: measured(document).unwrap_or(0), ..*view };
    if let Some(panzer) = of_panzer(document) {
        let mut head = String::new();
        for column in &HEAD {
            head.push_str(column.heading);
            head.push_str(&cell(column, panzer, 0, view));
        }
        put(&head, view.columns, &mut out);
        add('\n', &mut out);
    }
    let lines = view.lines.unwrap_or(usize::MAX);
    table(document, "listeners", &LISTENERS, lines / 4, view, &mut out);
    // An empty line, the headings, the screen's last line.
    let taken = out.bytes().filter(|byte| *byte == b'\n').count() + 3;
    table(document, "workers", &WORKERS, lines.saturating_sub(taken), view, &mut out);
    out
}

/// Writes a table of at most `most` rows after an empty line; nothing where there is no row.
fn table(document: &str, section: &str, columns: &[Column], most: usize, view: &View<'_>, out: &mut String) {
    let mut rows = Vec::new();
    for (name, record) in records(document) {
        if name == section {
            rows.push(record);
        }
    }
    let count = rows.len();
    if count == 0 {
        return;
    }
    if count > most {
        // One line says how many there are more.
        rows.truncate(most.saturating_sub(1));
    }
    // Column by column, the heading first.
    let mut cells = Vec::new();
    let mut widths = Vec::new();
    let mut excess = 0;
    for column in columns {
        let mut widest = 0;
        let mut is_empty = column.shape == Shape::Queue;
        let mut largest = 0;
        for row in &rows {
            largest = number(column, *row, view).unwrap_or(0).max(largest);
        }
        cells.push(column.heading.to_owned());
        for row in &rows {
            let cell = cell(column, *row, largest, view);
            widest = length(&cell).max(widest);
            is_empty &= row.get(column.field).is_none();
            cells.push(cell);
        }
        // Where no worker has a queue of its own there is no such column.
        let width = if is_empty { 0 } else { widest.max(column.heading.len()) + GAP };
        excess += width;
        widths.push(width);
    }
    excess = excess.saturating_sub(view.columns + GAP);
    add('\n', out);
    for at in 0..=rows.len() {
        let mut room = view.columns + GAP;
        let mut cell = at;
        for (column, width) in columns.iter().zip(&widths) {
            let (text, mut width) = (cells.get(cell).map_or("", String::as_str), *width);
            cell += rows.len() + 1;
            if column.shape.is_flexible() {
                width = width.saturating_sub(excess).max(LEAST_TEXT);
            }
            width = width.min(room);
            room -= width;
            let Some(width) = width.checked_sub(GAP) else { continue };
            let padding = width.saturating_sub(length(text));
            if !column.shape.is_left() {
                pad(padding, out);
            }
            let is_painted = at > 0 && view.is_colourful && column.shape == Shape::State;
            if is_painted {
                out.push_str(colour_of(text));
            }
            put(text, width, out);
            if is_painted {
                out.push_str("\x1b[m");
            }
            if column.shape.is_left() {
                pad(padding, out);
            }
            pad(GAP, out);
        }
        out.truncate(out.trim_ascii_end().len());
        add('\n', out);
    }
    if rows.len() < count {
        let _ = writeln!(out, "… {} more", count - rows.len());
    }
}

/// In characters.
#[inline(never)]
fn length(text: &str) -> usize {
    text.chars().count()
}

/// Adds a character. std's own way to is put in wherever it is used.
#[inline(never)]
fn add(c: char, out: &mut String) {
    out.push(c);
}

fn pad(width: usize, out: &mut String) {
    for _ in 0..width {
        add(' ', out);
    }
}

/// Writes at most so many characters.
fn put(text: &str, width: usize, out: &mut String) {
    let is_cut = length(text) > width;
    for (at, c) in text.chars().take(width).enumerate() {
        add(if is_cut && at + 1 == width { '…' } else { c }, out);
    }
}

/// Ready; starting or stopping; without a process.
fn colour_of(state: &str) -> &'static str {
    match state.as_bytes() {
        b"ready" => "\x1b[32m",
        [b's', ..] => "\x1b[33m",
        _ => "\x1b[31m",
    }
}

/// What stands in a column.
#[inline(never)]
fn cell(column: &Column, row: Record<'_>, largest: u64, view: &View<'_>) -> String {
    if column.shape == Shape::End {
        return end(row);
    }
    let (Some(value), Some(number)) = (row.get(column.field), number(column, row, view)) else {
        return "-".to_owned();
    };
    let is_live = view.lines.is_some();
    let mut text = match column.shape {
        Shape::Cpu if is_live => format!("{number}%"),
        Shape::Time | Shape::Cpu => time(value),
        Shape::Size => size_of(number),
        Shape::Text | Shape::State | Shape::End | Shape::Number | Shape::Queue => clean(value),
    };
    let least = match column.shape {
        Shape::Cpu => 100,
        Shape::Size | Shape::Queue => 1,
        Shape::Text | Shape::State | Shape::End | Shape::Number | Shape::Time => return text,
    };
    if is_live {
        let full = row.thousandths("queue_limit").map_or(largest, |limit| limit / 1000).max(least);
        // A bar of what is there at all is not empty.
        let filled = number.saturating_mul(BAR).div_ceil(full);
        add(' ', &mut text);
        for at in 0..BAR {
            add(if at < filled { '|' } else { '.' }, &mut text);
        }
    }
    text
}

/// What a bar shows; `None`: there is nothing to be shown.
fn number(column: &Column, row: Record<'_>, view: &View<'_>) -> Option<u64> {
    let value = row.get(column.field)?;
    match column.shape {
        Shape::Cpu if view.lines.is_some() => percent(row, view),
        Shape::Queue | Shape::Size => Some(thousandths(value)? / 1000),
        Shape::Text | Shape::State | Shape::End | Shape::Number | Shape::Time | Shape::Cpu => Some(0),
    }
}

/// When CPU times were looked at, in milliseconds since panzer's start.
fn measured(document: &str) -> Option<u64> {
    records(document).next()?.1.thousandths("measured_at_seconds")
}

/// The CPU time since the document before, in percent.
fn percent(row: Record<'_>, view: &View<'_>) -> Option<u64> {
    let (pid, used) = (row.get("pid")?, row.thousandths("cpu_seconds")?);
    let (_, before) =
        records(view.before).find(|(section, row)| *section == "workers" && row.get("pid") == Some(pid))?;
    // Both were looked at then, and not when the documents were made.
    let elapsed = view.measured.saturating_sub(measured(view.before)?);
    used.saturating_sub(before.thousandths("cpu_seconds")?).saturating_mul(100).checked_div(elapsed)
}

/// The reasons of ends that were asked for.
const REPLACED: [&str; 5] = ["reload", "scale", "asked", "max_age", "max_rss"];

/// `was killed by SIGKILL 61s ago; what the worker says`
fn end(row: Record<'_>) -> String {
    let reason = row.get("last_end_reason").unwrap_or_default();
    // Of one that was replaced, it says more why than how.
    let name = if REPLACED.contains(&reason) { "last_end_reason" } else { "last_end" };
    let mut out = row.get(name).map(clean).unwrap_or_default();
    if let Some(ago) = row.get("last_end_seconds_ago") {
        for part in [" ", &time(ago), " ago"] {
            out.push_str(part);
        }
    }
    if let Some(status) = row.get("status") {
        if !out.is_empty() {
            out.push_str("; ");
        }
        out.push_str(&clean(status));
    }
    out
}

fn time(seconds: &str) -> String {
    Rounded(Duration::from_millis(thousandths(seconds).unwrap_or(0))).to_string()
}

/// `512`, `1.5K`, `11.8M`
#[inline(never)]
fn size_of(bytes: u64) -> String {
    if bytes < 1024 {
        return bytes.to_string();
    }
    let (mut shift, mut units) = (10, ["K", "M", "G", "T"].as_slice());
    loop {
        let tenths = (bytes.saturating_mul(10).saturating_add(1 << (shift - 1))) >> shift;
        match units {
            [unit, rest @ ..] if tenths < 10_240 || rest.is_empty() => {
                return format!("{}.{}{unit}", tenths / 10, tenths % 10);
            }
            [_, rest @ ..] => units = rest,
            [] => return String::new(),
        }
        shift += 10;
    }
}

/// What an escaped text of a record stands for, fit to be shown.
pub(super) fn clean(text: &str) -> String {
    printable(&unescape(text))
}

/// A text as it is, with a space for each control character.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let is_control = c < ' ' || ('\u{7f}'..='\u{9f}').contains(&c);
        add(if is_control { ' ' } else { c }, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "{\"panzer\":\n{\"version\":\"0.1.0\",\"pid\":7,\"uptime_seconds\":93.120,\"measured_at_seconds\":92.000,\"generation\":1,\"doing\":\"running\"}\n";

    fn document(listeners: &str, workers: &str) -> String {
        format!("{HEAD},\"listeners\":[\n{listeners}],\"workers\":[\n{workers}],\"restarts\":\n{{\"exit\":0}}\n]}}\n")
    }

    fn worker(slot: u32, cpu: &str, memory: u32, rest: &str) -> String {
        format!(
            "{{\"slot\":{slot},\"pid\":{},\"generation\":1,\"state\":\"ready\",\"uptime_seconds\":60.02,\"restarts\":0,\
             \"cpu_seconds\":{cpu},\"memory_bytes\":{memory}{rest}}}\n",
            31 + slot
        )
    }

    fn shown(document: &str, columns: usize, lines: Option<usize>) -> String {
        page(document, &View { columns, lines, is_colourful: false, before: "", measured: 0 })
    }

    #[test]
    fn the_status_is_aligned_and_says_what_there_is() {
        let listener = "{\"address\":\"tcp://0.0.0.0:8080\",\"queue\":0,\"queue_limit\":4096}\n";
        let last = ",\"last_end\":\"was killed by SIGKILL\",\"last_end_seconds_ago\":61.2,\"status\":\"a\\u001b[2J b\"";
        let waiting = "{\"slot\":1,\"pid\":null,\"state\":\"waiting\",\"restarts\":12}\n";
        let document = document(listener, &format!("{},{waiting}", worker(0, "1.23", 12_345_678, last)));
        let expected = "\
panzer 0.1.0, pid 7, up 93s, generation 1: running

LISTENER            QUEUE  LIMIT
tcp://0.0.0.0:8080      0   4096

SLOT  PID  GEN  STATE     UP  RESTARTS   CPU    MEM  LAST END, STATUS
   0   31    1  ready    60s         0  1.2s  11.8M  was killed by SIGKILL 61s …
   1    -    -  waiting    -        12     -      -
";
        assert_eq!(shown(&document, 80, None), expected);
        assert!(shown(&document, 200, None).contains("was killed by SIGKILL 61s ago; a [2J b\n"));
        for columns in [40, 57, 80] {
            let text = shown(&document, columns, None);
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
        }
    }

    #[test]
    fn a_screen_is_never_longer_than_it_is() {
        let listeners: String = (0..9).map(|at| format!("{{\"address\":\"unix:///{at}\",\"queue\":1}}\n")).collect();
        let workers: String = (0..99).map(|slot| worker(slot, "1", 1, "")).collect();
        let document = document(&listeners, &workers);
        for lines in 12..130 {
            let text = shown(&document, 80, Some(lines));
            assert!(text.lines().count() <= lines, "{lines}: {text}");
        }
        assert!(shown(&document, 80, Some(24)).ends_with("… 88 more\n"), "{}", shown(&document, 80, Some(24)));
    }

    #[test]
    fn a_screen_has_percent_and_bars() {
        let first = document("", &worker(0, "1.00", 100, ""));
        let second = document("", &format!("{},{}", worker(0, "1.50", 100, ""), worker(1, "9.00", 51, "")));
        let second = second.replace("\"measured_at_seconds\":92.000", "\"measured_at_seconds\":93.000");
        let view = View { columns: 80, lines: Some(24), is_colourful: false, before: &first, measured: 0 };
        let text = page(&second, &view);
        assert!(text.contains("50% |||...  100 ||||||\n"), "{text}");
        assert!(text.contains("-   51 ||||..\n"), "{text}");
    }

    #[test]
    fn only_a_state_has_a_colour() {
        let view = View { columns: 80, lines: None, is_colourful: true, before: "", measured: 0 };
        let text = page(&document("", &worker(0, "1", 1, "")), &view);
        assert_eq!(
            text.replace("\x1b[32mready\x1b[m", "ready"),
            shown(&document("", &worker(0, "1", 1, "")), 80, None)
        );
        for (variables, colourful) in [
            (&[][..], true),
            (&[("NO_COLOR", "")], true),
            (&[("NO_COLOR", "1")], false),
            (&[("TERM", "dumb")], false),
            (&[("TERM", "xterm")], true),
        ] {
            let variable =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
            assert_eq!(is_colourful(&variable), colourful);
        }
    }

    #[test]
    fn sizes_have_a_unit() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1536, "1.5K"),
            (12_345_678, "11.8M"),
            (1 << 20, "1.0M"),
            ((1 << 20) - 1, "1.0M"),
            (1_288_490_189, "1.2G"),
            (u64::MAX, "1677721.5T"),
        ] {
            assert_eq!(size_of(bytes), text);
        }
    }

    #[test]
    fn nonsense_is_shown_without_harm() {
        for text in
            ["", "\n", "{}\n", "{\"pid\":}\n", "{\"workers\":[\n{\"pid\":\"\\", "{\"workers\":[\n{\"slot\":\u{1b}}\n"]
        {
            assert!(!shown(text, 80, None).contains('\u{1b}'));
            assert!(shown(text, 40, Some(1)).len() < 500);
        }
    }
}
