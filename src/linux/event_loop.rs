//! The one loop: waits for a signal, a child or a deadline, tells the supervisor, does what it asks for.
//!
//! After the first worker runs, no error ends it: what fails is said and tried again.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use super::children::{Child, Children};
use super::clock::{self, Instant};
use super::control_groups::MemoryKills;
use super::decider::Decider;
use super::guard::{Guard, GuardSettings};
use super::idle;
use super::log::Log;
use super::machine::PowerButton;
use super::observers::{Observers, View};
use super::own_path::OwnPath;
use super::ports::{self, Ports};
use super::processes::{self, Sweep};
use super::signal_source::SignalSource;
use super::spawn::{Birth, Failure, Launcher, News};
use super::state_files::{PidFile, StatusFile};
use super::sys::{self, Pid, Target};
use super::terminal;
use super::token::Token;
use crate::config::VERSION;
use crate::error::{Error, Status};
use crate::linux::words;
use crate::signals::Signal;
use crate::supervisor::commands::Answer;
use crate::supervisor::report::{Level, Report};
use crate::supervisor::{Client, Effect, End, Event, Generation, NotRun, Note, WorkerId, sooner};

/// How many dead children are reaped before panzer looks at signals again.
const REAPED_AT_ONCE: usize = 1000;

/// How long after something has happened panzer's own code is taken out of its resident memory.
const RELEASE_DELAY: Duration = Duration::from_millis(200);

/// A wait that ends so much too late shows that panzer was frozen or stopped meanwhile.
const ABSENCE: Duration = Duration::from_millis(500);

/// What is due then is put off until workers, who may have been frozen as well, have had so much time to say something.
const AFTER_ABSENCE: Duration = Duration::from_secs(1);

/// So often what is due is put off: whoever stops panzer again and again, or a machine on which it is always late, must not
/// keep it from ever doing that.
const ABSENCES: u8 = 3;

/// How long to rest where the kernel refuses to wait for events.
const WAIT_RETRY: Duration = Duration::from_millis(100);

/// How long a command must run in init mode to be given a guard.
const GUARD_DELAY: Duration = Duration::from_millis(10);

/// How long to wait before another guard is tried, where the kernel gives none.
const GUARD_RETRY: Duration = Duration::from_secs(5);

/// What `prepare` has made.
pub(super) struct Prepared {
    /// Who decides.
    pub(super) decider: Decider,
    /// Starts workers.
    pub(super) launcher: Launcher,
    /// For the guard; `None` as PID 1, where none is needed.
    pub(super) guard: Option<GuardSettings>,
    /// What workers share, in supervise mode.
    pub(super) ports: Option<Ports>,
    /// Who looks at panzer from outside.
    pub(super) observers: Observers,
    /// `--status-file`
    pub(super) status_file: Option<StatusFile>,
    /// `--pid-file`, held until the end.
    pub(super) _pid_file: Option<PidFile>,
    /// The machine's power button, where panzer is its init.
    pub(super) power: Option<PowerButton>,
    /// The lines on stderr.
    pub(super) log: Log,
}

/// panzer, ready to run.
pub struct Running {
    prepared: Prepared,
    epoll: OwnedFd,
    signals: SignalSource,
    guard: Option<Guard>,
    guard_at: Option<Duration>,
    children: Children,
    /// It was said what runs.
    announced: bool,
    /// What the supervisor has not been told yet.
    events: VecDeque<Event>,
    /// Who waits for the status document.
    to_be_shown: Vec<Client>,
    /// Paths to remove at the end, where the listeners themselves are let go of before.
    paths: Vec<OwnPath>,
    /// The supervisor waits for nothing to be left.
    watching_remaining: bool,
    /// What remains and was signalled already.
    sweep: Sweep,
    /// Who was killed for want of memory.
    memory_kills: MemoryKills,
    /// There may be more to reap.
    reap_again: bool,
    /// When panzer's own code is to be taken out of its resident memory.
    release_at: Option<Duration>,
    /// What was put off last for an absence, and how often.
    put_off: (Duration, u8),
    /// The status to exit with.
    status: Option<Status>,
    start: Instant,
    own: Pid,
}

