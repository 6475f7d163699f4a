//! Servers that bind a UNIX path by themselves, several of them on one: they unlink what is there, and nobody is the
//! worse for it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::binders::{AT_ONCE, Binders, alone, binder, is_root, left_out, stop, ways, word};
use crate::support::load::{self, Addr, Failure};
use crate::support::random::Random;
use crate::support::scratch::Scratch;
use crate::support::worker::{sh, text};
use crate::support::{process, wait_for, wait_until};

/// A directory for the reports, and the path of a socket in it.
fn place() -> (Scratch, PathBuf) {
    let scratch = Binders::directory();
    let path = scratch.path("x.sock");
    (scratch, path)
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.ino())
}

/// The second name that panzer keeps.
fn hidden(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.panzer", path.file_name().unwrap().to_str().unwrap()))
}

/// What is in a directory, besides the reports.
fn names(scratch: &Scratch) -> BTreeSet<String> {
    let entries = fs::read_dir(scratch.directory()).unwrap();
    entries.map(|entry| text(entry.unwrap().file_name())).filter(|name| name != "reports").collect()
}

/// What a server does that finds its path taken: it makes room.
fn serving(path: &Path) -> String {
    format!("unlink={0} unix bind={0} listen=128 inode name serve sleep", path.display())
}

fn ask(path: &Path) -> Result<String, Failure> {
    load::one(&Addr::Unix(path.to_path_buf()))
}

// One path

#[test]
fn three_unmodified_servers_answer_on_one_path() {
    for (way, wrapper) in ways() {
        for unlinks in [true, false] {
            let (scratch, path) = place();
            let steps = serving(&path);
            let steps = if unlinks { &steps } else { steps.split_once(' ').unwrap().1 };
            let all = Binders::start_through(scratch, &wrapper, "-n 3", |out| binder(out, steps));
            all.wait_all(3, "serve -> ok");
            all.wait_answers(&Addr::Unix(path.clone()), 3);
            let sockets: BTreeSet<String> = (0..3).map(|slot| all.value(slot, "inode")).collect();
            assert_eq!(sockets.len(), 1, "{way}: one socket for all");
            all.wait_all(3, &format!("name -> {}", path.display()));
            let peer = UnixStream::connect(&path).unwrap().peer_addr().unwrap();
            assert_eq!(peer.as_pathname(), Some(path.as_path()));
            all.end();
            assert_eq!(names(&all.scratch), BTreeSet::new(), "{way}: nothing stays in the directory");
        }
    }
}

#[test]
fn servers_that_all_start_at_once_and_make_room_share_one_socket() {
    for _ in 0..20 {
        let (scratch, path) = place();
        let all = Binders::start_in(scratch, "-n 8", &serving(&path));
        all.wait_all(8, "serve -> ok");
        let sockets: BTreeSet<String> = (0..8).map(|slot| all.value(slot, "inode")).collect();
        assert_eq!(sockets.len(), 1, "one socket for all");
        all.end();
        assert_eq!(names(&all.scratch), BTreeSet::new());
    }
}

#[test]
fn the_path_is_the_same_file_however_often_workers_unlink_it() {
    let (scratch, path) = place();
    let all = Binders::start_in(scratch, &format!("-n 3 {AT_ONCE}"), &serving(&path));
    all.wait_all(3, "serve -> ok");
    let first = inode(&path).expect("the path is there");
    assert_eq!(inode(&hidden(&path)), Some(first), "there is a second name");
    for life in 2..5 {
        for slot in 0..3 {
            all.running.kill_worker(slot);
            all.wait_lines(slot, "serve -> ok", life);
            // Not after a while: when the bind is answered.
            assert_eq!(inode(&path), Some(first));
            ask(&path).unwrap();
        }
    }
    all.end();
    assert_eq!(names(&all.scratch), BTreeSet::new());
}

