//! Several lives in one slot at a time, as while workers are replaced: who runs, of which generation; and a service whose
//! release a test can change.

use std::fs;

use super::panzer::Running;
use super::scratch::Scratch;
use super::worker::{panzer, text};
use super::{example, process, wait_for};

/// The main process of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life {
    /// `PANZER_GENERATION`
    pub(crate) generation: u32,
    /// `PANZER_WORKER_ID`
    pub(crate) slot: u32,
    /// Its process id.
    pub(crate) pid: u32,
}

impl Life {
    /// A variable that it was given.
    #[track_caller]
    pub(crate) fn env(&self, name: &str) -> Option<String> {
        // In the middle of an exec there is none for a moment.
        let mut environ = wait_for("it has an environment", || {
            let environ = process::environ(self.pid).unwrap_or_else(|| panic!("{self:?} is gone"));
            Some(environ).filter(|environ| !environ.is_empty())
        });
        environ.remove(name)
    }

    pub(crate) fn is_alive(&self) -> bool {
        process::alive(self.pid)
    }
}

/// The process ids of these lives.
pub(crate) fn pids(lives: &[Life]) -> Vec<u32> {
    lives.iter().map(|life| life.pid).collect()
}

/// The generation and the slot of each life.
pub(crate) fn places(lives: &[Life]) -> Vec<(u32, u32)> {
    lives.iter().map(|life| (life.generation, life.slot)).collect()
}

impl Running {
    /// The main process of each worker that has executed its command, by generation, then slot.
    ///
    /// A child of panzer's that leads a group and has the environment of a worker is taken for one: so is an orphan in a
    /// session of its own. There are never more here than there were at some moment: the list is made first, and the dead
    /// are left out of it.
    #[track_caller]
    pub(crate) fn lives(&self) -> Vec<Life> {
        let life = |pid: u32| {
            let environ = wait_for("it has an environment", || {
                let is_main = process::stat(pid).is_some_and(|stat| stat.pgid == pid && !stat.is_dead());
                match process::environ(pid).filter(|_| is_main) {
                    // In the middle of an exec there is none for a moment.
                    Some(environ) if environ.is_empty() => None,
                    found => Some(found),
                }
            })?;
            let number = |name: &str| environ.get(name)?.parse().ok();
            // One that has not executed its command yet has the environment of panzer.
            Some(Life { generation: number("PANZER_GENERATION")?, slot: number("PANZER_WORKER_ID")?, pid })
        };
        let mut lives: Vec<Life> = self.workers().into_iter().filter_map(life).collect();
        lives.sort_unstable();
        lives
    }

    /// Waits until the lives are like this, and returns them.
    #[track_caller]
    pub(crate) fn wait_lives(&self, what: &str, is_so: impl Fn(&[Life]) -> bool) -> Vec<Life> {
        wait_for(&format!("the lives: {what}"), || {
            assert_eq!(self.try_exit(), None, "panzer has ended");
            Some(self.lives()).filter(|lives| is_so(lives))
        })
    }

    /// Waits until exactly these lives are there, given by generation and slot.
    #[track_caller]
    pub(crate) fn wait_places(&self, expected: &[(u32, u32)]) -> Vec<Life> {
        self.wait_lives(&format!("exactly {expected:?}"), |lives| places(lives) == expected)
    }

    /// Waits until each of so many slots has one life, which is of this generation, and nothing else runs.
    #[track_caller]
    pub(crate) fn wait_generation(&self, generation: u32, count: u32) -> Vec<Life> {
        self.wait_places(&(0..count).map(|slot| (generation, slot)).collect::<Vec<_>>())
    }

    /// Waits until panzer has taken up all signals of a lower number, and done what followed from what it has said.
    #[track_caller]
    pub(crate) fn settle(&self) {
        const SAYS: &str = "panzer: cannot upgrade on SIGUSR2: not in this version; ignored";
        // The line comes before all that follows from what has happened at the same time, but not before what was then.
        for _ in 0..2 {
            let before = self.stderr().matches(SAYS).count();
            self.signal(libc::SIGUSR2);
            self.wait_lines(SAYS, before + 1);
        }
    }

    /// How many lines of standard error hold all of these words.
    pub(crate) fn count_lines(&self, words: &[&str]) -> usize {
        self.stderr().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }
}

/// A worker that says on `PANZER_READY_FD` that it is ready, and ends at TERM.
pub(crate) const READY: &str = "exec $PROBE - ready sleep >/dev/null";

/// The same; from the second generation on it is not ready before there is a file `go.SLOT`.
pub(crate) const GATED: &str = "[ $PANZER_GENERATION = 1 ] || WAIT=wait=$DIR/go.$PANZER_WORKER_ID
exec $PROBE - $WAIT ready sleep >/dev/null";

/// panzer over `sh app`, where a test can replace the file `app` as a new release does.
///
/// The script finds the test's directory in `$DIR` and the path of `examples/probe` in `$PROBE`. In the options, `$DIR`
/// stands for that directory, too.
pub(crate) struct Service {
    /// panzer.
    pub(crate) running: Running,
    /// Where `app` is, and what the test needs besides.
    pub(crate) scratch: Scratch,
}

impl Service {
    #[track_caller]
    pub(crate) fn start(options: &str, script: &str) -> Service {
        Service::start_in(Scratch::new(), options, script)
    }

    /// The same in a directory that is there already.
    #[track_caller]
    pub(crate) fn start_in(scratch: Scratch, options: &str, script: &str) -> Service {
        let app = scratch.write("app", script);
        let options = options.replace("$DIR", &text(scratch.directory()));
        let running = panzer(&options, &["sh".to_string(), text(app)])
            // A worker that is told to abort leaves no file behind.
            .wrapper(["sh", "-c", "ulimit -c 0; exec \"$@\"", "sh"])
            .env("DIR", scratch.directory())
            .env("PROBE", example("probe"))
            .start();
        Service { running, scratch }
    }

    /// Puts another script in the place of the app.
    #[track_caller]
    pub(crate) fn release(&self, script: &str) {
        let new = self.scratch.write("app.new", script);
        fs::rename(new, self.scratch.path("app")).unwrap();
    }

    /// Makes an empty file that scripts wait for.
    pub(crate) fn touch(&self, name: &str) {
        self.scratch.write(name, "");
    }

    /// The lines of a file that scripts append to.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.scratch.path(name)).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }

    /// Waits until standard error holds this text.
    #[track_caller]
    pub(crate) fn wait_line(&self, text: &str) {
        self.running.wait_line(text);
    }

    /// Asks for a reload and waits until all so many workers are of this generation, and the old ones gone.
    #[track_caller]
    pub(crate) fn reload(&self, generation: u32, count: u32) -> Vec<Life> {
        self.running.signal(libc::SIGHUP);
        let all = if count == 1 {
            "reloaded: ".to_string()
        } else {
            format!("reloaded: all {count} workers are of generation {generation}\n")
        };
        self.running.wait_line(&all);
        self.running.wait_generation(generation, count)
    }

    /// Ends panzer with TERM, which must give the status 0.
    #[track_caller]
    pub(crate) fn end(&self) {
        self.running.ends_with(libc::SIGTERM, 0);
    }
}
