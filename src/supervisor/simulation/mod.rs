//! The supervisor against a model of processes: random crashes, slow starts, deaf, silent and unkillable workers, failing
//! forks, groups that outlive their main process, reloads, scaling, signals in any order and stale events, from seeds.
//!
//! A failure prints its seed; `PANZER_SEED=N cargo test simulation` replays that one alone. `PANZER_SIMULATIONS` sets
//! how many are run.

mod checks;
mod init_mode;
mod seeds;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::actions::{Action, Actions};
use super::commands::{Answer, Command};
use super::lives::SHORTEST_RETRY;
use super::notice::Notice;
use super::report::{Next, Report};
use super::restart::{Backoff, Random, Restart};
use super::rotation::{QueueState, SOON};
use super::stop::{KILL_GRACE, Schedule};
use super::worker::Slot;
use super::{
    Age, Client, Effect, End, Event, Failure, Generation, NotRun, Note, Policy, Ready, Replacement, Settings,
    Supervisor, Why, WorkerId,
};
use crate::error::Status;
use crate::signals::Signal;
use seeds::{Dice, Tally, for_each_seed, ms, simulations};

/// What takes the model's processes that long may still be called at once.
const LATENCY: Duration = Duration::from_millis(50);

/// A process of the model, with the rest of its group.
#[derive(Clone, Debug)]
struct Process {
    /// When its program is executed; `None`: it has been.
    executes: Option<Duration>,
    executed_at: Duration,
    /// When it listens; `None`: it has, or it never will.
    listens: Option<Duration>,
    /// It has told so.
    listened: bool,
    /// When it says that it is ready; `None`: it has, or it never will.
    says_ready: Option<Duration>,
    /// It has said so.
    said_ready: bool,
    /// When it beats next; `None`: never again.
    beats: Option<Duration>,
    /// By when it must have been heard of, as a worker that is ready.
    beat_by: Option<Duration>,
    /// By when it must be ready.
    ready_by: Duration,
    /// The supervisor has said that it is ready.
    is_ready: bool,
    /// A signal that is to end it was sent.
    told: bool,
    /// When the main process ends, and how.
    ends: Option<(Duration, End)>,
    /// The main process has ended.
    ended: bool,
    /// When the last of the group ends; `None` while it lives on.
    group_ends: Option<Duration>,
    has_group: bool,
    deaf: bool,
    stopped: bool,
    unkillable: bool,
}

/// What the model checks.
struct World {
    dice: Dice,
    now: Duration,
    settings: Settings,
    processes: BTreeMap<WorkerId, Process>,
    lives: BTreeMap<u32, u64>,
    /// When a slot lost its worker, for the bound of the backoff.
    vacant_since: BTreeMap<u32, Duration>,
    fork_failed: BTreeMap<u32, bool>,
    /// Nobody can be seen to listen.
    nothing_shared: bool,
    /// How many slots there are to be.
    wanted: u32,
    /// Generations that can be started, and those of which a worker was ready.
    loaded: BTreeSet<Generation>,
    proven: BTreeSet<Generation>,
    /// What each life was started from.
    generations: BTreeMap<WorkerId, Generation>,
    last_start: Option<Duration>,
    /// Workers whose successor is ready.
    replaced: BTreeSet<WorkerId>,
    /// No sooner than this one that was replaced may be told.
    not_told_before: BTreeMap<WorkerId, Duration>,
    /// Workers that are to get ABRT first.
    to_abort: BTreeSet<WorkerId>,
    /// A reload was asked for during another.
    reload_queued: bool,
    /// A client that has no answer yet, and what it has asked for.
    asked: Option<(Client, Command)>,
    /// When a stop begins that was asked for, maybe in a while, or when the supervisor began one by itself.
    stop_told: Option<Duration>,
    /// An end at once was asked for.
    kill_told: Option<Duration>,
    exit: Option<Status>,
    rest: Rest,
    queue: Vec<Event>,
    trace: Vec<String>,
    tally: Tally,
}

/// What escaped from the groups.
#[derive(Clone, Copy, Debug)]
struct Rest {
    exists: bool,
    deaf: bool,
    unkillable: bool,
    ends: Option<Duration>,
    watched: bool,
}

