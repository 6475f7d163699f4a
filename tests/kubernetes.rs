//! `deploy/kubernetes`: the manifests fit each other and what panzer does; Kubernetes knows their fields; and they run, as pods
//! of podman's (`scripts/test-containers`).

mod pods;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::binders::{is_root, left_out, not_installed};
use crate::support::json::Json;
use crate::support::panzer::Panzer;
use crate::support::yaml;

/// What the clearing up after the workers takes at the most (`--linger`).
const LINGER: u64 = 2;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes")
}

/// A manifest as text.
fn text(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn manifest(name: &str) -> Json {
    yaml::parse(&text(name))
}

/// All of them, by file name.
fn manifests() -> BTreeMap<String, Json> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    files.filter(|name| name.ends_with(".yaml")).map(|name| (name.clone(), manifest(&name))).collect()
}

/// A value some levels down.
#[track_caller]
fn at<'a>(value: &'a Json, path: &str) -> &'a Json {
    path.split('.').fold(value, |value, name| value.get(name))
}

/// The pods that a Deployment makes.
fn pod(deployment: &Json) -> &Json {
    at(deployment, "spec.template")
}

#[track_caller]
fn words(list: &Json) -> Vec<&str> {
    list.list().iter().map(Json::text).collect()
}

/// The manifests that make pods.
fn deployments() -> BTreeMap<String, Json> {
    let mut all = manifests();
    all.retain(|_, one| one.get("kind").text() == "Deployment");
    assert_eq!(all.len(), 2, "deployment.yaml and shared-pid.yaml");
    all
}

fn containers(deployment: &Json) -> &[Json] {
    at(pod(deployment), "spec.containers").list()
}

/// The value of an option of panzer's.
fn option<'a>(container: &'a Json, name: &str) -> Option<&'a str> {
    let command = words(container.get("command"));
    command.iter().position(|word| *word == name).map(|at| command[at + 1])
}

