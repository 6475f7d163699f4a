//! What only many repetitions find.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::support::load::{Load, LoadOptions, Mode, Report};
use crate::support::random::Random;
use crate::support::worker::{panzer, text};
use crate::support::{example, process, wait_for, wait_until};

const KILLS: u64 = 500;
const WORKERS: u32 = 4;
const CONNECTIONS: usize = 4;

#[test]
fn five_hundred_kills_of_workers_under_load_refuse_no_connection() {
    let mut random = Random::new();
    let options = format!("-n {WORKERS} -l 127.0.0.1:0 --ready exec --backoff 0:0");
    let running = panzer(&options, &[text(example("hello"))]).start();
    let count = usize::try_from(WORKERS).unwrap();
    running.wait_slots(count);
    let address = SocketAddr::from(([127, 0, 0, 1], running.port()));
    let start = |mode| {
        let deadline = Duration::from_secs(20);
        Load::start(address, LoadOptions { connections: CONNECTIONS, mode, deadline, ..LoadOptions::default() })
    };
    let (short, kept) = (start(Mode::Short), start(Mode::KeepAlive));

    let mut killed: BTreeMap<u32, u64> = BTreeMap::new();
    for kill in 0..KILLS {
        let slot = u32::try_from(random.below(WORKERS.into())).unwrap();
        let old = wait_for("the slot has a worker", || running.slots().get(&slot).copied());
        // A few requests between two kills, so that most have one in hand.
        let before = (short.count(), kept.count());
        let answered = || short.count() > before.0 && kept.count() > before.1;
        wait_until(&format!("requests are answered after {kill} kills"), answered);
        assert!(process::send_signal(old, libc::SIGKILL), "worker {old} is gone by itself");
        running.wait_replaced(slot, old);
        *killed.entry(slot).or_default() += 1;
    }
    let (short, kept) = (short.stop(), kept.stop());
    println!("kills in each slot: {killed:?}");
    for (name, report) in [("short connections", &short), ("kept connections", &kept)] {
        println!("{name}: {report}");
        check(name, report);
    }
    assert!(short.requests + kept.requests > 2 * KILLS);
    running.wait_lines("was killed by SIGKILL; starting a new one", usize::try_from(KILLS).unwrap());
    let deaths = running.stderr().matches("was killed by SIGKILL; starting a new one").count();
    assert_eq!(u64::try_from(deaths).unwrap(), KILLS);
    assert_eq!(running.wait_slots(count).len(), count);
    wait_until("no dead worker is left", || process::zombies_of(running.pid()).is_empty());
    running.ends_with(libc::SIGTERM, 0);
}

/// What may be lost is what the killed workers had in hand: each loop has one connection at a time.
fn check(name: &str, report: &Report) {
    assert_eq!(report.refused, 0, "{name}: {report}");
    assert_eq!(report.timed_out, 0, "{name}: {report}");
    assert_eq!(report.other, [""; 0], "{name}: {report}");
    let most = KILLS * u64::try_from(CONNECTIONS).unwrap();
    assert!(report.lost() <= most, "{name}: more than {most}: {report}");
}
