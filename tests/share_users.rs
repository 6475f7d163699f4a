//! Who binds: a worker gets no port and no path that it could not bind by itself, whoever has it already.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use rustix::net::sockopt::socket_peercred;

use crate::support::binders::{AT_ONCE, Binders, addr, alone, binder, is_root, left_out, same_as_alone, ways, word};
use crate::support::load;
use crate::support::ports::free_port;
use crate::support::random::Random;
use crate::support::worker::sh;

/// A port below those that everybody may bind, free on 127.0.0.1; None where there are none.
fn privileged_port() -> Option<u16> {
    let limit = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?;
    let limit: u16 = limit.trim().parse().ok()?;
    let mut random = Random::new();
    let mut tries = (0..50).map(|_| 600 + u16::try_from(random.below(400)).unwrap());
    if limit < 1000 {
        return None;
    }
    if !is_root() {
        return Some(1000);
    }
    // The tests run at the same time.
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    tries.find(|port| TAKEN.lock().unwrap().insert(*port) && TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

#[test]
fn an_ordinary_user_gets_no_privileged_port() {
    let Some(port) = privileged_port() else {
        return left_out("privileged ports: this machine has none");
    };
    if !is_root() {
        return same_as_alone(2, &format!("tcp4 bind=127.0.0.1:{port} name"));
    }
    for (way, wrapper) in ways() {
        let steps = format!("tcp4 bind=127.0.0.1:{port} name sleep");
        let options = "-n 2 -u 12345";
        let all = Binders::start_through(Binders::directory(), &wrapper, options, |out| binder(out, &steps));
        for slot in 0..2 {
            assert_eq!(all.value(slot, &format!("bind=127.0.0.1:{port}")), "EACCES", "{way}");
            assert_eq!(all.value(slot, "name"), "0.0.0.0:0");
        }
        all.end();
    }
}

#[test]
fn a_worker_that_gave_up_root_does_not_get_what_another_bound_as_root() {
    let Some(port) = privileged_port().filter(|_| is_root()) else {
        return left_out("a worker that gives up root: only root can");
    };
    for (way, wrapper) in ways() {
        let all = Binders::start_through(Binders::directory(), &wrapper, "-n 2", |out| {
            let bind = format!("tcp4 set=reuseaddr:1 bind=127.0.0.1:{port} name listen=5 serve sleep");
            let first = binder(out, &bind).join(" ");
            let second = binder(out, &format!("wait={out}/go setuid=12345 {bind}")).join(" ");
            sh(&format!("if [ $PANZER_WORKER_ID = 0 ]; then exec {first}; else exec {second}; fi"))
        });
        all.wait_lines(0, "serve -> ok", 1);
        all.scratch.write("reports/go", "");
        assert_eq!(all.value(1, &format!("bind=127.0.0.1:{port}")), "EACCES", "{way}");
        all.wait_lines(1, "name -> 0.0.0.0:0", 1);
        assert_eq!(word(&load::one(&addr(&format!("127.0.0.1:{port}"))).unwrap(), "worker="), "0");
        all.end();
    }
}

#[test]
fn workers_of_another_user_share_their_port() {
    if !is_root() {
        return left_out("workers of another user: only root may start them");
    }
    for (way, wrapper) in ways() {
        let port = free_port();
        let steps = format!("tcp4 set=sndbuf:65536 bind=127.0.0.1:{port} listen=5 options serve");
        let expected = alone(&steps).into_iter().find(|line| line.starts_with("options")).unwrap();
        let options = "-n 3 -u 12345";
        let all = Binders::start_through(Binders::directory(), &wrapper, options, |out| {
            binder(out, &format!("{steps} sleep"))
        });
        all.wait_all(3, "serve -> ok");
        all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
        for slot in 0..3 {
            assert_eq!(format!("options -> {}", all.value(slot, "options")), expected, "{way}");
        }
        all.end();
    }
}

#[test]
fn a_declared_privileged_port_is_given_to_a_worker_of_another_user() {
    let Some(port) = privileged_port().filter(|_| is_root()) else {
        return left_out("a privileged port for another user: only root can declare it");
    };
    for (_, wrapper) in ways() {
        let steps = format!("tcp4 bind=127.0.0.1:{port} listen=5 serve tcp4 bind=127.0.0.2:{port} sleep");
        let options = format!("-n 2 -u 12345 -l 127.0.0.1:{port}");
        let all = Binders::start_through(Binders::directory(), &wrapper, &options, |out| binder(out, &steps));
        all.wait_all(2, "serve -> ok");
        all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 2);
        all.wait_all(2, &format!("bind=127.0.0.2:{port} -> EACCES"));
        all.end();
    }
}

#[test]
fn a_worker_in_a_user_namespace_shares_its_port() {
    if alone("unshare=user") != ["unshare=user -> ok"] {
        return left_out("a user namespace: this user may make none");
    }
    for (way, wrapper) in ways() {
        let port = free_port();
        let steps = format!("unshare=user tcp4+nonblock bind=127.0.0.1:{port} listen=5 options name serve sleep");
        let all = Binders::start_through(Binders::directory(), &wrapper, "-n 3", |out| binder(out, &steps));
        all.wait_all(3, "serve -> ok");
        all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
        for slot in 0..3 {
            assert_eq!(all.value(slot, "name"), format!("127.0.0.1:{port}"), "{way}");
            assert_eq!(all.value(slot, "options"), all.value(0, "options"), "{way}");
        }
        all.end();
    }
}

#[test]
fn a_worker_of_root_in_a_user_namespace_gets_no_privileged_port_of_another() {
    let Some(port) = privileged_port().filter(|_| is_root()) else {
        return left_out("a privileged port that root has bound: only root can");
    };
    let bind = format!("tcp4 set=reuseaddr:1 bind=127.0.0.1:{port} name");
    // It is root still, with all capabilities, but only in there.
    let expected = alone(&format!("unshare=user {bind}"));
    if expected[0] != "unshare=user -> ok" {
        return left_out("a user namespace: this user may make none");
    }
    assert_eq!(expected[3], format!("bind=127.0.0.1:{port} -> EACCES"));
    for (way, wrapper) in ways() {
        let all = Binders::start_through(Binders::directory(), &wrapper, "-n 2", |out| {
            let first = binder(out, &format!("{bind} listen=5 serve sleep")).join(" ");
            let second = binder(out, &format!("wait={out}/go unshare=user {bind} sleep")).join(" ");
            sh(&format!("if [ $PANZER_WORKER_ID = 0 ]; then exec {first}; else exec {second}; fi"))
        });
        all.wait_lines(0, "serve -> ok", 1);
        all.scratch.write("reports/go", "");
        all.value(1, "name");
        assert_eq!(all.results(1)[1..], expected, "{way}");
        assert_eq!(word(&load::one(&addr(&format!("127.0.0.1:{port}"))).unwrap(), "worker="), "0");
        all.end();
    }
}

#[test]
fn who_asks_for_the_peer_of_a_path_sees_the_workers_user() {
    let users = if is_root() {
        vec![("", 0, 0), ("-u 12345", 12345, 12345), ("-u 12345:54321", 12345, 54321)]
    } else {
        vec![("", own_user().0, own_user().1)]
    };
    for (option, uid, gid) in users {
        for (way, wrapper) in ways() {
            let scratch = Binders::directory();
            let path = scratch.path("x.sock");
            let steps = format!("unlink={0} unix bind={0} listen=5 serve sleep", path.display());
            let options = format!("-n 2 {AT_ONCE} {option}");
            let all = Binders::start_through(scratch, &wrapper, &options, |out| binder(out, &steps));
            all.wait_all(2, "serve -> ok");
            for life in 2..4 {
                let peer = socket_peercred(UnixStream::connect(&path).unwrap()).unwrap();
                assert_eq!((peer.uid.as_raw(), peer.gid.as_raw()), (uid, gid), "{way}: {option}");
                assert_eq!(peer.pid.as_raw_nonzero().get().unsigned_abs(), all.running.panzer_pid(), "{way}: {option}");
                all.running.kill_worker(0);
                all.wait_lines(0, "serve -> ok", life);
            }
            all.end();
        }
    }
}

fn own_user() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}
