//! Sockets that are handed down: what they are bound to, how workers are told, and that nobody else's
//! path is ever touched.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::refusals::IN_USE;
use crate::support::binders::{left_out, not_installed};
use crate::support::load::{self, Addr, Failure, Load, LoadOptions, Mode};
use crate::support::panzer::{Running, binary, shell_status};
use crate::support::report::Report;
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, port_of, probe, sh, text, through_shell, wait_report};
use crate::support::{example, process, wait_for, wait_until};

fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

fn hello() -> Vec<String> {
    vec![text(example("hello"))]
}

fn loopback(port: u16) -> Addr {
    Addr::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn loopback6(port: u16) -> Addr {
    Addr::Tcp(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)))
}

/// Starts panzer over one probe and returns its report.
fn one_probe(scratch: &Scratch, options: &str, wrapper: Vec<String>) -> (Running, Report) {
    let report = scratch.path("report");
    let running = panzer(options, &probe(&text(&report), &["sleep"])).wrapper(wrapper).start();
    let given = wait_for("the worker reports", || {
        assert_eq!(running.try_exit(), None, "{}", running.stderr());
        Report::read(&report)
    });
    (running, given)
}

/// The inode of a worker's descriptor, which is a socket.
#[track_caller]
fn socket_inode(given: &Report, number: u32) -> String {
    let descriptors = given.descriptors();
    let found = descriptors.iter().find(|descriptor| descriptor.number == number).expect("the descriptor is open");
    found.target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).expect("a socket").to_string()
}

/// The port of a socket, from a table such as `/proc/net/tcp`.
fn port_in_table(table: &str, inode: &str) -> Option<u16> {
    // No more of it than is needed: the end, where the connections are, can take seconds.
    let mut lines = BufReader::new(File::open(table).ok()?).lines().map_while(Result::ok);
    let line = lines.find(|line| line.split_ascii_whitespace().nth(9) == Some(inode))?;
    u16::from_str_radix(line.split_ascii_whitespace().nth(1)?.rsplit_once(':')?.1, 16).ok()
}

/// The file status flags of a worker's descriptor.
fn flags(pid: u32, number: u32) -> i32 {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    i32::from_str_radix(flags.trim(), 8).unwrap()
}

fn pid_of(given: &Report) -> u32 {
    given.get("pid").parse().unwrap()
}

/// What a worker was told of its listeners.
fn told(given: &Report) -> Vec<String> {
    let mut names = Vec::new();
    for prefix in ["LISTEN_", "SERVER_STARTER_", "EINHORN_"] {
        names.extend(given.env_names(prefix));
    }
    names.iter().map(|name| format!("{name}={}", given.env(name).unwrap())).collect()
}