fn settings(dice: &mut Dice) -> Settings {
    let mut actions = Actions::supervise();
    if dice.one_in(4) {
        actions.set(Signal::HUP, Action::Forward(None));
    }
    let min = ms(dice.pick(&[0, 1, 100, 1000]));
    let schedules = ["TERM/25/KILL", "KILL", "QUIT/3/TERM/2/KILL", "INT/0/KILL", "TERM"];
    let stop = Schedule::parse(dice.pick(&schedules)).unwrap();
    let policy = Policy {
        ready: dice.pick(&[
            Ready::Exec,
            Ready::Delay(ms(0)),
            Ready::Delay(ms(1000)),
            Ready::Bind,
            Ready::BindOrDelay(ms(1000)),
            Ready::Notify,
        ]),
        ready_timeout: ms(dice.pick(&[100, 4000, 60_000])),
        restart: dice.pick(&[Restart::Always, Restart::Always, Restart::OnFailure, Restart::Never]),
        backoff: Backoff { min, max: min * u32::try_from(1 + dice.below(300)).unwrap() },
        stagger: ms(dice.pick(&[0, 0, 0, 200])),
        crash_limit: dice.pick(&[0, 1, 5, 5]),
        fatal_exits: if dice.one_in(5) { vec![Status(7)] } else { Vec::new() },
        ok_exits: if dice.one_in(5) { vec![Status(3), Status(143)] } else { Vec::new() },
        replacement: Replacement {
            tries: dice.pick(&[0, 1, 1, 3]),
            surge: dice.pick(&[1, 1, 2, 10]),
            kill_old_delay: ms(dice.pick(&[0, 0, 500, 3000])),
        },
        max_age: dice.pick(&[None, None, Some(Age { least: ms(3000), jitter: ms(2000) })]),
        max_memory: dice.pick(&[None, None, Some(900)]),
        watchdog: dice.pick(&[None, None, None, Some(ms(5000))]),
        no_group: dice.one_in(4),
        stop_delay: ms(dice.pick(&[0, 0, 1, 5000, 30_000])),
        linger: ms(dice.pick(&[0, 2000])),
    };
    Settings {
        workers: u32::try_from(1 + dice.below(5)).unwrap(),
        most_workers: 6,
        policy,
        reload_stop: Schedule::parse(dice.pick(&schedules)).unwrap(),
        silent_stop: stop.after_abort(ms(10_000)),
        stop,
        have_own_queues: dice.one_in(2),
        actions,
        seed: dice.0.draw(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(Random::new(seed));
        let settings = settings(&mut dice);
        let wanted = settings.workers;
        let rest = Rest {
            exists: dice.one_in(3),
            deaf: dice.one_in(3),
            unkillable: dice.one_in(20),
            ends: None,
            watched: false,
        };
        Self {
            dice,
            now: Duration::ZERO,
            settings,
            processes: BTreeMap::new(),
            lives: BTreeMap::new(),
            vacant_since: BTreeMap::new(),
            fork_failed: BTreeMap::new(),
            nothing_shared: false,
            wanted,
            loaded: BTreeSet::from([Generation::FIRST]),
            proven: BTreeSet::from([Generation::FIRST]),
            generations: BTreeMap::new(),
            last_start: None,
            replaced: BTreeSet::new(),
            not_told_before: BTreeMap::new(),
            to_abort: BTreeSet::new(),
            reload_queued: false,
            asked: None,
            stop_told: None,
            kill_told: None,
            exit: None,
            rest,
            queue: Vec::new(),
            trace: Vec::new(),
            tally: Tally::new(),
        }
    }

    fn fail(&self, why: &str) -> ! {
        let tail = self
            .trace
            .iter()
            .rev()
            .take(if simulations().len() == 1 { 100_000 } else { 60 })
            .rev()
            .cloned()
            .collect::<Vec<_>>()
            .join("\n");
        panic!("{why} at {:?}\n{:#?}\n{tail}\n{:?}", self.now, self.settings, self.processes);
    }

    /// What the order means is the model's to say, whatever the supervisor makes of it.
    fn note_order(&mut self, event: &Event) {
        if let Event::Asked(client, command) = event {
            self.asked = Some((*client, *command));
            if *command == Command::Stop {
                self.note_stop();
            }
        }
        let Event::Signal(signal) = event else { return };
        match self.settings.actions.of(*signal) {
            Action::Stop => self.note_stop(),
            Action::StopNow => {
                self.stop_begins(self.now);
                self.kill_told.get_or_insert(self.now);
            }
            Action::Forward(_) | Action::Ignore | Action::Upgrade => {}
            Action::Reload | Action::ScaleUp | Action::ScaleDown => {}
        }
    }

    /// The first one that asks lets the workers go on for a while, the second one does not.
    fn note_stop(&mut self) {
        let delay = if self.stop_told.is_none() { self.settings.policy.stop_delay } else { Duration::ZERO };
        self.stop_begins(self.now + delay);
    }

    /// Nothing puts a stop off.
    fn stop_begins(&mut self, at: Duration) {
        self.stop_told = Some(self.stop_told.map_or(at, |known| known.min(at)));
    }

    /// Whether workers are to be stopped by now.
    fn has_stop_begun(&self) -> bool {
        self.stop_told.is_some_and(|at| at <= self.now)
    }

    fn perform(&mut self, supervisor: &Supervisor, effects: Vec<Effect>) {
        for effect in effects {
            self.trace.push(format!("{:?} -> {effect:?}", self.now));
            self.check(self.exit.is_none(), "an effect after the exit");
            match effect {
                Effect::Spawn { worker, generation, workers } => {
                    self.check(workers == supervisor.size(), "a worker is told a wrong number of workers");
                    let slot = &supervisor.slots[usize::try_from(worker.slot).unwrap()];
                    let is_successor = slot.successor.as_ref().is_some_and(|life| life.worker == worker);
                    if let Some(reload) = supervisor.reload.as_ref().filter(|_| is_successor) {
                        let is_of_reload = generation == reload.generation;
                        self.check(is_of_reload, "a worker is replaced by another old one during a reload");
                    }
                    self.spawn(worker, generation, is_successor);
                }
                Effect::LoadGeneration(generation, in_use) => self.load(generation, &in_use),
                Effect::LookAtQueue(worker) => {
                    // Mostly it is empty, and stays so.
                    let length = u32::from(self.dice.one_in(20));
                    self.queue.push(Event::Queue(worker, length));
                }
                Effect::LetGoOfQueue(slot) => {
                    let lives = self.alive().any(|(worker, one)| worker.slot == slot && !one.unkillable);
                    self.check(!lives, "a living worker's queue is let go of");
                    let others = supervisor.slots.iter().any(|other| other.number != slot && other.current.is_ready());
                    self.check(others, "connections are let go of that nobody else could answer");
                    *self.tally.entry("queue_let_go").or_insert(0) += 1;
                }
                Effect::MeasureMemory => {
                    let alive: Vec<WorkerId> = self.alive().map(|(worker, _)| *worker).collect();
                    for worker in alive {
                        self.queue.push(Event::Memory(worker, self.dice.below(1000)));
                    }
                }
                Effect::Signal(worker, _, signal) => self.signal(worker, signal),
                Effect::LookForRemaining => {
                    // Nobody is left to restart.
                    self.stop_begins(self.now);
                    self.check(self.processes.values().all(|process| process.unkillable), "a worker was forgotten");
                    self.rest.watched = true;
                    self.queue.push(if self.rest.exists { Event::SomethingRemains } else { Event::NothingRemains });
                }
                Effect::SignalRemaining(signal) => {
                    self.check(self.rest.watched, "the rest was signalled before its time");
                    let heeds = if signal == Signal::KILL { !self.rest.unkillable } else { !self.rest.deaf };
                    if heeds && signal != Signal::CONT && self.rest.ends.is_none() {
                        self.rest.ends = Some(self.now + ms(1));
                    }
                }
                Effect::Report(report) => {
                    self.note_report(&report);
                    *self.tally.entry(report.event()).or_insert(0) += 1;
                }
                Effect::Answer(client, answer) => {
                    let asked = self.asked.take();
                    self.check(
                        asked.is_some_and(|(asked, _)| asked == client),
                        "a client is answered that has not asked",
                    );
                    let is_too_late =
                        self.stop_told.is_some() && asked.is_some_and(|(_, command)| is_of_no_use(command));
                    self.check(!is_too_late || answer.is_err(), "something is begun that a stop makes useless");
                    let started = match &answer {
                        Ok(Answer::Done(text)) => text.strip_prefix("starting worker "),
                        Ok(_) | Err(_) => None,
                    };
                    self.vacant_since.extend(started.map(|slot| (slot.parse::<u32>().unwrap(), self.now)));
                    let name = if answer.is_ok() { "request_done" } else { "request_refused" };
                    *self.tally.entry(name).or_insert(0) += 1;
                }
                Effect::Suspend => {}
                Effect::SuspendWithChild | Effect::TakeTerminal => self.fail("a supervisor has no terminal to give"),
                Effect::Exit(status) => {
                    self.exit = Some(status);
                    let left = self.processes.values().any(|process| !process.unkillable);
                    self.check(!left, "panzer exits and leaves a worker");
                    self.check(!self.rest.exists || self.rest.unkillable, "panzer exits and leaves something");
                }
            }
        }
    }

    /// The workers whose main processes live.
    fn alive(&self) -> impl Iterator<Item = (&WorkerId, &Process)> {
        self.processes.iter().filter(|(_, process)| !process.ended)
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "the model goes by some of them")]
    fn note_report(&mut self, report: &Report) {
        match report {
            Report::Ready(worker) | Report::TookOver(worker, ..) => {
                if let Report::TookOver(_, old, _) = report {
                    self.replaced.insert(*old);
                    let delay = self.settings.policy.replacement.kill_old_delay;
                    // With queues of their own there is a look at them in between, unless nobody else serves.
                    self.not_told_before.insert(*old, self.now + delay);
                }
                self.check_proof(*worker);
                let beat_by = self.settings.policy.watchdog.map(|interval| self.now + interval);
                if let Some(process) = self.processes.get_mut(worker) {
                    process.is_ready = true;
                    process.beat_by = beat_by;
                }
                self.proven.extend(self.generations.get(worker));
                self.vacant_since.remove(&worker.slot);
            }
            Report::Reloading(..) => self.reload_queued = false,
            Report::ReloadQueued(_) => self.reload_queued = true,
            Report::Recycling(_, Why::Age(_)) => *self.tally.entry("too_old").or_insert(0) += 1,
            Report::Recycling(_, Why::Memory(_)) => *self.tally.entry("too_large").or_insert(0) += 1,
            Report::Recycling(_, Why::Asked) => *self.tally.entry("restarted").or_insert(0) += 1,
            Report::GivenUp(worker, failure, _) => {
                if let Failure::Silent(_) = failure {
                    self.to_abort.insert(*worker);
                }
                if let Some(process) = self.processes.get_mut(worker) {
                    process.is_ready = false;
                }
            }
            Report::ScaledUp(_, count, _) | Report::ScaledDown(_, count, _) => {
                self.wanted = *count;
                self.not_told_before.retain(|worker, _| worker.slot < *count);
                // Whoever had the slot goes, also where it is wanted again soon.
                let had_it = self.alive().filter(|(worker, _)| worker.slot >= self.wanted).map(|(worker, _)| *worker);
                self.replaced = had_it.collect::<Vec<_>>().into_iter().chain(self.replaced.clone()).collect();
                self.vacant_since.retain(|slot, _| slot < count);
            }
            Report::Ended { worker, next: Next::Old(old), .. } => {
                self.vacant_since.remove(&worker.slot);
                self.replaced.remove(old);
                self.not_told_before.remove(old);
                let beat_by = self.settings.policy.watchdog.map(|interval| self.now + interval);
                if let Some(process) = self.processes.get_mut(old).filter(|process| process.is_ready) {
                    process.beat_by = beat_by;
                }
                *self.tally.entry("old_goes_on").or_insert(0) += 1;
            }
            Report::Ended { worker, next: Next::Successor, .. } => drop(self.vacant_since.remove(&worker.slot)),
            Report::Stopped(_, End::Killed { note: Note::OutOfMemory, .. }) => {
                self.check(false, "panzer's own KILL is not called want of memory");
            }
            // A stop that nobody has ordered: a fatal exit, the crash limit.
            Report::GivingUp(..) => self.stop_begins(self.now),
            Report::Stopping(_, _, Duration::ZERO) => {
                self.check(self.has_stop_begun(), "workers are stopped before the delay is over");
            }
            _ => {}
        }
    }

    fn load(&mut self, generation: Generation, in_use: &[Generation]) {
        self.check(!self.loaded.contains(&generation), "a generation is made twice");
        if self.dice.one_in(10) {
            return self.queue.push(Event::GenerationRefused(generation, "no variables".to_owned()));
        }
        self.loaded.retain(|loaded| in_use.contains(loaded));
        self.loaded.insert(generation);
        self.queue.push(Event::GenerationLoaded(generation));
    }

    fn spawn(&mut self, worker: WorkerId, generation: Generation, is_successor: bool) {
        self.check(!self.has_stop_begun(), "a start after a stop");
        if self.stop_told.is_some() {
            *self.tally.entry("start_in_stop_delay").or_insert(0) += 1;
        }
        self.check(worker.slot < self.wanted, "a slot that does not exist");
        self.check(self.loaded.contains(&generation), "a start from a generation that is not there");
        self.check(
            is_successor || self.proven.contains(&generation),
            "a restart with a generation that nobody has seen work",
        );
        let is_too_early = self.last_start.is_some_and(|last| self.now < last + self.settings.policy.stagger);
        self.check(!is_too_early, "two starts are closer together than they may be");
        self.last_start = Some(self.now);
        self.generations.insert(worker, generation);
        let life = self.lives.entry(worker.slot).or_insert(0);
        *life += 1;
        let expected = *life;
        self.check(worker.life == expected, "a life was left out or begun twice");
        let same_slot = |other: &&WorkerId| other.slot == worker.slot;
        let working =
            self.alive().filter(|(_, process)| !process.told).map(|(worker, _)| worker).filter(same_slot).count();
        // The old one beside a successor, or the other way round; and those that go on for a while.
        let surge = usize::try_from(self.settings.policy.replacement.surge).unwrap();
        let most = 1 + if self.has_delay() { surge } else { 0 };
        self.check(working <= most, "too many workers in one slot");
        if is_successor {
            *self.tally.entry("successor").or_insert(0) += 1;
            // panzer has given up on what cannot be killed.
            let counted = || self.alive().filter(|(_, process)| !process.unkillable).map(|(one, _)| one.slot);
            let slots: BTreeSet<u32> = counted().collect();
            // This one is not among them yet, and its slot may be vacant.
            let extra = counted().count() - slots.len() + usize::from(slots.contains(&worker.slot));
            self.check(extra <= surge, "more processes at once than there may be");
        } else if let Some(since) = self.vacant_since.remove(&worker.slot) {
            let failed = self.fork_failed.get(&worker.slot) == Some(&true);
            let stagger = self.settings.policy.stagger * 100;
            let bound =
                self.settings.policy.backoff.max.max(if failed { SHORTEST_RETRY } else { Duration::ZERO }) + stagger;
            self.check(self.now <= since + bound, "a backoff exceeds its bound");
        }
        if self.dice.one_in(15) {
            // A successor may have become the slot's own by the time that this is known.
            self.fork_failed.insert(worker.slot, true);
            if !is_successor {
                self.vacant_since.insert(worker.slot, self.now);
            }
            self.queue.push(Event::NotStarted(worker, NotRun { status: Status::REFUSED, error: "EAGAIN".to_owned() }));
            return;
        }
        if !is_successor {
            self.fork_failed.insert(worker.slot, false);
        }
        let executes = self.now + ms(self.dice.pick(&[0, 1, 1, 500]));
        let end = match self.dice.below(8) {
            0 => End::Killed { signal: Signal::KILL, note: Note::Nothing },
            1 => End::CannotRun(NotRun { status: Status::NOT_FOUND, error: "x".to_owned() }),
            2 => End::Exited(7),
            3 => End::Exited(3),
            4 => End::Exited(1),
            _ => End::Exited(0),
        };
        let life = self.dice.pick(&[0, 5, 500, 3000, 70_000, 100_000_000]);
        let has_group = self.dice.one_in(4);
        let process = Process {
            ends: (life < 100_000_000).then(|| (executes + ms(life), end)),
            executes: Some(executes),
            executed_at: executes,
            listens: self.dice.pick(&[None, Some(executes), Some(executes + ms(300)), Some(executes + ms(5000))]),
            listened: false,
            says_ready: self.dice.pick(&[None, Some(executes), Some(executes + ms(50)), Some(executes + ms(3000))]),
            said_ready: false,
            beats: (!self.dice.one_in(4)).then_some(executes + ms(100)),
            beat_by: None,
            ready_by: self.now + self.settings.policy.ready_timeout,
            is_ready: false,
            told: false,
            ended: false,
            group_ends: None,
            has_group,
            deaf: self.dice.one_in(4),
            stopped: self.dice.one_in(10),
            unkillable: self.dice.one_in(60),
        };
        self.processes.insert(worker, process);
    }

    fn signal(&mut self, worker: WorkerId, signal: Signal) {
        let now = self.now;
        let ends = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::KILL, Signal::ABRT].contains(&signal);
        if ends {
            self.check_may_be_told(worker);
            let is_first = self.to_abort.remove(&worker) && !self.has_stop_begun();
            self.check(!is_first || signal == Signal::ABRT, "a silent worker does not get ABRT first");
        }
        let Some(process) = self.processes.get_mut(&worker) else {
            // Its end may be on its way to the supervisor, which is the only one who does not know.
            let known = self.queue.iter().any(|event| {
                matches!(event, Event::Exited { worker: w, .. } | Event::GroupGone(w) | Event::NotStarted(w, _) if *w == worker)
            });
            return self.check(known, "a signal to nobody");
        };
        process.told |= ends;
        if signal == Signal::CONT {
            process.stopped = false;
            return;
        }
        let deadly = match signal {
            Signal::KILL => !process.unkillable,
            Signal::TERM | Signal::INT | Signal::QUIT | Signal::ABRT => !process.deaf,
            _ => false,
        };
        if !deadly {
            return;
        }
        let soon = now + ms(1);
        if process.ended {
            process.group_ends.get_or_insert(soon);
        } else {
            // The kernel has killed somebody else as well.
            let note = if signal == Signal::KILL { Note::OutOfMemory } else { Note::Nothing };
            let end = End::Killed { signal, note };
            if process.ends.as_ref().is_none_or(|(at, _)| *at > soon) {
                process.ends = Some((soon, end));
            }
            // A stopped process waits for CONT, which follows every signal but KILL.
            process.stopped &= signal != Signal::KILL;
            if signal == Signal::KILL {
                process.group_ends = Some(soon);
            }
        }
    }

    /// What happens by itself at `now`.
    fn happen(&mut self) {
        let now = self.now;
        let (mut gone, mut ended) = (Vec::new(), Vec::new());
        for (worker, process) in &mut self.processes {
            if process.executes.is_some_and(|at| at <= now) {
                process.executes = None;
                let fails = matches!(process.ends, Some((at, End::CannotRun(_))) if at <= now);
                if !fails {
                    self.queue.push(Event::Executed(*worker));
                }
            }
            if !process.ended && !process.stopped && process.listens.is_some_and(|at| at <= now) {
                process.listens = None;
                process.listened = true;
                // It may be heard of before the execution is.
                let first = self.queue.iter().position(|event| *event == Event::Executed(*worker));
                self.queue.insert(first.unwrap_or(self.queue.len()), Event::Listening(*worker));
            }
            let runs = !process.ended && !process.stopped;
            if runs && process.says_ready.is_some_and(|at| at <= now) {
                process.says_ready = None;
                process.said_ready = true;
                self.queue.push(Event::Told(*worker, Notice::Ready));
            }
            if runs && process.beats.is_some_and(|at| at <= now) && self.settings.policy.watchdog.is_some() {
                process.beats = (!self.dice.one_in(10)).then_some(now + ms(2000));
                process.beat_by = process.beat_by.map(|_| now + ms(5000));
                self.queue.push(Event::Told(*worker, Notice::Beat));
            }
            if !process.ended
                && !process.stopped
                && let Some((at, end)) = process.ends.clone()
                && at <= now
            {
                process.ended = true;
                let group_left = process.has_group && process.group_ends.is_none_or(|at| at > now);
                ended.push(*worker);
                self.queue.push(Event::Exited { worker: *worker, end, group_left });
                if !group_left {
                    gone.push(*worker);
                }
            } else if process.ended && process.group_ends.is_some_and(|at| at <= now) {
                gone.push(*worker);
            }
        }
        for worker in ended {
            let is_alone = self.alive().all(|(other, process)| other.slot != worker.slot || process.told);
            if is_alone && worker.slot < self.wanted {
                self.vacant_since.insert(worker.slot, now);
            }
        }
        for worker in gone {
            self.processes.remove(&worker);
            self.queue.push(Event::GroupGone(worker));
        }
        if self.rest.watched && self.rest.exists && self.rest.ends.is_some_and(|at| at <= now) {
            self.rest.exists = false;
            self.queue.push(Event::NothingRemains);
        }
    }

    fn next_happening(&self) -> Option<Duration> {
        let times = self.processes.values().flat_map(|process| {
            let runs = !process.ended && !process.stopped;
            let end = process.ends.as_ref().filter(|_| runs).map(|(at, _)| *at);
            let beats = process.beats.filter(|_| runs && self.settings.policy.watchdog.is_some());
            let tells = [process.listens.filter(|_| runs), process.says_ready.filter(|_| runs), beats];
            tells.into_iter().chain([process.executes, end, process.group_ends.filter(|_| process.ended)])
        });
        let rest = self.rest.ends.filter(|_| self.rest.exists && self.rest.watched);
        times.flatten().chain(rest).min()
    }

    /// An event of a life that is over, or that never was.
    fn stale_event(&mut self) -> Event {
        let slot = u32::try_from(self.dice.below(7)).unwrap();
        let life = self.lives.get(&slot).copied().unwrap_or(0);
        let worker = WorkerId { slot, life: self.dice.pick(&[0, life.saturating_sub(1), life + 1_000_000]) };
        // The life before the last may go on while its successor starts; what it is told of is no stale news.
        if self.processes.contains_key(&worker) || self.queue.iter().any(|event| self::life(event) == Some(worker)) {
            return Event::Time;
        }
        let generation = self.dice.pick(&[Generation(0), Generation(1_000_000)]);
        match self.dice.below(9) {
            4 => Event::Listening(worker),
            5 => Event::Told(worker, self.dice.pick(&[Notice::Ready, Notice::Trigger, Notice::Stopping])),
            6 => Event::GenerationLoaded(generation),
            7 => Event::GenerationRefused(generation, "stale".to_owned()),
            8 => Event::Queue(worker, 0),
            0 => Event::Exited { worker, end: End::Exited(1), group_left: self.dice.one_in(2) },
            1 => Event::Executed(worker),
            2 => Event::NotStarted(worker, NotRun { status: Status::REFUSED, error: "stale".to_owned() }),
            _ => Event::Time,
        }
    }

    fn random_order(&mut self) -> Event {
        if self.dice.one_in(2) {
            return Event::Signal(self.random_signal());
        }
        let slot = u32::try_from(self.dice.below(8)).unwrap();
        let command = match self.dice.below(16) {
            0 => Command::Stop,
            1 => self.dice.pick(&[Command::Status, Command::Ready]),
            2..5 => Command::Reload { waits: self.dice.one_in(2) },
            5..8 => Command::Scale(slot),
            8 => Command::Signal(Signal::CONT, None),
            9 => Command::Signal(Signal::CONT, Some(slot)),
            _ => Command::Restart(slot),
        };
        Event::Asked(Client(self.dice.below(1000)), command)
    }

    fn random_signal(&mut self) -> Signal {
        let others = [Signal::HUP, Signal::HUP, Signal::USR1, Signal::USR2, Signal::CONT, Signal::TTIN, Signal::TTOU];
        let stops = [Signal::TERM, Signal::INT, Signal::QUIT];
        if self.dice.one_in(8) { self.dice.pick(&stops) } else { self.dice.pick(&others) }
    }
}

