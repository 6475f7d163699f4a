//! Who looks at panzer from outside: clients of the control socket, the child that serves metrics, panzer's own manager.
//!
//! Must never let any of them hold up a worker: how much is done for them at a time is bounded.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;

use super::children::Children;
use super::clock;
use super::control::{Control, Request};
use super::document::{LastReload, Sources, result_name};
use super::json::Form;
use super::listen::Listener;
use super::manager::Manager;
use super::metrics::{Server, Wish};
use super::ports::Ports;
use super::sys::Pid;
use super::token::Token;
use super::usage::Usages;
use crate::supervisor::commands::Answer;
use crate::supervisor::{Client, Generation, Supervisor, sooner};

/// The child that serves metrics gets no more than one document in this time, whatever it has become.
const ANSWER_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait before another such child is started, so that one that cannot live does not cost a processor.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// The child that serves metrics.
struct Metrics {
    listener: Listener,
    server: Option<Server>,
    /// When to start one, where there is none.
    start_at: Duration,
    /// When it gets its document; `None`: it has not asked for one.
    answer_at: Option<Duration>,
    last_answer: Duration,
}

/// All of them, and what they are shown beside the supervisor.
pub(super) struct Observers {
    control: Option<Control>,
    metrics: Option<Metrics>,
    manager: Option<Manager>,
    reload: Option<LastReload>,
    /// What workers use.
    pub(super) usages: Usages,
    /// The time of day when panzer started.
    started_at: Duration,
}

/// What is looked at.
pub(super) struct View<'a> {
    pub(super) now: Duration,
    pub(super) supervisor: &'a Supervisor,
    pub(super) children: &'a Children,
    pub(super) listeners: &'a [Listener],
    pub(super) ports: Option<&'a Ports>,
}

impl Observers {
    /// Those who come to this control socket and to this listener for metrics, and who has started panzer.
    pub(super) fn new(control: Option<Control>, metrics: Option<Listener>, manager: Option<Manager>) -> Self {
        let of_listener = |listener| Metrics {
            listener,
            server: None,
            start_at: Duration::ZERO,
            answer_at: None,
            last_answer: Duration::ZERO,
        };
        let started_at = clock::since_epoch();
        let metrics = metrics.map(of_listener);
        Self { control, metrics, manager, reload: None, usages: Usages::default(), started_at }
    }

