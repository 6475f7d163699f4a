//! `top`: the status on a whole screen, anew every second.
//!
//! Must never leave the terminal otherwise than it was found, nor wait for anything but all that may come at once: a
//! key, a signal, panzer's answer, the time.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::termios::isatty;

use super::commands::Given;
use super::connection::{Connection, END, LIMIT};
use super::table::{self, View};
use super::target::Server;
use super::{Failure, Variables};
use crate::error::Status;
use crate::linux::{self, Instant, Modes, SignalSource};
use crate::signals::Signal;

/// How long one status is shown.
const PERIOD: Duration = Duration::from_secs(1);

/// The other screen, no cursor, no line that goes on in the next; and the way back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The end of the text as it is typed with Ctrl-C where that is no signal.
const INTERRUPT: u8 = 3;

/// `top`
pub(super) fn run(_: &Given, server: &mut Server, variable: Variables<'_>) -> Result<Status, Failure> {
    if !isatty(rustix::stdio::stdout()) {
        return Err(Failure::new("show top", "stdout is no terminal"));
    }
    // From here on signals are read, so that none ends the client on a changed terminal.
    linux::hold_signals();
    let screen = Screen::open().map_err(|error| Failure::new("show top", &linux::words(error)))?;
    let colour = table::is_colourful(variable);
    let ended = watch(server, &screen, colour);
    drop(screen);
    // Here panzer has answered before, so that this is no refusal.
    ended.map_err(Failure::into_answer)?;
    Ok(Status::SUCCESS)
}

/// The terminal while it belongs to `top`.
struct Screen {
    /// Opened anew, so that it can be non-blocking for nobody else.
    terminal: OwnedFd,
    before: Modes,
    signals: SignalSource,
}

impl Screen {
    fn open() -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |path: &str| open(path, flags, Mode::empty());
        let terminal = open("/dev/tty").or_else(|_| open("/proc/self/fd/1"))?;
        let before = Modes::of(terminal.as_fd())?;
        let screen = Self { terminal, before, signals: SignalSource::new()? };
        before.for_keys().apply(screen.terminal.as_fd());
        screen.write(ENTER);
        Ok(screen)
    }

    /// Writes what the terminal takes; one that takes nothing for a second, or while a signal waits, gets the rest never.
    fn write(&self, text: &str) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match rustix::io::write(&self.terminal, rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::AGAIN) => {
                    let signals = self.signals.descriptor();
                    let mut ready = [PollFd::new(&self.terminal, PollFlags::OUT), PollFd::new(&signals, PollFlags::IN)];
                    let _ = poll(&mut ready, Some(&timespec(PERIOD)));
                    if !ready.first().is_some_and(|terminal| terminal.revents().contains(PollFlags::OUT)) {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Whether a key was pressed that ends it, or the terminal is gone.
    fn is_left(&self) -> bool {
        let mut keys = [0; 64];
        match rustix::io::read(&self.terminal, &mut keys) {
            Ok(0) => true,
            Ok(length) => keys.iter().take(length).any(|key| matches!(*key, b'q' | b'Q' | INTERRUPT)),
            Err(error) => error != Errno::AGAIN && error != Errno::INTR,
        }
    }

    fn draw(&self, document: &str, before: &str, is_colourful: bool) {
        let (columns, lines) = table::size(self.terminal.as_fd());
        let view = View { columns, lines: Some(lines), is_colourful, before, measured: 0 };
        let page = table::page(document, &view);
        let mut frame = "\x1b[H".to_owned();
        for line in page.split('\n').take(lines.saturating_sub(1)) {
            frame.push_str(line);
            frame.push_str("\x1b[K\n");
        }
        frame.push_str("q: quit\x1b[J");
        self.write(&frame);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.write(LEAVE);
        self.before.apply(self.terminal.as_fd());
    }
}

/// Shows one status after the other until somebody has seen enough.
#[inline(never)]
fn watch(server: &mut Server, screen: &Screen, is_colourful: bool) -> Result<(), Failure> {
    let (mut before, mut document) = (String::new(), String::new());
    let mut asked: Option<Connection> = None;
    // When panzer must have said more, or is to be asked again.
    let start = Instant::now();
    let mut deadline = Duration::ZERO;
    loop {
        let signals = screen.signals.descriptor();
        let socket = asked.as_ref().map_or(signals, |asked| asked.socket().as_fd());
        let mut ready =
            [screen.terminal.as_fd(), signals, socket].map(|from| PollFd::from_borrowed_fd(from, PollFlags::IN));
        let _ = poll(&mut ready, Some(&timespec(deadline.saturating_sub(start.elapsed()))));
        let [key, signal, answer] = ready.map(|descriptor| !descriptor.revents().is_empty());
        let now = start.elapsed();
        if signal {
            for signal in screen.signals.read() {
                if [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&signal) {
                    return Ok(());
                }
            }
            // The terminal may have another size.
            screen.draw(&document, &before, is_colourful);
        }
        if key && screen.is_left() {
            return Ok(());
        }
        match asked.take() {
            Some(mut connection) if answer => {
                if connection.more()? {
                    asked = Some(connection);
                    deadline = now + Duration::from_secs(LIMIT.into());
                    continue;
                }
                connection.begin()?;
                before = std::mem::replace(&mut document, connection.rest(END)?);
                screen.draw(&document, &before, is_colourful);
                deadline = now + PERIOD;
            }
            Some(connection) if now >= deadline => return Err(connection.silent()),
            Some(connection) => asked = Some(connection),
            None if now >= deadline => {
                asked = Some(server.send("status")?);
                deadline = now + Duration::from_secs(LIMIT.into());
            }
            None => {}
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}
