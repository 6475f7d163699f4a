//! `podman run -it`: a shell in the container at a terminal, which `script` of util-linux makes.

use std::process::Command;

use crate::init_mode::wait_state;
use crate::support::engine::{Container, Removed, new_name, settings};
use crate::support::{process, wait_for, wait_until};
use crate::terminal::Terminal;

/// podman at a terminal.
#[track_caller]
fn podman_at_terminal(arguments: &str) -> Terminal {
    let settings = settings().display().to_string();
    let script = format!(
        "export CONTAINERS_CONF={settings}/containers.conf CONTAINERS_STORAGE_CONF={settings}/storage.conf; \
         stty rows 41 cols 123; exec podman {arguments}"
    );
    Terminal::start(&script).expect("there is script(1)")
}

/// A container at a terminal, of this image with these arguments, and what removes it.
#[track_caller]
fn terminal(command: &str) -> (Terminal, Removed) {
    let removed = Removed(new_name());
    (podman_at_terminal(&format!("run --rm -it --network none --name {} {command}", removed.0)), removed)
}

/// Waits until a process with this command line, which no other test has, is in its terminal's foreground.
#[track_caller]
fn wait_foreground(command: &str) -> u32 {
    wait_for(&format!("{command} has the terminal"), || {
        let mut all = process::all().into_iter();
        let found = all.find(|one| process::command_line(one.pid) == command)?;
        // What the kernel says of a terminal's group is a number in this namespace.
        (process::foreground_group(found.pid) == Some(found.pgid)).then_some(found.pid)
    })
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn a_shell_at_a_terminal_has_job_control() {
    let (mut terminal, _removed) = terminal("localhost/panzer-tools -- sh -i");
    terminal.press("echo pid=$$ size=$(stty size)\n");
    terminal.wait_shown("size=41 123");
    assert!(!terminal.running.stdout().contains("job control turned off"), "{}", terminal.running.stdout());
    // Ctrl-C ends what runs, and not the shell.
    terminal.press("sleep 98761\n");
    wait_foreground("sleep 98761");
    terminal.press("\u{3}");
    terminal.press("echo after=$?\n");
    terminal.wait_shown("after=130");
    // Ctrl-Z stops it, and fg resumes it.
    terminal.press("sleep 98762\n");
    let sleep = wait_foreground("sleep 98762");
    terminal.press("\u{1a}");
    wait_state(sleep, true, "Ctrl-Z stops it");
    terminal.press("echo stopped=$?; jobs\n");
    terminal.wait_shown("stopped=148");
    terminal.wait_shown("Stopped");
    terminal.press("fg\n");
    wait_state(sleep, false, "fg resumes it");
    wait_foreground("sleep 98762");
    terminal.press("\u{3}");
    terminal.press("echo again=$?\n");
    terminal.wait_shown("again=130");
    terminal.press("exit 5\n");
    assert_eq!(terminal.running.wait_exit().code(), Some(5));
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn a_window_that_changes_its_size_is_told_of() {
    let script = "trap 'stty size' WINCH; echo up; while :; do sleep 0.1; done";
    let (mut terminal, _removed) = terminal(&format!("localhost/panzer-tools -- sh -c \"{script}\""));
    terminal.wait_shown("up");
    // The terminal that podman itself is at.
    let podman = wait_for("podman runs", || {
        let tree = process::tree(terminal.running.pid());
        tree.iter().find(|one| one.comm == "podman").map(|one| one.pid)
    });
    let device = std::fs::read_link(format!("/proc/{podman}/fd/0")).unwrap();
    let changed = Command::new("stty").arg("-F").arg(device).args(["rows", "33", "cols", "77"]).status().unwrap();
    assert!(changed.success());
    terminal.wait_shown("33 77");
    terminal.press("\u{3}");
    // The shell ends by the signal.
    assert_eq!(terminal.running.wait_exit().code(), Some(130));
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn ctrl_c_stops_workers_at_a_terminal() {
    let (mut terminal, _removed) = terminal("localhost/panzer-tools -n 2 --ready exec -- sleep 1000");
    wait_until("they are ready", || terminal.running.stdout().contains("all 2 workers are ready"));
    terminal.press("\u{3}");
    assert_eq!(terminal.running.wait_exit().code(), Some(0));
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn top_works_over_exec_and_the_terminal_is_itself_again() {
    let command = ["-n", "3", "--ready", "exec", "--", "sleep", "1000"];
    let container = Container::start("panzer-tools", &["--network", "none"], &command);
    container.wait_line("all 3 workers are ready");
    for key in ["q", "\u{3}"] {
        let mut terminal = podman_at_terminal(&format!("exec -it {} panzer ctl top", container.name()));
        terminal.wait_shown("RESTARTS");
        process::send_signal(container.workers()[0], libc::SIGKILL);
        terminal.wait_shown("was killed by SIGKILL");
        terminal.press(key);
        assert_eq!(terminal.running.wait_exit().code(), Some(0));
        let shown = terminal.running.stdout();
        let (to, back) = (shown.rfind("\u{1b}[?1049h"), shown.rfind("\u{1b}[?1049l"));
        assert!(to.is_some() && back > to, "the screen that was there is back: {shown:?}");
    }
    assert_eq!(container.wait_workers(3).len(), 3);
}
