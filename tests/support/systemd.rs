//! A stand-in for systemd: reads unit files, hands over sockets, hears `NOTIFY_SOCKET` and keeps a unit's state as systemd
//! does (`service_notify_message` in its `service.c`; sd_notify(3), systemd.service(5)).

use std::fs;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};

use super::panzer::{Panzer, Running, binary};
use super::scratch::Scratch;
use super::worker::{text, through_shell};
use super::{example, wait_until};

/// What systemd reads of one message.
const LONGEST_MESSAGE: usize = 4096;

/// The keys of a service unit that the stand-in acts upon, and those that are about what surrounds a service.
const SERVICE_KEYS: [&str; 19] = [
    "Type",
    "NotifyAccess",
    "ExecStart",
    "ExecReload",
    "KillMode",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "WatchdogSec",
    "WatchdogSignal",
    "Restart",
    "RestartSec",
    "RestartPreventExitStatus",
    "DynamicUser",
    "NoNewPrivileges",
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "CapabilityBoundingSet",
];

/// A unit file.
pub(crate) struct Unit {
    pub(crate) path: PathBuf,
    entries: Vec<(String, String, String)>,
}

impl Unit {
    /// Reads one of `deploy/systemd`.
    #[track_caller]
    pub(crate) fn read(name: &str) -> Unit {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (mut section, mut entries) = (String::new(), Vec::new());
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.to_string();
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{}: {line}", path.display()));
            assert!(section != "Service" || SERVICE_KEYS.contains(&key), "what does systemd make of {line}?");
            entries.push((section.clone(), key.to_string(), value.to_string()));
        }
        Unit { path, entries }
    }

    /// The only value of a key, which must be there.
    #[track_caller]
    pub(crate) fn get(&self, section: &str, key: &str) -> &str {
        let found = self.entries.iter().filter(|(of, known, _)| of == section && known == key);
        match found.collect::<Vec<_>>()[..] {
            [(_, _, value)] => value,
            ref other => panic!("{}: {key} is there {} times", self.path.display(), other.len()),
        }
    }

    /// A time such as `45s`, in seconds.
    #[track_caller]
    pub(crate) fn seconds(&self, key: &str) -> u64 {
        self.get("Service", key).strip_suffix('s').and_then(|text| text.parse().ok()).expect("a time in seconds")
    }

    /// The arguments of a command of panzer's, with the programs that stand here in the place of those that it names.
    #[track_caller]
    pub(crate) fn arguments(&self, key: &str, main_pid: &str) -> Vec<String> {
        let mut words = self.get("Service", key).split_ascii_whitespace();
        assert_eq!(words.next(), Some("/usr/local/bin/panzer"), "{key}");
        let word = |word: &str| match word {
            "$MAINPID" => main_pid.to_string(),
            "/usr/local/bin/hello" => text(example("hello")),
            word => word.to_string(),
        };
        words.map(word).collect()
    }

    /// A copy that names the programs that are here.
    #[track_caller]
    pub(crate) fn copy(&self, scratch: &Scratch) -> PathBuf {
        let content = fs::read_to_string(&self.path).unwrap();
        let content = content.replace("/usr/local/bin/panzer", &text(binary()));
        let content = content.replace("/usr/local/bin/hello", &text(example("hello")));
        scratch.write(self.path.file_name().unwrap().to_str().unwrap(), &content)
    }
}

/// How a unit is, in systemd's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UnitState {
    /// `READY=1` is waited for.
    Activating,
    /// It runs.
    Active,
    /// It was sent HUP at this time in microseconds, and has not answered yet (`Type=notify-reload`).
    ReloadSignal(u64),
    /// It reloads.
    Reloading,
    /// It is about to end.
    Deactivating,
}