#[test]
fn a_worker_that_unlinks_its_path_when_it_ends_does_not_take_it_from_the_others() {
    let (scratch, path) = place();
    let go = text(scratch.path("go"));
    let all = Binders::start_through(scratch, &[], "-n 2 --restart never", |out| {
        let stays = binder(out, &serving(&path)).join(" ");
        let leaves = serving(&path).replace("sleep", &format!("wait={go} unlink={} close exit=0", path.display()));
        let leaves = binder(out, &leaves).join(" ");
        sh(&format!("if [ $PANZER_WORKER_ID = 0 ]; then exec {leaves}; else exec {stays}; fi"))
    });
    all.wait_all(2, "serve -> ok");
    let first = inode(&path);
    all.scratch.write("go", "");
    all.wait_lines(0, "close -> ok", 1);
    // A process that ends loses its environment first: until it is reaped its threads may still accept.
    all.running.wait_line("ended with status 0; it is not started again");
    wait_until("the path is back", || inode(&path) == first);
    assert_eq!(word(&ask(&path).unwrap(), "worker="), "1");
    all.end();
    assert_eq!(names(&all.scratch), BTreeSet::from(["go".to_string()]));
}

#[test]
fn connections_wait_at_the_path_while_the_only_worker_is_away() {
    let (scratch, path) = place();
    let go = scratch.write("go", "");
    let steps = format!("wait={} {}", text(&go), serving(&path));
    let all = Binders::start_in(scratch, &format!("-n 1 {AT_ONCE}"), &steps);
    all.wait_all(1, "serve -> ok");
    fs::remove_file(&go).unwrap();
    all.running.kill_worker(0);
    let (at, connected) = (path.clone(), Arc::new(AtomicUsize::new(0)));
    let client = |_| {
        let (at, connected) = (at.clone(), Arc::clone(&connected));
        thread::spawn(move || {
            drop(UnixStream::connect(&at).unwrap());
            connected.fetch_add(1, Ordering::SeqCst);
            load::one_within(&Addr::Unix(at), Duration::from_secs(20))
        })
    };
    let clients: Vec<_> = (0..20).map(client).collect();
    wait_until("all have connected", || connected.load(Ordering::SeqCst) == 20);
    all.scratch.write("go", "");
    for client in clients {
        let answer = client.join().unwrap();
        assert!(answer.is_ok() || answer == Err(Failure::Refused), "{answer:?}");
    }
    let inodes = all.values(0, "inode", 2);
    assert_eq!(inodes[0], inodes[1]);
    all.end();
}

#[test]
fn a_small_backlog_does_not_cut_the_queue_of_a_path() {
    let (scratch, path) = place();
    let all = Binders::start_in(scratch, "-n 2", &serving(&path).replace("listen=128", "listen=1"));
    all.wait_all(2, "serve -> ok");
    let workers = all.running.wait_slots(2);
    for worker in workers.values() {
        stop(*worker);
    }
    let connected = Arc::new(AtomicUsize::new(0));
    for _ in 0..60 {
        let (path, connected) = (path.clone(), Arc::clone(&connected));
        thread::spawn(move || {
            let connection = UnixStream::connect(&path);
            connected.fetch_add(1, Ordering::SeqCst);
            // It is kept until the test's process ends, or refused at the end.
            std::mem::forget(connection);
        });
    }
    wait_until("all have connected", || connected.load(Ordering::SeqCst) == 60);
    for worker in workers.values() {
        process::send_signal(*worker, libc::SIGCONT);
    }
    all.end();
}

#[test]
fn workers_that_die_at_any_moment_of_their_binds_leave_the_path_in_order() {
    let mut random = Random::new();
    let (scratch, path) = place();
    let steps = format!("{} thread=2 flood=0:{}", serving(&path).replace(" sleep", ""), path.display());
    let all = Binders::start_in(scratch, &format!("-n 3 {AT_ONCE}"), &steps);
    all.wait_all(3, "serve -> ok");
    for _ in 0..50 {
        let slot = u32::try_from(random.below(3)).unwrap();
        let old = wait_for("the slot has a worker", || all.running.slots().get(&slot).copied());
        random.spin(std::time::Duration::from_millis(5));
        process::send_signal(old, libc::SIGKILL);
        all.running.wait_replaced(slot, old);
    }
    // The floods unlink the path all the time.
    wait_until("a request is answered", || ask(&path).is_ok());
    all.end();
    assert_eq!(names(&all.scratch), BTreeSet::new());
}

