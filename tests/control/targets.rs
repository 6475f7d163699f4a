//! Which panzer `panzer ctl` asks, and who may ask it.

use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use super::status::all_ready;
use crate::support::binders::{Binders, as_pid1, is_root, left_out};
use crate::support::control::{assert_fails, body, connect, control_name, ctl, exchange, head, printed};
use crate::support::json::Json;
use crate::support::lives::{READY, Service};
use crate::support::panzer::{Panzer, Running, binary, shell_status};
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, text, through_shell};
use crate::support::{process, wait_for, wait_until};

const SLEEP: [&str; 2] = ["sleep", "1000"];

#[track_caller]
fn start(options: &str) -> Running {
    let running = panzer(&format!("--ready exec {options}"), &SLEEP).start();
    running.wait_line(" ready");
    running
}

/// Whether a document is the one of this panzer.
#[track_caller]
fn is_of(document: &str, running: &Running) -> bool {
    head(&Json::parse(document), "pid").number() == u64::from(running.panzer_pid())
}

/// A process that is no panzer.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Sleeper {
        Sleeper(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// Which one

#[test]
fn a_target_may_be_given_in_each_way() {
    let scratch = Scratch::new();
    let file = scratch.path("pid");
    let running = start(&format!("-n 1 --pid-file {}", file.display()));
    let other = start("-n 2");
    let pid = running.panzer_pid().to_string();
    for words in [format!("--pid {pid}"), format!("--pid={pid}"), format!("--pid-file {}", file.display())] {
        for line in
            [format!("{words} status --json"), format!("status {words} --json"), format!("status --json {words}")]
        {
            // What was typed wins over what is set.
            for (name, value) in
                [("PANZER_PID", other.panzer_pid().to_string()), ("PANZER_CONTROL", "/nowhere".to_string())]
            {
                let output = ctl(&line).env(name, value).run();
                assert!(is_of(printed(&output, 0), &running), "{line}");
            }
        }
    }
    for control in ["", "off"] {
        let output = ctl("status --json").env("PANZER_PID", &pid).env("PANZER_CONTROL", control).run();
        assert!(is_of(printed(&output, 0), &running), "{control}");
    }
    running.ends_with(libc::SIGTERM, 0);
    other.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_target_that_was_asked_for_and_is_none_is_an_error() {
    let scratch = Scratch::new();
    let sleeper = Sleeper::start();
    let pid = sleeper.0.id().to_string();
    let stale = scratch.write("stale", &format!("{pid}\n"));
    let garbage = scratch.write("garbage", "nonsense\n");
    let empty = scratch.write("empty", "");
    let missing = scratch.path("missing");
    let cases = [
        (format!("--pid {pid}"), pid.clone()),
        ("--pid 0".to_string(), "0".to_string()),
        ("--pid -1".to_string(), "-1".to_string()),
        ("--pid 99999999999".to_string(), "99999999999".to_string()),
        ("--pid self".to_string(), "self".to_string()),
        (format!("--pid-file {}", stale.display()), pid),
        (format!("--pid-file {}", garbage.display()), text(&garbage)),
        (format!("--pid-file {}", empty.display()), text(&empty)),
        (format!("--pid-file {}", missing.display()), text(&missing)),
        (format!("--control {}", missing.display()), text(&missing)),
        (format!("--control {}", stale.display()), text(&stale)),
    ];
    for (words, part) in cases {
        for command in ["status", "ready", "reload --wait", "stop"] {
            assert_fails(&ctl(&format!("{words} {command}")).run(), 125, &["panzer: cannot ", &part]);
        }
    }
}

#[test]
fn a_worker_finds_its_own_panzer() {
    // Service gives no path to panzer itself: the script finds it as its parent.
    let script = "PROGRAM=$(readlink /proc/$PANZER_PID/exe)
until $PROGRAM ctl status --json >$DIR/new 2>$DIR/error; do sleep 0.01; done
mv $DIR/new $DIR/status; exec $PROBE - ready sleep";
    let service = Service::start("-n 1 --ready fd", script);
    let other = start("-n 1");
    let path = service.scratch.path("status");
    let document = wait_for("the worker has asked", || fs::read_to_string(&path).ok());
    assert!(is_of(&document, &service.running));
    service.end();
    other.ends_with(libc::SIGTERM, 0);
}

/// Runs a shell script as PID 1 of a namespace, to its end; it finds panzer as `$1`.
#[track_caller]
fn in_namespace(script: &str) -> Option<String> {
    let Some(wrapper) = as_pid1() else {
        left_out("what is found in a PID namespace: unshare does not work here");
        return None;
    };
    let running = Panzer::new([""; 0]).wrapper(wrapper).wrapper(["sh", "-c", script, "sh"]).start();
    let status = running.wait_exit();
    assert_eq!(shell_status(status), 0, "{}", running.stderr());
    Some(running.stdout())
}

#[test]
fn without_a_target_it_is_the_only_one_that_can_be_seen() {
    let script = r#"ask() { said=$(env $2 "$p" ctl ready 2>&1); echo "$1: $said, $?"; }
p=$1
ask none
"$p" -n 1 --ready exec -- sleep 1000 2>/dev/null & a=$!
until "$p" ctl --pid $a ready >/dev/null 2>&1; do sleep 0.01; done
ask one
ask wrong PANZER_PID=4000000
ask passed PANZER_CONTROL=off
"$p" -n 2 --ready exec -- sleep 2000 2>/dev/null & b=$!
until "$p" ctl --pid $b ready >/dev/null 2>&1; do sleep 0.01; done
echo "pids: $a $b"
ask two
ask first PANZER_PID=$a
ask second PANZER_PID=$b
kill $a; wait $a
ask left
kill -9 $b; wait $b
ask gone
exit 0
"#;
    let Some(output) = in_namespace(script) else { return };
    let said = |name: &str| -> Vec<String> {
        let prefix = format!("{name}: ");
        // An answer may have several lines.
        let mut found = Vec::new();
        for line in output.lines() {
            match line.strip_prefix(&prefix) {
                Some(rest) => found.push(rest.to_string()),
                None if !found.is_empty() && !line.contains(": ") => found.push(line.to_string()),
                None if !found.is_empty() => break,
                None => {}
            }
        }
        found
    };
    for nothing in ["none", "gone"] {
        assert!(said(nothing)[0].starts_with("panzer: cannot find a panzer: "), "{output}");
        assert!(said(nothing)[0].ends_with(", 125"), "{output}");
    }
    for one in ["one", "first"] {
        assert_eq!(said(one), ["1 of 1 workers are ready, 0"], "{output}");
    }
    assert_eq!(said("passed"), ["1 of 1 workers are ready, 0"], "{output}");
    // Whoever was named is asked, or nobody: another one may be somebody else's.
    assert!(said("wrong")[0].starts_with("panzer: cannot ask panzer (pid 4000000): "), "{output}");
    for two in ["second", "left"] {
        assert_eq!(said(two), ["2 of 2 workers are ready, 0"], "{output}");
    }
    let (_, listed) = output.split_once("\ntwo: ").unwrap();
    let (listed, _) = listed.split_once("\nfirst: ").unwrap();
    assert!(listed.starts_with("panzer: cannot ") && listed.ends_with(", 125"), "{output}");
    let pids = said("pids").concat();
    let commands = ["-n 1 --ready exec -- sleep 1000", "-n 2 --ready exec -- sleep 2000"];
    for part in pids.split(' ').chain(commands) {
        assert!(listed.contains(part), "no {part} in {listed}");
    }
}

#[test]
fn of_several_it_is_the_one_of_the_same_container_in_a_pod_that_shares_its_processes() {
    let script = r#"ask() { said=$("$@" ctl ready 2>&1); echo "$said, $?"; }
p=$1
start() { "$@" --ready exec -- sleep 1000 2>/dev/null & until "$p" ctl --pid $! ready >/dev/null 2>&1; do sleep 0.01; done; }
start unshare --mount "$p" -n 1; a=$!
start unshare --mount "$p" -n 3; b=$!
start "$p" -n 2
echo "one: $(ask nsenter --mount=/proc/$a/ns/mnt "$p")"
echo "other: $(ask nsenter --mount=/proc/$b/ns/mnt "$p")"
echo "none: $(ask unshare --mount "$p")"
echo "host: $(ask "$p")"
exit 0
"#;
    let Some(output) = in_namespace(script) else { return };
    assert!(output.contains("one: 1 of 1 workers are ready, 0\nother: 3 of 3 workers are ready, 0\n"), "{output}");
    // Where PID 1 has the same files nobody is in a container: the one that happens to be there as well is not meant more.
    for place in ["none", "host"] {
        let refusal = format!("{place}: panzer: cannot choose a panzer: there are several; use --pid:");
        assert!(output.contains(&refusal), "{output}");
    }
}

#[test]
fn as_pid_1_it_is_found_without_anything() {
    let Some(wrapper) = as_pid1() else {
        return left_out("panzer as PID 1: unshare does not work here");
    };
    let directory = Binders::directory();
    let file = directory.path("status");
    let script = r#"until env -u PANZER_PID "$0" ctl status --json >"$1.new" 2>"$1.error"; do sleep 0.01; done
mv "$1.new" "$1"; exec sleep 1000"#;
    let command = ["sh", "-c", script, &text(binary()), &text(&file)].map(str::to_string);
    let running = panzer("-n 1 --ready exec", &command).wrapper(&wrapper).start();
    let document = wait_for("the worker has asked", || fs::read_to_string(&file).ok());
    assert_eq!(head(&Json::parse(&document), "pid").number(), 1);

    // What comes from outside, as `docker exec` does.
    let target = running.panzer_pid().to_string();
    let mut enter = vec!["nsenter", "--target", &target, "--pid", "--mount"];
    if !is_root() {
        enter.extend(["--user", "--preserve-credentials"]);
    }
    let works = Command::new(enter[0]).args(&enter[1..]).arg("true").output();
    if works.is_ok_and(|output| output.status.success()) {
        let output = ctl("ready").wrapper(enter).run();
        assert_eq!(printed(&output, 0), "1 of 1 workers are ready\n");
    } else {
        left_out("ctl from outside of a PID namespace: nsenter does not work here");
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn it_may_be_called_panzerctl() {
    let scratch = Scratch::new();
    let running = start("-n 3");
    let pid = running.panzer_pid().to_string();
    let link = scratch.path("panzerctl");
    symlink(binary(), &link).unwrap();
    let copy = scratch.path("copy");
    fs::create_dir(&copy).unwrap();
    // Not by this process: what another test starts meanwhile would have the file open for writing until it executes.
    assert!(Command::new("cp").args([&binary(), &copy.join("panzerctl")]).status().unwrap().success());
    for file in [&link, &copy.join("panzerctl")] {
        let mut command = Command::new(file);
        let output = command.env_remove("PANZER_CONTROL").args(["--pid", &pid, "ready"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "3 of 3 workers are ready\n", "{output:?}");
        assert_eq!(output.status.code(), Some(0));
    }
    // Only the first word means that.
    let output = panzer("", &["echo", "ctl"]).run();
    assert_eq!((output.stdout.as_str(), output.status.code()), ("ctl\n", Some(0)));
    running.ends_with(libc::SIGTERM, 0);
}

// A path in the file system

#[test]
fn the_control_socket_may_stand_in_the_file_system() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let running = start(&format!("-n 1 --control {}", path.display()));
    let found = fs::metadata(&path).unwrap();
    assert_eq!(found.mode() & 0o777, 0o600, "nobody else can even connect");
    assert_eq!(found.uid(), rustix::process::geteuid().as_raw());
    for output in [
        ctl(&format!("--control {} ready", path.display())).run(),
        ctl("ready").env("PANZER_CONTROL", &path).run(),
        ctl("ready").env("PANZER_CONTROL", &path).env("PANZER_PID", "1").run(),
        ctl("--control socket ready").cwd(scratch.directory()).run(),
    ] {
        assert_eq!(printed(&output, 0), "1 of 1 workers are ready\n");
    }
    drop(connect(&running.control_name()).expect("whoever knows its pid finds it all the same"));
    running.kill_worker(0);
    assert!(path.exists());
    running.ends_with(libc::SIGTERM, 0);
    assert!(!path.exists(), "it is removed at the end");
}

#[test]
fn a_path_may_be_given_by_a_variable_and_relative_to_where_panzer_was_started() {
    let scratch = Scratch::new();
    let running =
        panzer("-n 1 --ready exec -d /", &SLEEP).cwd(scratch.directory()).env("PANZER_CONTROL", "socket").start();
    running.wait_line("the worker is ready");
    let path = scratch.path("socket");
    let output = ctl(&format!("--control {} ready", path.display())).run();
    assert_eq!(printed(&output, 0), "1 of 1 workers are ready\n");
    running.ends_with(libc::SIGTERM, 0);
    assert!(!path.exists());
}

#[test]
fn a_path_that_a_killed_panzer_left_is_taken_and_one_in_use_is_not() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let options = format!("-n 1 --control {}", path.display());
    let killed = start(&options);
    killed.kill();
    killed.wait_exit();
    assert!(path.exists(), "it is stale now");
    let running = start(&options);
    let refused = panzer(&options, &["touch", &text(scratch.path("started"))]).run();
    assert_fails(&refused, 125, &["panzer: cannot ", &text(&path)]);
    let output = ctl(&format!("--control {} status --json", path.display())).run();
    assert!(is_of(printed(&output, 0), &running), "the first one has it still");
    running.ends_with(libc::SIGTERM, 0);
    assert!(!path.exists());
    // A file of another kind is somebody's.
    for option in
        [text(scratch.write("file", "mine")), text(scratch.path("missing/socket")), format!("/{}", "x".repeat(200))]
    {
        let words = format!("-n 1 --control {option}");
        let refused = panzer(&words, &["touch", &text(scratch.path("started"))]).run();
        assert_fails(&refused, 125, &["panzer: cannot ", &option]);
    }
    assert_eq!(fs::read_to_string(scratch.path("file")).unwrap(), "mine");
    assert!(!scratch.path("started").exists(), "nothing was started");
}

#[test]
fn a_control_socket_may_be_off() {
    for (option, variable) in [("--control off", ""), ("", "off")] {
        let running = panzer(&format!("-n 1 --ready exec {option}"), &SLEEP).env("PANZER_CONTROL", variable).start();
        running.wait_line("the worker is ready");
        connect(&running.control_name()).expect_err("nothing listens there");
        assert_fails(&running.ctl("status"), 125, &["cannot", &running.panzer_pid().to_string()]);
        running.ends_with(libc::SIGTERM, 0);
    }
    // Typed, it must mean something.
    assert_fails(&panzer("--control /tmp/x", &SLEEP).run(), 125, &["panzer: cannot use --control: it needs -n"]);
}

// Who

/// A wrapper that makes what follows another user's, where that is possible.
fn as_user(uid: u32) -> Option<Vec<String>> {
    let uid = uid.to_string();
    let words = ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"];
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    let test = Command::new("setpriv").args(&words[1..]).args(["test", "-x"]).arg(binary()).output();
    let works = is_root() && test.is_ok_and(|output| output.status.success());
    if !works {
        left_out("asking as another user: it takes root, and a program that others can reach");
    }
    works.then_some(words)
}

#[test]
fn another_user_is_refused() {
    let Some(stranger) = as_user(43_210) else { return };
    let running = start("-n 1");
    let lives = running.workers();
    for command in
        ["status", "status --json", "ready", "reload", "reload --wait", "restart 0", "scale 3", "stop", "signal KILL"]
    {
        assert_fails(
            &running.ctl_command(command).wrapper(&stranger).run(),
            125,
            &["panzer: cannot ", "only that user"],
        );
    }
    assert_eq!(running.workers(), lives);
    // Whatever it was: the first line is all that a stranger gets.
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect('\\0'+sys.argv[1])\ntry: s.sendall(b'status\\n')\nexcept OSError: pass\nprint(s.recv(4096).decode(),end='')";
    let python = Path::new("/usr/bin/python3");
    if python.exists() {
        let output = Command::new("setpriv")
            .args(&stranger[1..])
            .arg(python)
            .args(["-c", script, &running.control_name()])
            .output()
            .unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        body(&answer).expect_err("a stranger is refused");
    }
    // A socket in the file system that somebody has opened to all is no way in either.
    let scratch = Binders::directory();
    let path = scratch.path("socket");
    let running = start(&format!("-n 1 --control {}", path.display()));
    Command::new("chmod").arg("777").arg(&path).status().unwrap();
    let output = ctl(&format!("--control {} stop", path.display())).wrapper(&stranger).run();
    assert_fails(&output, 125, &["panzer: cannot ", "only that user"]);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn the_own_user_and_root_are_let_in() {
    let Some(user) = as_user(43_211) else { return };
    let running = panzer("-n 2 --ready exec", &SLEEP).wrapper(&user).start();
    running.wait_line("all 2 workers are ready");
    for wrapper in [user, Vec::new()] {
        let output = running.ctl_command("ready").wrapper(&wrapper).run();
        assert_eq!(printed(&output, 0), "2 of 2 workers are ready\n");
    }
    assert_eq!(printed(&running.ctl("scale 1"), 0), "1 worker now, one fewer\n", "root may do everything");
    // Here the name alone says whose it is, and the client believes nobody but root and itself.
    let Some(other) = as_user(43_212) else { return };
    assert_fails(&running.ctl_command("ready").wrapper(&other).run(), 125, &["panzer: cannot "]);
    running.ends_with(libc::SIGTERM, 0);
}

// Whom the client believes

/// Answers at a listener with these bytes, for ever.
fn answer_with(listener: UnixListener, answer: Vec<u8>) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 300];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(&answer);
        }
    });
}

