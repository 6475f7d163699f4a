//! Every refusal is one line on stderr that names what, which value and why; nothing was started.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::support::binders::left_out;
use crate::support::panzer::{Output, Panzer};
use crate::support::ports::{free_port, local};
use crate::support::scratch::Scratch;

/// The ways in which panzer can be asked for the same thing.
const ALL_WAYS: [&[&str]; 4] = [&[], &["-n", "2"], &["--check"], &["-n", "2", "--check"]];
/// Those that have workers.
const WITH_WORKERS: [&[&str]; 2] = [&["-n", "2"], &["-n", "2", "--check"]];

/// What the C libraries, glibc and musl, say of EADDRINUSE.
pub(crate) const IN_USE: &str = "Address already in use | Address in use";

/// Makes sure that this run was refused: one line, which holds all of these parts; of a part with ` | ` one side.
#[track_caller]
fn assert_refused(what: &str, output: &Output, status: i32, parts: &[&str]) {
    assert_eq!(output.status.code(), Some(status), "{what}: {output:?}");
    assert_eq!(output.stdout, "", "{what}: nothing on stdout");
    let line = output.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{what}: a whole line: {output:?}"));
    assert!(!line.contains('\n'), "{what}: one line: {output:?}");
    assert!(line.starts_with("panzer: cannot "), "{what}: {line}");
    for part in parts {
        let found = part.split(" | ").any(|words| line.contains(words));
        assert!(found, "{what}: no {part:?} in {line:?}");
    }
}

/// A command that leaves a file, to see whether it was started.
struct Marker {
    scratch: Scratch,
}

impl Marker {
    fn new() -> Marker {
        Marker { scratch: Scratch::new() }
    }

    fn command(&self) -> [OsString; 3] {
        ["--".into(), "touch".into(), self.scratch.path("started").into()]
    }

    #[track_caller]
    fn assert_not_started(&self, what: &str) {
        assert!(!self.scratch.path("started").exists(), "{what}: the command was started");
    }

    /// Makes sure that these options are refused with status 125 in each of these ways.
    #[track_caller]
    fn refuses<S: AsRef<OsStr>>(&self, ways: &[&[&str]], options: &[S], parts: &[&str]) {
        for way in ways {
            let words: Vec<OsString> = options.iter().map(|option| option.as_ref().to_os_string()).collect();
            let what = format!("{way:?} {words:?}");
            let output = Panzer::new(*way).args(&words).args(self.command()).run();
            assert_refused(&what, &output, 125, parts);
            self.assert_not_started(&what);
        }
    }
}