#[test]
fn every_manifest_means_the_pods_that_there_are() {
    let all = manifests();
    let kinds: Vec<&str> = all.values().map(|one| one.get("kind").text()).collect();
    let expected =
        ["Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "PodMonitor", "Service", "Deployment"];
    assert_eq!(kinds, expected);
    let hello = &all["deployment.yaml"];
    let labels = at(pod(hello), "metadata.labels");
    for (name, one) in &all {
        let own = at(one, "metadata.labels");
        let selected = match one.get("kind").text() {
            "Service" => at(one, "spec.selector"),
            "HorizontalPodAutoscaler" => {
                let target = at(one, "spec.scaleTargetRef");
                for field in ["apiVersion", "kind"] {
                    assert_eq!(target.get(field), hello.get(field), "{name}");
                }
                assert_eq!(target.get("name"), at(hello, "metadata.name"), "{name}");
                labels
            }
            "Deployment" => {
                assert_eq!(at(pod(one), "metadata.labels"), own, "{name}");
                at(one, "spec.selector.matchLabels")
            }
            _ => at(one, "spec.selector.matchLabels"),
        };
        assert_eq!(selected, own, "{name}");
        assert!(name == "shared-pid.yaml" || own == labels, "{name}");
    }
    // Ports are named by those who use them.
    let ports = |deployment: &str| -> BTreeMap<String, u64> {
        let ports = containers(&all[deployment]).iter().flat_map(|one| one.get("ports").list());
        ports.map(|port| (port.get("name").text().to_string(), port.get("containerPort").number())).collect()
    };
    let known = ports("deployment.yaml");
    for (name, list) in [("service.yaml", "spec.ports"), ("podmonitor.yaml", "spec.podMetricsEndpoints")] {
        for port in at(&all[name], list).list() {
            let wanted = if name == "service.yaml" { "targetPort" } else { "port" };
            assert!(known.contains_key(port.get(wanted).text()), "{name}: {port:?}");
        }
    }
    assert_eq!(option(&containers(hello)[0], "--metrics"), Some(known["metrics"].to_string().as_str()));
    for (name, deployment) in deployments() {
        for (container, port) in containers(&deployment).iter().zip(ports(&name)) {
            let listens = format!("0.0.0.0:{}", container.get("ports").list()[0].get("containerPort").number());
            assert!(words(container.get("args")).contains(&listens.as_str()), "{name}: {port:?}");
        }
    }
}

#[test]
fn a_pod_has_time_for_all_that_a_stop_may_take() {
    for (name, deployment) in deployments() {
        let grace = at(pod(&deployment), "spec.terminationGracePeriodSeconds").number();
        for container in containers(&deployment) {
            let delay =
                option(container, "--stop-delay").map_or(0, |delay| delay.trim_end_matches('s').parse().unwrap());
            let schedule = option(container, "--stop").expect("a schedule of its own");
            let waits: u64 = schedule.split('/').filter_map(|part| part.parse::<u64>().ok()).sum();
            assert!(schedule.ends_with("/KILL"), "{name}: {schedule}");
            let pre_stop = match container.names().contains(&"lifecycle") {
                true => at(container, "lifecycle.preStop.sleep.seconds").number(),
                false => 0,
            };
            assert!(delay == 0 || pre_stop == 0, "{name}: one of them is enough");
            let longest = pre_stop + delay + waits + LINGER;
            assert!(longest < grace, "{name}: a stop may take {longest} seconds, and there are {grace}");
        }
    }
}

#[test]
fn the_document_and_the_comment_have_the_seconds_of_the_manifest() {
    let all = text("deployment.yaml");
    let deployment = manifest("deployment.yaml");
    let container = &containers(&deployment)[0];
    let delay = stop_delay(container).as_secs();
    let schedule = option(container, "--stop").unwrap();
    let wait: u64 =
        schedule.strip_prefix("TERM/").and_then(|rest| rest.strip_suffix("/KILL")).unwrap().parse().unwrap();
    let grace = at(pod(&deployment), "spec.terminationGracePeriodSeconds").number();
    assert!(all.contains(&format!("# --stop-delay {delay}, --stop {wait}, --linger {LINGER}, ")), "the comment");
    let page = fs::read_to_string(folder().join("../../docs/kubernetes.md")).unwrap();
    let rows = page.lines().skip_while(|line| !line.starts_with("| second |")).skip(2);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    let found: Vec<&str> = rows.iter().map(|row| row.split('|').nth(1).unwrap().trim()).collect();
    let killed = delay + wait;
    let seconds = [
        "0".to_string(),
        format!("0 to {delay}"),
        delay.to_string(),
        format!("{delay} to {killed}"),
        killed.to_string(),
        format!("{killed} to {}", killed + LINGER),
        grace.to_string(),
    ];
    assert_eq!(found, seconds);
    for words in [format!("`--stop-delay {delay}s`"), format!("`--stop {schedule}`"), format!("`--linger {LINGER}s`")] {
        assert!(rows.iter().any(|row| row.contains(&words)), "{words}");
    }
}

#[test]
fn each_container_has_no_more_rights_than_it_needs() {
    for (name, deployment) in deployments() {
        let security = at(pod(&deployment), "spec.securityContext");
        assert_eq!(security.get("runAsNonRoot"), &Json::Bool(true), "{name}");
        assert!(security.get("runAsUser").number() > 0 && security.get("runAsGroup").number() > 0, "{name}");
        assert_eq!(at(security, "seccompProfile.type").text(), "RuntimeDefault", "{name}");
        for container in containers(&deployment) {
            let security = container.get("securityContext");
            assert_eq!(security.get("readOnlyRootFilesystem"), &Json::Bool(true), "{name}");
            assert_eq!(security.get("allowPrivilegeEscalation"), &Json::Bool(false), "{name}");
            assert_eq!(words(at(security, "capabilities.drop")), ["ALL"], "{name}");
        }
    }
}

#[test]
fn panzer_takes_each_command_line_and_each_probe() {
    let help = Panzer::new(["ctl", "--help"]).run().stdout;
    for (name, deployment) in deployments() {
        for container in containers(&deployment) {
            let command = words(container.get("command"));
            let (options, end) = (&command[1..command.len() - 1], command[command.len() - 1]);
            assert_eq!((command[0], end), ("/bin/panzer", "--"), "{name}");
            let options = options.iter().map(|word| if *word == "9100" { "0" } else { word });
            let output = Panzer::new(["--check"]).args(options).args(["--", "true"]).run();
            assert!(output.status.success(), "{name}: {}", output.stderr);
            let probes = ["startupProbe", "readinessProbe"];
            let has_probe = |probe: &&&str| container.names().contains(*probe);
            for probe in probes.iter().filter(has_probe) {
                let command = words(at(container.get(probe), "exec.command"));
                assert_eq!(command[..2], ["/bin/panzer", "ctl"], "{name}");
                // It gets as far as looking for panzer.
                let output = Panzer::new(&command[1..]).args(["--control", "/no/such/socket"]).run();
                assert!(output.stderr.contains("cannot ask panzer at /no/such/socket"), "{name}: {output:?}");
                assert!(help.contains(command[2]));
            }
        }
    }
}

#[test]
fn kubernetes_knows_every_field() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kubernetes/bin/kubernetes-validate");
    // Its own schemas of every kind but the operator's, whose fields are in its documentation (PodMonitorSpec).
    let monitor = manifest("podmonitor.yaml");
    let spec = monitor.get("spec");
    assert_eq!(monitor.get("apiVersion").text(), "monitoring.coreos.com/v1");
    assert_eq!(spec.names(), ["selector", "podMetricsEndpoints"]);
    assert_eq!(spec.get("podMetricsEndpoints").list()[0].names(), ["port", "path", "interval"]);
    if !program.exists() {
        return not_installed(
            "whether Kubernetes knows the fields of deploy/kubernetes: scripts/setup-kubernetes was not run",
        );
    }
    let files = manifests().into_keys().filter(|name| name != "podmonitor.yaml");
    let output = Command::new(&program).arg("--strict").args(files.map(|name| folder().join(name))).output();
    // The interpreter may be root's alone.
    let Ok(output) = output else {
        assert!(!is_root(), "{}: {output:?}", program.display());
        return left_out("whether Kubernetes knows the fields of deploy/kubernetes: this user cannot run the program");
    };
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.matches(" passed for resource ").count() == 5, "{said}");
}

/// How long a manifest lets a stop wait before it begins.
fn stop_delay(container: &Json) -> Duration {
    let seconds = option(container, "--stop-delay").and_then(|delay| delay.strip_suffix('s')).expect("a delay");
    Duration::from_secs(seconds.parse().unwrap())
}