/// One request over a connection that is there already.
fn ask(mut connection: impl Read + Write) -> String {
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

// What can be listened on

#[test]
fn four_workers_answer_on_one_tcp_port() {
    let running = panzer("-n 4 -l 0", &hello()).start();
    let addresses = running.listening();
    assert_eq!(addresses, [format!("tcp://0.0.0.0:{}", running.port())]);
    let workers: BTreeSet<u32> = running.wait_slots(4).into_values().collect();
    let options = LoadOptions { connections: 8, ..LoadOptions::default() };
    let load = Load::start(SocketAddr::from(([127, 0, 0, 1], running.port())), options);
    let mut answered = BTreeSet::new();
    wait_until("each of the four has answered", || {
        let body = load::one(&loopback(running.port())).unwrap();
        answered
            .extend(body.split_ascii_whitespace().filter_map(|word| word.strip_prefix("pid=")?.parse::<u32>().ok()));
        answered.len() == 4
    });
    let report = load.stop();
    assert_eq!(report.lost(), 0, "{report}");
    assert_eq!(answered, workers);
    running.ends_with(libc::SIGTERM, 0);
    assert_eq!(load::one(&loopback(port_of(&addresses[0]))), Err(Failure::Refused), "nothing holds the port");
}

#[test]
fn one_address_of_several_is_bound_alone() {
    let running = panzer("-n 1 -l 127.0.0.2:0", &hello()).start();
    let port = running.port();
    assert_eq!(running.listening(), [format!("tcp://127.0.0.2:{port}")]);
    assert!(load::one(&Addr::Tcp(SocketAddr::from(([127, 0, 0, 2], port)))).is_ok());
    assert_eq!(load::one(&loopback(port)), Err(Failure::Refused));
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn ipv6_wildcards_take_ipv4_too_unless_told_otherwise() {
    if !has_ipv6() {
        return left_out("IPv6: this machine has none");
    }
    for (address, ipv4, ipv6) in
        [("[::]:0", true, true), ("[::]:0?v6only", false, true), ("[::1]:0", false, true), ("0", true, false)]
    {
        let running = panzer(&format!("-n 1 -l tcp://{address}"), &hello()).start();
        let port = running.port();
        for (addr, reached) in [(loopback(port), ipv4), (loopback6(port), ipv6)] {
            match load::one(&addr) {
                Ok(_) => assert!(reached, "{address}: {addr:?}"),
                Err(failure) => assert_eq!((failure, reached), (Failure::Refused, false), "{address}: {addr:?}"),
            }
        }
        running.ends_with(libc::SIGTERM, 0);
    }
}

#[test]
fn a_unix_path_has_exactly_the_mode_asked_for_whatever_the_umask() {
    for (umask, option, mode) in [
        ("0137", "?mode=660", 0o660),
        ("0777", "?mode=666", 0o666),
        ("0", "?mode=600", 0o600),
        ("0022", "?mode=777", 0o777),
        ("0027", "", 0o750),
    ] {
        let scratch = Scratch::new();
        let path = scratch.path("a b.sock");
        let options = ["-n", "1", "-l", &format!("unix://{}{option}", path.display())].map(str::to_string);
        let report = scratch.path("report");
        let running = crate::support::panzer::Panzer::new(options)
            .arg("--")
            // The report must be readable, whatever the umask.
            .args(sh(&format!(
                "umask >{0}.umask; umask 0; exec {1}",
                report.display(),
                probe(&text(&report), &["sleep"]).join(" ")
            )))
            .wrapper(through_shell(&format!("umask 0; : >{}.umask; umask {umask}", report.display())))
            .start();
        wait_until("the worker reports", || report.exists());
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o7777, mode, "umask {umask}, {option}");
        let workers = fs::read_to_string(scratch.path("report.umask")).unwrap();
        assert_eq!(u32::from_str_radix(workers.trim(), 8), u32::from_str_radix(umask, 8), "the worker's umask");
        assert_eq!(running.listening(), [format!("unix://{}", path.display())]);
        running.ends_with(libc::SIGTERM, 0);
        assert!(!path.exists(), "the path is removed at the end");
    }
}

#[test]
fn a_unix_path_is_served() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    let running = panzer(&format!("-n 2 -l unix://{}", path.display()), &hello()).start();
    running.listening();
    assert!(load::one(&Addr::Unix(path.clone())).unwrap().contains("worker="));
    // The socket knows itself by this name, not by a temporary one.
    let peer = UnixStream::connect(&path).unwrap().peer_addr().unwrap();
    assert_eq!(peer.as_pathname(), Some(path.as_path()));
    running.ends_with(libc::SIGTERM, 0);
    assert_eq!(fs::read_dir(scratch.directory()).unwrap().count(), 0, "nothing stays in the directory");
}

#[test]
fn an_abstract_name_is_served() {
    let name = format!("panzer-test-{}", std::process::id());
    let running = panzer(&format!("-n 1 -l unix://@{name}"), &hello()).start();
    assert_eq!(running.listening(), [format!("unix://@{name}")]);
    let address = UnixAddr::from_abstract_name(&name).unwrap();
    assert!(ask(UnixStream::connect_addr(&address).unwrap()).contains("worker=0"));
    running.ends_with(libc::SIGTERM, 0);
    assert!(UnixStream::connect_addr(&address).is_err());
}