#[test]
fn a_path_that_a_worker_has_shut_down_is_bound_anew_by_the_next_life() {
    for others in [0_u32, 1] {
        let (scratch, path) = place();
        let go = text(scratch.path("go"));
        let all = Binders::start_through(scratch, &[], &format!("-n {} {AT_ONCE}", others + 1), |out| {
            let stays = binder(out, &serving(&path)).join(" ");
            let steps = serving(&path).replace("sleep", &format!("wait={go} shutdown exit=0"));
            let shuts = binder(out, &steps).join(" ");
            sh(&format!("if [ $PANZER_WORKER_ID = 0 ]; then rm -f {go}; exec {shuts}; else exec {stays}; fi"))
        });
        all.wait_all(others + 1, "serve -> ok");
        ask(&path).unwrap();
        for life in 2..6 {
            all.scratch.write("go", "");
            all.wait_lines(0, "serve -> ok", life);
            // Whoever has the old one still has it, and nobody comes there any more.
            assert_eq!(word(&ask(&path).unwrap(), "worker="), "0");
            let inodes = all.values(0, "inode", life);
            assert_ne!(inodes[life - 1], inodes[life - 2], "a new socket");
            let said = format!("panzer: a worker has shut unix://{} down for all; ", path.display());
            all.running.wait_lines(&said, life - 1);
            assert_eq!(all.running.stderr().matches(&said).count(), life - 1, "one line for each");
        }
        for slot in 1..=others {
            all.running.kill_worker(slot);
            all.wait_lines(slot, "serve -> ok", 2);
            assert_eq!(all.values(slot, "inode", 2)[1], all.values(0, "inode", 5)[4]);
        }
        all.wait_answers(&Addr::Unix(path), usize::try_from(others).unwrap() + 1);
        all.end();
        assert_eq!(names(&all.scratch), BTreeSet::new());
    }
}

#[test]
fn a_path_that_is_bound_under_another_name_and_renamed_is_the_last_ones_and_no_other_name_comes_back() {
    for (way, wrapper) in ways() {
        let (scratch, path) = place();
        let directory = text(scratch.directory());
        let all = Binders::start_through(scratch, &wrapper, &format!("-n 3 {AT_ONCE}"), |out| {
            let own = format!("{directory}/x.$PANZER_WORKER_ID");
            let steps = format!(
                "wait={directory}/go.$PANZER_WORKER_ID unlink={own} unix bind={own} listen=5 rename={own}:{directory}/x.sock serve sleep"
            );
            sh(&format!("exec {}", binder(out, &steps).join(" ")))
        });
        // A name in plain sight is the path's; panzer's own are hidden.
        let seen = |all: &Binders| {
            let names = names(&all.scratch).into_iter();
            names.filter(|name| !name.starts_with('.') && !name.starts_with("go.")).collect::<BTreeSet<String>>()
        };
        let the_path = BTreeSet::from(["x.sock".to_string()]);
        let check = |all: &Binders, slot: u32| {
            assert_eq!(word(&ask(&path).unwrap(), "worker="), slot.to_string(), "{way}");
            let file = inode(&path);
            crate::support::holds_for(std::time::Duration::from_millis(300), "the path alone is there", || {
                seen(all) == the_path && inode(&path) == file
            });
        };
        for slot in [1, 0, 2] {
            all.scratch.write(&format!("go.{slot}"), "");
            all.wait_lines(slot, "serve -> ok", 1);
            check(&all, slot);
        }
        // Each later life does the same, and nothing of it fails, whoever had the path.
        for (life, slot) in [(2, 2), (2, 0), (3, 0), (2, 1)] {
            all.running.kill_worker(slot);
            all.wait_lines(slot, "serve -> ok", life);
            check(&all, slot);
        }
        for slot in 0..3 {
            let failed: Vec<String> = all.results(slot).into_iter().filter(|line| !line.ends_with(" -> ok")).collect();
            assert!(failed.iter().all(|line| line.starts_with("unlink=")), "{failed:?}");
        }
        all.end();
        let left: BTreeSet<String> = names(&all.scratch).into_iter().filter(|name| !name.starts_with("go.")).collect();
        assert!(left.is_subset(&the_path), "{way}: {left:?}");
    }
}

