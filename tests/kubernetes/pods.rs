//! The manifests as pods: `podman kube play`. The image is `localhost/panzer-server`, which `scripts/test-containers` makes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::{at, containers, manifest, option, stop_delay, text, words};
use crate::support::binders::word;
use crate::support::engine::{answer, run, said, workers};
use crate::support::http::get;
use crate::support::json::Json;
use crate::support::load::{self, Load, LoadOptions};
use crate::support::scratch::Scratch;
use crate::support::{process, wait_for, wait_until};

/// Pods are named by their manifests, so one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The first pod of a Deployment. Dropped, it is gone; on a failure its logs are printed.
struct Pod {
    manifest: Json,
    name: String,
    file: PathBuf,
    _scratch: Scratch,
    _turn: MutexGuard<'static, ()>,
}

impl Pod {
    /// Makes it from a manifest of `deploy/kubernetes`, with these changes.
    #[track_caller]
    fn play(file: &str, changes: &[(&str, &str)]) -> Pod {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // Its end is to be seen.
        let mut yaml = text(file).replace("      containers:\n", "      restartPolicy: Never\n      containers:\n");
        for (from, to) in changes {
            assert!(yaml.contains(from), "{file}: no {from}");
            yaml = yaml.replace(from, to);
        }
        let scratch = Scratch::new();
        let path = scratch.write(file, &yaml);
        let manifest = manifest(file);
        let name = format!("{}-pod-0", at(&manifest, "metadata.name").text());
        let pod = Pod { manifest, name, file: path, _scratch: scratch, _turn: turn };
        // One may be left from a run that was killed.
        pod.remove();
        answer(["kube", "play", "--network", "panzer", pod.file.to_str().unwrap()]);
        pod
    }

    fn remove(&self) -> Output {
        run(["pod", "rm", "--force", "--ignore", "--time", "0", &self.name])
    }

    /// What the manifest says of a container.
    #[track_caller]
    fn container(&self, name: &str) -> &Json {
        let found = containers(&self.manifest).iter().find(|one| one.get("name").text() == name);
        found.unwrap_or_else(|| panic!("no container {name}"))
    }

    fn full(&self, container: &str) -> String {
        format!("{}-{container}", self.name)
    }

    #[track_caller]
    fn inspect(&self, container: &str, format: &str) -> String {
        answer(["container", "inspect", "--format", format, &self.full(container)])
    }

    /// Runs a command in a container: whether it ends with 0, and what it says.
    fn exec(&self, container: &str, command: &[&str]) -> (bool, String) {
        let full = self.full(container);
        let words: Vec<&str> = ["exec", &full].iter().chain(command).copied().collect();
        let output = run(&words);
        (output.status.success(), said(&output))
    }

    /// Runs a probe of the manifest as Kubernetes would.
    #[track_caller]
    fn probe(&self, container: &str, probe: &str) -> (bool, String) {
        self.exec(container, &words(at(self.container(container).get(probe), "exec.command")))
    }

    #[track_caller]
    fn wait_probe(&self, container: &str, probe: &str, expected: &str) {
        wait_until(&format!("{probe} of {container}: {expected}"), || {
            self.probe(container, probe) == (true, format!("{expected}\n"))
        });
    }

    /// The container's first process, as it is known out here.
    #[track_caller]
    fn pid(&self, container: &str) -> u32 {
        self.inspect(container, "{{.State.Pid}}").parse().unwrap()
    }

    /// Where a port of the pod is reached.
    #[track_caller]
    fn at(&self, port: u16) -> SocketAddr {
        let infra = answer(["pod", "inspect", "--format", "{{.InfraContainerID}}", &self.name]);
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = answer(["container", "inspect", "--format", format, &infra]);
        format!("{address}:{port}").parse().expect("the pod has an address")
    }

    fn log(&self, container: &str) -> String {
        said(&run(["logs", &self.full(container)]))
    }

    #[track_caller]
    fn wait_line(&self, container: &str, line: &str) {
        wait_until(&format!("{container} says {line:?}"), || self.log(container).contains(line));
    }

    #[track_caller]
    fn signal(&self, container: &str, signal: &str) {
        answer(["kill", "--signal", signal, &self.full(container)]);
    }

