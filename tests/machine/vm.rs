//! A machine of qemu's, without KVM: its console, its port 8080, its buttons.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::panzer::binary;
use crate::support::ports::{free_port, local};
use crate::support::scratch::Scratch;
use crate::support::wait_for;

/// What scripts/setup-vm and scripts/build-vm-image have made.
pub(crate) fn made(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm").join(name);
    assert!(path.exists(), "{} is missing: this is for scripts/test-vm", path.display());
    path
}

/// What the machine is to hold: archives one after the other, as the kernel takes them.
pub(crate) struct Image {
    scratch: Scratch,
    parts: Vec<Vec<u8>>,
    disk: Option<PathBuf>,
}

impl Image {
    /// panzer as `/init`, and nothing else.
    pub(crate) fn bare() -> Image {
        let mut image = Image { scratch: Scratch::new(), parts: Vec::new(), disk: None };
        let init = fs::read(binary()).unwrap();
        image.add_bytes("init", &init);
        image
    }

    /// The example's image, with the program that does what it is told.
    pub(crate) fn with_agent() -> Image {
        let parts = ["image.gz", "agent.gz"].map(|name| fs::read(made(name)).unwrap()).to_vec();
        Image { scratch: Scratch::new(), parts, disk: None }
    }

    /// Adds a file, or puts it in another's place.
    pub(crate) fn file(mut self, path: &str, content: &str) -> Image {
        self.add_bytes(path, content.as_bytes());
        self
    }

    /// Adds a directory.
    pub(crate) fn directory(mut self, path: &str) -> Image {
        let folder = self.part();
        fs::create_dir_all(folder.join(path)).unwrap();
        self.pack(&folder);
        self
    }

    /// Gives it a disk, and the module that this takes.
    pub(crate) fn disk(mut self, disk: &Path) -> Image {
        self.disk = Some(disk.to_owned());
        let order = fs::read_to_string(made("kernel/modules/order")).unwrap() + "virtio_blk.ko\n";
        self.add_bytes("lib/modules/order", order.as_bytes());
        self.add_bytes("lib/modules/virtio_blk.ko", &fs::read(made("kernel/virtio_blk.ko")).unwrap());
        self
    }

    fn add_bytes(&mut self, path: &str, content: &[u8]) {
        let folder = self.part();
        let file = folder.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        self.pack(&folder);
    }

    fn part(&self) -> PathBuf {
        let folder = self.scratch.path(&format!("part{}", self.parts.len()));
        fs::create_dir(&folder).unwrap();
        folder
    }

    fn pack(&mut self, folder: &Path) {
        let script = "find . -mindepth 1 | cpio --quiet -R 0:0 -o -H newc";
        let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        self.parts.push(output.stdout);
    }

    /// Boots it; `append` are the words of the kernel's command line after the console's.
    pub(crate) fn boot(self, append: &str) -> Vm {
        let initrd = self.scratch.path("initrd");
        // An archive begins at a multiple of four bytes.
        let mut bytes = Vec::new();
        for part in &self.parts {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        fs::write(&initrd, bytes).unwrap();
        Vm::start(self.scratch, &initrd, self.disk.as_deref(), append)
    }
}

/// A running machine. It is gone when this is dropped.
pub(crate) struct Vm {
    qemu: Child,
    console: Arc<Mutex<String>>,
    port: u16,
    scratch: Scratch,
}

impl Vm {
    fn start(scratch: Scratch, initrd: &Path, disk: Option<&Path>, append: &str) -> Vm {
        let port = free_port();
        let monitor = format!("unix:{},server=on,wait=off", scratch.path("monitor").display());
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-m", "256", "-accel", "tcg"])
            .args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:8080")])
            .args(["-device", "virtio-net-pci,netdev=net,romfile=", "-qmp", &monitor])
            .args(["-append", &format!("console=ttyS0 loglevel=3 panic=-1 {append}")])
            .arg("-kernel")
            .arg(made("kernel/vmlinuz"))
            .arg("-initrd")
            .arg(initrd)
            .args(
                disk.iter()
                    .flat_map(|disk| ["-drive".to_owned(), format!("file={},format=raw,if=virtio", disk.display())]),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(File::create(scratch.path("qemu")).unwrap()))
            .spawn()
            .expect("qemu-system-x86_64 runs");
        let console = Arc::new(Mutex::new(String::new()));
        let (mut serial, shown) = (qemu.stdout.take().unwrap(), Arc::clone(&console));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = serial.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]).replace('\r', "");
                shown.lock().unwrap().push_str(&text);
            }
        });
        Vm { qemu, console, port, scratch }
    }

    /// All that the console has shown.
    pub(crate) fn console(&self) -> String {
        self.console.lock().unwrap().clone()
    }

    /// Waits until the console has shown this.
    #[track_caller]
    pub(crate) fn wait_console(&self, text: &str) {
        let waited = std::panic::Location::caller();
        wait_for(&format!("{waited}: the console shows \"{text}\""), || {
            let console = self.console();
            assert!(!console.contains("Kernel panic"), "{waited}\n{console}");
            console.contains(text).then_some(())
        });
    }

    /// Waits until the machine is off, and gives what its console has shown.
    #[track_caller]
    pub(crate) fn wait_off(&mut self) -> String {
        let status = wait_for("the machine is off", || self.qemu.try_wait().unwrap());
        let errors = fs::read_to_string(self.scratch.path("qemu")).unwrap();
        assert!(status.success(), "{status}: {errors}\n{}", self.console());
        // qemu has written all that there is; the thread may still read it.
        wait_for("the console's last line", || {
            self.console().rsplit_once("reboot: ").is_some_and(|(_, rest)| rest.ends_with('\n')).then_some(())
        });
        let console = self.console();
        assert!(!console.contains("Kernel panic"), "{console}");
        console
    }

    /// Asks whoever listens on port 8080 in the machine.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: &str) -> String {
        wait_for(&format!("an answer to {request:?}"), || {
            assert!(self.qemu.try_wait().unwrap().is_none(), "the machine is off: {}", self.console());
            self.try_to_ask(request).ok().filter(|answer| !answer.is_empty())
        })
    }

    /// The same, once; a machine that is not up yet takes connections and says nothing.
    pub(crate) fn try_to_ask(&self, request: &str) -> io::Result<String> {
        let mut connection = TcpStream::connect_timeout(&local(self.port), Duration::from_secs(1))?;
        connection.set_read_timeout(Some(Duration::from_secs(2)))?;
        connection.write_all(request.as_bytes())?;
        connection.write_all(b"\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Presses the power button.
    pub(crate) fn press_power_button(&self) {
        self.monitor(r#"{"execute":"system_powerdown"}"#);
    }

    /// Types Ctrl-Alt-Del on its keyboard.
    pub(crate) fn press_ctrl_alt_del(&self) {
        let keys = ["ctrl", "alt", "delete"].map(|key| format!(r#"{{"type":"qcode","data":"{key}"}}"#)).join(",");
        self.monitor(&format!(r#"{{"execute":"send-key","arguments":{{"keys":[{keys}]}}}}"#));
    }

    fn monitor(&self, command: &str) {
        let mut monitor = UnixStream::connect(self.scratch.path("monitor")).unwrap();
        monitor.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for command in [r#"{"execute":"qmp_capabilities"}"#, command] {
            monitor.write_all(command.as_bytes()).unwrap();
            let mut answer = String::new();
            while !answer.contains(r#""return""#) {
                let mut bytes = [0; 4096];
                let length = monitor.read(&mut bytes).unwrap();
                assert!(length > 0, "qemu has hung up after {answer:?}");
                answer.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