#[test]
fn who_has_taken_the_name_of_another_is_not_believed() {
    let sleeper = Sleeper::start();
    let name = SocketAddr::from_abstract_name(control_name(sleeper.0.id())).unwrap();
    let listener = UnixListener::bind_addr(&name).unwrap();
    answer_with(listener, b"panzer 1 ok\nstopping 3 workers\n".to_vec());
    for command in ["stop", "status", "ready", "reload --wait"] {
        let output = ctl(&format!("--pid {} {command}", sleeper.0.id())).run();
        assert_fails(&output, 125, &["panzer: cannot ", &sleeper.0.id().to_string()]);
    }
}

#[test]
fn a_panzer_whose_name_is_taken_says_so() {
    let scratch = Scratch::new();
    let go = scratch.path("go");
    let script = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
    let running = panzer("-n 1 --ready exec", &SLEEP).wrapper(through_shell(&script)).start();
    let name = SocketAddr::from_abstract_name(control_name(running.pid())).unwrap();
    let listener = UnixListener::bind_addr(&name).unwrap();
    scratch.write("go", "");
    // It may refuse to start, or do without; then it must be known to whoever reads the log.
    wait_until("it says that it cannot", || running.stderr().lines().any(|line| line.starts_with("panzer: cannot ")));
    let refused = wait_for("it runs or has ended", || match running.try_exit() {
        Some(status) => Some(Some(status)),
        None => running.stderr().contains("the worker is ready").then_some(None),
    });
    match refused {
        Some(status) => assert_eq!((shell_status(status), running.stderr().lines().count()), (125, 1)),
        None => {
            assert_fails(&ctl(&format!("--pid {} status", running.pid())).run(), 125, &["panzer: cannot "]);
            drop(listener);
            running.ends_with(libc::SIGTERM, 0);
        }
    }
}