fn simulate(seed: u64) -> Tally {
    let mut world = World::new(seed);
    let mut supervisor = Supervisor::new(world.settings.clone(), Duration::ZERO);
    let give_up_at = ms(200_000);
    let mut next_order = ms(world.dice.below(100_000));
    world.queue.push(Event::Time);
    for _ in 0..20_000 {
        while !world.queue.is_empty() {
            let event = world.queue.remove(0);
            *world.tally.entry("events").or_insert(0) += 1;
            world.trace.push(format!("{:?} {event:?}", world.now));
            world.note_order(&event);
            let effects = supervisor.handle(world.now, event);
            world.perform(&supervisor, effects);
            world.check(world.asked.is_none() || world.exit.is_some(), "a client waits for its answer");
            world.check_status(&supervisor);
            world.check_queues(&supervisor);
            let forgotten = world.reload_queued && !supervisor.is_ending() && supervisor.reload.is_none();
            world.check(!forgotten, "a reload that was asked for during another is forgotten");
            world.happen();
        }
        if world.exit.is_some() {
            world.check(supervisor.next_deadline().is_none(), "a deadline after the exit");
            return world.tally;
        }
        let in_time = world.latest_end().is_none_or(|latest| world.now <= latest);
        world.check(in_time, "a stop does not end within its schedule");
        // What an event has made due and time alone may do is done next.
        if supervisor.next_deadline().is_some_and(|at| at <= world.now) {
            let effects = supervisor.handle(world.now, Event::Time);
            world.perform(&supervisor, effects);
            if !world.queue.is_empty() || world.exit.is_some() {
                continue;
            }
        }
        world.check_waiting(&supervisor);
        let deadline = supervisor.next_deadline();
        let next = [deadline, world.next_happening(), Some(next_order)].into_iter().flatten().min().unwrap();
        world.check(deadline.is_none_or(|at| at > world.now), "a deadline that does not pass");
        world.now = world.now.max(next);
        world.happen();
        if deadline.is_some_and(|at| at <= world.now) {
            world.queue.push(Event::Time);
        }
        if next_order <= world.now {
            let order = if world.now >= give_up_at { Event::Signal(Signal::QUIT) } else { world.random_order() };
            world.queue.push(order);
            // Now and then two at the same instant.
            next_order = world.now + ms(world.dice.pick(&[0, 1, 3000, 20_000, 50_000]));
        }
        if world.dice.one_in(6) {
            let event = world.stale_event();
            world.queue.push(event);
        }
        if !world.nothing_shared && world.dice.one_in(200) {
            world.nothing_shared = true;
            world.queue.push(Event::NothingShared);
        }
        // Reports of one instant reach the supervisor in any order but that of one life.
        if world.queue.len() == 2 && world.dice.one_in(2) && of_different_lives(&world.queue) {
            world.queue.swap(0, 1);
        }
    }
    world.fail("no end in sight")
}

