//! `panzer ctl top`: live in a terminal, which it leaves as it was.

use std::fs;
use std::process::Command;

use crate::control::status::all_ready;
use crate::support::control::assert_fails;
use crate::support::lives::{READY, Service};
use crate::support::{process, wait_for, wait_until};
use crate::terminal::Terminal;

const CTRL_C: &str = "\u{3}";
const ALTERNATE: &str = "\u{1b}[?1049h";
const NORMAL: &str = "\u{1b}[?1049l";
const HIDDEN: &str = "\u{1b}[?25l";
const SHOWN: &str = "\u{1b}[?25h";

/// `top` of a panzer in a terminal.
struct Top {
    terminal: Terminal,
    pid: u32,
}

impl Top {
    /// Starts it and waits until it shows something; None where there is no terminal to be had.
    #[track_caller]
    fn start(service: &Service, columns: u32, rows: u32) -> Option<Top> {
        Top::start_through("", service, columns, rows)
    }

    /// The same with the words of another command in front.
    #[track_caller]
    fn start_through(wrapper: &str, service: &Service, columns: u32, rows: u32) -> Option<Top> {
        let panzer = service.running.panzer_pid();
        let script = format!(
            "stty cols {columns} rows {rows}; trap : INT TERM; echo \"before=$(stty -g)\"
TERM=xterm {wrapper} \"$PROGRAM\" ctl --pid {panzer} top; echo \"status=$?\"; echo \"after=$(stty -g)\""
        );
        let terminal = Terminal::start(&script)?;
        terminal.wait_shown("RESTARTS");
        let pid = wait_for("top runs", || {
            let tree = process::tree(terminal.running.pid());
            tree.into_iter().map(|one| one.pid).find(|pid| {
                let command = process::command_line(*pid);
                command.ends_with(" top")
                    && command.contains(" ctl --pid ")
                    && !command.contains("stty")
                    && !command.contains("setsid")
            })
        });
        Some(Top { terminal, pid })
    }

    fn shown(&self) -> String {
        self.terminal.running.stdout()
    }

    /// Waits for the end, which must have this status, and makes sure that the terminal is as it was.
    #[track_caller]
    fn ended(&self, status: i32) -> String {
        self.terminal.wait_shown("after=");
        self.terminal.running.wait_exit();
        let shown = self.shown().replace('\r', "");
        assert!(shown.contains(&format!("status={status}\n")), "{shown:?}");
        let mode = |name: &str| shown.split(name).nth(1).unwrap().lines().next().unwrap().to_string();
        assert_eq!(mode("before="), mode("after="), "the terminal's modes");
        for (on, off) in [(ALTERNATE, NORMAL), (HIDDEN, SHOWN)] {
            let (on, off) = (shown.rfind(on), shown.rfind(off));
            assert!(on.is_some() && off > on, "switched on at {on:?}, off at {off:?}");
        }
        // Behind what restores it there are no more escapes.
        let (_, after) = shown.rsplit_once("status=").unwrap();
        assert!(!after.contains('\u{1b}'), "{after:?}");
        shown
    }
}

#[track_caller]
fn service() -> Service {
    let service = Service::start("-n 3 --ready fd --backoff 0:0 -l 127.0.0.1:0", READY);
    service.running.wait_status("all are ready", all_ready);
    service
}

#[test]
fn top_shows_the_workers_as_they_come_and_go() {
    let service = service();
    let Some(mut top) = Top::start(&service, 100, 30) else { return service.end() };
    for life in service.running.wait_generation(1, 3) {
        top.terminal.wait_shown(&life.pid.to_string());
    }
    top.terminal.wait_shown(&service.running.listening()[0]);
    let new = service.running.kill_worker(1);
    top.terminal.wait_shown(&new.to_string());
    top.terminal.wait_shown("was killed by SIGKILL");
    wait_until("it sleeps in between", || {
        process::status_field(top.pid, "State").is_some_and(|state| state.starts_with('S'))
    });
    top.terminal.press("q");
    top.ended(0);
    service.end();
}

#[test]
fn q_and_ctrl_c_end_it_and_other_keys_do_not() {
    let service = service();
    for key in ["q", CTRL_C] {
        let Some(mut top) = Top::start(&service, 80, 24) else { break };
        top.terminal.press("xyz\n\u{1b}[A");
        let seen = top.shown().len();
        wait_until("it goes on", || top.shown().len() > seen);
        assert!(process::alive(top.pid));
        top.terminal.press(key);
        top.ended(0);
    }
    service.end();
}