#[test]
fn a_path_whose_directory_was_removed_and_made_again_is_shared_anew() {
    let scratch = Binders::directory();
    let directory = scratch.path("run");
    let make = || {
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    };
    make();
    let path = directory.join("x.sock");
    let all = Binders::start_in(scratch, &format!("-n 2 {AT_ONCE}"), &serving(&path));
    all.wait_all(2, "serve -> ok");
    // panzer may put the path back in the middle of it, once.
    wait_until("the directory is gone", || fs::remove_dir_all(&directory).is_ok());
    make();
    for slot in 0..2 {
        all.running.kill_worker(slot);
        all.wait_lines(slot, "serve -> ok", 2);
    }
    all.wait_answers(&Addr::Unix(path), 2);
    all.end();
}

// What the path is like

/// Mode, user, group of a path that these steps make.
#[track_caller]
fn owner_and_mode(path: &Path) -> (u32, u32, u32) {
    let found = wait_for("the path is there", || fs::symlink_metadata(path).ok());
    assert!(found.file_type().is_socket());
    (found.permissions().mode() & 0o7777, found.uid(), found.gid())
}

#[test]
fn mode_and_owner_are_what_they_are_without_panzer() {
    let users: &[&str] = if is_root() { &["", "setuid=12345", "-u"] } else { &[""] };
    for umask in ["022", "0", "077", "0117"] {
        for user in users {
            // A process that has changed its user may be looked into by a privileged panzer alone.
            let count = if user.starts_with("setuid") { 1 } else { 2 };
            for (way, wrapper) in ways().into_iter().take(count) {
                let (scratch, path) = place();
                let bind = format!("umask={umask} unix bind={} listen=1", path.display());
                let (become_user, option) = if *user == "-u" { ("setuid=12345", "-u 12345") } else { (*user, "") };
                alone(&format!("{become_user} {bind}"));
                let expected = owner_and_mode(&path);
                fs::remove_file(&path).unwrap();
                let steps = format!("{} {bind} sleep", if option.is_empty() { user } else { "" });
                let options = format!("-n 2 {option}");
                let all = Binders::start_through(scratch, &wrapper, &options, |out| binder(out, &steps));
                all.wait_all(2, "listen=1 -> ok");
                assert_eq!(owner_and_mode(&path), expected, "{way}: {user} {umask}");
                all.end();
                assert_eq!(names(&all.scratch), BTreeSet::new(), "{way}: {user} {umask}");
            }
        }
    }
}

#[test]
fn a_directory_that_is_closed_to_the_worker_is_closed() {
    for (way, wrapper) in ways() {
        for mode in [0o555, 0o666, 0o000] {
            let scratch = Binders::directory();
            let closed = scratch.path("closed");
            fs::create_dir(&closed).unwrap();
            fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
            let option = if is_root() { "-u 12345" } else { "" };
            let bind = format!("bind={}/x.sock", closed.display());
            let options = format!("-n 2 {option}");
            let all = Binders::start_through(scratch, &wrapper, &options, |out| {
                binder(out, &format!("unix {bind} name sleep"))
            });
            all.wait_all(2, &format!("{bind} -> EACCES"));
            all.wait_all(2, "name -> unnamed");
            all.end();
            fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(fs::read_dir(&closed).unwrap().count(), 0, "{way}");
        }
    }
}

#[test]
fn a_worker_that_gave_up_root_does_not_get_a_path_that_root_alone_may_make() {
    if !is_root() {
        return left_out("a worker that gives up root: only root can");
    }
    for (way, wrapper) in ways() {
        let scratch = Binders::directory();
        fs::create_dir(scratch.path("closed")).unwrap();
        let path = scratch.path("closed/x.sock");
        let bind = format!("unix bind={} name listen=5 serve sleep", path.display());
        let all = Binders::start_through(scratch, &wrapper, "-n 2", |out| {
            let first = binder(out, &bind).join(" ");
            let second = binder(out, &format!("wait={out}/go setuid=12345 {bind}")).join(" ");
            sh(&format!("if [ $PANZER_WORKER_ID = 0 ]; then exec {first}; else exec {second}; fi"))
        });
        all.wait_lines(0, "serve -> ok", 1);
        all.scratch.write("reports/go", "");
        // Which it would be told by the kernel, too, of a path that is there.
        assert_eq!(all.value(1, &format!("bind={}", path.display())), "EADDRINUSE", "{way}");
        all.wait_lines(1, "name -> unnamed", 1);
        all.end();
    }
}

