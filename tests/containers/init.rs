//! panzer as a container's init, of its image or of the engine.

use crate::support::engine::{Container, run_once};
use crate::support::panzer::binary;
use crate::support::{process, wait_until};

#[test]
#[ignore = "run by scripts/test-containers"]
fn the_engines_own_init_is_panzer() {
    let binary = binary().canonicalize().unwrap();
    let init = ["--init", "--init-path", binary.to_str().unwrap(), "--entrypoint", ""];
    for (script, status) in [("exit 7", 7), ("kill -INT $$", 130)] {
        assert_eq!(run_once("panzer-tools", &init, &["sh", "-c", script]), (status, String::new()), "{script}");
    }
    // Orphans are its own to reap: each shell leaves one behind.
    let script = "for i in 1 2 3 4 5; do sh -c 'sleep 0.1 &'; done; echo up; sleep 1000";
    let options = [&init[..], &["--network", "none"]].concat();
    let container = Container::start("panzer-tools", &options, &["sh", "-c", script]);
    container.wait_line("up");
    // The engine puts it there under a name of its own.
    assert_eq!(process::stat(container.pid()).unwrap().comm, "podman-init");
    wait_until("init and what it runs are left", || process::tree(container.pid()).len() == 2);
    container.must(&["stop", "--time", "50"]);
    assert_eq!(container.status(), 143);
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn an_image_with_panzer_as_its_init_runs_a_job() {
    let (status, text) = run_once("panzer-init", &[], &[]);
    assert_eq!((status, text.as_str()), (3, "the job is done\n"));
}