/// The stand-in, for one unit.
pub(crate) struct Systemd {
    socket: UnixDatagram,
    /// What `NOTIFY_SOCKET` says.
    pub(crate) name: String,
    scratch: Scratch,
    /// The only process that may speak (`NotifyAccess=main`); 0: any.
    pub(crate) main_pid: u32,
    /// What the unit is.
    pub(crate) active: UnitState,
    /// What it has been, one after the other.
    pub(crate) history: Vec<UnitState>,
    /// The last `STATUS=`.
    pub(crate) status: String,
    /// How many `WATCHDOG=1` there were.
    pub(crate) beats: usize,
    /// All messages.
    pub(crate) messages: Vec<String>,
}

/// `CLOCK_MONOTONIC` in microseconds.
#[allow(unsafe_code, reason = "std does not tell this clock's time")]
pub(crate) fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to the place that it is given, which lives until then.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000 + u64::try_from(time.tv_nsec).unwrap() / 1000
}

impl Systemd {
    /// One that listens at a path, as systemd does.
    pub(crate) fn new() -> Systemd {
        let scratch = Scratch::new();
        let path = scratch.path("notify");
        Systemd::with(UnixDatagram::bind(&path).unwrap(), text(path), scratch)
    }

    /// One that listens at an abstract name.
    pub(crate) fn with_abstract_name() -> Systemd {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("panzer-test-notify-{}-{number}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Systemd::with(socket, format!("@{name}"), Scratch::new())
    }

    fn with(socket: UnixDatagram, name: String, scratch: Scratch) -> Systemd {
        socket.set_nonblocking(true).unwrap();
        sockopt::set_socket_passcred(&socket, true).unwrap();
        Systemd {
            socket,
            name,
            scratch,
            main_pid: 0,
            active: UnitState::Activating,
            history: Vec::new(),
            status: String::new(),
            beats: 0,
            messages: Vec::new(),
        }
    }

    /// A directory that is gone with it.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Starts a service, and takes what it starts for its main process.
    #[track_caller]
    pub(crate) fn start(&mut self, panzer: Panzer) -> Running {
        let running = panzer.env("NOTIFY_SOCKET", &self.name).start();
        self.main_pid = running.pid();
        running
    }

    /// Starts a service as its unit says, with the socket that the other unit names.
    #[track_caller]
    pub(crate) fn start_unit(&mut self, service: &Unit, listener: &TcpListener, name: &str) -> Running {
        assert_eq!((service.get("Service", "Type"), service.get("Service", "NotifyAccess")), ("notify", "main"));
        let microseconds = service.seconds("WatchdogSec") * 1_000_000;
        // LISTEN_PID and WATCHDOG_PID are known only there, and the shell becomes panzer.
        let script = format!(
            "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name} LISTEN_PIDFDID=1 \
             WATCHDOG_PID=$$ WATCHDOG_USEC={microseconds} MANAGERPID=1"
        );
        let listener: OwnedFd = listener.try_clone().unwrap().into();
        let panzer = Panzer::new(service.arguments("ExecStart", "")).wrapper(through_shell(&script)).stdin(listener);
        self.start(panzer)
    }

    /// Sends HUP as `Type=notify-reload` does.
    pub(crate) fn reload_by_signal(&mut self, running: &Running) {
        self.hear();
        assert_eq!(self.active, UnitState::Active);
        self.enter(UnitState::ReloadSignal(monotonic()));
        running.signal(libc::SIGHUP);
    }

    /// Reads what has come.
    #[track_caller]
    pub(crate) fn hear(&mut self) {
        loop {
            let mut bytes = [0; LONGEST_MESSAGE];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
            let Ok(received) = recvmsg(&self.socket, &mut slices, &mut control, flags) else { return };
            let sender = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid.as_raw_nonzero().get()),
                RecvAncillaryMessage::ScmRights(_) | _ => None,
            });
            let sender = sender.expect("who has sent it");
            assert!(received.bytes <= LONGEST_MESSAGE, "{} bytes", received.bytes);
            let main = self.main_pid;
            assert!(main == 0 || u32::try_from(sender) == Ok(main), "{sender} speaks for {main}");
            let message = String::from_utf8(bytes[..received.bytes].to_vec()).expect("UTF-8");
            self.take(&message);
            self.messages.push(message);
        }
    }

    #[track_caller]
    fn take(&mut self, message: &str) {
        let mut seen = Vec::new();
        for line in message.lines() {
            assert!(!line.chars().any(char::is_control), "{message:?}");
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{message:?}"));
            assert!(!seen.contains(&key), "twice: {message:?}");
            seen.push(key);
            match key {
                "STATUS" => self.status = value.to_string(),
                "WATCHDOG" => self.beats += 1,
                "MONOTONIC_USEC" => {}
                _ => assert!(matches!(line, "READY=1" | "RELOADING=1" | "STOPPING=1"), "{message:?}"),
            }
            assert!(key != "WATCHDOG" || value == "1", "{message:?}");
        }
        let says = |text: &str| message.lines().any(|line| line == text);
        let time = message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        let time: Option<u64> = time.map(|time| time.parse().expect("a time"));
        assert_eq!(time.is_some(), says("RELOADING=1"), "{message:?}");
        assert!(time.is_none_or(|time| time <= monotonic()), "{message:?}");
        // STOPPING wins over READY, and READY over RELOADING.
        match self.active {
            UnitState::Active | UnitState::ReloadSignal(_) | UnitState::Reloading if says("STOPPING=1") => {
                self.enter(UnitState::Deactivating);
            }
            UnitState::Activating | UnitState::Reloading if says("READY=1") => self.enter(UnitState::Active),
            UnitState::ReloadSignal(begun) if time.is_some_and(|time| time >= begun) => {
                self.enter(if says("READY=1") { UnitState::Active } else { UnitState::Reloading });
            }
            UnitState::Active if says("RELOADING=1") && !says("READY=1") => self.enter(UnitState::Reloading),
            UnitState::Activating
            | UnitState::Active
            | UnitState::ReloadSignal(_)
            | UnitState::Reloading
            | UnitState::Deactivating => {}
        }
    }

    fn enter(&mut self, active: UnitState) {
        self.active = active;
        self.history.push(active);
    }

    /// Whether anything that has come says this in a line of its own.
    pub(crate) fn was_told(&self, line: &str) -> bool {
        self.messages.iter().any(|message| message.lines().any(|one| one == line))
    }

    /// Waits until the unit is so.
    #[track_caller]
    pub(crate) fn wait(&mut self, active: UnitState) {
        let what = format!("the unit is {active:?}");
        wait_until(&what, || {
            self.hear();
            self.active == active
        });
    }

    /// Waits until the status begins so.
    #[track_caller]
    pub(crate) fn wait_status(&mut self, start: &str) {
        wait_until(&format!("the status begins with {start:?}"), || {
            self.hear();
            self.status.starts_with(start)
        });
    }

    /// Waits for so many more signs of life.
    #[track_caller]
    pub(crate) fn wait_beats(&mut self, count: usize) {
        self.hear();
        let wanted = self.beats + count;
        wait_until(&format!("{count} beats"), || {
            self.hear();
            self.beats >= wanted
        });
    }

    /// Leaves no room in the queue, which the stand-in reads from no more.
    pub(crate) fn fill(&self) -> usize {
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        let send = || match self.name.strip_prefix('@') {
            Some(name) => sender.send_to_addr(b"STATUS=x\n", &SocketAddr::from_abstract_name(name).unwrap()),
            None => sender.send_to(b"STATUS=x\n", &self.name),
        };
        let mut count = 0;
        while send().is_ok() {
            count += 1;
        }
        count
    }

    /// Makes room again.
    pub(crate) fn drain(&self, count: usize) {
        for _ in 0..count {
            self.socket.recv(&mut [0; LONGEST_MESSAGE]).unwrap();
        }
    }
}
