//! Job control: panzer and its child in a terminal, which `script` of util-linux makes.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::init_mode::wait_state;
use crate::support::panzer::{Panzer, Running};
use crate::support::report::{Report, recorded};
use crate::support::scratch::Scratch;
use crate::support::{example, holds_for, process, wait_for, wait_until};

const CTRL_C: &str = "\u{3}";
const CTRL_Z: &str = "\u{1a}";
const CTRL_BACKSLASH: &str = "\u{1c}";

/// What a shell does in a terminal, and the keys that are pressed there.
///
/// The shell finds the program under test as `$PROGRAM`, the probe as `$PROBE` and the path of its
/// report as `$OUT`.
pub(crate) struct Terminal {
    pub(crate) running: Running,
    keys: File,
    pub(crate) scratch: Scratch,
}

impl Terminal {
    /// Starts a shell that leads the session, or returns None where there is no `script`.
    #[track_caller]
    pub(crate) fn start(shell_script: &str) -> Option<Terminal> {
        if !is_there("script") {
            eprintln!("left out: there is no script(1) to make a terminal with");
            return None;
        }
        let scratch = Scratch::new();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let wrapper = ["sh", "-c", r#"PROGRAM=$1; export PROGRAM; exec script -qec "$0" /dev/null"#, shell_script];
        let running = Panzer::new([""; 0])
            .wrapper(wrapper)
            .env("SHELL", "/bin/sh")
            .env("PROBE", example("probe"))
            .env("OUT", scratch.path("out"))
            .stdin(reader)
            .start();
        Some(Terminal { running, keys: File::from(writer), scratch })
    }

    /// Starts an interactive shell, each one that there is.
    fn interactive() -> impl Iterator<Item = (&'static str, Terminal)> {
        let shells = [("sh", "exec sh -i"), ("bash", "exec bash --norc --noprofile -i")];
        shells
            .into_iter()
            .filter(|(name, _)| {
                let found = is_there(name);
                if !found {
                    eprintln!("left out: there is no {name}");
                }
                found
            })
            .filter_map(|(name, command)| Some((name, Terminal::start(command)?)))
    }

    #[track_caller]
    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn out(&self) -> PathBuf {
        self.scratch.path("out")
    }

    #[track_caller]
    pub(crate) fn wait_shown(&self, text: &str) {
        wait_until(&format!("the terminal shows {text:?}"), || self.running.stdout().contains(text));
    }

    /// Ends the interactive shell.
    #[track_caller]
    fn exit(mut self) {
        self.press("exit 0\n");
        assert_eq!(self.running.wait_exit().code(), Some(0));
    }
}

fn is_there(program: &str) -> bool {
    let check = Command::new("sh").args(["-c", r#"command -v "$0""#, program]).stdout(Stdio::null()).status();
    check.is_ok_and(|status| status.success())
}

#[track_caller]
fn wait_foreground(pid: u32, group: u32, what: &str) {
    wait_until(what, || process::foreground_group(pid) == Some(group));
}

#[test]
fn the_childs_group_is_the_terminals_foreground_group() {
    let Some(terminal) = Terminal::start(r#""$PROGRAM" -- "$PROBE" "$OUT"; exit $?"#) else { return };
    assert_eq!(terminal.running.wait_exit().code(), Some(0));
    let report = Report::wait(&terminal.out());
    assert_eq!(report.get("tty_foreground"), report.get("pgid"));
    assert_eq!(report.get("pgid"), report.get("pid"));
}

#[test]
fn a_panzer_that_leads_the_session_gives_its_child_the_terminal_too() {
    let Some(terminal) = Terminal::start(r#"exec "$PROGRAM" -- "$PROBE" "$OUT" exit=7"#) else { return };
    assert_eq!(terminal.running.wait_exit().code(), Some(7));
    let report = Report::wait(&terminal.out());
    assert_eq!(report.get("tty_foreground"), report.get("pgid"));
    assert_ne!(report.get("pgid"), report.get("sid"));
}

#[test]
fn the_child_reads_from_the_terminal_and_what_comes_after_panzer_does() {
    // The shell has no job control: it stays in panzer's group and depends on panzer's giving back.
    for (command, status) in [
        (r#"sh -c 'read line; echo "child has $line"; exit 4'"#, 4),
        (r#"sh -c 'read line; echo "child has $line"; kill -KILL $$'"#, 137),
        (r#"sh -c 'read line; echo "child has $line"; sleep 1000 & exit 5'"#, 5),
    ] {
        let script = format!(r#""$PROGRAM" -- {command}; echo "status=$?"; read line; echo "shell has $line"; exit 6"#);
        let Some(mut terminal) = Terminal::start(&script) else { return };
        terminal.press("one\n");
        terminal.wait_shown("child has one");
        terminal.wait_shown(&format!("status={status}"));
        terminal.press("two\n");
        terminal.wait_shown("shell has two");
        assert_eq!(terminal.running.wait_exit().code(), Some(6), "{command}");
    }
}

#[test]
fn keys_that_send_signals_reach_the_child() {
    for (key, status) in [(CTRL_C, 130), (CTRL_BACKSLASH, 131)] {
        // The shell is in panzer's group: were that the foreground group, the key would end the shell.
        let script = r#"ulimit -c 0; "$PROGRAM" -- "$PROBE" "$OUT" default sleep; echo "status=$?"; exit 3"#;
        let Some(mut terminal) = Terminal::start(script) else { return };
        Report::wait(&terminal.out());
        terminal.press(key);
        terminal.wait_shown(&format!("status={status}"));
        assert_eq!(terminal.running.wait_exit().code(), Some(3));
    }
}

#[test]
fn a_key_reaches_the_child_once() {
    let script = r#""$PROGRAM" -- "$PROBE" "$OUT" "record=$OUT.log"; exit $?"#;
    let Some(mut terminal) = Terminal::start(script) else { return };
    let child = Report::wait(&terminal.out()).number("pid");
    let log = terminal.scratch.path("out.log");
    for count in 1..=3 {
        terminal.press(CTRL_C);
        let expected = vec![libc::SIGINT; count];
        wait_until(&format!("{count} INT came"), || recorded(&log).len() >= count);
        assert_eq!(recorded(&log), expected, "by the terminal alone: no CONT follows, and no copy from panzer");
    }
    process::send_signal(terminal.running.panzer_pid(), 64);
    wait_until("the last signal came", || recorded(&log).last() == Some(&64));
    assert_eq!(recorded(&log), [libc::SIGINT, libc::SIGINT, libc::SIGINT, 64]);
    process::send_signal(child, libc::SIGKILL);
    assert_eq!(terminal.running.wait_exit().code(), Some(137));
}

#[test]
fn ctrl_z_stops_child_and_panzer_and_fg_resumes_them() {
    for (name, mut terminal) in Terminal::interactive() {
        terminal.press("\"$PROGRAM\" -- \"$PROBE\" \"$OUT\" default sleep\n");
        let report = Report::wait(&terminal.out());
        let (child, group, shell) = (report.number("pid"), report.number("pgid"), report.number("sid"));
        let panzer = terminal.running.panzer_pid();
        assert_eq!(report.number("tty_foreground"), group, "{name}");
        for round in 1..=2 {
            terminal.press(CTRL_Z);
            for pid in [child, panzer] {
                wait_state(pid, true, &format!("{name}: Ctrl-Z stops {pid}, time {round}"));
            }
            wait_foreground(shell, shell, &format!("{name}: the shell has the terminal"));
            terminal.press("fg\n");
            for pid in [child, panzer] {
                wait_state(pid, false, &format!("{name}: fg resumes {pid}, time {round}"));
            }
            wait_foreground(shell, group, &format!("{name}: the child has the terminal again"));
        }
        terminal.press(CTRL_C);
        wait_until("both have ended", || !process::alive(child) && !process::alive(panzer));
        terminal.press("echo \"status=$?\"\n");
        terminal.wait_shown("status=130");
        terminal.exit();
    }
}

#[test]
fn a_child_that_stops_itself_is_followed_and_can_be_resumed_in_the_background() {
    for (name, mut terminal) in Terminal::interactive() {
        terminal.press("\"$PROGRAM\" -- \"$PROBE\" \"$OUT\" default kill=20 sleep\n");
        let report = Report::wait(&terminal.out());
        let (child, shell) = (report.number("pid"), report.number("sid"));
        let panzer = terminal.running.panzer_pid();
        for pid in [child, panzer] {
            wait_state(pid, true, &format!("{name}: {pid} is stopped"));
        }
        terminal.press("bg\n");
        for pid in [child, panzer] {
            wait_state(pid, false, &format!("{name}: bg resumes {pid}"));
        }
        assert_eq!(process::foreground_group(shell), Some(shell), "{name}: the terminal stays with the shell");
        terminal.press("kill %1; wait %1; echo \"status=$?\"\n");
        terminal.wait_shown("status=143");
        terminal.exit();
    }
}

#[test]
fn a_panzer_in_the_background_leaves_the_terminal_alone() {
    for (name, mut terminal) in Terminal::interactive() {
        terminal.press("\"$PROGRAM\" -- \"$PROBE\" \"$OUT\" sleep &\n");
        let report = Report::wait(&terminal.out());
        let shell = report.number("sid");
        assert_eq!(report.number("tty_foreground"), shell, "{name}");
        terminal.press("echo \"sum=$((40 + 2))\"\n");
        terminal.wait_shown("sum=42");
        terminal.press("kill %1; wait %1; echo \"status=$?\"\n");
        terminal.wait_shown("status=143");
        assert_eq!(process::foreground_group(shell), Some(shell), "{name}");
        terminal.exit();
    }
}

#[test]
fn in_supervise_mode_ctrl_c_stops_the_workers() {
    // The shell in panzer's group would end as well.
    let script =
        r#"trap : INT; mkdir "$OUT"; "$PROGRAM" -n 2 -- "$PROBE" "$OUT/" default sleep; echo "status=$?"; exit 3"#;
    let Some(mut terminal) = Terminal::start(script) else { return };
    let workers = terminal.running.wait_workers(2);
    let panzer = process::stat(terminal.running.panzer_pid()).expect("panzer runs");
    for worker in workers {
        let report = wait_for("its report", || {
            let path = terminal.out().join(worker.to_string());
            path.exists().then(|| Report::wait(&path))
        });
        assert_eq!(report.number("pgid"), worker);
        assert_eq!(process::foreground_group(worker), Some(panzer.pgid), "the terminal stays with panzer");
    }
    terminal.press(CTRL_C);
    terminal.wait_shown("status=0");
    assert_eq!(terminal.running.wait_exit().code(), Some(3));
}

#[test]
fn ctrl_z_stops_the_script_that_waits_for_panzer_too() {
    for (name, mut terminal) in Terminal::interactive() {
        // The script is in panzer's group; were it not stopped, the shell would wait for it for ever.
        terminal.press("sh -c '\"$PROGRAM\" -- \"$PROBE\" \"$OUT\" default sleep; echo over=$?'\n");
        let report = Report::wait(&terminal.out());
        let (child, group, shell) = (report.number("pid"), report.number("pgid"), report.number("sid"));
        terminal.press(CTRL_Z);
        wait_foreground(shell, shell, &format!("{name}: the shell has the terminal"));
        terminal.press("fg\n");
        wait_state(child, false, &format!("{name}: fg resumes the child"));
        wait_foreground(shell, group, &format!("{name}: the child has the terminal again"));
        terminal.press(CTRL_C);
        terminal.wait_shown("over=130");
        terminal.exit();
    }
}

#[test]
fn a_panzer_from_the_background_gives_its_child_the_terminal_after_fg() {
    for (name, mut terminal) in Terminal::interactive() {
        terminal.press("\"$PROGRAM\" -- sh -c '\"$PROBE\" \"$OUT\"; read line; echo \"child has $line\"' &\n");
        let report = Report::wait(&terminal.out());
        let (group, shell) = (report.number("pgid"), report.number("sid"));
        // It wants to read, is stopped for it, and panzer with it.
        wait_state(group, true, &format!("{name}: the child waits for the terminal"));
        wait_state(terminal.running.panzer_pid(), true, &format!("{name}: panzer stops with it"));
        terminal.press("fg\n");
        wait_foreground(shell, group, &format!("{name}: the child has the terminal"));
        terminal.press("hello\n");
        terminal.wait_shown("child has hello");
        terminal.exit();
    }
}

#[test]
fn where_nobody_could_resume_it_ctrl_z_does_not_stop_the_child() {
    // panzer leads the session, as with `docker run -it`.
    let script = r#"exec "$PROGRAM" -- sh -c '"$PROBE" "$OUT"; read line; echo "child has $line"; exit 8'"#;
    let Some(mut terminal) = Terminal::start(script) else { return };
    Report::wait(&terminal.out());
    terminal.press(CTRL_Z);
    terminal.press("hello\n");
    terminal.wait_shown("child has hello");
    assert_eq!(terminal.running.wait_exit().code(), Some(8));
}

#[test]
fn ctrl_z_stops_workers_and_panzer_and_fg_resumes_them() {
    for (name, mut terminal) in Terminal::interactive() {
        terminal.press("\"$PROGRAM\" -n 1 -- \"$PROBE\" \"$OUT\" default sleep\n");
        let worker = Report::wait(&terminal.out()).number("pid");
        let panzer = terminal.running.panzer_pid();
        terminal.press(CTRL_Z);
        for pid in [worker, panzer] {
            wait_state(pid, true, &format!("{name}: Ctrl-Z stops {pid}"));
        }
        terminal.press("fg\n");
        for pid in [worker, panzer] {
            wait_state(pid, false, &format!("{name}: fg resumes {pid}"));
        }
        terminal.press(CTRL_C);
        wait_until("both have ended", || !process::alive(worker) && !process::alive(panzer));
        terminal.exit();
    }
}

#[test]
fn workers_that_ctrl_z_has_stopped_were_not_silent() {
    let Some((_, mut terminal)) = Terminal::interactive().next() else { return };
    terminal.press("\"$PROGRAM\" -n 1 --ready exec --watchdog 4s -- \"$PROBE\" \"$OUT\" beat=\"$OUT.never\"\n");
    let worker = Report::wait(&terminal.out()).number("pid");
    let panzer = terminal.running.panzer_pid();
    terminal.press(CTRL_Z);
    for pid in [worker, panzer] {
        wait_state(pid, true, &format!("Ctrl-Z stops {pid}"));
    }
    // Longer than it may be silent.
    thread::sleep(Duration::from_secs(5));
    terminal.press("fg\n");
    wait_state(worker, false, "fg resumes it");
    holds_for(Duration::from_secs(1), "it is left alone", || process::alive(worker));
    terminal.press(CTRL_C);
    wait_until("both have ended", || !process::alive(worker) && !process::alive(panzer));
    terminal.exit();
}