#[test]
fn udp_and_tcp_on_one_port_are_two_listeners_with_two_names() {
    // A port that is free for both, by trying.
    let scratch = Scratch::new();
    for _ in 0..50 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let report = scratch.path("report");
        let options = format!("-n 1 -l 127.0.0.1:{port} -l udp://127.0.0.1:{port}");
        let running = panzer(&options, &probe(&text(&report), &["sleep"])).start();
        wait_until("the worker reports, or the port was taken", || report.exists() || running.try_exit().is_some());
        if running.try_exit().is_some() {
            let stderr = running.stderr();
            assert!(IN_USE.split(" | ").any(|words| stderr.contains(words)), "{stderr}");
            continue;
        }
        let given = Report::read(&report).unwrap();
        assert_eq!(given.env("LISTEN_FDNAMES"), Some(format!("tcp-{port}:udp-{port}").as_str()));
        assert_eq!(port_in_table("/proc/net/tcp", &socket_inode(&given, 3)), Some(port));
        assert_eq!(port_in_table("/proc/net/udp", &socket_inode(&given, 4)), Some(port));
        running.ends_with(libc::SIGTERM, 0);
        return;
    }
    panic!("no port was free for both");
}

// How workers are told

#[test]
fn the_variables_are_right_to_the_byte() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    let name = format!("panzer-bytes-{}", std::process::id());
    let six = has_ipv6();
    if !six {
        left_out("IPv6: this machine has none");
    }
    let options = format!(
        "-n 1 --listen-env systemd,server-starter,einhorn -l 0 -l web=127.0.0.1:0 -l {} -l tls=unix://{} -l unix://@{name} -l dns=udp://127.0.0.1:0",
        if six { "six=[::1]:0" } else { "six=127.0.0.1:0" },
        path.display()
    );
    let (running, given) = one_probe(&scratch, &options, Vec::new());
    let addresses = running.listening();
    let port = |index: usize| port_of(&addresses[index]);
    let host = if six { "[::1]" } else { "127.0.0.1" };
    let path = path.display();
    assert_eq!(
        addresses,
        [
            format!("tcp://0.0.0.0:{}", port(0)),
            format!("tcp://127.0.0.1:{}", port(1)),
            format!("tcp://{host}:{}", port(2)),
            format!("unix://{path}"),
            format!("unix://@{name}"),
            format!("udp://127.0.0.1:{}", port(5)),
        ]
    );
    assert_eq!(
        told(&given),
        [
            "LISTEN_FDNAMES=tcp-0:web:six:tls:unix:dns".to_string(),
            "LISTEN_FDS=6".to_string(),
            format!("LISTEN_PID={}", given.get("pid")),
            "SERVER_STARTER_GENERATION=1".to_string(),
            format!(
                "SERVER_STARTER_PORT={}=3;127.0.0.1:{}=4;{host}:{}=5;{path}=6;127.0.0.1:{}=8",
                port(0),
                port(1),
                port(2),
                port(5)
            ),
            "EINHORN_FD_0=3".to_string(),
            "EINHORN_FD_1=4".to_string(),
            "EINHORN_FD_2=5".to_string(),
            "EINHORN_FD_3=6".to_string(),
            "EINHORN_FD_4=7".to_string(),
            "EINHORN_FD_5=8".to_string(),
            "EINHORN_FD_COUNT=6".to_string(),
            format!("EINHORN_MASTER_PID={}", running.pid()),
        ]
    );
    // The descriptors are in that order.
    assert_eq!(port_in_table("/proc/net/tcp", &socket_inode(&given, 3)), Some(port(0)));
    assert_eq!(port_in_table("/proc/net/tcp", &socket_inode(&given, 4)), Some(port(1)));
    let table = if six { "/proc/net/tcp6" } else { "/proc/net/tcp" };
    assert_eq!(port_in_table(table, &socket_inode(&given, 5)), Some(port(2)));
    assert_eq!(port_in_table("/proc/net/udp", &socket_inode(&given, 8)), Some(port(5)));
    let unix = fs::read_to_string("/proc/net/unix").unwrap();
    let line = |inode: &str| unix.lines().find(|line| line.split_ascii_whitespace().nth(6) == Some(inode)).unwrap();
    assert!(line(&socket_inode(&given, 6)).ends_with(&format!(" {path}")));
    assert!(line(&socket_inode(&given, 7)).ends_with(&format!(" @{name}")));
    assert_eq!(given.env("PANZER_PARENT_FD"), Some("9"));
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn listen_env_chooses_the_conventions() {
    let cases: [(&str, &str, &[&str]); 7] = [
        (
            "",
            "-l 0",
            &["LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "SERVER_STARTER_GENERATION", "SERVER_STARTER_PORT"],
        ),
        ("--listen-env systemd", "-l 0", &["LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"]),
        ("--listen-env server-starter", "-l 0", &["SERVER_STARTER_GENERATION", "SERVER_STARTER_PORT"]),
        ("--listen-env einhorn", "-l 0", &["EINHORN_FD_0", "EINHORN_FD_COUNT", "EINHORN_MASTER_PID"]),
        ("--listen-env none", "-l 0", &[]),
        ("", "", &[]),
        ("--listen-env server-starter", "", &["SERVER_STARTER_GENERATION", "SERVER_STARTER_PORT"]),
    ];
    for (option, listeners, expected) in cases {
        let scratch = Scratch::new();
        let (running, given) = one_probe(&scratch, &format!("-n 1 {option} {listeners}"), Vec::new());
        let names: Vec<String> = told(&given).iter().map(|line| line.split_once('=').unwrap().0.to_string()).collect();
        assert_eq!(names, expected, "{option} {listeners}");
        if listeners.is_empty() {
            assert_eq!(given.env("SERVER_STARTER_PORT").unwrap_or_default(), "");
            assert_eq!(given.env("PANZER_PARENT_FD"), Some("3"));
        } else {
            socket_inode(&given, 3);
            assert_eq!(given.env("PANZER_PARENT_FD"), Some("4"));
        }
        running.ends_with(libc::SIGTERM, 0);
    }
}

#[test]
fn listen_pid_is_the_process_that_executes_the_command_in_each_life() {
    let scratch = Scratch::new();
    let reports_in = scratch.path("reports");
    fs::create_dir(&reports_in).unwrap();
    // A shell that executes something else in its own place keeps its pid.
    let worker = sh(&format!("exec {}", probe(&format!("{}/", reports_in.display()), &["sleep"]).join(" ")));
    let running = panzer("-n 2 -l 0 --ready exec --backoff 0:0", &worker).start();
    let mut pids: Vec<u32> = running.wait_slots(2).into_values().collect();
    pids.push(running.kill_worker(1));
    pids.push(running.kill_worker(0));
    for pid in running.wait_slots(2).into_values() {
        assert_eq!(wait_report(&reports_in, pid).env("LISTEN_PID"), Some(pid.to_string().as_str()));
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn init_mode_hands_down_listeners_as_well() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    let report = scratch.path("report");
    let options = format!("-l web=127.0.0.1:0 -l unix://{}", path.display());
    let running = panzer(&options, &probe(&text(&report), &["sleep"])).start();
    let given = wait_for("the child reports", || Report::read(&report));
    let port = port_in_table("/proc/net/tcp", &socket_inode(&given, 3)).unwrap();
    assert_eq!(
        told(&given),
        [
            "LISTEN_FDNAMES=web:unix".to_string(),
            "LISTEN_FDS=2".to_string(),
            format!("LISTEN_PID={}", given.get("pid")),
            "SERVER_STARTER_GENERATION=1".to_string(),
            format!("SERVER_STARTER_PORT=127.0.0.1:{port}=3;{}=4", path.display()),
        ]
    );
    wait_until("they are the child's alone", || {
        let mut own = fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap();
        !own.any(|entry| fs::read_link(entry.unwrap().path()).is_ok_and(|target| text(target).starts_with("socket:")))
    });
    running.ends_with(libc::SIGTERM, 128 + libc::SIGTERM);
    assert!(!path.exists(), "the path is removed at the end");
}

// What the sockets are like

#[test]
fn listeners_block_unless_asked_otherwise() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    let options = format!(
        "-n 1 -l 0 -l 127.0.0.1:0?nonblock -l unix://{}?mode=600&nonblock -l udp://127.0.0.1:0 -l udp://127.0.0.1:0?nonblock",
        path.display()
    );
    let (running, given) = one_probe(&scratch, &options, Vec::new());
    let nonblocking = (3..8).map(|number| flags(pid_of(&given), number) & libc::O_NONBLOCK != 0);
    assert_eq!(nonblocking.collect::<Vec<_>>(), [false, true, true, false, true]);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn an_accepted_connection_has_nodelay() {
    let addresses: &[&str] = if has_ipv6() { &["127.0.0.1:0", "[::1]:0"] } else { &["127.0.0.1:0"] };
    for address in addresses {
        let running = panzer(&format!("-n 1 -l {address} --restart never"), &probe("-", &["accept"])).start();
        let host = address.strip_suffix(":0").unwrap();
        let connection = TcpStream::connect(format!("{host}:{}", running.port())).unwrap();
        assert_eq!(shell_status(running.wait_exit()), 0);
        assert!(running.stdout().contains("accepted nodelay=true\n"), "{}", running.stdout());
        drop(connection);
    }
}

#[test]
fn the_backlog_is_the_one_asked_for_cut_by_the_kernel() {
    let somaxconn: u32 = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    for (option, expected) in [("--backlog 17", 17), ("", 4096), ("--backlog 1000000000", 1_000_000_000)] {
        let running = panzer(&format!("-n 1 -l 127.0.0.1:0 {option}"), &["sleep", "100000"]).start();
        let port = running.port();
        // The queue's limit stands where a connection has its unsent bytes.
        let Ok(output) = Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]).output() else {
            return not_installed("the backlog: there is no ss (Debian's package iproute2)");
        };
        let output = String::from_utf8(output.stdout).unwrap();
        let limit = output.split_ascii_whitespace().nth(2).unwrap();
        assert_eq!(limit, expected.min(somaxconn).to_string(), "{option}: {output}");
        running.ends_with(libc::SIGTERM, 0);
    }
}