impl Running {
    pub(super) fn new(prepared: Prepared) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = SignalSource::new()?;
        epoll::add(&epoll, signals.descriptor(), Token::Signals.to_data(), epoll::EventFlags::IN)?;
        if let Some(ports) = &prepared.ports {
            epoll::add(&epoll, ports.descriptor(), Token::Ports.to_data(), epoll::EventFlags::IN)?;
        }
        if let Some(power) = &prepared.power {
            epoll::add(&epoll, power.descriptor(), Token::Power.to_data(), epoll::EventFlags::IN)?;
        }
        prepared.observers.watch(&epoll)?;
        // panzer must not pin the mount that it was started from, unless the worker can reach it in no other way.
        if prepared.launcher.start_directory.is_some() {
            rustix::process::chdir(c"/")?;
        }
        Ok(Self {
            prepared,
            epoll,
            signals,
            guard: None,
            guard_at: None,
            children: Children::default(),
            announced: false,
            events: VecDeque::new(),
            to_be_shown: Vec::new(),
            paths: Vec::new(),
            watching_remaining: false,
            sweep: Sweep::default(),
            memory_kills: MemoryKills::default(),
            // Children from before the exec may have ended while SIGCHLD told nobody.
            reap_again: true,
            release_at: Some(RELEASE_DELAY),
            put_off: (Duration::ZERO, 0),
            status: None,
            start: Instant::now(),
            own: Pid::own(),
        })
    }

    /// Runs until all is done, and says what to exit with.
    #[must_use]
    pub fn run(mut self) -> Status {
        if self.prepared.decider.is_supervisor() {
            self.ensure_guard();
        }
        let effects = self.prepared.decider.begin(self.now());
        self.perform(effects);
        // While the first child starts, which need not wait for what is read here.
        self.memory_kills = MemoryKills::new();
        if !self.prepared.decider.is_supervisor() {
            // Not at once: a command that ends right away is not to take longer than with tini. Until then the child has
            // its parent-death signal.
            self.guard_at = self.prepared.guard.as_ref().map(|_| self.now() + GUARD_DELAY);
            self.paths = self.prepared.launcher.release();
            self.close_inherited();
        }
        loop {
            self.settle();
            if let Some(status) = self.status {
                return self.finish(status);
            }
            self.wait();
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn finish(self, status: Status) -> Status {
        // It ends while the rest is put away.
        if let Some(guard) = &self.guard {
            guard.dismiss();
        }
        if let (Some(terminal), Some(child), false) =
            (self.prepared.launcher.terminal, self.children.first(), self.prepared.decider.is_supervisor())
        {
            terminal.take_back_from(child.pid);
        }
        status
    }

    /// One line about what runs, in supervise mode, once it does: a refusal is to be the only line.
    fn announce(&mut self) {
        let Decider::Supervise(supervisor) = &self.prepared.decider else { return };
        let (count, command) = (supervisor.size(), self.prepared.launcher.command.display());
        let mut text = format!("version {VERSION}, workers: {count} of {command}");
        let mut separator = ", listening on ";
        for listener in &self.prepared.launcher.listeners {
            text.push_str(separator);
            text.push_str(&listener.shown);
            separator = ", ";
        }
        self.prepared.log.say(Level::Info, "started", &text);
    }

    /// Waits for something to happen and deals with it.
    fn wait(&mut self) {
        let release = self.release_at.take_if(|at| *at <= self.start.elapsed()).is_some();
        let before = self.now();
        let deadline = self.deadline(before);
        let timeout = deadline.and_then(|at| Timespec::try_from(at.saturating_sub(before)).ok());
        let mut space = idle::EMPTY;
        // Signals are held, so that only a stop or a freeze of panzer itself interrupts.
        let mut interrupted = false;
        let events = match idle::wait(self.epoll.as_fd(), &mut space, timeout.as_ref(), release) {
            Ok(events) => events,
            Err(Errno::INTR) => {
                interrupted = true;
                &[]
            }
            Err(error) => {
                // Nothing that a healthy kernel says. Signals are read all the same.
                self.complain("wait for events", error, "trying again");
                clock::sleep(WAIT_RETRY);
                self.reap_again = true;
                &[]
            }
        };
        if let Some(deadline) = deadline {
            self.make_up_for_absence(before, deadline, interrupted);
        }
        let mut signalled = self.reap_again;
        for event in events {
            match Token::from_data(event.data) {
                Token::Signals => signalled = true,
                Token::Guard => self.guard_died(),
                Token::Ports => self.handle_ports(),
                Token::Control => self.handle_control(),
                Token::Metrics => self.handle_metrics(),
                Token::Power => {
                    if self.prepared.power.as_ref().is_some_and(PowerButton::was_pressed) {
                        self.events.push_back(Event::Signal(Signal::TERM));
                    }
                }
                Token::Child(pid) => self.channel_ready(pid),
                Token::Feedback(pid) => self.hear(pid),
            }
        }
        if signalled {
            self.events.extend(self.signals.read().into_iter().map(Event::Signal));
            self.reap();
        }
        let now = self.now();
        if self.guard_at.is_some_and(|at| at <= now) {
            self.ensure_guard();
        }
        let Prepared { ports, log, .. } = &mut self.prepared;
        if let Some(ports) = ports.as_mut().filter(|ports| ports.next_deadline().is_some_and(|at| at <= now)) {
            ports.catch_up(now, log);
        }
        self.attend_observers(now);
        let is_due = self.prepared.decider.next_deadline().is_some_and(|at| at <= now);
        if is_due {
            self.hear_all();
            self.events.push_back(Event::Time);
        }
        if is_due || !events.is_empty() {
            self.release_at.get_or_insert(now + RELEASE_DELAY);
        }
    }

    /// What happened while panzer was frozen or stopped (`podman pause`, SIGSTOP) is nobody's fault: its clock goes on from
    /// shortly before what was due, and never from before the wait.
    fn make_up_for_absence(&mut self, before: Duration, deadline: Duration, interrupted: bool) {
        let now = self.now();
        if !interrupted && now < deadline + ABSENCE {
            return;
        }
        // Who waits for a sign of life does so by a clock that went on.
        self.prepared.observers.beat_at_once();
        let resumed = before.max(deadline.saturating_sub(AFTER_ABSENCE));
        if self.put_off.0 != deadline {
            self.put_off = (deadline, 0);
        }
        if resumed < now && self.put_off.1 < ABSENCES {
            self.put_off.1 += 1;
            self.start = self.start.later(now - resumed);
        }
    }

    fn deadline(&self, now: Duration) -> Option<Duration> {
        if self.reap_again {
            return Some(now);
        }
        let ports = self.prepared.ports.as_ref().and_then(Ports::next_deadline);
        let observers = self.prepared.observers.next_deadline();
        let mut deadline = self.prepared.decider.next_deadline();
        for other in [self.guard_at, self.release_at, ports, observers] {
            deadline = sooner(deadline, other);
        }
        deadline
    }

    /// Tells the supervisor all that has happened and does what it asks for, until there is nothing more to tell.
    fn settle(&mut self) {
        loop {
            while let Some(event) = self.events.pop_front() {
                let effects = self.prepared.decider.handle(self.now(), event);
                self.perform(effects);
                if let Decider::Supervise(supervisor) = &self.prepared.decider {
                    self.prepared.observers.follow_reload(supervisor);
                }
            }
            self.forget_the_gone();
            if self.events.is_empty() {
                break;
            }
        }
        for client in std::mem::take(&mut self.to_be_shown) {
            self.show(&mut |observers, view| observers.answer(client, Ok(Answer::Document), view));
        }
        let (Prepared { ports, decider, launcher, observers, log, status_file, .. }, now) =
            (&mut self.prepared, self.start.elapsed());
        let Decider::Supervise(supervisor) = &*decider else { return };
        if let Some(ports) = ports.as_mut().filter(|ports| ports.have_queues()) {
            let queues = supervisor.queues(now);
            launcher.let_go_of_slots(supervisor.size(), &queues);
            ports.rotate(queues, log);
        }
        if let Some(file) = status_file {
            let pid = |worker| self.children.of(worker).map(|child| child.main().number());
            let lines = supervisor
                .workers()
                .into_iter()
                .filter_map(|(generation, worker)| Some(format!("{}:{}\n", generation.0, pid(worker)?)));
            file.update(lines.collect(), log);
        }
        if let Err(error) = observers.tell_manager(now, supervisor) {
            self.complain("notify NOTIFY_SOCKET", error, "trying again when there is news");
        }
    }

    /// Hears what clients of the control socket ask for.
    fn handle_control(&mut self) {
        let requests = self.prepared.observers.requests(self.start.elapsed());
        self.events.extend(requests.into_iter().map(|(client, command)| Event::Asked(client, command)));
    }

    /// The child that serves metrics wants something, or is gone.
    fn handle_metrics(&mut self) {
        if self.prepared.observers.server_wishes(self.start.elapsed(), &self.epoll) {
            let text = "the metrics server died; starting another";
            self.prepared.log.say(Level::Warning, "metrics_died", text);
        }
    }

    /// Does what is due for those who look at panzer from outside.
    fn attend_observers(&mut self, now: Duration) {
        if self.prepared.observers.next_deadline().is_none_or(|at| at > now) {
            return;
        }
        self.release_at.get_or_insert(now + RELEASE_DELAY);
        if self.prepared.observers.is_control_due(now) {
            self.handle_control();
        }
        self.show(&mut Observers::answer_server);
        if let Err(error) = self.prepared.observers.ensure_server(now, &self.epoll) {
            let error = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            self.complain("start the metrics server", error, "trying again in 1s");
        }
    }

    /// Shows everything to those who look at panzer from outside.
    fn show(&mut self, look: &mut dyn FnMut(&mut Observers, &View<'_>)) {
        let Self { prepared: Prepared { decider, launcher, ports, observers, .. }, children, start, .. } = self;
        let Decider::Supervise(supervisor) = &*decider else { return };
        let (listeners, ports) = (launcher.listeners.as_slice(), ports.as_ref());
        look(observers, &View { now: start.elapsed(), supervisor, children, listeners, ports });
    }

    /// Answers what workers ask of their ports.
    fn handle_ports(&mut self) {
        let (now, Prepared { ports, decider, log, .. }) = (self.start.elapsed(), &mut self.prepared);
        if let (Some(ports), Decider::Supervise(supervisor)) = (ports, &*decider) {
            self.events.extend(ports.handle(now, supervisor.is_stopping(), log));
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Spawn { worker, generation, workers } => self.spawn(worker, generation, workers),
                Effect::LoadGeneration(generation, in_use) => {
                    let event = match self.prepared.launcher.load(generation, &in_use) {
                        Ok(()) => Event::GenerationLoaded(generation),
                        Err(error) => Event::GenerationRefused(generation, error.to_string()),
                    };
                    self.events.push_back(event);
                }
                Effect::LookAtQueue(worker) => {
                    let ports = self.prepared.ports.as_ref();
                    let length = ports.map_or(0, |ports| ports.waiting_for(worker.slot));
                    self.events.push_back(Event::Queue(worker, length));
                }
                Effect::LetGoOfQueue(slot) => {
                    let (Prepared { ports, decider, log, .. }, now) = (&mut self.prepared, self.start.elapsed());
                    if let (Some(ports), Decider::Supervise(supervisor)) = (ports, &*decider)
                        && ports.have_queues()
                    {
                        ports.rotate(supervisor.queues(now), log);
                        ports.let_go_of(slot);
                    }
                }
                Effect::MeasureMemory => {
                    let usages = &mut self.prepared.observers.usages;
                    usages.look(self.start.elapsed());
                    let memory = |child: &Child| usages.of(child).unwrap_or_default().memory;
                    self.events.extend(self.children.living().map(|child| Event::Memory(child.worker, memory(child))));
                }
                Effect::Signal(worker, reach, signal) => self.children.signal(worker, reach, signal),
                Effect::LookForRemaining => {
                    // As PID 1 panzer signals all there are.
                    self.prepared.observers.let_go_of_metrics();
                    self.watching_remaining = true;
                    self.events.push_back(if self.something_remains() {
                        Event::SomethingRemains
                    } else {
                        Event::NothingRemains
                    });
                }
                Effect::SignalRemaining(signal) => self.signal_remaining(signal),
                Effect::Suspend => self.suspend(),
                Effect::SuspendWithChild => {
                    // A shell's fg may have come between the child's stop and this.
                    if self.children.first().is_some_and(|child| processes::is_stopped(child.pid)) {
                        self.suspend();
                    }
                }
                Effect::TakeTerminal => {
                    if let (Some(terminal), Some(child)) = (self.prepared.launcher.terminal, self.children.first()) {
                        terminal.pass_to(child.pid);
                    }
                }
                Effect::Report(report) => {
                    if matches!(report, Report::Started(_)) && !self.announced {
                        self.announced = true;
                        self.announce();
                    }
                    let pid = |worker| self.children.of(worker).map(|child| child.main().number());
                    let (pid, other) = (report.worker().and_then(pid), report.other_worker().and_then(pid));
                    let text = self.prepared.log.report(&report, self.prepared.decider.is_supervisor(), pid, other);
                    if let Some((generation, is_ok)) = report.reload_result() {
                        self.prepared.observers.reload_ended(generation, is_ok, text);
                    }
                }
                // What has happened until now is to be in it.
                Effect::Answer(client, Ok(Answer::Document)) => self.to_be_shown.push(client),
                Effect::Answer(client, answer) => {
                    self.show(&mut |observers, view| observers.answer(client, answer.clone(), view));
                }
                Effect::Exit(status) => self.status = Some(status),
            }
        }
    }

    /// Stops panzer as the terminal would have: with its whole group, since a script that waits for panzer is in it.
    /// Where nobody could continue it (PID 1, an orphaned group) init mode's child goes on instead.
    fn suspend(&mut self) {
        let at_terminal = self.prepared.launcher.terminal.is_some();
        if !at_terminal && self.prepared.decider.is_supervisor() {
            return;
        }
        if at_terminal && terminal::is_orphaned() {
            if !self.prepared.decider.is_supervisor()
                && let Some(child) = self.children.first().filter(|child| !child.reaped)
            {
                let _ = sys::kill(Target::Group(child.pid), Signal::CONT);
            }
            return;
        }
        let target = sys::own_group().filter(|_| at_terminal).map_or(Target::Process(self.own), Target::Group);
        let before = self.now();
        // panzer is stopped before this returns (`kill(2)`), and so are workers: none of them was silent.
        let _ = sys::kill(target, Signal::STOP);
        self.start = self.start.later(self.now().saturating_sub(before));
    }

    fn spawn(&mut self, worker: WorkerId, generation: Generation, workers: u32) {
        let Prepared { ports, launcher, log, .. } = &mut self.prepared;
        if let Some(ports) = ports {
            let lowest = launcher.above_handed_down();
            ports.grow(worker.slot + 1, &mut launcher.listeners, lowest, log);
        }
        let intercept_unlink = ports.as_ref().is_some_and(Ports::intercepts_unlink);
        let spawned = match launcher.start(&Birth { worker, generation, workers, intercept_unlink }) {
            Ok(spawned) => spawned,
            Err(error) => {
                let object = if self.prepared.decider.is_supervisor() {
                    format!("worker {}", worker.slot)
                } else {
                    "the command".to_owned()
                };
                let why =
                    NotRun { status: Status::REFUSED, error: Error::about("start", &object, words(error)).to_string() };
                return self.events.push_back(Event::NotStarted(worker, why));
            }
        };
        let pid = spawned.pid;
        let added = epoll::add(&self.epoll, &spawned.channel, Token::Child(pid).to_data(), epoll::EventFlags::IN);
        for descriptor in spawned.feedback.descriptors() {
            let data = Token::Feedback(pid).to_data();
            if let Err(error) = epoll::add(&self.epoll, descriptor, data, epoll::EventFlags::IN) {
                self.complain("listen to a worker", error, "it will not be heard");
            }
        }
        let (channel, feedback) = (Some(spawned.channel), spawned.feedback);
        self.children.add(Child { worker, pid, named: None, channel, feedback, failure: None, reaped: false });
        // Another guard is told of all children there are, so of this one too.
        if let Some(guard) = &self.guard
            && guard.add(pid).is_err()
        {
            self.guard_died();
        }
        if let Err(error) = added {
            self.complain("watch a worker's start", error, "it counts as started");
            self.events.push_back(Event::Executed(worker));
        }
    }

    /// A worker's start has news, up to its program's execution or what kept it from that.
    fn channel_ready(&mut self, pid: Pid) {
        let now = self.now();
        let Self { children, prepared, events, epoll, .. } = self;
        let Prepared { launcher, ports, log, .. } = prepared;
        let Some(child) = children.with_process(pid) else { return };
        while let Some(channel) = &child.channel {
            match launcher.read_channel(channel) {
                None => return,
                Some(News::Filter(filter)) => {
                    let slot = child.worker.slot;
                    if let Some(Err(error)) = ports.as_mut().map(|ports| ports.add(now, child.worker, filter)) {
                        let error = Error::new(format!("watch what worker {slot} binds"), words(error));
                        log.say(Level::Error, "error", &format!("{error}; its binds will fail"));
                    }
                    continue;
                }
                Some(News::NoFilter(why)) => {
                    // One line for all of them.
                    if launcher.filter.take().is_some() {
                        ports::say_not_shared(log, &why);
                        events.push_back(Event::NothingShared);
                    }
                    continue;
                }
                Some(News::Executed) => events.push_back(Event::Executed(child.worker)),
                Some(News::Failed(failure)) => child.failure = Some(failure),
            }
            // Closing is not enough: a child that has not executed yet holds a copy, and epoll would go on telling of it.
            let _ = epoll::delete(&*epoll, channel);
            child.channel = None;
        }
    }

    /// Everything that workers have told until now, so that none is taken for silent while its word waits to be read.
    fn hear_all(&mut self) {
        self.handle_ports();
        let pids: Vec<Pid> = self.children.groups().collect();
        for pid in pids {
            self.channel_ready(pid);
            self.hear(pid);
        }
    }

    /// A worker tells something of itself.
    fn hear(&mut self, pid: Pid) {
        let helpers = self.own_helpers();
        let Self { children, prepared, epoll, events, .. } = self;
        // As with the channel: a copy that somebody holds would go on telling.
        let close = &mut |descriptor: &OwnedFd| {
            let _ = epoll::delete(&*epoll, descriptor);
        };
        events.extend(children.hear(pid, prepared.launcher.uid(), helpers, close));
    }

    /// Reaps whatever has ended: workers, and orphans that nobody knows.
    fn reap(&mut self) {
        let mut options = WaitOptions::NOHANG;
        if self.prepared.launcher.terminal.is_some() && !self.prepared.decider.is_supervisor() {
            options |= WaitOptions::UNTRACED;
        }
        self.reap_again = false;
        for _ in 0..REAPED_AT_ONCE {
            match rustix::process::wait(options) {
                Ok(Some((pid, status))) => self.child_changed(pid.into(), status),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => {
                    // Nothing can be left before the supervisor knows of every end.
                    self.settle();
                    if self.watching_remaining && self.status.is_none() && !self.something_remains() {
                        self.events.push_back(Event::NothingRemains);
                    }
                    return;
                }
            }
        }
        self.reap_again = true;
    }

    /// A child was reaped, or stopped by job control. Who is not known was adopted: reaping it was all.
    fn child_changed(&mut self, pid: Pid, status: WaitStatus) {
        if self.children.with_process(pid).is_none() {
            return;
        }
        if let Some(signal) = status.stopping_signal() {
            self.events.extend(Signal::from_number(signal.into()).map(Event::Suspended));
            return;
        }
        let Some(mut end) = end_of(status) else { return };
        if let End::Killed { signal: Signal::KILL, note } = &mut end
            && self.memory_kills.are_more()
        {
            *note = Note::OutOfMemory;
        }
        // What it has said comes before its end.
        self.channel_ready(pid);
        self.hear(pid);
        let Some(child) = self.children.with_process(pid) else { return };
        if child.goes_on_without(pid) {
            return;
        }
        let group_left = sys::exists(Target::Group(child.pid));
        child.reaped = true;
        let worker = child.worker;
        // Whatever its group still says is not about a worker any more.
        for descriptor in std::mem::take(&mut child.feedback).descriptors() {
            let _ = epoll::delete(&self.epoll, descriptor);
        }
        let event = match child.failure.take() {
            None => Event::Exited { worker, end, group_left },
            Some(Failure { why, is_transient: true }) => Event::NotStarted(worker, why),
            Some(Failure { why, is_transient: false }) => {
                Event::Exited { worker, end: End::CannotRun(why), group_left }
            }
        };
        if let (Some(ports), log) = (&mut self.prepared.ports, &mut self.prepared.log) {
            ports.life_ended(worker, log);
        }
        self.events.push_back(event);
    }

    /// Lets go of the groups of which nothing is left. In init mode there is one, and its number is needed to the end.
    fn forget_the_gone(&mut self) {
        if !self.prepared.decider.is_supervisor() {
            return;
        }
        let Self { children, guard, events, .. } = self;
        let mut guard_lost = false;
        for child in children.take_the_gone() {
            guard_lost |= guard.as_ref().is_some_and(|guard| guard.remove(child.pid).is_err());
            events.push_back(Event::GroupGone(child.worker));
        }
        if guard_lost {
            self.guard_died();
        }
    }

    /// Whether any process is left that panzer started or adopted.
    fn something_remains(&self) -> bool {
        let group_left = self.children.groups().any(|group| sys::exists(Target::Group(group)));
        // The guard does not count: it has no exit signal, so this wait does not see it.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        group_left || !matches!(rustix::process::waitid(WaitId::All, options), Err(Errno::CHILD))
    }

    /// Sends a signal to everything that remains and has not had it: as PID 1 to the whole namespace, else to whatever
    /// descends from panzer.
    fn signal_remaining(&mut self, signal: Signal) {
        if self.own.number() == 1 {
            return self.sweep.send_to_namespace(signal);
        }
        let Some(all) = processes::all() else {
            // Without /proc the groups are all that is known.
            return self.sweep.send_to_groups(signal, &self.children.groups_left());
        };
        let remaining = processes::descendants(&all, self.own, &self.own_helpers());
        self.sweep.send(signal, &all, &remaining);
    }

    /// panzer's own children that are no business of its clearing up, and no worker's.
    fn own_helpers(&self) -> Vec<Pid> {
        self.guard.as_ref().map(Guard::pid).into_iter().chain(self.prepared.observers.pid()).collect()
    }

    /// Starts a guard where one is wanted and none is there.
    fn ensure_guard(&mut self) {
        let Some(settings) = &self.prepared.guard else { return };
        self.guard_at = None;
        let groups = self.children.groups();
        let started = Guard::start(settings, groups, &mut self.prepared.log).and_then(|guard| {
            // No event is asked for: an error, which is what a reader's end makes, is always told.
            epoll::add(&self.epoll, guard.descriptor(), Token::Guard.to_data(), epoll::EventFlags::empty())?;
            Ok(guard)
        });
        match started {
            Ok(guard) => self.guard = Some(guard),
            // Some emulators know only children with an exit signal. Trying again would not help.
            Err(error @ Errno::INVAL) => {
                self.complain("start the guard", error, "going on without one");
            }
            Err(error) => {
                self.complain("start the guard", error, "trying again in 5s");
                self.guard_at = Some(self.now() + GUARD_RETRY);
            }
        }
    }

    fn guard_died(&mut self) {
        if let Some(guard) = self.guard.take() {
            // As with the pipe of a start: a child may hold a copy.
            let _ = epoll::delete(&self.epoll, guard.descriptor());
            drop(guard);
            self.prepared.log.say(Level::Warning, "guard_died", "the guard died; starting another");
            self.ensure_guard();
        }
    }

    /// After the only start in init mode: what panzer was given is now the child's alone.
    fn close_inherited(&self) {
        let channels = self.children.channels().map(AsRawFd::as_raw_fd);
        let guard = self.guard.as_ref().map(|guard| guard.descriptor().as_raw_fd());
        let power = self.prepared.power.as_ref().map(|power| power.descriptor().as_raw_fd());
        let own = [self.epoll.as_fd().as_raw_fd(), self.signals.descriptor().as_raw_fd()];
        let mut kept: Vec<i32> = own.into_iter().chain(channels).chain(guard).chain(power).collect();
        kept.sort_unstable();
        let mut first = 3;
        for number in kept {
            sys::close_range(first, number - 1);
            first = number + 1;
        }
        sys::close_range(first, i32::MAX);
    }

    fn complain(&mut self, action: &str, error: Errno, next: &str) {
        let error = Error::new(action, words(error));
        self.prepared.log.say(Level::Error, "error", &format!("{error}; {next}"));
    }
}

/// The signal is looked for first: a killed process has no exit status.
fn end_of(status: WaitStatus) -> Option<End> {
    if let Some(signal) = status.terminating_signal() {
        // WCOREDUMP (wait(2))
        let note = if status.as_raw() & 0x80 != 0 { Note::CoreDumped } else { Note::Nothing };
        return Signal::from_number(signal.into()).map(|signal| End::Killed { signal, note });
    }
    let status = status.exit_status()?;
    Some(End::Exited(u8::try_from(status).unwrap_or(u8::MAX)))
}