    /// Waits for a container's end and says with which status.
    #[track_caller]
    fn wait(&self, container: &str) -> String {
        answer(["wait", &self.full(container)])
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if thread::panicking() {
            for container in containers(&self.manifest) {
                let name = container.get("name").text();
                eprintln!("--- log of {name}:\n{}", self.log(name));
            }
        }
        let removed = self.remove();
        assert!(removed.status.success() || thread::panicking(), "cannot remove the pod: {}", said(&removed));
    }
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn the_deployment_serves_reloads_and_goes_on_serving_while_its_endpoint_is_taken_away() {
    // A machine with one CPU has but one worker for "auto"; one that is busy needs longer for what is done below.
    let pod = Pod::play("deployment.yaml", &[("-n, auto,", "-n, \"2\","), ("--stop-delay, 5s,", "--stop-delay, 8s,")]);
    pod.wait_probe("hello", "startupProbe", "2 of 2 workers are ready");
    pod.wait_probe("hello", "readinessProbe", "2 of 2 workers are ready; 1 are enough");
    let panzer = pod.pid("hello");
    for (field, value) in [("Uid", "1000\t1000\t1000\t1000"), ("CapBnd", "0000000000000000"), ("NoNewPrivs", "1")] {
        assert_eq!(process::status_field(panzer, field).as_deref(), Some(value), "{field}");
    }
    assert_eq!(pod.inspect("hello", "{{.HostConfig.ReadonlyRootfs}}"), "true");
    let (http, metrics) = (pod.at(8080), pod.at(9100).into());
    let mut answered = BTreeSet::new();
    wait_until("both workers answer", || {
        answered.insert(word(&load::one(&http.into()).unwrap_or_default(), "worker="));
        answered.len() == 2
    });
    let ready = wait_for("the metrics are served", || get(&metrics, "/readyz").ok());
    assert_eq!((ready.status, ready.body.as_str()), (200, "2 of 2 workers are ready\n"));
    assert!(get(&metrics, "/metrics").unwrap().body.contains("\npanzer_workers_wanted 2\n"));

    let load = Load::start(http, LoadOptions::default());
    let reloaded = pod.exec("hello", &["/bin/panzer", "ctl", "reload", "--wait"]);
    assert_eq!(reloaded, (true, "reloaded: all 2 workers are of generation 2\n".to_string()));

    pod.signal("hello", "TERM");
    let delay = stop_delay(pod.container("hello")) + Duration::from_secs(3);
    pod.wait_line("hello", &format!("SIGTERM: stopping 2 workers in {}s\n", delay.as_secs()));
    let (is_ready, why) = pod.probe("hello", "readinessProbe");
    assert!(!is_ready && why.starts_with("panzer: cannot be ready: panzer is stopping\n"), "{why}");
    let before = load.count();
    wait_until("requests are answered meanwhile", || load.count() > before + 20);
    // Whoever dies now is replaced as ever: nobody knows yet that the endpoint is gone.
    let old = workers(panzer);
    assert!(process::send_signal(old[0], libc::SIGKILL));
    wait_until("it is replaced", || {
        let now = workers(panzer);
        now.len() == 2 && !now.contains(&old[0])
    });
    let ready = wait_for("it is not ready", || get(&metrics, "/readyz").ok().filter(|answer| answer.status == 503));
    assert_eq!(ready.body, "stopping\n");
    assert!(!pod.log("hello").contains("SIGTERM: stopping 2 workers\n"), "the delay was too short for this test");
    let report = load.stop();
    // One at the most that the killed worker had in each loop's hand.
    assert!(report.lost() <= 4 && report.refused + report.timed_out == 0, "{report:?}");
    assert_eq!(pod.wait("hello"), "0");
    pod.wait_line("hello", "panzer: everything has stopped");
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn a_pod_has_as_many_workers_as_its_limit_has_cpus() {
    // One: this machine may have no more than the manifest's two.
    let pod = Pod::play("deployment.yaml", &[("cpu: \"2\"", "cpu: \"1\"")]);
    pod.wait_probe("hello", "startupProbe", "1 of 1 workers are ready");
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn two_panzers_in_one_pod_are_probed_each_on_its_own_whether_they_share_their_processes_or_not() {
    for (value, is_pid_1) in [("true", false), ("false", true)] {
        let pod = Pod::play(
            "shared-pid.yaml",
            &[("shareProcessNamespace: true", &format!("shareProcessNamespace: {value}"))],
        );
        let expected = [("hello", "2 of 2 workers are ready"), ("admin", "1 of 1 workers are ready")];
        for (container, says) in expected {
            pod.wait_probe(container, "readinessProbe", says);
            let (is_ok, status) = pod.exec(container, &["/bin/panzer", "ctl", "status"]);
            assert!(is_ok && status.contains(", pid 1, ") == is_pid_1, "{container}: {status}");
        }
        for port in [8080, 8081] {
            assert!(load::one(&pod.at(port).into()).is_ok_and(|body| body.contains("worker=")), "{port}");
        }
        // One is killed: its own workers go, nobody else's.
        let (hello, admin) = (pod.pid("hello"), pod.pid("admin"));
        let (theirs, others) = (workers(hello), workers(admin));
        assert_eq!((theirs.len(), others.len()), (2, 1));
        pod.signal("hello", "KILL");
        assert_eq!(pod.wait("hello"), "137");
        wait_until("its workers are gone", || !theirs.iter().any(|pid| process::alive(*pid)));
        pod.wait_probe("admin", "readinessProbe", "1 of 1 workers are ready");
        assert_eq!(workers(admin), others);
        // This one has no delay.
        assert_eq!(option(pod.container("admin"), "--stop-delay"), None);
        pod.signal("admin", "TERM");
        assert_eq!(pod.wait("admin"), "0");
    }
}
