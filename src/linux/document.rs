//! The status document: how everything is, as JSON with one flat record a line (docs/control.md).
//!
//! Must never look at the system more than once for a worker or a listener.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::json::Form;
use super::observers::View;
use super::queue_length;
use super::sys::Pid;
use super::usage::Usages;
use crate::config::VERSION;
use crate::supervisor::Generation;
use crate::supervisor::statistics::Histogram;
use crate::supervisor::status::Row;

/// How it begins: panzer itself.
const OVERVIEW: &str = r##"{"panzer":
{"version":#,"pid":#,"started_at_seconds":#,"uptime_seconds":#,"measured_at_seconds":#,"state":#,"doing":#,"generation":#,"workers":#,"ready":#,"reload_generation":#,"reload_done":#,"reload_of":#,"reload_result":#,"reload_message":#}
,"listeners":[
"##;

/// A listener.
const LISTENER: &str = r##"{"address":#,"name":#,"origin":#,"queue":#,"queue_limit":#}
"##;

/// What stands between the last listener and the first worker.
const WORKERS: &str = "],\"workers\":[\n";

/// A worker.
const WORKER: &str = r##"{"slot":#,"pid":#,"generation":#,"state":#,"uptime_seconds":#,"restarts":#,"cpu_seconds":#,"memory_bytes":#,"processes":#,"queue":#,"last_end":#,"last_end_reason":#,"last_end_seconds_ago":#,"status":#}
"##;

/// What has happened so far: the names of `crate::supervisor::statistics::RESTARTS`, and reloads.
const COUNTS: &str = r##"],"restarts":
{"exit":#,"failure":#,"signal":#,"cannot_run":#,"not_ready":#,"watchdog":#,"max_age":#,"max_rss":#,"asked":#}
,"reloads":
{"ok":#,"failed":#}
,"histograms":[
"##;

/// A histogram: the bounds of `crate::supervisor::statistics::BOUNDS` in seconds.
const HISTOGRAM: &str = r##"{"metric":#,"0.01":#,"0.03":#,"0.1":#,"0.3":#,"1":#,"3":#,"10":#,"30":#,"100":#,"+Inf":#,"sum":#}
"##;

/// How a reload has ended.
pub(super) fn result_name(is_ok: bool) -> &'static str {
    if is_ok { "ok" } else { "failed" }
}

/// The reload that is under way, or the last one.
#[derive(Clone, Debug)]
pub(super) struct LastReload {
    /// What it makes, or was to make.
    pub(super) generation: Generation,
    /// How far it has come, and how far it is to come.
    pub(super) progress: (u32, u32),
    /// Whether it has gone well, and what was said of it.
    pub(super) result: Option<(bool, String)>,
}

/// What the document is made from.
pub(super) struct Sources<'a> {
    pub(super) view: &'a View<'a>,
    /// The time of day when panzer started.
    pub(super) started_at: Duration,
    pub(super) usages: &'a Usages,
    pub(super) reload: Option<&'a LastReload>,
}

impl Sources<'_> {
    /// Writes it.
    pub(super) fn document(&self) -> String {
        let mut form = Form::default();
        self.fill_in_overview(&mut form);
        for listener in self.view.listeners {
            fill_in_listener(&listener.shown, Some(&listener.name), &listener.sockets, &mut form);
        }
        if let Some(ports) = self.view.ports {
            ports.each_shared(&mut |address, sockets| fill_in_listener(address, None, sockets, &mut form));
        }
        form.then(WORKERS);
        self.view.supervisor.each_row(&mut |row| self.fill_in_worker(row, &mut form));
        let statistics = self.view.supervisor.statistics();
        form.then(COUNTS);
        for count in &statistics.restarts {
            form.number(Some(*count));
        }
        form.number(Some(statistics.reloads_ok));
        form.number(Some(statistics.reloads_failed));
        fill_in_histogram("time_to_ready_seconds", &statistics.time_to_ready, &mut form);
        fill_in_histogram("time_to_stop_seconds", &statistics.time_to_stop, &mut form);
        form.then("]}\n");
        form.finish()
    }

    fn fill_in_overview(&self, form: &mut Form) {
        let overview = self.view.supervisor.overview(self.view.now);
        form.then(OVERVIEW);
        form.text(Some(VERSION));
        form.number(Some(Pid::own().number().unsigned_abs().into()));
        form.seconds(Some(self.started_at));
        form.seconds(Some(self.view.now));
        form.seconds(self.usages.looked_at);
        form.text(Some(overview.state));
        form.text(Some(&overview.doing));
        form.number(Some(overview.generation.0));
        form.number(Some(overview.workers.into()));
        form.number(Some(overview.ready.into()));
        let reload = self.reload;
        form.number(reload.map(|reload| reload.generation.0));
        form.number(reload.map(|reload| reload.progress.0.into()));
        form.number(reload.map(|reload| reload.progress.1.into()));
        let result = reload.and_then(|reload| reload.result.as_ref());
        form.text(result.map(|(is_ok, _)| result_name(*is_ok)));
        form.text(result.map(|(_, message)| message.as_str()));
    }

    fn fill_in_worker(&self, row: &Row<'_>, form: &mut Form) {
        let life = row.life;
        let child = self.view.children.of(life.worker).filter(|child| row.has_process && !child.reaped);
        let usage = child.and_then(|child| self.usages.of(child));
        form.element(WORKER);
        form.number(Some(life.worker.slot.into()));
        form.number(child.map(|child| child.main().number().unsigned_abs().into()));
        form.number(Some(life.generation.0));
        form.text(Some(row.state));
        form.seconds(row.has_process.then(|| self.view.now.saturating_sub(life.began)));
        form.number(row.slot.map(|slot| slot.restarts));
        form.seconds(usage.map(|usage| usage.processor));
        form.number(usage.map(|usage| usage.memory));
        form.number(usage.map(|usage| usage.processes));
        let queues = self.view.ports.filter(|ports| ports.have_queues() && row.slot.is_some());
        form.number(queues.map(|ports| ports.waiting_for(life.worker.slot).into()));
        form.text(row.last_end.map(|end| end.text.as_str()));
        form.text(row.last_end.map(|end| end.cause.name()));
        form.seconds(row.last_end.map(|end| self.view.now.saturating_sub(end.at)));
        form.text(life.status.as_deref());
    }
}

/// One without a name is shared by workers that bind it.
fn fill_in_listener(address: &str, name: Option<&str>, sockets: &[Rc<OwnedFd>], form: &mut Form) {
    let queue = queue_length::of_all(sockets);
    form.element(LISTENER);
    form.text(Some(address));
    form.text(name);
    form.text(Some(if name.is_some() { "listen" } else { "shared" }));
    form.number(queue.map(|queue| queue.length.into()));
    form.number(queue.map(|queue| queue.limit.into()));
}

fn fill_in_histogram(metric: &str, histogram: &Histogram, form: &mut Form) {
    form.element(HISTOGRAM);
    form.text(Some(metric));
    for count in &histogram.counts {
        form.number(Some(*count));
    }
    form.seconds(Some(histogram.sum));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::statistics::{BOUNDS, Cause, RESTARTS};

    /// The names in a layout.
    fn names(layout: &'static str) -> Vec<&'static str> {
        layout.split('"').skip(1).step_by(2).collect()
    }

    #[test]
    fn what_is_counted_has_a_place_in_the_order_of_its_numbers() {
        let restarts = RESTARTS.iter().map(|cause| Cause::name(*cause));
        let expected: Vec<&str> = ["restarts"].into_iter().chain(restarts).collect();
        assert!(names(COUNTS).starts_with(&expected));
        let bounds = names(HISTOGRAM);
        for (name, bound) in bounds.iter().skip(1).zip(BOUNDS) {
            let known = crate::records::thousandths(name).unwrap_or(u64::MAX);
            assert_eq!(known, bound, "{name}");
        }
        assert_eq!(bounds.len(), BOUNDS.len() + 2);
    }
}