#[test]
fn a_bad_option_is_named_with_its_value_and_the_cause() {
    let marker = Marker::new();
    for (options, parts) in [
        (&["--listne", "80"][..], &["--listne", "unknown option", "did you mean --listen?"][..]),
        (&["--worker", "2"], &["--worker", "did you mean --workers?"]),
        (&["--ok-exits=3"], &["--ok-exits", "did you mean --ok-exit?"]),
        (&["--quit"], &["--quit", "did you mean --quiet?"]),
        (&["--xxxxxxxxxx"], &["--xxxxxxxxxx", "unknown option", "panzer -h"]),
        (&["-X"], &["-X", "unknown option"]),
        (&["-qX"], &["-X", "unknown option"]),
        (&["-n", "0"], &["--workers 0", "\"0\" is not a whole number from 1 to 10000", "auto"]),
        (&["-n", "-1"], &["--workers -1", "\"-1\" is not a whole number"]),
        (&["-n", "two"], &["--workers two", "\"two\""]),
        (&["-n", "10001"], &["--workers 10001", "10000"]),
        (&["-n", "99999999999999999999"], &["--workers 99999999999999999999"]),
        (&["-n", ""], &["--workers", "\"\" is not a whole number"]),
        (&["--backlog", "0"], &["--backlog 0", "from 1"]),
        (&["--ok-exit", "256"], &["--ok-exit 256", "\"256\" is not an exit status from 0 to 255"]),
        (&["--umask", "8"], &["--umask 8", "octal"]),
        (&["--linger", "2x"], &["--linger 2x", "\"2x\" is not a duration", "500ms"]),
        (&["--linger", "-1s"], &["--linger -1s", "duration"]),
        (&["--linger", "1.5s"], &["--linger 1.5s", "duration"]),
        (&["--linger", "99999999999h"], &["--linger 99999999999h", "duration"]),
        (&["--stop", "TERM/x/KILL"], &["--stop TERM/x/KILL", "\"x\" is not a whole number of seconds"]),
        (&["--stop", "TERM/10"], &["--stop TERM/10", "signal"]),
        (&["--stop", "TREM"], &["--stop TREM", "\"TREM\" is not a signal"]),
        (&["--on", "TERM"], &["--on TERM", "SIG=ACTION"]),
        (&["--on", "TREM=stop"], &["--on TREM=stop", "\"TREM\" is not a signal"]),
        (&["--on", "TERM=jump"], &["--on TERM=jump", "\"jump\" is none of stop, stop-now"]),
        (&["--on", "KILL=stop"], &["--on KILL=stop", "SIGKILL"]),
        (&["--on", "CHLD=ignore"], &["--on CHLD=ignore", "SIGCHLD"]),
        (&["--pdeathsig", "65"], &["--pdeathsig 65", "\"65\" is not a signal"]),
        (&["--log-format", "xml"], &["--log-format xml", "\"xml\" is neither text nor json"]),
        (&["--listen-env", "upstart"], &["--listen-env upstart", "\"upstart\" is none of systemd"]),
        (&["--quiet=1"], &["--quiet=1", "takes no value"]),
        (&["--no-group=yes"], &["--no-group=yes", "takes no value"]),
        // One line, whatever was typed.
        (&["--user", "a\nb"], &["--user a\\nb", "no user"]),
        (&["--on", "a\nb=\u{1b}[2J"], &["--on a\\nb=\\u{1b}[2J", "not a signal"]),
    ] {
        marker.refuses(&ALL_WAYS, options, parts);
    }
    for (options, parts) in [
        (&["--crash-limit", "-1"][..], &["--crash-limit -1", "whole number"][..]),
        (&["--restart", "sometimes"], &["--restart sometimes", "none of always, on-failure and never"]),
        (&["--backoff", "1s"], &["--backoff 1s", "MIN:MAX"]),
        (&["--backoff", "2s:1s"], &["--backoff 2s:1s", "MIN is longer than MAX"]),
        (&["--ready", "soon"], &["--ready soon", "\"soon\" is none of exec, delay:T"]),
        (&["--ready", "notify:x"], &["--ready notify:x", "\"notify:x\""]),
        (&["--ready", "fd=3"], &["--ready fd=3", "\"fd=3\""]),
        (&["--ready", ""], &["--ready", "\"\" is none of exec, delay:T"]),
        (&["--ready-timeout", "soon"], &["--ready-timeout soon", "\"soon\" is not a duration"]),
        (&["--ready-timeout", "-1s"], &["--ready-timeout -1s", "duration"]),
        (&["--reload-stop", "TREM"], &["--reload-stop TREM", "\"TREM\" is not a signal"]),
        (&["--reload-stop", "TERM/x/KILL"], &["--reload-stop TERM/x/KILL", "whole number of seconds"]),
        (&["--reload-stop", ""], &["--reload-stop", "signal"]),
        (&["--reload-tries", "-1"], &["--reload-tries -1", "\"-1\" is not a whole number"]),
        (&["--reload-tries", "often"], &["--reload-tries often", "whole number"]),
        (&["--surge", "0"], &["--surge 0", "\"0\" is not a whole number from 1"]),
        (&["--surge", "all"], &["--surge all", "\"all\" is not a whole number"]),
        (&["--kill-old-delay", "1.5s"], &["--kill-old-delay 1.5s", "duration"]),
        (&["--stop-delay", "x"], &["--stop-delay x", "\"x\" is not a duration"]),
        (&["--stagger", "x"], &["--stagger x", "\"x\" is not a duration"]),
        (&["--max-age", "old"], &["--max-age old", "\"old\" is not a duration"]),
        (&["--max-age", "1h~"], &["--max-age 1h~", "duration"]),
        (&["--max-age", "~1h"], &["--max-age ~1h", "duration"]),
        (&["--max-age", "1h~x"], &["--max-age 1h~x", "\"x\" is not a duration"]),
        (&["--max-rss", "much"], &["--max-rss much", "\"much\" is not"]),
        (&["--max-rss", "512X"], &["--max-rss 512X", "\"512X\" is not"]),
        (&["--max-rss", "1.5G"], &["--max-rss 1.5G", "\"1.5G\" is not"]),
        (&["--max-rss", "-1"], &["--max-rss -1", "\"-1\" is not"]),
        (&["--max-rss", "M"], &["--max-rss M", "\"M\" is not"]),
        (&["--max-rss", "99999999999999999999"], &["--max-rss 99999999999999999999", "is not"]),
        (&["--max-rss", "99999999999999999G"], &["--max-rss 99999999999999999G", "is not"]),
        (&["--max-rss", ""], &["--max-rss", "\"\" is not"]),
        (&["--watchdog", "barks"], &["--watchdog barks", "\"barks\" is not a duration"]),
        (&["--watchdog", "0"], &["--watchdog 0", "it must be longer than 0"]),
        (&["--ready-timeout", "0"], &["--ready-timeout 0", "it must be longer than 0"]),
        (&["--max-age", "0"], &["--max-age 0", "it must be longer than 0"]),
        (&["--max-rss", "0"], &["--max-rss 0", "\"0\""]),
        (&["--on", "HUP=reload-all"], &["--on HUP=reload-all", "\"reload-all\" is none of stop, stop-now"]),
        (&["--on", "HUP=scale"], &["--on HUP=scale", "\"scale\" is none of stop, stop-now"]),
        (&["--ready", "delay:x"], &["--ready delay:x", "\"x\" is not a duration"]),
        (&["--fatal-exit", "x"], &["--fatal-exit x", "exit status"]),
        (&["--share-ports", "maybe"], &["--share-ports maybe", "\"maybe\" is none of auto, on and off"]),
        (&["--balance", "even"], &["--balance even", "\"even\" is neither shared nor per-worker"]),
        (&["--share-ports", "off", "--ready", "bind"], &["use --ready bind", "--share-ports off"]),
        (&["-n", "1001", "--balance", "per-worker"], &["--balance per-worker", "1000 workers at the most"]),
    ] {
        marker.refuses(&WITH_WORKERS, options, parts);
    }
}

