//! A pseudo-terminal of a given size for a command, and what is on its screen.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::watch::wait_for;

/// How long a test waits for something to be shown.
const LONG: Duration = Duration::from_secs(60);

/// A command at a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
    emulator: Arc<Mutex<Emulator>>,
}

/// Shows what was written as a terminal does.
struct Emulator(vt100::Parser);

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Emulator")
    }
}

/// What is on a screen.
#[derive(Debug)]
pub struct Screen {
    /// Its lines that are not empty.
    pub lines: Vec<String>,
}

impl std::fmt::Display for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Terminal {
    /// Starts `command`; the terminal is its standard input, output and error, and controls its session.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Self {
        let pty = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a pty can be made");
        grantpt(&pty).expect("a pty can be used");
        unlockpt(&pty).expect("a pty can be used");
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&pty, size).expect("a pty has a size");
        let name = ptsname(&pty, Vec::new()).expect("a pty has a name");
        let name = name.to_str().expect("its name is plain").to_owned();
        let open = || File::options().read(true).write(true).open(&name).expect("a pty can be opened");
        let mut with_session = Command::new("setsid");
        with_session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        with_session.env_clear();
        for (name, value) in command.get_envs() {
            value.map(|value| with_session.env(name, value));
        }
        if let Some(dir) = command.get_current_dir() {
            with_session.current_dir(dir);
        }
        let child =
            with_session.stdin(open()).stdout(open()).stderr(open()).spawn().expect("setsid is installed");
        drop(with_session);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let keyboard = File::from(pty);
        let [tall, wide] = [rows, columns].map(|size| size.try_into().expect("a terminal has a size"));
        let emulator = Arc::new(Mutex::new(Emulator(vt100::Parser::new(tall, wide, 0))));
        let reader = {
            let (shown, emulator) = (shown.clone(), emulator.clone());
            let mut screen = keyboard.try_clone().expect("a descriptor can be copied");
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                // EIO: nobody has the terminal open any more.
                while let Ok(length @ 1..) = screen.read(&mut buffer) {
                    let bytes = &buffer[..length];
                    shown.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
                    emulator.lock().unwrap_or_else(PoisonError::into_inner).0.process(bytes);
                }
            })
        };
        Self { child, keyboard, shown, reader: Some(reader), emulator }
    }

    /// All that was written to the terminal.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// What is on the screen now.
    pub fn screen(&self) -> Screen {
        let emulator = self.emulator.lock().unwrap_or_else(PoisonError::into_inner);
        let screen = emulator.0.screen();
        let lines = screen.rows(0, screen.size().1.get()).map(|line| line.trim_end().to_owned());
        Screen { lines: lines.filter(|line| !line.is_empty()).collect() }
    }

    /// Gives the terminal another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        let [tall, wide] = [rows, columns].map(|size| size.try_into().expect("a terminal has a size"));
        self.emulator.lock().unwrap_or_else(PoisonError::into_inner).0.set_size(tall, wide);
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.keyboard, size).expect("a pty has a size");
    }

    /// Waits until `text` has been written to the terminal.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let found = wait_for(LONG, || self.shown().contains(text));
        assert!(found.is_some(), "{text:?} is not shown:\n{}", self.shown());
    }

    /// Types.
    pub fn send(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("a terminal takes keys");
    }

    /// Waits for the end of the command; all that it wrote, and what is left of it on the screen.
    pub fn end_with_screen(mut self) -> (ExitStatus, String, Screen) {
        let status = self.wait();
        (status, self.shown(), self.screen())
    }

    /// Waits for the end of the command; all that it wrote.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = self.wait();
        (status, self.shown())
    }

    fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("a child can be waited for");
        if let Some(reader) = self.reader.take() {
            let _panicked = reader.join();
        }
        status
    }
}
