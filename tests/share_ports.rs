//! Servers that bind their own port, several of them on one, none of which knows.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use crate::support::binders::{
    AT_ONCE, Binders, addr, alone, as_pid1, binder, has_ipv6, left_out, same_as_alone, same_in, stop, ways, word,
};
use crate::support::load::{self, Failure};
use crate::support::ports::free_port;
use crate::support::process;
use crate::support::worker::{sh, text};

/// The answer to one request.
#[track_caller]
fn ask(address: &str) -> String {
    load::one(&addr(address)).unwrap_or_else(|failure| panic!("{address}: {failure}"))
}

// One port

#[test]
fn three_unmodified_servers_answer_on_one_port() {
    let mut addresses = vec!["127.0.0.1", "0.0.0.0"];
    match has_ipv6() {
        true => addresses.extend(["[::1]", "[::]"]),
        false => left_out("IPv6: this machine has none"),
    }
    for host in addresses {
        let port = free_port();
        let kind = if host.starts_with('[') { "tcp6" } else { "tcp4" };
        let steps = format!("{kind} bind={host}:{port} listen=511 name inode serve sleep");
        let all = Binders::start("-n 3", &steps);
        all.wait_all(3, "serve -> ok");
        let asked = if host == "[::1]" { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") };
        all.wait_answers(&addr(&asked), 3);
        let of_all = |step: &str| (0..3).map(|slot| all.value(slot, step)).collect::<BTreeSet<String>>();
        assert_eq!(of_all("name"), BTreeSet::from([format!("{host}:{port}")]));
        assert_eq!(of_all("inode").len(), 1, "one socket for all");
        all.end();
        assert_eq!(load::one(&addr(&asked)), Err(Failure::Refused), "nothing holds the port");
    }
}

#[test]
fn specific_addresses_of_one_port_are_listeners_of_their_own() {
    let port = free_port();
    let steps = format!(
        "tcp4 bind=127.0.0.1:{port} listen=5 tcp4 bind=127.0.0.2:{port} listen=5 tcp4 bind=127.0.0.3:{port} listen=5 serve sleep"
    );
    let all = Binders::start("-n 3", &steps);
    all.wait_all(3, "serve -> ok");
    for (host, socket) in [("127.0.0.1", "0"), ("127.0.0.2", "1"), ("127.0.0.3", "2")] {
        let sockets = all.wait_answers(&addr(&format!("{host}:{port}")), 3);
        assert_eq!(sockets, BTreeSet::from([socket.to_string()]), "{host}");
    }
    assert_eq!(load::one(&addr(&format!("127.0.0.4:{port}"))), Err(Failure::Refused));
    all.end();
}

#[test]
fn a_wildcard_and_a_specific_address_of_one_port_exclude_each_other_as_without_panzer() {
    for reuse in ["", "set=reuseaddr:1"] {
        let port = free_port();
        same_as_alone(
            3,
            &format!(
                "tcp4 {reuse} bind=0.0.0.0:{port} listen=5 name tcp4 {reuse} bind=127.0.0.1:{port} name \
                 tcp4 {reuse} bind=127.0.0.2:{port} name"
            ),
        );
        let port = free_port();
        same_as_alone(3, &format!("tcp4 {reuse} bind=127.0.0.1:{port} listen=5 tcp4 {reuse} bind=0.0.0.0:{port} name"));
    }
}

#[test]
fn a_dual_stack_wildcard_is_reached_both_ways_and_a_v6only_one_is_not() {
    if !has_ipv6() {
        return left_out("IPv6: this machine has none");
    }
    for (option, both) in [("", true), ("set=v6only:0", true), ("set=v6only:1", false)] {
        let port = free_port();
        let all = Binders::start("-n 3", &format!("tcp6 {option} bind=[::]:{port} listen=5 serve sleep"));
        all.wait_all(3, "serve -> ok");
        all.wait_answers(&addr(&format!("[::1]:{port}")), 3);
        match both {
            true => drop(all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3)),
            false => assert_eq!(load::one(&addr(&format!("127.0.0.1:{port}"))), Err(Failure::Refused)),
        }
        all.end();
    }
}