    /// Has panzer told of clients.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub(super) fn watch(&self, epoll: impl AsFd) -> rustix::io::Result<()> {
        let Some(control) = &self.control else { return Ok(()) };
        epoll::add(epoll, control.descriptor(), Token::Control.to_data(), epoll::EventFlags::IN)
    }

    /// When there is something to do without anybody's doing.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let metrics = self.metrics.as_ref().and_then(|metrics| match metrics.server {
            None => Some(metrics.start_at),
            Some(_) => metrics.answer_at,
        });
        let manager = self.manager.as_ref().and_then(Manager::next_deadline);
        sooner(sooner(self.control.as_ref().and_then(Control::next_deadline), metrics), manager)
    }

    /// Whether clients are to be let in again.
    pub(super) fn is_control_due(&self, now: Duration) -> bool {
        self.control.as_ref().and_then(Control::next_deadline).is_some_and(|at| at <= now)
    }

    /// What clients ask for.
    pub(super) fn requests(&mut self, now: Duration) -> Vec<Request> {
        self.control.as_mut().map(|control| control.handle(now)).unwrap_or_default()
    }

    /// Answers one of them.
    pub(super) fn answer(&mut self, client: Client, answer: Result<Answer, String>, view: &View<'_>) {
        let mut reload = None;
        let answer = answer.map(|answer| match answer {
            Answer::Document => self.document(view),
            Answer::Ready(ready, workers) => format!("{{\"ready\":{ready},\"workers\":{workers}}}"),
            Answer::Reloading(generation) => {
                reload = Some(generation);
                format!("{{\"generation\":{}}}", generation.0)
            }
            Answer::Done(text) => text,
        });
        if let Some(control) = &mut self.control {
            control.answer(client, answer, reload);
        }
    }

    /// The process of the child that serves metrics, which is no worker's.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.metrics.as_ref()?.server.as_ref().map(Server::pid)
    }

    /// Starts the child that serves metrics, where one is wanted and none is there.
    ///
    /// # Errors
    /// The kernel gives no process; it is tried again later.
    pub(super) fn ensure_server(&mut self, now: Duration, epoll: impl AsFd) -> std::io::Result<()> {
        let Some(metrics) = self.metrics.as_mut().filter(|one| one.server.is_none() && one.start_at <= now) else {
            return Ok(());
        };
        metrics.start_at = now + RESTART_DELAY;
        let Some(listener) = metrics.listener.sockets.first() else { return Ok(()) };
        let server = Server::start(listener)?;
        epoll::add(epoll, server.descriptor(), Token::Metrics.to_data(), epoll::EventFlags::IN)?;
        metrics.server = Some(server);
        Ok(())
    }

    /// The child that serves metrics wants something, or is gone; whether it is gone.
    pub(super) fn server_wishes(&mut self, now: Duration, epoll: impl AsFd) -> bool {
        let Some(metrics) = &mut self.metrics else { return false };
        let Some(server) = &mut metrics.server else { return false };
        match server.wish() {
            Wish::Nothing => {}
            Wish::Document => {
                metrics.answer_at.get_or_insert(now.max(metrics.last_answer + ANSWER_INTERVAL));
            }
            Wish::Restart => {
                // A copy of the socket may be held somewhere, and epoll would go on telling of it.
                let _ = epoll::delete(epoll, server.descriptor());
                (metrics.server, metrics.answer_at) = (None, None);
                return true;
            }
        }
        false
    }

    /// Gives the child that serves metrics the document that it has asked for, if it is time to.
    pub(super) fn answer_server(&mut self, view: &View<'_>) {
        let is_due = |metrics: &Metrics| metrics.answer_at.is_some_and(|at| at <= view.now);
        if !self.metrics.as_ref().is_some_and(is_due) {
            return;
        }
        let document = self.document(view);
        if let Some(metrics) = &mut self.metrics {
            (metrics.answer_at, metrics.last_answer) = (None, view.now);
            metrics.server.iter_mut().for_each(|server| server.answer(&document));
        }
    }

    /// No other child is to serve metrics: panzer is about to end.
    pub(super) fn let_go_of_metrics(&mut self) {
        self.metrics = None;
    }

    /// How everything is just now.
    pub(super) fn document(&mut self, view: &View<'_>) -> String {
        self.usages.look(view.now);
        let sources = Sources { view, started_at: self.started_at, usages: &self.usages, reload: self.reload.as_ref() };
        sources.document()
    }

    /// Remembers how far a reload has come, and tells those who follow it.
    pub(super) fn follow_reload(&mut self, supervisor: &Supervisor) {
        if let Some((generation, done, of)) = supervisor.reload_progress() {
            let progress = (done, of);
            let is_known = |known: &LastReload| known.generation == generation && known.progress == progress;
            if !self.reload.as_ref().is_some_and(is_known) {
                self.reload = Some(LastReload { generation, progress, result: None });
                let line = format!("{{\"generation\":{},\"done\":{done},\"of\":{of}}}\n", generation.0);
                self.tell(Some(generation), &line, false);
            }
        } else if supervisor.is_ending() {
            self.tell(None, "", true);
        }
    }

    /// Has panzer's own manager told at the next occasion that panzer lives.
    pub(super) fn beat_at_once(&mut self) {
        self.manager.iter_mut().for_each(Manager::beat_at_once);
    }

    /// Tells panzer's own manager what it does not know yet.
    ///
    /// # Errors
    /// It cannot be told anything. That is said once, until it can.
    pub(super) fn tell_manager(&mut self, now: Duration, supervisor: &Supervisor) -> Result<(), Errno> {
        let Some(manager) = &mut self.manager else { return Ok(()) };
        let result = self.reload.as_ref().and_then(|reload| reload.result.as_ref());
        let failure = result.filter(|(is_ok, _)| !is_ok).map(|(_, text)| text.as_str());
        manager.tell(now, supervisor.to_be_known(now, failure))
    }

    fn tell(&mut self, generation: Option<Generation>, line: &str, is_last: bool) {
        if let Some(control) = &mut self.control {
            control.tell(generation, line, is_last);
        }
    }

    /// A reload has ended, and `text` says how.
    pub(super) fn reload_ended(&mut self, generation: Generation, is_ok: bool, text: String) {
        let mut form = Form::default();
        form.then("{\"generation\":#,\"result\":#,\"message\":#}\n");
        form.number(Some(generation.0));
        form.text(Some(result_name(is_ok)));
        form.text(Some(&text));
        let line = form.finish();
        self.tell(Some(generation), &line, true);
        let reload = self.reload.take().filter(|reload| reload.generation == generation);
        let (done, of) = reload.map_or((0, 0), |reload| reload.progress);
        let progress = if is_ok { (of, of) } else { (done, of) };
        self.reload = Some(LastReload { generation, progress, result: Some((is_ok, text)) });
    }
}
