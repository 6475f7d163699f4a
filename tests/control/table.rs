//! `panzer ctl status` for people.

use super::status::{all_ready, row};
use crate::support::control::{head, printed, rows, states};
use crate::support::json::Json;
use crate::support::lives::{READY, Service};
use crate::support::panzer::Running;
use crate::support::wait_for;
use crate::support::worker::text;
use crate::terminal::Terminal;

/// The widest line that is not for a terminal.
const WIDTH: usize = 80;

/// Two workers with much to show: one with a long text, one that waits to be started again.
fn with_much_to_show() -> Service {
    let said = "grüße \\\"☃\\\" \t and more and more and more and more and more and more and more and more and more";
    let script = format!(
        "[ $PANZER_WORKER_ID = 1 ] && [ -e $DIR/crash ] && exit 3
exec $PROBE - \"notify=READY=1\\nSTATUS={said}\" wait=$DIR/crash-$PANZER_WORKER_ID exit=3"
    );
    let options = "-n 2 --ready notify --backoff 1h:1h -l 127.0.0.1:0 -l unix://$DIR/a-rather-long-name-of-a-socket-in-a-directory.sock";
    let service = Service::start(options, &script);
    service.running.wait_status("all are ready", all_ready);
    service.touch("crash");
    service.touch("crash-1");
    service.running.wait_status("it waits", |status| states(status, 1) == ["waiting"]);
    service
}

/// The table as it comes through a pipe.
#[track_caller]
fn table(running: &Running) -> String {
    printed(&running.ctl("status"), 0).to_string()
}

/// Where the last letter of each of these words of a heading stands.
#[track_caller]
fn ends(heading: &str, words: &[&str]) -> Vec<usize> {
    let end = |word: &&str| heading.find(*word).unwrap_or_else(|| panic!("no {word} in {heading:?}")) + word.len();
    words.iter().map(end).collect()
}

/// The part of a table that begins with this word.
#[track_caller]
fn part<'a>(table: &'a str, first: &str) -> Vec<&'a str> {
    let mut parts = table.split("\n\n").map(|part| part.lines().collect::<Vec<_>>());
    parts.find(|lines| lines[0].starts_with(first)).unwrap_or_else(|| panic!("no {first} in:\n{table}"))
}

/// Makes sure that in each row something ends where each of these words of the heading does.
#[track_caller]
fn assert_aligned(rows: &[&str], words: &[&str]) {
    let ends = ends(rows[0], words);
    for row in &rows[1..] {
        let letters: Vec<char> = row.chars().collect();
        for end in &ends {
            assert!(letters[end - 1] != ' ', "nothing ends at {end}:\n{}", rows.join("\n"));
            assert!(letters.get(*end).is_none_or(|next| *next == ' '), "it goes on at {end}:\n{}", rows.join("\n"));
        }
    }
}

#[test]
fn the_table_is_aligned_and_80_columns_wide_at_the_most() {
    let service = with_much_to_show();
    let table = table(&service.running);
    assert!(table.ends_with('\n') && !table.ends_with("\n\n"), "{table:?}");
    for line in table.lines() {
        assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        assert!(!line.ends_with(' '), "{line:?}");
    }
    let pid = service.running.panzer_pid();
    let first = table.lines().next().unwrap();
    let expected = format!("panzer {}, pid {pid}, up ", env!("CARGO_PKG_VERSION"));
    assert!(first.starts_with(&expected), "{first}");
    assert!(first.contains(", generation 1: running"), "{first}");

    let listeners = part(&table, "LISTENER");
    assert_eq!(listeners.len(), 3);
    assert_aligned(&listeners, &["QUEUE", "LIMIT"]);
    assert!(listeners[1].starts_with(&service.running.listening()[0]), "{table}");
    let workers = part(&table, "SLOT");
    assert_eq!(workers.len(), 3);
    assert_eq!(
        workers[0].split_whitespace().collect::<Vec<_>>(),
        ["SLOT", "PID", "GEN", "STATE", "UP", "RESTARTS", "CPU", "MEM", "LAST", "END,", "STATUS"]
    );
    assert_aligned(&workers[..2], &["SLOT", "PID", "GEN", "UP", "RESTARTS", "CPU", "MEM"]);
    assert_aligned(&workers, &["SLOT", "GEN", "RESTARTS"]);
    let life = service.running.lives()[0];
    let words: Vec<&str> = workers[1].split_whitespace().collect();
    assert_eq!(words[..4], ["0", &life.pid.to_string(), "1", "ready"]);
    assert_eq!(words[5], "0", "{table}");
    assert!(workers[1].contains("grüße \"☃\"   and more"), "{table}");
    let words: Vec<&str> = workers[2].split_whitespace().collect();
    assert!(words[0] == "1" && words.contains(&"waiting"), "{table}");
    assert!(workers[2].contains("ended with status 3 "), "{table}");
    service.running.signal(libc::SIGTERM);
    service.running.wait_exit();
}

