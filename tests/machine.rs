//! panzer as the init of a machine, in qemu. `scripts/test-vm` makes what this needs and runs it.

mod vm;

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::scratch::Scratch;
use crate::support::wait_until;
use vm::{Image, made};

/// What the agent's machine does.
const AGENT: &str = "workers 2\nlisten 8080\n-- /bin/setup 10.0.2.15/24 10.0.2.2 /bin/agent\n";

#[test]
#[ignore = "run by scripts/test-vm"]
fn the_example_image_serves_and_its_power_button_stops_it() {
    let size = fs::metadata(made("image.gz")).unwrap().len();
    assert!(size < 2_000_000, "the image has {size} bytes");
    let mut machine = Image::with_agent().boot("");
    for worker in ["worker=0 ", "worker=1 "] {
        wait_until(&format!("{worker}answers"), || machine.ask("GET / HTTP/1.0\r\n\r").contains(worker));
    }
    machine.wait_console("panzer: all 2 workers are ready\n");
    machine.press_power_button();
    let console = machine.wait_off();
    let lines = [
        "panzer: version ",
        "panzer: all 2 workers are ready\n",
        "panzer: SIGTERM: stopping 2 workers\n",
        "panzer: everything has stopped\n",
        "panzer: exit status 0; powering off\n",
        "reboot: Power down\n",
    ];
    assert_in_order(&console, &lines);
    assert_eq!(console.lines().count(), lines.len(), "{console}");
}

/// What a program of e2fsprogs says about a disk's file.
fn e2fs(program: &str, arguments: &[&str], disk: &Path) -> String {
    let path = "/usr/sbin:/sbin:/usr/bin:/bin";
    let output = Command::new(program).args(arguments).arg(disk).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_in_order(console: &str, lines: &[&str]) {
    let mut rest = console;
    for line in lines {
        let Some((_, after)) = rest.split_once(line) else { panic!("{line:?} is not there, or not here\n{console}") };
        rest = after;
    }
}

#[test]
#[ignore = "run by scripts/test-vm"]
fn a_machine_is_made_ready_workers_are_replaced_and_reloaded_and_ctrl_alt_del_stops_it() {
    // A directory in its place: the kernel cannot open the console for panzer, so 0 to 2 are closed at the start.
    let image = Image::with_agent().file("etc/panzer.conf", AGENT).file("run", "in the way").directory("dev/console");
    let scratch = Scratch::new();
    let disk = scratch.write("disk", "");
    fs::File::options().write(true).open(&disk).unwrap().set_len(8 << 20).unwrap();
    e2fs("mkfs.ext4", &["-q"], &disk);
    let mut machine = image.disk(&disk).boot("PANZER_WORKERS=3 -- --on-exit reboot");
    for number in 0..=2 {
        assert_eq!(machine.ask(&format!("link /proc/1/fd/{number}")), "/dev/console\n");
    }
    let mounts = machine.ask("read /proc/mounts");
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        let begin = format!("{kind} {place} {kind} rw,");
        assert_eq!(mounts.lines().filter(|line| line.starts_with(&begin)).count(), 1, "{begin}\n{mounts}");
    }
    machine.wait_console("panzer: cannot mount /run: Not a directory\n");
    assert_eq!(machine.ask("read /sys/class/net/lo/flags"), "0x9\n", "up, and lo");
    assert_eq!(machine.ask("read /proc/sys/kernel/hostname"), "panzer-vm\n");
    assert_eq!(machine.ask("link /dev/stdout"), "/proc/self/fd/1\n");
    assert!(machine.ask("read /proc/self/limits").contains("Max open files            1024                 524288"));
    // What the kernel makes a variable of panzer's is no variable of the workers'.
    assert!(machine.ask("variable PANZER_WORKERS").starts_with("error: "));
    wait_until("three workers are ready", || machine.ask("run /init ctl status").matches("  ready  ").count() == 3);

    assert!(machine.ask("run /init ctl signal KILL 1").contains("status=0"));
    machine.wait_console("was killed by SIGKILL; starting a new one");
    wait_until("it is replaced", || {
        let status = machine.ask("run /init ctl status");
        status.matches("  ready  ").count() == 3 && status.contains("SIGKILL")
    });
    assert!(machine.ask("run /init ctl reload").contains("status=0"));
    machine.wait_console("panzer: reloaded: all 3 workers are of generation 2\n");

    // What panzer hears of its own crash by is no word from others.
    for signal in [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV] {
        assert_eq!(machine.ask(&format!("signal 1 {signal}")), "sent\n");
    }
    wait_until("it goes on", || machine.ask("run /init ctl status").matches("  ready  ").count() == 3);
    // Something to be written out and unmounted.
    assert_eq!(machine.ask("mount ext4 /dev/vda /my+data"), "mounted\n");
    assert_eq!(machine.ask("write /my+data/file words"), "written\n");
    machine.press_ctrl_alt_del();
    let console = machine.wait_off();
    assert_eq!(e2fs("debugfs", &["-R", "cat file"], &disk), "words");
    let state = e2fs("dumpe2fs", &["-h"], &disk);
    assert!(state.contains("Filesystem state:         clean") && !state.contains("needs_recovery"), "{state}");
    let end = [
        "SIGINT: stopping 3 workers\n",
        "everything has stopped\n",
        "exit status 0; rebooting\n",
        "Restarting system\n",
    ];
    assert_in_order(&console, &end);
}

