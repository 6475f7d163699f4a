//! Init mode against a model of its child, from seeds.

use std::time::Duration;

use super::seeds::{Dice, Tally, for_each_seed, ms};
use crate::error::Status;
use crate::signals::Signal;
use crate::supervisor::actions::Actions;
use crate::supervisor::init::{self, CHILD, Init};
use crate::supervisor::restart::Random;
use crate::supervisor::stop::{KILL_GRACE, Schedule};
use crate::supervisor::{Effect, End, Event, Generation, Note};

/// Init mode: whatever happens, panzer ends with the child's status, within the linger time after it.
fn simulate_init(seed: u64) -> Tally {
    let mut dice = Dice(Random::new(seed));
    let has_schedule = dice.one_in(2);
    let clear_rest = !dice.one_in(4);
    let linger = ms(dice.pick(&[0, 2000]));
    let mut init = Init::new(init::Settings {
        actions: Actions::init(has_schedule),
        stop: Schedule::parse("TERM/2/KILL").unwrap(),
        no_group: !clear_rest,
        linger,
        ok_exits: vec![Status(143)],
    });
    assert_eq!(init.begin()[0], Effect::Spawn { worker: CHILD, generation: Generation::FIRST, workers: 1 });
    let end =
        dice.pick(&[End::Exited(0), End::Exited(9), End::Killed { signal: Signal::TERM, note: Note::CoreDumped }]);
    let expected = if end.status().0 == 143 { Status::SUCCESS } else { end.status() };
    let ends_at = ms(dice.below(10_000));
    let rest_goes_after = ms(dice.pick(&[1, 1000, 100_000]));
    let mut tally = Tally::new();
    let mut count = |name| *tally.entry(name).or_insert(0) += 1;
    let (mut ended, mut watched, mut rest_since) = (None, false, None);
    let mut now = Duration::ZERO;
    for _ in 0..10_000 {
        let mut events = Vec::new();
        if ended.is_none() && now >= ends_at {
            ended = Some(now);
            events.push(Event::Exited { worker: CHILD, end: end.clone(), group_left: false });
        } else if dice.one_in(5) {
            events.push(Event::Signal(Signal::from_number(i64::try_from(1 + dice.below(64)).unwrap()).unwrap()));
        } else if watched && rest_since.is_some_and(|since| now >= since + rest_goes_after) {
            events.push(Event::NothingRemains);
        } else if dice.one_in(9) {
            events.push(Event::Suspended(dice.pick(&[Signal::TSTP, Signal::STOP])));
        } else if dice.one_in(9) {
            events.push(dice.pick(&[Event::GroupGone(CHILD), Event::Executed(CHILD), Event::SomethingRemains]));
        } else {
            events.push(Event::Time);
        }
        while let Some(event) = events.pop() {
            for effect in init.handle(now, event) {
                match effect {
                    Effect::Exit(status) => {
                        assert_eq!(status, expected);
                        let bound = if clear_rest { linger + KILL_GRACE + ms(200) } else { Duration::ZERO };
                        assert!(now <= ended.unwrap() + bound, "the end took too long: {now:?}");
                        count("exit");
                        return tally;
                    }
                    Effect::LookForRemaining => {
                        watched = true;
                        rest_since = Some(now);
                        events.push(if dice.one_in(2) { Event::NothingRemains } else { Event::SomethingRemains });
                    }
                    Effect::Spawn { .. } => panic!("init mode starts its child once"),
                    Effect::Answer(..) => panic!("nobody asks init mode"),
                    Effect::LoadGeneration(..)
                    | Effect::LetGoOfQueue(_)
                    | Effect::LookAtQueue(_)
                    | Effect::MeasureMemory => {
                        panic!("init mode has one child")
                    }
                    Effect::SignalRemaining(_) => {
                        count("rest_signalled");
                        assert!(watched);
                    }
                    Effect::Signal(..) => {
                        count("signal");
                        assert!(ended.is_none(), "a signal to a child that has ended");
                    }
                    Effect::Suspend | Effect::SuspendWithChild => count("suspend"),
                    Effect::TakeTerminal | Effect::Report(_) => {}
                }
            }
        }
        now += ms(1 + dice.below(100));
        if let Some(deadline) = init.next_deadline() {
            now = now.min(deadline.max(now - ms(99).min(now)));
        }
    }
    panic!("no end in sight");
}

#[test]
fn simulation_of_init_mode() {
    for_each_seed(simulate_init, &["exit", "rest_signalled", "signal", "suspend"]);
}