#[test]
fn a_worker_may_listen_on_both_families_separately() {
    if !has_ipv6() {
        return left_out("IPv6: this machine has none");
    }
    // In either order, as nginx does.
    for turned in [false, true] {
        let port = free_port();
        let four = format!("tcp4 set=reuseaddr:1 bind=0.0.0.0:{port} listen=511");
        let six = format!("tcp6 set=reuseaddr:1 set=v6only:1 bind=[::]:{port} listen=511");
        let both = if turned { [six, four] } else { [four, six] };
        let all = Binders::start("-n 3", &format!("{} serve sleep", both.join(" ")));
        all.wait_all(3, "serve -> ok");
        let socket = |of_four: bool| BTreeSet::from([u32::from(of_four == turned).to_string()]);
        assert_eq!(all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3), socket(true));
        assert_eq!(all.wait_answers(&addr(&format!("[::1]:{port}")), 3), socket(false));
        all.end();
    }
}

#[test]
fn wildcards_of_both_families_exclude_each_other_as_without_panzer() {
    if !has_ipv6() {
        return left_out("IPv6: this machine has none");
    }
    let port = free_port();
    same_as_alone(3, &format!("tcp6 bind=[::]:{port} listen=5 tcp4 bind=0.0.0.0:{port} tcp4 bind=127.0.0.1:{port}"));
    let port = free_port();
    same_as_alone(
        3,
        &format!("tcp4 bind=0.0.0.0:{port} listen=5 tcp6 bind=[::]:{port} tcp6 set=v6only:1 bind=[::]:{port} name"),
    );
    // An IPv4 address through an IPv6 socket.
    let port = free_port();
    same_as_alone(
        2,
        &format!("tcp6 bind=[::ffff:127.0.0.1]:{port} listen=5 name tcp6 set=v6only:1 bind=[::ffff:127.0.0.1]:{port}"),
    );
}

#[test]
fn two_ports_of_one_worker_are_both_shared() {
    let (api, admin) = (free_port(), free_port());
    let steps = format!("tcp4 bind=0.0.0.0:{api} listen=5 tcp4 bind=127.0.0.1:{admin} listen=5 serve sleep");
    let all = Binders::start("-n 3", &steps);
    all.wait_all(3, "serve -> ok");
    assert_eq!(all.wait_answers(&addr(&format!("127.0.0.1:{api}")), 3), BTreeSet::from(["0".to_string()]));
    assert_eq!(all.wait_answers(&addr(&format!("127.0.0.1:{admin}")), 3), BTreeSet::from(["1".to_string()]));
    all.end();
}

#[test]
fn a_worker_may_bind_close_and_bind_again() {
    let port = free_port();
    let steps = format!(
        "tcp4 set=rcvbuf:65536 bind=127.0.0.1:{port} close tcp4 set=rcvbuf:131072 bind=127.0.0.1:{port} listen=5 options"
    );
    same_as_alone(1, &steps);
    // With a listen in between, as one does who wants to know whether a port is free.
    let port = free_port();
    let steps = format!(
        "tcp4 bind=127.0.0.1:{port} listen=1 close tcp4 set=sndbuf:65536 bind=127.0.0.1:{port} listen=5 options"
    );
    same_as_alone(1, &steps);
    let port = free_port();
    let once = format!("tcp4 bind=127.0.0.1:{port} listen=1 close");
    let steps = format!("{} tcp4 bind=127.0.0.1:{port} listen=5 serve sleep", format!("{once} ").repeat(5));
    let all = Binders::start("-n 3", &steps);
    all.wait_all(3, "serve -> ok");
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
    for slot in 0..3 {
        assert!(all.results(slot).iter().all(|line| line.ends_with(" -> ok")), "{:?}", all.results(slot));
    }
    all.end();
}

#[test]
fn the_descriptor_keeps_the_number_that_the_app_has_chosen() {
    let port = free_port();
    let steps = format!("tcp4 dup=50 bind=127.0.0.1:{port} listen=5 fdnumber name serve sleep");
    let all = Binders::start("-n 2", &steps);
    all.wait_all(2, "serve -> ok");
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 2);
    for slot in 0..2 {
        assert_eq!(all.value(slot, "fdnumber"), "50");
        assert_eq!(all.value(slot, "name"), format!("127.0.0.1:{port}"));
    }
    all.end();
}