/// The life that an event is about.
fn life(event: &Event) -> Option<WorkerId> {
    match event {
        Event::NotStarted(worker, _) | Event::Executed(worker) | Event::GroupGone(worker) => Some(*worker),
        Event::Exited { worker, .. } | Event::Listening(worker) | Event::Told(worker, _) => Some(*worker),
        Event::Queue(worker, _) | Event::Memory(worker, _) => Some(*worker),
        Event::GenerationLoaded(_) | Event::GenerationRefused(..) | Event::Asked(..) => None,
        Event::Signal(_) | Event::Suspended(_) | Event::SomethingRemains | Event::NothingRemains => None,
        Event::NothingShared | Event::Time => None,
    }
}

/// Whether a stop makes it useless.
fn is_of_no_use(command: Command) -> bool {
    match command {
        Command::Ready | Command::Reload { .. } | Command::Restart(_) | Command::Scale(_) => true,
        Command::Status | Command::Stop | Command::Signal(..) => false,
    }
}

fn of_different_lives(queue: &[Event]) -> bool {
    life(&queue[0]).is_none() || life(&queue[0]) != life(&queue[1])
}

#[test]
fn simulation_of_the_supervisor() {
    let expected = [
        "events",
        "worker_started",
        "worker_ready",
        "all_ready",
        "worker_ended",
        "worker_stopped",
        "worker_not_started",
        "group_orphaned",
        "worker_escalated",
        "worker_abandoned",
        "giving_up",
        "stopping",
        "stop_delayed",
        "start_in_stop_delay",
        "stopping_now",
        "signalling_remaining",
        "remaining_abandoned",
        "signal_forwarded",
        "signal_unavailable",
        "finished",
        "queue_held",
        "old_goes_on",
        "too_old",
        "too_large",
        "successor",
        "worker_replaced",
        "worker_not_ready",
        "worker_silent",
        "reloading",
        "queue_let_go",
        "request_done",
        "request_refused",
        "restarted",
        "reload_queued",
        "reload_retry",
        "reload_failed",
        "reloaded",
        "recycling",
        "recycle_failed",
        "scaled",
        "cannot_scale",
        "queue_abandoned",
    ];
    for_each_seed(simulate, &expected);
}
