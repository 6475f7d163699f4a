//! The status document: how everything is, as JSON with one flat record a line (docs/control.md).
//!
//! Must never look at the system more than once for a worker or a listener.

use std::rc::Rc;
use std::time::Duration;

use super::json::Record;
use super::observers::View;
use super::queue_length::{self, QueueLength};
use super::sys::Pid;
use super::usage::Usages;
use crate::config::VERSION;
use crate::supervisor::Generation;
use crate::supervisor::statistics::{BOUNDS, Histogram, RESTARTS};
use crate::supervisor::status::Row;

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
        let mut out = String::from("{\"panzer\":\n");
        self.push_overview(&mut out);
        out.push_str("\n,\"listeners\":[\n");
        self.push_listeners(&mut out);
        out.push_str("],\"workers\":[\n");
        for (index, row) in self.view.supervisor.rows().iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            self.push_worker(row, &mut out);
            out.push('\n');
        }
        let statistics = self.view.supervisor.statistics();
        out.push_str("],\"restarts\":\n");
        let mut record = Record::begin(&mut out);
        for ((_, name), count) in RESTARTS.iter().zip(statistics.restarts) {
            record.number(name, Some(count));
        }
        record.end();
        out.push_str("\n,\"reloads\":\n");
        let mut record = Record::begin(&mut out);
        record.number("ok", Some(statistics.reloads_ok));
        record.number("failed", Some(statistics.reloads_failed));
        record.end();
        out.push_str("\n,\"histograms\":[\n");
        push_histogram("time_to_ready_seconds", &statistics.time_to_ready, &mut out);
        out.push_str("\n,");
        push_histogram("time_to_stop_seconds", &statistics.time_to_stop, &mut out);
        out.push_str("\n]}\n");
        out
    }

    fn push_overview(&self, out: &mut String) {
        let overview = self.view.supervisor.overview();
        let result = self.reload.and_then(|reload| reload.result.as_ref());
        let mut record = Record::begin(out);
        record.text("version", Some(VERSION));
        record.number("pid", Some(Pid::own().number().unsigned_abs().into()));
        record.seconds("started_at_seconds", Some(self.started_at));
        record.seconds("uptime_seconds", Some(self.view.now));
        record.text("state", Some(overview.state));
        record.text("doing", Some(&overview.doing));
        record.number("generation", Some(overview.generation.0));
        record.number("workers", Some(overview.workers.into()));
        record.number("ready", Some(overview.ready.into()));
        record.number("reload_generation", self.reload.map(|reload| reload.generation.0));
        record.number("reload_done", self.reload.map(|reload| reload.progress.0.into()));
        record.number("reload_of", self.reload.map(|reload| reload.progress.1.into()));
        record.text("reload_result", result.map(|(is_ok, _)| if *is_ok { "ok" } else { "failed" }));
        record.text("reload_message", result.map(|(_, message)| message.as_str()));
        record.end();
    }

    fn push_listeners(&self, out: &mut String) {
        let mut separator = "";
        let mut push = |address: &str, name: Option<&str>, sockets: &[Rc<std::os::fd::OwnedFd>]| {
            let queues = sockets.iter().map(|socket| queue_length::of(socket));
            // With a queue for each slot, it is theirs together.
            let queue = queues.reduce(|sum, queue| {
                let (sum, queue) = (sum?, queue?);
                Some(QueueLength { length: sum.length + queue.length, limit: sum.limit + queue.limit })
            });
            out.push_str(separator);
            separator = ",";
            let mut record = Record::begin(out);
            record.text("address", Some(address));
            record.text("name", name);
            record.text("origin", Some(if name.is_some() { "listen" } else { "shared" }));
            record.number("queue", queue.flatten().map(|queue| queue.length.into()));
            record.number("queue_limit", queue.flatten().map(|queue| queue.limit.into()));
            record.end();
            out.push('\n');
        };
        for listener in self.view.listeners {
            push(&listener.shown, Some(&listener.name), &listener.sockets);
        }
        self.view
            .ports
            .into_iter()
            .for_each(|ports| ports.each_shared(&mut |address, sockets| push(address, None, sockets)));
    }

    fn push_worker(&self, row: &Row<'_>, out: &mut String) {
        let child = self.view.children.of(row.life.worker).filter(|_| row.has_process);
        let usage = child.and_then(|child| self.usages.of(child));
        let queues = self.view.ports.filter(|ports| ports.have_queues() && row.slot.is_some());
        let mut record = Record::begin(out);
        record.number("slot", Some(row.life.worker.slot.into()));
        record.number("pid", child.map(|child| child.main().number().unsigned_abs().into()));
        record.number("generation", Some(row.life.generation.0));
        record.text("state", Some(row.state));
        record.seconds("uptime_seconds", row.age(self.view.now));
        record.number("restarts", row.slot.map(|slot| slot.restarts));
        record.seconds("cpu_seconds", usage.map(|usage| usage.processor));
        record.number("memory_bytes", usage.map(|usage| usage.memory));
        record.number("processes", usage.map(|usage| usage.processes));
        record.number("queue", queues.map(|ports| ports.waiting_for(row.life.worker.slot).into()));
        record.text("last_end", row.last_end.map(|end| end.text.as_str()));
        record.text("last_end_reason", row.last_end.map(|end| end.cause.name()));
        record.seconds("last_end_seconds_ago", row.last_end.map(|end| self.view.now.saturating_sub(end.at)));
        record.text("status", row.life.status.as_deref());
        record.end();
    }
}

fn push_histogram(metric: &str, histogram: &Histogram, out: &mut String) {
    let mut record = Record::begin(out);
    record.text("metric", Some(metric));
    for ((_, bound), count) in BOUNDS.iter().zip(histogram.counts) {
        record.number(bound, Some(count));
    }
    record.seconds("sum", Some(histogram.sum));
    record.end();
}