#[test]
fn an_answer_that_is_none_is_refused_in_one_line() {
    let scratch = Scratch::new();
    let answers: [&[u8]; 12] = [
        b"",
        b"\n",
        b"panzer 1 ok",
        b"panzer 2 ok\n",
        b"panzer 1 okay\n",
        b"panzer 1 ok\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"panzer 1 ok\n{\"panzer\":\n",
        b"panzer 1 ok\n\xff\xfe\x00\n",
        b"panzer 1 ok\n{\"panzer\":\n{\"version\":\"\x1b[2J\"}\n",
        b"\x00\x00\x00\x00",
        &[b'x'; 1 << 20],
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let path = scratch.path(&format!("socket{number}"));
        answer_with(UnixListener::bind(&path).unwrap(), answer.to_vec());
        for command in ["status", "ready"] {
            let output = ctl(&format!("--control {} {command}", path.display())).run();
            assert_fails(&output, 125, &["panzer: cannot "]);
        }
    }
    // An error's message is shown on a terminal.
    let path = scratch.path("escapes");
    answer_with(UnixListener::bind(&path).unwrap(), b"panzer 1 error \x1b[2Jno\n".to_vec());
    let output = ctl(&format!("--control {} status", path.display())).run();
    assert!(!output.stderr.contains('\u{1b}') && output.stderr.lines().count() == 1, "{output:?}");
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
    let scratch = Scratch::new();
    let silent = UnixListener::bind(scratch.path("silent")).unwrap();
    let endless = UnixListener::bind(scratch.path("endless")).unwrap();
    thread::spawn(move || {
        for mut stream in endless.incoming().flatten() {
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
        }
    });
    let commands =
        ["silent", "endless"].map(|name| ctl(&format!("--control {} status", scratch.path(name).display())).start());
    for command in &commands {
        assert_eq!(command.wait_exit().code(), Some(125), "{}", command.stderr());
        assert_eq!(command.stderr().lines().count(), 1, "{}", command.stderr());
    }
    drop(silent);
}

#[test]
fn a_panzer_that_is_stopped_is_not_waited_for_for_ever() {
    let running = start("-n 1");
    process::send_signal(running.panzer_pid(), libc::SIGSTOP);
    let output = running.ctl("ready");
    assert_fails(&output, 125, &["panzer: cannot "]);
    process::send_signal(running.panzer_pid(), libc::SIGCONT);
    running.wait_status("it goes on", all_ready);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn two_panzers_are_two() {
    let (first, second) = (start("-n 1"), start("-n 2"));
    let shown = |running: &Running| printed(&running.ctl("ready"), 0).to_string();
    assert_eq!(
        (shown(&first).as_str(), shown(&second).as_str()),
        ("1 of 1 workers are ready\n", "2 of 2 workers are ready\n")
    );
    let answer = exchange(connect(&first.control_name()).unwrap(), b"stop\n").unwrap();
    assert_eq!(body(&answer).unwrap(), "stopping 1 worker\n");
    assert_eq!(first.wait_exit().code(), Some(0));
    assert_eq!(shown(&second), "2 of 2 workers are ready\n");
    second.ends_with(libc::SIGTERM, 0);
    let service = Service::start("-n 1 --ready fd", READY);
    service.running.wait_status("another one is found, too", all_ready);
    service.end();
}