#[test]
fn what_is_about_workers_is_refused_without_n() {
    let marker = Marker::new();
    let file = marker.scratch.path("file").display().to_string();
    for (option, value) in [
        ("--ready", "notify"),
        ("--ready", "fd"),
        ("--ready-timeout", "1s"),
        ("--reload-stop", "TERM"),
        ("--reload-tries", "2"),
        ("--surge", "2"),
        ("--kill-old-delay", "1s"),
        ("--stop-delay", "1s"),
        ("--stagger", "1s"),
        ("--max-age", "1h~10m"),
        ("--max-rss", "512M"),
        ("--watchdog", "10s"),
        ("--pid-file", &file),
        ("--status-file", &file),
    ] {
        marker.refuses(&[&[], &["--check"]], &[option, value], &[&format!("cannot use {option}"), "needs -n"]);
    }
    assert!(!Path::new(&file).exists());
}

#[test]
fn a_value_that_is_not_text_is_refused_where_text_is_needed() {
    let marker = Marker::new();
    let bad = OsStr::from_bytes(b"a\xff");
    for option in ["--listen", "--user", "--stop", "--linger"] {
        marker.refuses(&ALL_WAYS, &[OsStr::new(option), bad], &[option, "not UTF-8"]);
    }
}

#[test]
fn an_option_without_its_value_is_refused() {
    for way in ALL_WAYS {
        for (option, name) in [("--listen", "[NAME=]ADDR"), ("-l", "[NAME=]ADDR"), ("--linger", "T"), ("-n", "N|auto")]
        {
            let output = Panzer::new(way).arg(option).run();
            assert_refused(&format!("{way:?} {option}"), &output, 125, &["--", "it needs a value", name]);
        }
    }
}

#[test]
fn no_command_is_refused() {
    for words in [&[][..], &["--"]] {
        for way in ALL_WAYS {
            let output = Panzer::new(way).args(words).run();
            assert_refused(&format!("{way:?} {words:?}"), &output, 125, &["cannot start", "no command given"]);
        }
    }
}