// Listeners that panzer inherits

#[test]
fn inherited_listeners_are_passed_on_before_those_of_its_own() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    let report = scratch.path("report");
    let inner = [text(binary()), "-n".to_string(), "1".to_string(), "-l".to_string(), "own=127.0.0.1:0".to_string()];
    let mut command: Vec<String> = inner.to_vec();
    command.push("--".to_string());
    command.extend(probe(&text(&report), &["sleep"]));
    let options = format!("-n 1 -l web=127.0.0.1:0 -l tls=unix://{}", path.display());
    let running = panzer(&options, &command).start();
    let given = wait_for("the inner worker reports", || Report::read(&report));
    running.wait_lines(", listening on ", 2);
    let stderr = running.stderr();
    let mut lines: Vec<&str> = stderr.lines().filter_map(|line| Some(line.split_once(", listening on ")?.1)).collect();
    // Either of the two may be the first to say it.
    lines.sort_by_key(|line| line.len());
    let (outer, inner) = (lines[0], lines[1]);
    assert!(inner.starts_with(&format!("{outer}, tcp://127.0.0.1:")), "{stderr}");
    let (web, own) = (port_of(outer.split(", ").next().unwrap()), port_of(inner));
    assert_eq!(
        told(&given),
        [
            "LISTEN_FDNAMES=web:tls:own".to_string(),
            "LISTEN_FDS=3".to_string(),
            format!("LISTEN_PID={}", given.get("pid")),
            "SERVER_STARTER_GENERATION=1".to_string(),
            format!("SERVER_STARTER_PORT=127.0.0.1:{web}=3;{}=4;127.0.0.1:{own}=5", path.display()),
        ]
    );
    let numbers: Vec<u32> = given.descriptors().iter().map(|descriptor| descriptor.number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(given.env("PANZER_PARENT_FD"), Some("6"));
    assert_eq!(given.env("PANZER_PID"), Some(given.get("ppid")), "the inner panzer is its parent");
    running.ends_with(libc::SIGTERM, 0);
    assert!(!path.exists());
}