#[test]
fn an_address_may_be_longer_than_it_has_to_be() {
    let port = free_port();
    same_as_alone(2, &format!("tcp4 padded=127.0.0.1:{port} name listen=5 options"));
    if has_ipv6() {
        let port = free_port();
        same_as_alone(2, &format!("tcp6 padded=[::1]:{port} name listen=5 options"));
    }
}

#[test]
fn signals_in_the_middle_of_binds_are_not_seen() {
    // Of a program whose handlers ask for that, as nearly all do; Go and Java send themselves signals all the time.
    for (way, wrapper) in ways() {
        let (port, other) = (free_port(), free_port());
        let steps = format!(
            "storm flood=2000:127.0.0.1:{other} tcp4 set=rcvbuf:65536 bind=127.0.0.1:{port} listen=5 serve sleep"
        );
        let all = Binders::start_through(Binders::directory(), &wrapper, "-n 2", |out| binder(out, &steps));
        all.wait_all(2, "serve -> ok");
        for slot in 0..2 {
            assert_eq!(all.value(slot, &format!("flood=2000:127.0.0.1:{other}")), "ok:2000", "{way}");
            assert!(all.results(slot).iter().all(|line| line.ends_with(" -> ok") || line.contains("flood")), "{way}");
        }
        all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 2);
        all.end();
    }
}

// What passes

#[test]
fn a_port_that_the_kernel_chooses_is_each_workers_own() {
    let all = Binders::start("-n 3", "tcp4 bind=127.0.0.1:0 listen=5 name serve sleep");
    all.wait_all(3, "serve -> ok");
    let names: Vec<String> = (0..3).map(|slot| all.value(slot, "name")).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 3, "{names:?}");
    for (slot, name) in names.iter().enumerate() {
        assert_eq!(word(&ask(name), "worker="), slot.to_string());
    }
    all.end();
    // Nobody but its worker holds it.
    let all = Binders::start(&format!("-n 1 {AT_ONCE}"), "tcp4 bind=127.0.0.1:0 listen=5 name serve sleep");
    all.wait_all(1, "serve -> ok");
    let name = all.value(0, "name");
    all.running.kill_worker(0);
    assert_eq!(load::one(&addr(&name)), Err(Failure::Refused));
    all.end();
}

#[test]
fn an_outgoing_connection_may_be_bound_to_an_address_and_to_a_port() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap();
    let port = free_port();
    for from in ["127.0.0.5:0".to_string(), format!("127.0.0.5:{port}")] {
        for (way, wrapper) in ways() {
            let go_on = Binders::directory();
            let done = text(go_on.path("done"));
            let steps =
                format!("tcp4 set=reuseaddr:1 bind={from} connect={to} name send=hello recv wait={done} close sleep");
            let all = Binders::start_through(go_on, &wrapper, "-n 1", |out| binder(out, &steps));
            let (mut connection, peer) = server.accept().unwrap();
            assert_eq!(peer.ip().to_string(), "127.0.0.5", "{way}");
            if from != "127.0.0.5:0" {
                assert_eq!(peer.port(), port, "{way}");
            }
            assert_eq!(all.value(0, "name"), peer.to_string(), "{way}");
            let mut text = [0; 5];
            connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            connection.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"hello");
            connection.write_all(b"you").unwrap();
            all.wait_all(1, "recv -> got you");
            all.scratch.write("done", "");
            // The end comes although panzer has seen the socket, and while the worker lives.
            assert_eq!(connection.read(&mut text).unwrap(), 0, "{way}: {from}");
            drop(connection);
            all.end();
        }
    }
}

#[test]
fn datagram_sockets_pass_untouched() {
    let port = free_port();
    for (option, others) in [("", "EADDRINUSE"), ("set=reuseport:1", "ok")] {
        let steps = format!("udp4 {option} bind=127.0.0.1:{port} inode serve sleep");
        let all = Binders::start("-n 2", &steps);
        all.wait_all(2, "serve -> ok");
        let mut results: Vec<String> = (0..2).map(|slot| all.value(slot, &format!("bind=127.0.0.1:{port}"))).collect();
        results.sort();
        assert_eq!(results, [others, "ok"], "{option}");
        assert_ne!(all.value(0, "inode"), all.value(1, "inode"));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.send_to(b"who", format!("127.0.0.1:{port}")).unwrap();
        let mut answer = [0; 100];
        let (count, _) = client.recv_from(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer[..count]).contains("worker="));
        all.end();
    }
    let port = free_port();
    same_as_alone(1, &format!("udp4 bind=127.0.0.1:{port} name options tcp4 bind=127.0.0.1:{port} listen=1 options"));
}