#[test]
#[ignore = "run by scripts/test-vm"]
fn one_child_has_the_console_as_its_terminal_and_what_is_mounted_is_left_alone() {
    let before = "mount proc proc /proc\nmount tmpfs tmpfs /tmp\nbecome /init --on-exit halt /bin/agent /etc/lines\n";
    let lines = "terminal\nread /proc/mounts\nspawn /bin/agent /etc/deaf\nexit 3\n";
    let image = Image::with_agent().file("etc/before", before).file("etc/lines", lines).file("etc/deaf", "deaf\n");
    let machine = image.file("etc/panzer.conf", "linger 100ms\n").boot("rdinit=/bin/agent -- /etc/before");
    machine.wait_console("reboot: System halted\n");
    let console = machine.console();
    assert_in_order(&console, &["foreground=", "panzer: exit status 3; halting\n"]);
    let terminal = console.lines().find(|line| line.starts_with("foreground=")).unwrap();
    let words: Vec<&str> = terminal.split(['=', ' ']).collect();
    assert_eq!((words[1], words[5]), (words[3], "1"), "the child has the terminal, in panzer's session: {terminal}");
    for place in ["/dev", "/proc", "/sys", "/dev/pts", "/dev/shm", "/run", "/tmp", "/sys/fs/cgroup"] {
        assert_eq!(console.matches(&format!(" {place} ")).count(), 1, "{place} is mounted once\n{console}");
    }
}

#[test]
#[ignore = "run by scripts/test-vm"]
fn the_power_button_ends_a_child_that_does_not_heed_term() {
    let conf = "stop TERM/1/KILL\n-- /bin/setup 10.0.2.15/24 10.0.2.2 /bin/agent /etc/lines\n";
    let machine = Image::with_agent().file("etc/panzer.conf", conf).file("etc/lines", "deaf\n");
    let mut machine = machine.boot("");
    machine.wait_console("deaf\n");
    machine.press_power_button();
    assert_in_order(&machine.wait_off(), &["panzer: exit status 137; powering off\n", "reboot: Power down\n"]);
}

#[test]
#[ignore = "run by scripts/test-vm"]
fn with_nothing_but_panzer_no_refusal_is_a_kernels_panic() {
    for (append, conf, lines) in [
        (
            "-- --bad",
            None,
            ["panzer: cannot use --bad: unknown option; see panzer -h\n", "exit status 125; powering off\n"],
        ),
        ("", None, ["panzer: cannot start: no command given; see panzer -h\n", "exit status 125; powering off\n"]),
        (
            "-- --on-exit reboot /no/such one",
            None,
            ["panzer: cannot run /no/such: No such file or directory\n", "exit status 127; rebooting\n"],
        ),
        (
            "PANZER_LINGER=1s",
            Some("linger 2x\nworkers 2\nbogus"),
            ["panzer: cannot use /etc/panzer.conf line 3: --bogus: unknown option", "exit status 125; powering off\n"],
        ),
        // The kernel takes the second one for the end.
        (
            "PANZER_WORKERS=4 -- /init --check /init -- cut",
            None,
            ["would run: /init\n", "exit status 0; powering off\n"],
        ),
    ] {
        let mut image = Image::bare();
        if let Some(conf) = conf {
            image = image.file("etc/panzer.conf", conf);
        }
        let console = image.boot(append).wait_off();
        assert_in_order(&console, &lines);
        assert!(!console.contains("cut"), "{console}");
    }
}

#[test]
#[ignore = "run by scripts/test-vm"]
fn a_crash_of_panzer_ends_the_machine_without_a_kernels_panic() {
    for (how, then, said) in [
        ("break 1", "run /init ctl status", None),
        ("limit 1 1", "run /init ctl scale 9000", Some("memory allocation of ")),
    ] {
        let mut machine = Image::with_agent().file("etc/panzer.conf", AGENT).boot("-- --on-exit reboot");
        let answer = machine.ask(how);
        assert!(!answer.starts_with("error"), "{how}: {answer}");
        let _ = machine.try_to_ask(then);
        let console = machine.wait_off();
        let end = "panzer: cannot go on: it has crashed; the machine ends\n";
        assert_in_order(&console, &[said.unwrap_or_default(), end, "reboot: Restarting system\n"]);
    }
}