#[test]
fn workers_of_an_inner_panzer_answer_on_the_outer_ones_port() {
    let mut command = vec![text(binary()), "-n".to_string(), "2".to_string(), "--".to_string()];
    command.extend(hello());
    let running = panzer("-n 1 -l 127.0.0.1:0", &command).start();
    let addr = loopback(running.port());
    let mut answered = BTreeSet::new();
    wait_until("both have answered", || {
        answered.insert(load::one_within(&addr, Duration::from_secs(20)).unwrap());
        answered.len() == 2
    });
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn listeners_that_are_meant_for_another_process_are_not_taken() {
    let scratch = Scratch::new();
    let report = scratch.path("report");
    let running = panzer("-n 1", &probe(&text(&report), &["sleep"]))
        .wrapper(through_shell("exec 3</etc/passwd"))
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", "1")
        .start();
    let given = wait_for("the worker reports", || Report::read(&report));
    assert_eq!(told(&given), [""; 0]);
    assert_eq!(given.env("PANZER_PARENT_FD"), Some("3"));
    running.ends_with(libc::SIGTERM, 0);
}

// Paths of others

#[test]
fn a_stale_path_is_taken_over() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let running = panzer(&format!("-n 1 -l unix://{}", path.display()), &hello()).start();
    running.listening();
    assert!(load::one(&Addr::Unix(path.clone())).is_ok());
    running.ends_with(libc::SIGTERM, 0);
    assert!(!path.exists());
}