/// As with `docker exec -it`: the terminal is there as stdin, stdout and stderr only.
#[test]
fn a_terminal_that_does_not_control_it_will_do() {
    let service = service();
    let Some(mut top) = Top::start_through("setsid -w", &service, 80, 24) else { return service.end() };
    let stat = fs::read_to_string(format!("/proc/{}/stat", top.pid)).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let (session, controlling) = (fields[3], fields[4]);
    assert_eq!((session, controlling), (top.pid.to_string().as_str(), "0"), "{stat}");
    for descriptor in 0..3 {
        let path = fs::read_link(format!("/proc/{}/fd/{descriptor}", top.pid)).unwrap();
        assert!(path.starts_with("/dev/pts"), "{descriptor} is {}", path.display());
    }
    let new = service.running.kill_worker(1);
    top.terminal.wait_shown(&new.to_string());
    top.terminal.press("q");
    top.ended(0);
    service.end();
}

#[test]
fn signals_end_it_and_leave_the_terminal_as_it_was() {
    let service = service();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let Some(top) = Top::start(&service, 80, 24) else { break };
        process::send_signal(top.pid, signal);
        top.ended(0);
    }
    service.end();
}

#[test]
fn when_panzer_goes_away_top_says_so_on_the_restored_terminal() {
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let service = service();
        let Some(top) = Top::start(&service, 80, 24) else { return service.end() };
        service.running.signal(signal);
        service.running.wait_exit();
        let shown = top.ended(1);
        let (_, after) = shown.rsplit_once(NORMAL).unwrap();
        assert!(after.contains("panzer: "), "it is said where it can be read: {after:?}");
        wait_until("nothing is left", || service.running.leftovers().is_empty());
    }
}

#[test]
fn a_terminal_of_another_size_is_filled_anew() {
    let service = service();
    let Some(mut top) = Top::start(&service, 100, 30) else { return service.end() };
    let terminal = fs::read_link(format!("/proc/{}/fd/0", top.pid)).unwrap();
    let resize = |columns: &str, rows: &str| {
        let done = Command::new("stty").arg("-F").arg(&terminal).args(["cols", columns, "rows", rows]).status();
        assert!(done.unwrap().success());
    };
    for (columns, rows) in [(50, 10), (120, 40), (20, 4), (1, 1), (80, 24)] {
        resize(&columns.to_string(), &rows.to_string());
        let seen = top.shown().len();
        // What was on its way may still be as wide as before.
        wait_until(&format!("it is drawn anew, {columns} by {rows}"), || {
            let shown = String::from_utf8_lossy(&top.shown().as_bytes()[seen..]).into_owned();
            let frames: Vec<&str> = shown.split("\u{1b}[H").collect();
            let [.., last, _] = frames[..] else { return false };
            let widest = last.split(['\r', '\n']).map(|line| visible(line).chars().count()).max().unwrap();
            frames.len() >= 4 && widest <= columns.max(40) && last.split('\n').count() <= usize::max(rows, 1)
        });
    }
    top.terminal.press("q");
    top.ended(0);
    service.end();
}

/// A line without its escape sequences.
fn visible(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |text, part| {
        text + part.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest)
    })
}

#[test]
fn ctrl_z_is_a_key_like_any_other_and_the_shell_gets_its_terminal_back() {
    let service = service();
    let panzer = service.running.panzer_pid();
    let Some(mut terminal) = Terminal::start("stty cols 80 rows 24; exec sh -i") else { return service.end() };
    terminal.press(&format!("TERM=xterm \"$PROGRAM\" ctl --pid {panzer} top\n"));
    terminal.wait_shown("RESTARTS");
    terminal.press("\u{1a}");
    let seen = terminal.running.stdout().len();
    wait_until("it goes on", || terminal.running.stdout().len() > seen);
    terminal.press("q");
    terminal.wait_shown(NORMAL);
    // What is typed before the shell reads again may be lost.
    let prompt = |shown: String| shown.rsplit_once(NORMAL).is_some_and(|(_, after)| after.contains(['#', '$']));
    wait_until("the shell asks for a command", || prompt(terminal.running.stdout()));
    terminal.press("echo \"sum=$((40 + 2))\"\nstty -a\nexit 0\n");
    terminal.wait_shown("sum=42");
    terminal.running.wait_exit();
    let shown = terminal.running.stdout();
    let (_, modes) = shown.rsplit_once("sum=42").unwrap();
    let modes: Vec<&str> = modes.split_ascii_whitespace().collect();
    for mode in ["icanon", "echo", "isig"] {
        assert!(modes.contains(&mode), "no {mode}: {modes:?}");
    }
    service.end();
}

#[test]
fn without_a_terminal_top_is_refused() {
    let service = service();
    assert_fails(&service.running.ctl("top"), 125, &["panzer: cannot ", "terminal"]);
    service.end();
}