#[test]
fn binds_that_are_wrong_fail_as_without_panzer() {
    let port = free_port();
    let steps = [
        "oddbinds tcp4 bind=192.0.2.1:{} bind=127.0.0.1:{} name listen=5 bind=127.0.0.1:0",
        "connect=127.0.0.1:1 listen=6 name unix bind=/no/such/path/x",
    ];
    same_as_alone(2, &steps.join(" ").replace("{}", &port.to_string()));
    // A socket that has a port already. Without pidfd_getfd panzer cannot see that it has.
    let port = free_port();
    let steps = format!("tcp4 bind=127.0.0.1:{port} listen=5 tcp4 listen=5 bind=127.0.0.1:{port} listen=3");
    same_in(&ways()[..1], 2, &steps);
}

#[test]
fn a_port_of_another_program_is_in_use_as_without_panzer() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let port = taken.port();
    same_as_alone(2, &format!("tcp4 bind={taken} name bind=0.0.0.0:{port} set=reuseaddr:1 bind={taken} listen=5"));
}

#[test]
fn a_worker_in_another_network_binds_there() {
    let (name, port) = ("unshare=user,net", free_port());
    if !alone(name).contains(&format!("{name} -> ok")) {
        return left_out("another network namespace: this user may make none");
    }
    let all = Binders::start("-n 2", &format!("{name} tcp4 bind=0.0.0.0:{port} listen=5 inode sleep"));
    let inodes: BTreeSet<String> = (0..2).map(|slot| all.value(slot, "inode")).collect();
    assert_eq!(inodes.len(), 2);
    all.wait_all(2, "listen=5 -> ok");
    assert_eq!(load::one(&addr(&format!("127.0.0.1:{port}"))), Err(Failure::Refused));
    all.end();
}

// What a socket is like

#[test]
fn multipath_servers_share_their_port() {
    if alone("mptcp") != ["mptcp -> ok"] {
        return left_out("MPTCP: this kernel has none");
    }
    let port = free_port();
    same_as_alone(2, &format!("mptcp set=reuseaddr:1 set=rcvbuf:65536 bind=127.0.0.1:{port} listen=5 name options"));
    let port = free_port();
    let all = Binders::start("-n 3", &format!("mptcp bind=127.0.0.1:{port} listen=5 serve sleep"));
    all.wait_all(3, "serve -> ok");
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
    all.end();
}

/// What servers set before they bind, also where panzer cannot have the app's own socket; `{}` is the port.
const AS_SERVERS_DO: [&str; 6] = [
    "tcp4 bind=127.0.0.1:{} listen=511 options",
    "tcp4+nonblock+cloexec set=reuseaddr:1 bind=127.0.0.1:{} listen=511 options",
    "tcp4+cloexec bind=127.0.0.1:{} nonblock listen=511 options",
    "tcp4+nonblock set=reuseaddr:1 set=reuseport:1 bind=0.0.0.0:{} listen=511 options",
    "tcp4 set=deferaccept:5 set=fastopen:16 set=maxseg:1200 set=freebind:1 bind=127.0.0.1:{} listen=511 options",
    "tcp4 set=rcvbuf:65536 set=sndbuf:131072 bind=127.0.0.1:{} listen=511 options",
];
const AS_SERVERS_DO_IN_IPV6: [&str; 4] = [
    "tcp6 bind=[::1]:{} listen=511 options",
    "tcp6+nonblock+cloexec set=reuseaddr:1 set=v6only:1 bind=[::]:{} listen=511 options",
    "tcp6 set=v6only:0 set=reuseport:1 bind=[::]:{} listen=511 options",
    "tcp6 set=rcvbuf:65536 set=fastopen:5 set=deferaccept:3 bind=[::]:{} listen=511 options",
];