#[test]
fn a_path_that_a_killed_panzer_left_is_taken_over() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    for _ in 0..2 {
        let running = panzer(&format!("-n 1 -l unix://{}", path.display()), &hello()).start();
        running.listening();
        assert!(load::one(&Addr::Unix(path.clone())).is_ok());
        running.kill();
        running.wait_exit();
        wait_until("all of it is gone", || running.leftovers().is_empty());
        assert!(path.exists());
    }
}

#[track_caller]
fn refused_with(path: &Path, cause: &str) {
    for mode in ["-n 1", ""] {
        let output = panzer(&format!("{mode} -l unix://{}", path.display()), &["true"]).run();
        assert_eq!(shell_status(output.status), 125, "{}", output.stderr);
        assert_eq!(output.stderr, format!("panzer: cannot listen on unix://{}: {cause}\n", path.display()));
    }
}

#[test]
fn a_live_path_is_never_stolen() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    refused_with(&path, "somebody is listening there");
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"still here").unwrap();
    client.shutdown(Shutdown::Both).unwrap();
    let served = listener.incoming().map(|connection| {
        let mut text = String::new();
        connection.unwrap().read_to_string(&mut text).unwrap();
        text
    });
    // panzer's own look came first, and was empty.
    let texts: Vec<String> = served.take(3).collect();
    assert_eq!(texts, ["", "", "still here"]);
}

#[test]
fn a_live_path_with_a_full_queue_is_never_stolen() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let address = SocketAddrUnix::new(&path).unwrap();
    let listener = socket();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut clients = Vec::new();
    loop {
        let client = socket();
        match rustix::net::connect(&client, &address) {
            Ok(()) => clients.push(client),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                break;
            }
        }
    }
    refused_with(&path, "somebody is listening there");
    assert!(path.exists());
}