#[test]
fn options_of_a_path_are_the_apps_own() {
    for options in ["", "set=sndbuf:65536", "set=passcred:1", "set=rcvtimeo:3", "nonblock cloexec"] {
        let (scratch, path) = place();
        // The worker before has left its path.
        let steps = format!("unix {options} bind={0} listen=5 options close", path.display());
        let expected = alone(&steps).into_iter().find(|line| line.starts_with("options")).unwrap();
        fs::remove_file(&path).unwrap();
        // The few options of a path that are neither a buffer's size nor a flag are known from the app's socket alone.
        let count = if options.contains("passcred") || options.contains("timeo") { 1 } else { 2 };
        // Of two that bind at the same time one may remove the other's path. panzer binds another socket then, which has no
        // time limit: that is no integer.
        let workers = if options.contains("timeo") { "-n 1" } else { "-n 3" };
        for (way, wrapper) in ways().into_iter().take(count) {
            let all = Binders::start_through(Binders::directory(), &wrapper, workers, |out| {
                binder(out, &format!("unlink={} {steps} sleep", path.display()))
            });
            if options.contains("timeo") {
                for next in 1..3 {
                    all.wait_all(next, "close -> ok");
                    all.running.signal(libc::SIGTTIN);
                }
            }
            for slot in 0..3 {
                assert_eq!(format!("options -> {}", all.value(slot, "options")), expected, "{way}");
            }
            all.end();
        }
        drop(scratch);
    }
}

#[test]
fn a_worker_may_bind_a_path_close_it_and_bind_it_again() {
    let (scratch, path) = place();
    let bind = format!("unlink={0} unix set=sndbuf:{{}} bind={0} listen=5", path.display());
    let twice = format!("{} close {} options", bind.replace("{}", "65536"), bind.replace("{}", "131072"));
    let expected = alone(&twice).pop().unwrap();
    fs::remove_file(&path).unwrap();
    let all = Binders::start_in(scratch, "-n 1", &format!("{twice} serve sleep"));
    all.wait_all(1, "serve -> ok");
    assert_eq!(format!("options -> {}", all.value(0, "options")), expected);
    assert_eq!(word(&ask(&path).unwrap(), "worker="), "0");
    all.end();
    assert_eq!(names(&all.scratch), BTreeSet::new());
}