/// What else there is.
const AS_FEW_SERVERS_DO: [&str; 7] = [
    "tcp4 set=nodelay:1 set=keepalive:1 set=keepidle:60 set=keepintvl:7 set=keepcnt:3 bind=127.0.0.1:{} listen=5 options",
    "tcp4 set=linger:0 set=linger2:30 set=usertimeout:30000 set=syncnt:3 bind=127.0.0.1:{} listen=5 options",
    "tcp4 set=tos:16 set=ttl:33 set=priority:3 set=rcvlowat:2 bind=127.0.0.1:{} listen=5 options",
    "tcp4 set=congestion:reno set=notsentlowat:16384 set=windowclamp:8192 bind=127.0.0.1:{} listen=5 options",
    "tcp4 set=rcvtimeo:5 set=sndtimeo:6 set=savesyn:1 bind=127.0.0.1:{} listen=5 options",
    "tcp4 set=bindtodevice:lo bind=127.0.0.1:{} listen=5 options",
    "tcp6 set=tclass:32 set=hops:9 bind=[::1]:{} listen=5 options",
];

/// The steps that this machine can do.
fn possible<'a>(steps: &[&'a str]) -> Vec<&'a str> {
    let six = has_ipv6();
    if !six {
        left_out("IPv6: this machine has none");
    }
    steps.iter().copied().filter(|steps| six || !steps.starts_with("tcp6")).collect()
}

#[test]
fn all_options_are_the_apps_own_for_the_first_worker_and_for_the_others() {
    for steps in possible(&[&AS_SERVERS_DO[..], &AS_SERVERS_DO_IN_IPV6].concat()) {
        same_as_alone(3, &steps.replace("{}", &free_port().to_string()));
    }
}

#[test]
fn where_panzer_can_have_the_apps_socket_any_option_is_the_apps_own() {
    for steps in possible(&AS_FEW_SERVERS_DO) {
        same_in(&ways()[..1], 3, &steps.replace("{}", &free_port().to_string()));
    }
}

#[test]
fn without_pidfd_getfd_panzers_own_sockets_have_tcp_nodelay_and_no_others() {
    for (_, wrapper) in ways() {
        let of_panzers = if wrapper.is_empty() { " nodelay=00000000 " } else { " nodelay=01000000 " };
        for set in ["", "set=nodelay:0"] {
            let port = free_port();
            let steps = format!("tcp4 {set} bind=127.0.0.1:{port} listen=5 options sleep");
            let all = Binders::start_through(Binders::directory(), &wrapper, "-n 2", |out| binder(out, &steps));
            for slot in 0..2 {
                all.value(slot, "options");
                let options = all.raw_lines(slot).pop().unwrap();
                assert!(options.contains(of_panzers), "{options}");
            }
            all.end();
        }
    }
    // A path has no such option.
    for (_, wrapper) in ways() {
        let scratch = Binders::directory();
        let steps = format!("unix bind={} listen=5 options sleep", scratch.path("x.sock").display());
        let all = Binders::start_through(scratch, &wrapper, "-n 1", |out| binder(out, &steps));
        assert!(!all.value(0, "options").contains(" nodelay=0"));
        all.end();
    }
}

#[test]
fn a_later_life_finds_the_options_too() {
    for (_, wrapper) in ways() {
        let port = free_port();
        let steps = format!("tcp4+nonblock set=rcvbuf:65536 set=fastopen:7 bind=127.0.0.1:{port} listen=511 options");
        let expected = alone(&steps).pop().unwrap();
        let options = format!("-n 2 {AT_ONCE}");
        let all = Binders::start_through(Binders::directory(), &wrapper, &options, |out| {
            binder(out, &format!("{steps} sleep"))
        });
        all.wait_all(2, &expected);
        for life in 2..5 {
            all.running.kill_worker(1);
            all.wait_lines(1, &expected, life);
        }
        all.end();
    }
}