#[test]
fn the_table_shows_what_the_document_says() {
    let service = Service::start("-n 3 --ready fd --backoff 0:0", READY);
    service.running.wait_status("all are ready", all_ready);
    service.running.kill_worker(2);
    let status = service
        .running
        .wait_status("all are ready again", |status| all_ready(status) && row(status, 2).get("restarts").number() == 1);
    let table = table(&service.running);
    let workers = part(&table, "SLOT");
    for (slot, line) in (0..3).zip(&workers[1..]) {
        let row: &Json = rows(&status, slot)[0];
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |field: &str| row.get(field).number().to_string();
        assert_eq!(words[..4], [&number("slot"), &number("pid"), &number("generation"), "ready"], "{table}");
        assert_eq!(words[5], number("restarts"), "{table}");
    }
    assert!(workers[3].contains("was killed by SIGKILL ") && workers[3].ends_with(['o', '…']), "{table}");
    service.running.signal(libc::SIGHUP);
    service.wait_line("reloaded: ");
    let status = service.running.wait_status("it is over", |status| head(status, "state").text() == "running");
    assert_eq!(head(&status, "generation").number(), 2);
    let first = printed(&service.running.ctl("status"), 0).lines().next().unwrap().to_string();
    assert!(first.ends_with(", generation 2: running"), "{first}");
    service.end();
}

/// What the status of this panzer looks like in a terminal of so many columns, with these variables set.
fn in_terminal(running: &Running, columns: u32, variables: &str) -> Option<String> {
    let pid = running.panzer_pid();
    let script = format!(
        "stty cols {columns} rows 24 -echo; echo begin; {variables} \"$PROGRAM\" ctl --pid {pid} status; echo \"status=$?\""
    );
    let terminal = Terminal::start(&script)?;
    terminal.wait_shown("status=0");
    terminal.running.wait_exit();
    let shown = terminal.running.stdout().replace('\r', "");
    let (_, shown) = shown.split_once("begin\n").unwrap();
    Some(shown.split_once("status=0").unwrap().0.to_string())
}

/// The same without escape sequences.
fn plain(shown: &str) -> String {
    let mut parts = shown.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |text, part| {
        text + part.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest)
    })
}

#[test]
fn colour_is_for_terminals_and_for_those_who_want_it() {
    let service = with_much_to_show();
    for (variables, coloured) in
        [("TERM=xterm", true), ("TERM=xterm NO_COLOR=", true), ("TERM=xterm NO_COLOR=1", false), ("TERM=dumb", false)]
    {
        let Some(shown) = in_terminal(&service.running, 80, variables) else { break };
        assert_eq!(shown.contains('\u{1b}'), coloured, "{variables}: {shown:?}");
        assert!(plain(&shown).lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert_eq!(part(&plain(&shown), "SLOT").len(), 3, "{variables}: {shown:?}");
    }
    assert!(!table(&service.running).contains('\u{1b}'), "a pipe is no terminal");
    service.running.signal(libc::SIGTERM);
    service.running.wait_exit();
}

#[test]
fn in_a_terminal_the_table_is_as_wide_as_that() {
    let service = with_much_to_show();
    let widest = |columns| {
        let shown = in_terminal(&service.running, columns, "TERM=dumb")?;
        shown.lines().map(|line| line.chars().count()).max()
    };
    for (columns, most) in [(200, 200), (60, 60), (10, 40)] {
        let Some(widest) = widest(columns) else { break };
        assert!(widest <= most, "{columns}: {widest}");
        assert!(columns < 200 || widest > 80, "the text has more room: {widest}");
    }
    service.running.signal(libc::SIGTERM);
    service.running.wait_exit();
}

#[test]
fn a_reader_who_goes_away_is_no_panic() {
    let service = Service::start("-n 50 --ready exec --stagger 0s", "exec sleep 1000");
    service.running.wait_status("all are ready", all_ready);
    let program = text(crate::support::panzer::binary());
    for command in ["status", "status --json"] {
        let pid = service.running.panzer_pid();
        let script = format!("(sleep 0.1; {program} ctl --pid {pid} {command}; echo \"status=$?\" >&2) | true");
        let output = crate::support::panzer::Panzer::new([""; 0]).wrapper(["sh", "-c", &script]).run();
        let line = wait_for("its status", || output.stderr.lines().last().map(str::to_string));
        assert!(line.starts_with("status="), "{output:?}");
        assert!(!output.stderr.contains("panicked"), "{output:?}");
    }
    service.end();
}