#[test]
fn a_relative_path_is_found_from_the_workers_own_directory() {
    for (way, wrapper) in ways() {
        let scratch = Binders::directory();
        let place = text(scratch.directory());
        for name in ["0", "1"] {
            fs::create_dir(scratch.path(name)).unwrap();
            fs::set_permissions(scratch.path(name), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let all = Binders::start_through(scratch, &wrapper, "-n 2", |out| {
            let steps = "unlink=x.sock unix bind=unix:x.sock listen=5 name inode serve sleep";
            sh(&format!("cd {place}/$PANZER_WORKER_ID && exec {}", binder(out, steps).join(" ")))
        });
        all.wait_all(2, "serve -> ok");
        all.wait_all(2, "name -> x.sock");
        assert_ne!(all.value(0, "inode"), all.value(1, "inode"), "{way}: two paths are two sockets");
        for slot in ["0", "1"] {
            assert_eq!(word(&ask(&all.scratch.path(slot).join("x.sock")).unwrap(), "worker="), slot);
        }
        all.end();
        for slot in ["0", "1"] {
            assert_eq!(fs::read_dir(all.scratch.path(slot)).unwrap().count(), 0, "{way}");
        }
    }
}

#[test]
fn one_path_written_in_several_ways_is_one_path() {
    let (scratch, path) = place();
    let place = text(scratch.directory());
    std::os::unix::fs::symlink(&place, scratch.path("link")).unwrap();
    let all = Binders::start_through(scratch, &[], "-n 3", |out| {
        let steps = |bind: &str| binder(out, &format!("unix bind={bind} listen=5 inode serve sleep")).join(" ");
        let (first, second, third) =
            (steps(&text(&path)), steps("unix:x.sock"), steps(&format!("{place}/link/x.sock")));
        sh(&format!(
            "cd {place}; case $PANZER_WORKER_ID in 0) exec {first};; 1) exec {second};; 2) exec {third};; esac"
        ))
    });
    all.wait_all(3, "serve -> ok");
    let inodes: BTreeSet<String> = (0..3).map(|slot| all.value(slot, "inode")).collect();
    assert_eq!(inodes.len(), 1);
    all.wait_answers(&Addr::Unix(path), 3);
    all.end();
}

#[test]
fn a_path_of_the_greatest_length_is_shared() {
    let scratch = Binders::directory();
    // 108 bytes: no room for a NUL.
    let room = 108 - text(scratch.directory()).len() - 1;
    let path = scratch.path(&"x".repeat(room));
    assert_eq!(text(&path).len(), 108);
    let steps = format!("unlink={0} unix bind={0} listen=5 inode serve sleep", path.display());
    let all = Binders::start_in(scratch, "-n 2", &steps);
    all.wait_all(2, "serve -> ok");
    assert_eq!(all.value(0, "inode"), all.value(1, "inode"));
    assert!(path.exists());
    all.end();
    assert_eq!(names(&all.scratch), BTreeSet::new());
}

#[test]
fn a_path_may_be_longer_than_it_has_to_be() {
    let (scratch, path) = place();
    let all = Binders::start_in(scratch, "-n 3", &serving(&path).replace(" bind=", " padded="));
    all.wait_all(3, "serve -> ok");
    all.wait_all(3, &format!("name -> {}", path.display()));
    all.wait_answers(&Addr::Unix(path), 3);
    all.end();
    assert_eq!(names(&all.scratch), BTreeSet::new());
}

// Paths of others

#[test]
fn a_path_where_something_else_is_gives_what_it_gives_without_panzer() {
    let (scratch, path) = place();
    let file = scratch.write("file", "precious");
    let live = UnixListener::bind(&path).unwrap();
    let link = scratch.path("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    for taken in [&path, &file, &link, &scratch.directory().to_path_buf()] {
        let bind = format!("bind={}", taken.display());
        let all = Binders::start("-n 2", &format!("unix {bind} name listen=5 sleep"));
        all.wait_all(2, &format!("{bind} -> EADDRINUSE"));
        all.wait_all(2, "name -> unnamed");
        all.end();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    UnixStream::connect(&path).unwrap();
    drop(live);
    assert_eq!(names(&scratch), BTreeSet::from(["file", "link", "x.sock"].map(str::to_string)));
    for wrong in ["nowhere/x.sock", "file/x.sock", "new/"] {
        let bind = format!("unix bind={} name", scratch.path(wrong).display());
        let expected = alone(&bind);
        let all = Binders::start("-n 2", &format!("{bind} sleep"));
        for slot in 0..2 {
            wait_until("all steps are done", || all.results(slot).len() == expected.len());
            assert_eq!(all.results(slot), expected);
        }
        all.end();
    }
}

#[test]
fn a_name_that_somebody_else_has_taken_is_left_alone() {
    let (scratch, path) = place();
    let all = Binders::start_in(scratch, "-n 2", &serving(&path));
    all.wait_all(2, "serve -> ok");
    let other_path = all.scratch.path("other.sock");
    let other = UnixListener::bind(&other_path).unwrap();
    let others = inode(&other_path);
    fs::rename(&other_path, &path).unwrap();
    crate::support::holds_for(std::time::Duration::from_millis(300), "it is the other's", || inode(&path) == others);
    all.end();
    assert_eq!(inode(&path), others, "also at the end");
    assert_eq!(names(&all.scratch), BTreeSet::from(["x.sock".to_string()]));
    drop(other);
}

#[test]
fn what_a_killed_panzer_left_is_taken_over() {
    let scratch = Binders::directory();
    let path = scratch.path("x.sock");
    let at = path.clone();
    for _ in 0..2 {
        let all = Binders::start("-n 2", &serving(&at));
        all.wait_all(2, "serve -> ok");
        ask(&path).unwrap();
        all.running.kill();
        all.running.wait_exit();
        wait_until("all of it is gone", || all.running.leftovers().is_empty());
    }
    let all = Binders::start("-n 2", &serving(&at));
    all.wait_all(2, "serve -> ok");
    all.wait_answers(&Addr::Unix(path), 2);
    all.end();
    assert_eq!(names(&scratch), BTreeSet::new());
}

#[test]
fn two_panzers_do_not_share_a_path() {
    let (scratch, path) = place();
    let bind = format!("unix bind={} listen=5 serve sleep", path.display());
    let first = Binders::start_in(scratch, "-n 2", &bind);
    first.wait_all(2, "serve -> ok");
    let second = Binders::start("-n 2", &bind);
    second.wait_all(2, &format!("bind={} -> EADDRINUSE", path.display()));
    second.end();
    first.wait_answers(&Addr::Unix(path), 2);
    first.end();
    assert_eq!(names(&first.scratch), BTreeSet::new());
}

// What passes

#[test]
fn abstract_names_and_paths_of_other_kinds_pass_untouched() {
    let name = format!("@panzer-test-{}-shared", std::process::id());
    let (scratch, path) = place();
    let datagrams = text(&path);
    for (kind, bind) in [("unix", &name), ("unixseq", &name), ("unixdgram", &datagrams)] {
        let all = Binders::start("-n 2", &format!("{kind} bind={bind} inode sleep"));
        let mut results: Vec<String> = (0..2).map(|slot| all.value(slot, &format!("bind={bind}"))).collect();
        results.sort();
        assert_eq!(results, ["EADDRINUSE", "ok"], "{kind}");
        assert_ne!(all.value(0, "inode"), all.value(1, "inode"));
        all.end();
    }
    assert_eq!(
        names(&scratch),
        BTreeSet::from(["x.sock".to_string()]),
        "a datagram socket's path is its app's business"
    );
}

#[test]
fn a_worker_in_another_mount_namespace_binds_there() {
    let unshare = if is_root() { "unshare=mount" } else { "unshare=user,mount" };
    if alone(unshare) != [format!("{unshare} -> ok")] {
        return left_out("another mount namespace: this user may make none");
    }
    let (scratch, path) = place();
    let bind = format!("bind={}", path.display());
    let all = Binders::start_in(scratch, "-n 2", &format!("{unshare} unix {bind} listen=5 inode sleep"));
    let mut results: Vec<String> = (0..2).map(|slot| all.value(slot, &bind)).collect();
    results.sort();
    assert_eq!(results, ["EADDRINUSE", "ok"]);
    all.end();
}

#[test]
fn a_worker_with_another_root_binds_there() {
    if !is_root() {
        return left_out("another root directory: only root may have one");
    }
    let scratch = Binders::directory();
    let place = text(scratch.directory());
    for name in ["0", "1"] {
        fs::create_dir(scratch.path(name)).unwrap();
    }
    let all = Binders::start_through(scratch, &[], "-n 2", |out| {
        let steps = format!("chroot={place}/$PANZER_WORKER_ID unix bind=/panzer-test.sock listen=5 inode serve sleep");
        sh(&format!("exec {}", binder(out, &steps).join(" ")))
    });
    all.wait_all(2, "serve -> ok");
    assert_ne!(all.value(0, "inode"), all.value(1, "inode"));
    for slot in ["0", "1"] {
        assert_eq!(word(&ask(&all.scratch.path(slot).join("panzer-test.sock")).unwrap(), "worker="), slot);
    }
    assert!(!Path::new("/panzer-test.sock").exists());
    all.end();
}

#[test]
fn with_share_ports_off_a_path_is_each_workers_own() {
    let (scratch, path) = place();
    let all = Binders::start_in(scratch, "-n 2 --share-ports off", &serving(&path));
    all.wait_all(2, "serve -> ok");
    assert_ne!(all.value(0, "inode"), all.value(1, "inode"));
    all.end();
    assert_eq!(names(&all.scratch), BTreeSet::from(["x.sock".to_string()]), "nobody has removed it");
}

#[test]
fn a_declared_path_is_given_to_the_worker_that_binds_it() {
    for unlinks in [true, false] {
        let (scratch, path) = place();
        let unlink = if unlinks { format!("unlink={}", path.display()) } else { String::new() };
        let steps = format!("fd=3 inode {unlink} unix bind={} listen=5 inode serve sleep", path.display());
        let all = Binders::start_in(scratch, &format!("-n 3 -l unix://{}", path.display()), &steps);
        all.wait_all(3, "serve -> ok");
        for slot in 0..3 {
            let inodes = all.values(slot, "inode", 2);
            assert_eq!(inodes[0], inodes[1]);
        }
        all.wait_answers(&Addr::Unix(path), 3);
        all.end();
        assert_eq!(names(&all.scratch), BTreeSet::new());
    }
}