#[test]
fn a_datagram_sockets_path_and_a_plain_file_are_never_stolen() {
    let scratch = Scratch::new();
    let path = scratch.path("x.sock");
    let _datagrams = UnixDatagram::bind(&path).unwrap();
    refused_with(&path, "somebody is listening there");
    let file = scratch.write("file", "precious");
    refused_with(&file, "there is a file of another kind at this path");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn at_the_end_a_path_is_removed_only_while_it_is_still_ours() {
    for (mode, status) in [("-n 1", 0), ("", 128 + libc::SIGTERM)] {
        let scratch = Scratch::new();
        let path = scratch.path("x.sock");
        let report = scratch.path("report");
        let options = format!("{mode} -l unix://{}", path.display());
        let running = panzer(&options, &probe(&text(&report), &["sleep"])).start();
        wait_until("the worker runs", || report.exists());
        let other = UnixListener::bind(scratch.path("other.sock")).unwrap();
        fs::rename(scratch.path("other.sock"), &path).unwrap();
        running.ends_with(libc::SIGTERM, status);
        assert!(path.exists(), "{mode}: it is another's by now");
        drop(UnixStream::connect(&path).unwrap());
        drop(other);
    }
}

#[test]
fn of_two_that_want_one_path_at_once_exactly_one_gets_it() {
    for _ in 0..10 {
        let scratch = Scratch::new();
        let path = scratch.path("x.sock");
        drop(UnixListener::bind(&path).unwrap());
        let options = format!("-n 1 -l unix://{}", path.display());
        let all: Vec<Running> = (0..4).map(|_| panzer(&options, &hello()).start()).collect();
        wait_until("all but one were refused", || all.iter().filter(|one| one.try_exit().is_some()).count() == 3);
        for one in &all {
            match one.try_exit() {
                Some(status) => assert_eq!(shell_status(status), 125, "{}", one.stderr()),
                None => {
                    one.listening();
                    assert!(load::one(&Addr::Unix(path.clone())).is_ok());
                    one.ends_with(libc::SIGTERM, 0);
                }
            }
        }
        assert!(!path.exists());
    }
}

// Nothing is lost

#[test]
fn workers_that_are_told_to_end_under_load_lose_nothing() {
    for mode in [Mode::Short, Mode::KeepAlive] {
        let running = panzer("-n 3 -l 127.0.0.1:0 --ready exec --backoff 0:0", &hello()).start();
        running.wait_slots(3);
        let address = SocketAddr::from(([127, 0, 0, 1], running.port()));
        let load = Load::start(address, LoadOptions { connections: 6, mode, ..LoadOptions::default() });
        for round in 0..12_u32 {
            let slot = round % 3;
            let old = wait_for("the slot has a worker", || running.slots().get(&slot).copied());
            let before = load.count();
            wait_until("there is load", || load.count() > before + 20);
            process::send_signal(old, libc::SIGTERM);
            running.wait_replaced(slot, old);
        }
        let report = load.stop();
        println!("{mode:?}: {report}");
        assert_eq!(report.lost(), 0, "{report}");
        running.ends_with(libc::SIGTERM, 0);
    }
}

#[test]
fn killed_workers_under_load_lose_no_more_than_what_they_had_in_hand() {
    let running = panzer("-n 3 -l 127.0.0.1:0 --ready exec --backoff 0:0", &hello()).start();
    running.wait_slots(3);
    let address = SocketAddr::from(([127, 0, 0, 1], running.port()));
    let load = Load::start(address, LoadOptions { connections: 6, ..LoadOptions::default() });
    for round in 0..12_u32 {
        let before = load.count();
        wait_until("there is load", || load.count() > before + 20);
        running.kill_worker(round % 3);
    }
    let report = load.stop();
    println!("{report}");
    assert_eq!((report.refused, report.timed_out, report.other.len()), (0, 0, 0), "{report}");
    assert!(report.lost() <= 12 * 6, "{report}");
    running.ends_with(libc::SIGTERM, 0);
}