#[test]
fn a_workers_small_backlog_does_not_cut_the_queue() {
    let port = free_port();
    let all = Binders::start("-n 2", &format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep"));
    all.wait_all(2, "serve -> ok");
    match Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]).output() {
        Ok(output) => {
            let somaxconn: u32 = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
            let output = String::from_utf8(output.stdout).unwrap();
            let limit = output.split_ascii_whitespace().nth(2).unwrap();
            assert_eq!(limit, 4096.min(somaxconn).to_string(), "{output}");
        }
        Err(_) => left_out("the queue's limit: there is no ss"),
    }
    let workers = all.running.wait_slots(2);
    for worker in workers.values() {
        stop(*worker);
    }
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(20)).unwrap();
    let waiting: Vec<TcpStream> = (0..100).map(|_| connect()).collect();
    for worker in workers.values() {
        process::send_signal(*worker, libc::SIGCONT);
    }
    drop(waiting);
    ask(&format!("127.0.0.1:{port}"));
    all.end();
    // The larger one counts.
    for (option, listen, expected) in [("--backlog 7", 5, 7), ("--backlog 7", 50, 50)] {
        let port = free_port();
        let all =
            Binders::start(&format!("-n 2 {option}"), &format!("tcp4 bind=127.0.0.1:{port} listen={listen} sleep"));
        all.wait_all(2, &format!("listen={listen} -> ok"));
        if let Ok(output) = Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]).output() {
            let output = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.split_ascii_whitespace().nth(2), Some(expected.to_string().as_str()), "{output}");
        }
        all.end();
    }
}

// Which process binds

#[test]
fn a_declared_address_is_given_to_the_worker_that_binds_it() {
    for (way, wrapper) in ways() {
        let port = free_port();
        let steps = format!(
            "fd=3 inode tcp4 bind=127.0.0.1:{port} listen=5 inode close tcp4 bind=127.0.0.1:{port} listen=1 serve sleep"
        );
        let options = format!("-n 3 -l 127.0.0.1:{port}");
        let all = Binders::start_through(Binders::directory(), &wrapper, &options, |out| binder(out, &steps));
        all.wait_all(3, "serve -> ok");
        for slot in 0..3 {
            let inodes = all.values(slot, "inode", 2);
            assert_eq!(inodes[0], inodes[1], "{way}: it is the same socket");
        }
        all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
        all.end();
    }
}

#[test]
fn it_does_not_matter_which_process_of_a_worker_binds() {
    for (name, before) in [
        ("a child", "fork=1"),
        ("a grandchild", "fork=1 fork=1"),
        ("four children", "fork=4"),
        ("a thread", "thread=1"),
        ("five threads at once", "thread=5"),
        ("a thread of a child", "fork=1 thread=1"),
    ] {
        let port = free_port();
        let steps = format!("{before} tcp4 bind=127.0.0.1:{port} listen=5 serve sleep");
        let all = Binders::start("-n 3", &steps);
        all.wait_all(3, "serve -> ok");
        all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
        for slot in 0..3 {
            assert!(all.results(slot).iter().all(|line| line.ends_with(" -> ok")), "{name}: {:?}", all.results(slot));
        }
        all.end();
    }
}

#[test]
fn a_server_behind_a_shell_shares_its_port() {
    for script in ["BINDER; true", "(BINDER) & wait", "sh -c 'BINDER; true'; true"] {
        let port = free_port();
        let all = Binders::start_through(Binders::directory(), &[], "-n 3", |out| {
            let steps = format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep");
            sh(&script.replace("BINDER", &binder(out, &steps).join(" ")))
        });
        all.wait_all(3, "serve -> ok");
        all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
        all.end();
    }
}

#[test]
fn panzer_as_pid_1_shares_ports() {
    let Some(wrapper) = as_pid1() else {
        return left_out("PID 1: this user may make no PID namespace");
    };
    let port = free_port();
    let steps = format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep");
    let options = format!("-n 3 {AT_ONCE}");
    let all = Binders::start_through(Binders::directory(), &wrapper, &options, |out| binder(out, &steps));
    all.wait_all(3, "serve -> ok");
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
    let old = all.running.wait_slots(3);
    for slot in 0..3 {
        all.running.kill_worker(slot);
        all.wait_lines(slot, "serve -> ok", 2);
    }
    assert!(all.running.slots().values().all(|pid| !old.values().any(|gone| gone == pid)));
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
    all.end();
}