#[test]
fn what_a_variable_holds_is_refused_with_the_variables_name() {
    let marker = Marker::new();
    for (name, value, parts) in [
        ("PANZER_WORKERS", "many", &["PANZER_WORKERS=many", "\"many\" is not a whole number"][..]),
        ("PANZER_LINGER", "soon", &["PANZER_LINGER=soon", "\"soon\" is not a duration"]),
        ("PANZER_LISTEN", "tcp://127.0.0.1:0 nowhere", &["PANZER_LISTEN=", "nowhere", "\"nowhere\" is not an address"]),
        ("PANZER_QUIET", "maybe", &["PANZER_QUIET=maybe", "write 1 or 0"]),
        ("PANZER_CRASH_LIMIT", "x", &["PANZER_CRASH_LIMIT=x", "whole number"]),
        ("PANZER_READY_TIMEOUT", "x", &["PANZER_READY_TIMEOUT=x", "\"x\" is not a duration"]),
        ("PANZER_RELOAD_STOP", "TERM/", &["PANZER_RELOAD_STOP=TERM/"]),
        ("PANZER_RELOAD_TRIES", "x", &["PANZER_RELOAD_TRIES=x", "whole number"]),
        ("PANZER_SURGE", "0", &["PANZER_SURGE=0", "whole number from 1"]),
        ("PANZER_KILL_OLD_DELAY", "x", &["PANZER_KILL_OLD_DELAY=x", "\"x\" is not a duration"]),
        ("PANZER_STAGGER", "x", &["PANZER_STAGGER=x", "\"x\" is not a duration"]),
        ("PANZER_MAX_AGE", "1h~x", &["PANZER_MAX_AGE=1h~x", "\"x\" is not a duration"]),
        ("PANZER_MAX_RSS", "512X", &["PANZER_MAX_RSS=512X", "\"512X\" is not"]),
        ("PANZER_WATCHDOG", "x", &["PANZER_WATCHDOG=x", "\"x\" is not a duration"]),
        ("PANZER_STOP", "TERM/", &["PANZER_STOP=TERM/"]),
        ("PANZER_ON", "TERM=stop HUP=x", &["PANZER_ON=", "\"x\" is none of"]),
        ("PANZER_USER", "no-such-user-1", &["no-such-user-1", "/etc/passwd"]),
    ] {
        for way in [&[][..], &["--check"]] {
            let output = Panzer::new(way).args(marker.command()).env(name, value).run();
            assert_refused(&format!("{way:?} {name}={value}"), &output, 125, parts);
            marker.assert_not_started(name);
        }
    }
}

#[test]
fn a_bad_address_is_refused() {
    let marker = Marker::new();
    let long = format!("unix:///{}", "x".repeat(200));
    for (address, parts) in [
        ("", &["--listen", "is not an address"][..]),
        ("65536", &["--listen 65536", "\"65536\" is not a port from 0 to 65535"]),
        ("localhost:80", &["--listen localhost:80", "\"localhost:80\" is not an address"]),
        ("http://127.0.0.1:80", &["--listen http://127.0.0.1:80", "none of tcp://, unix:// and udp://"]),
        ("tcp://127.0.0.1", &["--listen tcp://127.0.0.1", "is not an address"]),
        ("unix://run/x", &["--listen unix://run/x", "absolute path"]),
        ("8080?fast", &["--listen 8080?fast", "\"fast\" is none of"]),
        ("8080?mode=660", &["--listen 8080?mode=660", "UNIX paths"]),
        ("unix:///tmp/x?mode=888", &["--listen unix:///tmp/x?mode=888", "octal"]),
        ("a:b=8080", &["--listen a:b=8080"]),
        (&long, &["--listen unix:///xxx", "at most 107 bytes"]),
    ] {
        marker.refuses(&ALL_WAYS, &["--listen", address], parts);
    }
}

#[test]
fn a_port_that_is_in_use_or_elsewhere_is_refused() {
    let marker = Marker::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let name = format!("panzer-test-{}-refusals", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let in_use = [
        format!("tcp://{}", tcp.local_addr().unwrap()),
        format!("web=tcp://{}", tcp.local_addr().unwrap()),
        format!("udp://{}", udp.local_addr().unwrap()),
        format!("unix://@{name}"),
    ];
    for address in &in_use {
        marker.refuses(&ALL_WAYS, &["-l", address], &["cannot listen on", address, IN_USE]);
    }
    // An address for documentation (RFC 5737): no machine's own.
    let elsewhere = "tcp://192.0.2.1:0";
    marker.refuses(
        &ALL_WAYS,
        &["-l", elsewhere],
        &[elsewhere, "Cannot assign requested address | Address not available"],
    );
}

#[test]
fn a_unix_path_that_somebody_listens_on_is_not_stolen() {
    let marker = Marker::new();
    let path = marker.scratch.path("live.sock");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = format!("unix://{}", path.display());
    marker.refuses(&ALL_WAYS, &["-l", &address], &[&address, "somebody is listening there"]);
    // What panzer may have tried with is taken first.
    while listener.accept().is_ok() {}
    let mut client = UnixStream::connect(&path).expect("the listener still has its path");
    let (server, _) = listener.accept().expect("the connection reaches the listener");
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_unix_path_where_something_else_is_is_refused_and_stays() {
    let marker = Marker::new();
    let file = marker.scratch.write("file", "precious");
    let directory = marker.scratch.path("directory");
    fs::create_dir(&directory).unwrap();
    let link = marker.scratch.path("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [&file, &directory, &link] {
        let address = format!("unix://{}", path.display());
        marker.refuses(&ALL_WAYS, &["-l", &address], &[&address, "a file of another kind"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(directory.is_dir() && link.is_symlink());

    let missing = format!("unix://{}/a.sock", marker.scratch.path("missing").display());
    marker.refuses(&ALL_WAYS, &["-l", &missing], &[&missing, "No such file or directory"]);
}

#[test]
fn a_listener_that_was_bound_before_the_refusal_is_taken_away_again() {
    let marker = Marker::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = marker.scratch.path("first.sock");
    let (first, second) = (format!("unix://{}", path.display()), format!("tcp://{}", taken.local_addr().unwrap()));
    marker.refuses(&ALL_WAYS, &["-l", &first, "-l", &second], &[&second, IN_USE]);
    assert!(!path.exists(), "{} is left", path.display());
}

#[test]
fn the_same_address_twice_is_refused() {
    let marker = Marker::new();
    let path = marker.scratch.path("twice.sock");
    let address = format!("unix://{}", path.display());
    marker.refuses(&[&[], &["-n", "2"]], &["-l", &address, "-l", &address], &[&address, "somebody is listening there"]);
    assert!(!path.exists(), "{} is left", path.display());
}

#[test]
fn who_does_not_exist_is_refused() {
    let marker = Marker::new();
    for (user, parts) in [
        ("no-such-user-1", &["--user no-such-user-1", "no user \"no-such-user-1\" in /etc/passwd"][..]),
        ("root:no-such-group-1", &["--user root:no-such-group-1", "no group \"no-such-group-1\" in /etc/group"]),
        ("4294967295", &["--user 4294967295"]),
        ("", &["--user"]),
        (":0", &["--user :0"]),
    ] {
        marker.refuses(&ALL_WAYS, &["--user", user], parts);
    }
    if rustix::process::geteuid().is_root() {
        left_out("that only root may become another user, since this is root");
    } else {
        marker.refuses(&ALL_WAYS, &["--user", "0"], &["--user 0", "only root may run workers as another user"]);
    }
}

#[test]
fn a_directory_that_is_not_there_is_refused() {
    let marker = Marker::new();
    let missing = marker.scratch.path("missing");
    let file = marker.scratch.write("file", "");
    for (option, verb) in [("--dir", "change to directory"), ("--env-dir", "read --env-dir")] {
        for (path, cause) in [(&missing, "No such file or directory"), (&file, "Not a directory")] {
            let shown = path.display().to_string();
            marker.refuses(&ALL_WAYS, &[OsStr::new(option), path.as_os_str()], &[verb, &shown, cause]);
        }
    }
}

#[test]
fn a_file_of_options_that_cannot_be_read_or_is_wrong_is_refused() {
    let marker = Marker::new();
    let wrong = marker.scratch.write("panzer.conf", "quiet\n\nlinger 2x\n").display().to_string();
    let line = format!("{wrong} line 3");
    for (path, parts) in [
        ("/no/such/panzer.conf", ["cannot read", "/no/such/panzer.conf", "No such file or directory"]),
        ("/", ["cannot read", "/", "Is a directory"]),
        (&wrong, [&line, "--linger", "2x"]),
    ] {
        marker.refuses(&ALL_WAYS, &["--config", path], &parts);
    }
}

#[test]
fn an_env_dir_with_something_unreadable_in_it_is_refused() {
    let marker = Marker::new();
    for (name, cause) in [("DIRECTORY", "Is a directory"), ("A=B", "holds no \"=\"")] {
        let env_dir = marker.scratch.path(&format!("env-{name}"));
        fs::create_dir(&env_dir).unwrap();
        if name == "DIRECTORY" {
            fs::create_dir(env_dir.join(name)).unwrap();
        } else {
            fs::write(env_dir.join(name), "value").unwrap();
        }
        let shown = env_dir.join(name).display().to_string();
        marker.refuses(&ALL_WAYS, &[OsStr::new("--env-dir"), env_dir.as_os_str()], &["--env-dir", &shown, cause]);
    }
    if rustix::process::geteuid().is_root() {
        left_out("an env-dir that may not be read, since root may read everything");
    } else {
        use std::os::unix::fs::PermissionsExt;
        let env_dir = marker.scratch.path("closed");
        fs::create_dir(&env_dir).unwrap();
        fs::set_permissions(&env_dir, fs::Permissions::from_mode(0o000)).unwrap();
        let shown = env_dir.display().to_string();
        marker.refuses(&ALL_WAYS, &[OsStr::new("--env-dir"), env_dir.as_os_str()], &[&shown, "Permission denied"]);
        fs::set_permissions(&env_dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// Runs a command that cannot be run, in each way.
#[track_caller]
fn refuses_command(ways: &[&[&str]], change: impl Fn(Panzer) -> Panzer, command: &Path, status: i32, cause: &str) {
    for way in ways {
        let output = change(Panzer::new(*way)).arg("--").arg(command).arg("argument").run();
        let what = format!("{way:?} {}", command.display());
        let typed = if command.as_os_str().is_empty() { "\"\"".to_owned() } else { command.display().to_string() };
        let action = format!("cannot run {typed}: ");
        assert_refused(&what, &output, status, &[&action, cause]);
    }
}

#[test]
fn a_command_that_is_missing_is_127_and_one_that_cannot_be_executed_is_126() {
    let scratch = Scratch::new();
    let plain = scratch.write("plain", "#!/bin/sh\n");
    let missing = scratch.path("missing");
    let below_a_file = plain.join("x");
    let same = |panzer: Panzer| panzer;
    refuses_command(&ALL_WAYS, same, &missing, 127, "No such file or directory");
    refuses_command(&ALL_WAYS, same, &below_a_file, 127, "No such file or directory");
    refuses_command(&ALL_WAYS, same, Path::new("no-such-command-1"), 127, "not found in PATH");
    refuses_command(&ALL_WAYS, same, Path::new(""), 127, "the command is empty");
    refuses_command(&ALL_WAYS, same, &plain, 126, "Permission denied");
    refuses_command(&ALL_WAYS, same, scratch.directory(), 126, "it is a directory");

    // By PATH, and seen from --dir.
    let in_path = |panzer: Panzer| panzer.env("PATH", scratch.directory());
    refuses_command(&ALL_WAYS, in_path, Path::new("plain"), 126, "Permission denied");
    refuses_command(&ALL_WAYS, in_path, Path::new("missing"), 127, "not found in PATH");
    let in_dir = |panzer: Panzer| panzer.arg("--dir").arg(scratch.directory());
    refuses_command(&ALL_WAYS, in_dir, Path::new("./plain"), 126, "Permission denied");
    refuses_command(&ALL_WAYS, in_dir, Path::new("./missing"), 127, "No such file or directory");
}

#[test]
fn a_command_whose_interpreter_is_missing_is_refused_in_one_line() {
    let scratch = Scratch::new();
    let script = scratch.path("script");
    // By a shell of its own: nothing here may hold the file open for writing when it is executed.
    let output =
        Panzer::new(["--", "sh", "-c", r##"echo "#!/no/such/interpreter" >"$0"; chmod 755 "$0""##]).arg(&script).run();
    assert_eq!(output.status.code(), Some(0));
    refuses_command(&ALL_WAYS[..2], |panzer| panzer, &script, 127, "its interpreter is missing");
}

#[test]
fn a_file_that_is_being_written_cannot_be_executed() {
    let scratch = Scratch::new();
    let file = scratch.path("busy");
    fs::copy("/bin/true", &file).unwrap();
    let _open = fs::OpenOptions::new().append(true).open(&file).unwrap();
    refuses_command(&[&[]], |panzer| panzer, &file, 126, "Text file busy");
}

/// `--check` of a good configuration.
#[test]
fn check_says_what_would_run_and_leaves_nothing() {
    let marker = Marker::new();
    let env_dir = marker.scratch.path("env");
    fs::create_dir(&env_dir).unwrap();
    fs::write(env_dir.join("COLOUR"), "red").unwrap();
    let port = local(free_port());
    let path = marker.scratch.path("a.sock");
    let output = Panzer::new(["--check", "-n", "3", "--stop", "QUIT/5/KILL", "-l"])
        .arg(format!("web=tcp://{port}"))
        .arg("-l")
        .arg(format!("unix://{}?mode=600", path.display()))
        .arg("--env-dir")
        .arg(&env_dir)
        .arg("--dir")
        .arg(marker.scratch.directory())
        .args(marker.command())
        .run();
    assert_eq!((output.status.code(), output.stderr.as_str()), (Some(0), ""), "{output:?}");
    let started = marker.scratch.path("started").display().to_string();
    let directory = marker.scratch.directory().display().to_string();
    for part in [
        "would run: touch ",
        &started,
        "/touch\n",
        "workers: 3\n",
        "QUIT/5/KILL",
        &port.to_string(),
        "a.sock",
        &directory,
    ] {
        assert!(output.stdout.contains(part), "no {part:?} in {}", output.stdout);
    }
    marker.assert_not_started("--check");
    assert!(!path.exists(), "{} is left", path.display());
    TcpListener::bind(port).expect("the port is free again");

    // A path that a dead program has left behind is no obstacle, and not touched.
    drop(UnixListener::bind(&path).unwrap());
    let output = Panzer::new(["--check", "-l"]).arg(format!("unix://{}", path.display())).args(marker.command()).run();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(path.exists());
    marker.assert_not_started("--check");
}

#[test]
fn check_in_init_mode_and_by_variable() {
    let marker = Marker::new();
    let output = Panzer::new(marker.command()).env("PANZER_CHECK", "1").run();
    assert_eq!((output.status.code(), output.stderr.as_str()), (Some(0), ""), "{output:?}");
    assert!(output.stdout.starts_with("would run: touch "), "{output:?}");
    marker.assert_not_started("PANZER_CHECK");
}

#[test]
fn what_is_asked_for_is_printed_on_stdout() {
    let version = format!("panzer {}\n", env!("CARGO_PKG_VERSION"));
    for (option, first_line) in [
        ("-h", "Usage: panzer [OPTIONS] [--] COMMAND [ARGUMENT]...\n"),
        ("--help", "Usage: panzer [OPTIONS] [--] COMMAND [ARGUMENT]...\n"),
        ("-V", version.as_str()),
        ("--version", version.as_str()),
    ] {
        let output = Panzer::new([option]).run();
        assert_eq!((output.status.code(), output.stderr.as_str()), (Some(0), ""), "{option}: {output:?}");
        assert!(output.stdout.starts_with(first_line), "{option}: {output:?}");
    }
}

#[test]
fn what_cannot_be_printed_is_an_error() {
    for words in [&["-h"][..], &["--help"], &["-V"], &["--check", "true"]] {
        let output = Panzer::new(words).wrapper(["sh", "-c", r#"exec "$@" >/dev/full"#, "sh"]).run();
        assert_refused(&format!("{words:?}"), &output, 125, &["write to stdout", "No space left on device"]);
    }
}

#[test]
fn a_refusal_is_one_json_object_where_that_is_asked_for() {
    let missing = PathBuf::from("/no/such/\"command\"");
    let output = Panzer::new(["--log-format", "json", "--"]).arg(&missing).run();
    assert_eq!(output.status.code(), Some(127), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    for part in [r#""level":"error""#, r#""message":"cannot run /no/such/\"command\": No such file or directory"}"#] {
        assert!(output.stderr.contains(part), "no {part} in {output:?}");
    }
}

#[test]
fn a_file_of_options_that_holds_no_text_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path("options");
    // What the command were given would end at the NUL.
    for (content, cause) in
        [(&b"-- echo a\0b\n"[..], "it holds a NUL byte"), (b"# \xff\n-- echo a\n", "it is not UTF-8")]
    {
        fs::write(&path, content).unwrap();
        let output = Panzer::new(["--config", path.to_str().unwrap()]).run();
        assert_refused("a file", &output, 125, &["cannot read ", "options: ", cause]);
    }
}
