//! Instructions that change the config and no file; and WORKDIR, which makes a directory too.

use image::config::{Empty, Healthcheck as Check};
use solver::op::{File, FileAction};
use solver::{Input, Op};

use crate::ast::{Command, Healthcheck, Instruction, Onbuild, Pairs, Span, Word};
use crate::diagnostic::Diagnostic;
use crate::expand;
use crate::suggest;

use super::stage::StageBuilder;
use super::{history, path, ports};

const SIGNALS: [&str; 35] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "UNUSED",
];

impl StageBuilder<'_, '_> {
    fn note(&mut self, text: String) -> Result<(), Diagnostic> {
        self.state.config.history.push(history::config_entry(text));
        Ok(())
    }

    /// `LABEL`.
    pub(super) fn label(&mut self, pairs: &Pairs, span: Span) -> Result<(), Diagnostic> {
        let mut text = "LABEL".to_owned();
        for (name, value) in self.expand_pairs(pairs, span)? {
            text.push_str(&format!(" {name}={value}"));
            self.state.config.config.labels.insert(name, value);
        }
        self.note(text)
    }

    /// `USER`. Whether there is such a user is seen when it is used.
    pub(super) fn user(&mut self, user: &Word, span: Span) -> Result<(), Diagnostic> {
        let user = self.expand(&user.value, span)?;
        let text = format!("USER {user}");
        self.state.config.config.user = user;
        self.note(text)
    }

    /// `WORKDIR`: the directory is made, owned by USER.
    pub(super) fn workdir(
        &mut self,
        word: &Word,
        instruction: &Instruction,
        span: Span,
    ) -> Result<(), Diagnostic> {
        let written = self.expand(&word.value, span)?;
        let workdir = path::absolute(&self.state.workdir, &written);
        self.state.workdir.clone_from(&workdir);
        // As in BuildKit, the config has an absolute path as it is written. Nothing means where we are; an image without
        // a working directory is at its root.
        let config = &mut self.state.config.config.working_dir;
        match written.as_str() {
            "" if config.starts_with('/') => {}
            absolute if absolute.starts_with('/') => written.clone_into(config),
            _ => workdir.clone_into(config),
        }
        let text = format!("WORKDIR {config}");
        if config == "/" {
            return self.note(text);
        }
        let user = &self.state.config.config.user;
        let owner = (!user.is_empty()).then(|| super::copy::owner(user));
        let shown = self.shown(&instruction.original, false);
        let name = self.progress_name(&shown);
        let base = self.state.vertex;
        if let (None, Some(name)) = (base, owner.as_ref().and_then(super::copy::named)) {
            return Err(super::copy::nobody_there("workdir-owner", span, name, false));
        }
        let action = FileAction::Mkdir { path: workdir, mode: 0o755, owner };
        let file = Op::File(File { base: base.map(|_| 0), actions: vec![action] });
        let inputs: Vec<Input> = base.map(|vertex| Input { vertex, selector: None }).into_iter().collect();
        let names = inputs.iter().map(|_| "base".to_owned()).collect();
        let metadata = self.metadata(name, span, names);
        self.state.vertex = Some(self.add_vertex(file, inputs, metadata));
        self.state.config.history.push(history::layer_entry(text));
        Ok(())
    }

    /// `CMD`.
    pub(super) fn cmd(&mut self, command: &Command) -> Result<(), Diagnostic> {
        self.cmd_set = true;
        let args = self.command(command);
        let text = format!("CMD {}", history::quoted_list(&args));
        self.state.config.config.cmd = Some(args);
        // Old Docker engines on Windows look at it; BuildKit sets it with every CMD.
        self.state.config.config.args_escaped = true;
        self.note(text)
    }

    /// `ENTRYPOINT`: a CMD of the base image was meant for another program.
    pub(super) fn entrypoint(&mut self, command: &Command) -> Result<(), Diagnostic> {
        let args = self.command(command);
        let text = format!("ENTRYPOINT {}", history::quoted_list(&args));
        self.state.config.config.entrypoint = Some(args);
        if !self.cmd_set {
            self.state.config.config.cmd = None;
        }
        self.note(text)
    }

    fn command(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell(line) => self.with_shell(line.value.clone()),
        }
    }

    /// `HEALTHCHECK`.
    pub(super) fn healthcheck(&mut self, check: &Healthcheck) -> Result<(), Diagnostic> {
        let check = match check {
            Healthcheck::None => Check { test: vec!["NONE".to_owned()], ..Check::default() },
            Healthcheck::Check { command, interval, timeout, start_period, start_interval, retries } => {
                let test = match command {
                    Command::Shell(line) => vec!["CMD-SHELL".to_owned(), line.value.clone()],
                    Command::Exec(args) => {
                        std::iter::once("CMD".to_owned()).chain(args.iter().cloned()).collect()
                    }
                };
                Check {
                    test,
                    interval: *interval,
                    timeout: *timeout,
                    start_period: *start_period,
                    start_interval: *start_interval,
                    retries: *retries,
                }
            }
        };
        let text = format!("HEALTHCHECK {}", history::healthcheck(&check));
        self.state.config.config.healthcheck = Some(check);
        self.note(text)
    }

    /// `EXPOSE`.
    pub(super) fn expose(&mut self, words: &[Word], span: Span) -> Result<(), Diagnostic> {
        let mut written: Vec<&Word> = words.iter().collect();
        written.sort_by(|a, b| a.value.cmp(&b.value));
        let mut ports = Vec::with_capacity(words.len());
        for word in written {
            let expanded = expand::expand_words(&word.value, self.shared.escape, &self.state.variables)
                .map_err(|error| error.diagnostic(span))?;
            self.warn_undefined(&expanded.unmatched);
            for text in &expanded.words {
                let of_word = ports::parse(text).map_err(|error| {
                    Diagnostic::error("expose", word.span, error.to_string())
                        .with_help("write 1 to 65535, or a range 80-90, and /tcp, /udp or /sctp")
                })?;
                ports.extend(of_word);
            }
        }
        let text = format!("EXPOSE {}", history::list(&ports));
        self.state.config.config.exposed_ports.extend(ports.into_iter().map(|port| (port, Empty {})));
        self.note(text)
    }

    /// `VOLUME`.
    pub(super) fn volume(&mut self, words: &[Word], span: Span) -> Result<(), Diagnostic> {
        let mut paths = Vec::with_capacity(words.len());
        for word in words {
            let path = self.expand(&word.value, span)?;
            if path.trim().is_empty() {
                let message = "VOLUME specified can not be an empty string";
                return Err(Diagnostic::error("blank-volume", word.span, message));
            }
            paths.push(path);
        }
        let text = format!("VOLUME {}", history::list(&paths));
        self.state.config.config.volumes.extend(paths.into_iter().map(|path| (path, Empty {})));
        self.note(text)
    }

    /// `STOPSIGNAL`.
    pub(super) fn stop_signal(&mut self, word: &Word, span: Span) -> Result<(), Diagnostic> {
        let signal = self.expand(&word.value, span)?;
        if !is_signal(&signal) {
            let name = signal.to_uppercase();
            let error = Diagnostic::error("signal", word.span, format!("invalid signal: {signal}"));
            return Err(match suggest::nearest(name.trim_start_matches("SIG"), SIGNALS) {
                Some(near) => error.with_help(format!("did you mean SIG{near}?")),
                None => error.with_help("write a name like SIGTERM or a number"),
            });
        }
        let text = format!("STOPSIGNAL {signal}");
        self.state.config.config.stop_signal = signal;
        self.note(text)
    }

    /// `SHELL`.
    pub(super) fn shell(&mut self, shell: &[String]) -> Result<(), Diagnostic> {
        self.state.config.config.shell = Some(shell.to_vec());
        self.note(format!("SHELL {}", history::list(shell)))
    }

    /// `ONBUILD`: has no history entry.
    pub(super) fn onbuild(&mut self, onbuild: &Onbuild) -> Result<(), Diagnostic> {
        self.state.config.config.on_build.push(onbuild.text.value.clone());
        Ok(())
    }

    /// `MAINTAINER`.
    pub(super) fn maintainer(&mut self, name: &Word) -> Result<(), Diagnostic> {
        self.state.config.author = Some(name.value.clone());
        self.note(format!("MAINTAINER {}", name.value))
    }
}

fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |prefix: &str, limit: u32| {
        name.strip_prefix(prefix).is_some_and(|rest| {
            rest.is_empty() || rest[1..].parse::<u32>().is_ok_and(|n| (1..=limit).contains(&n))
        })
    };
    SIGNALS.contains(&name)
        || (name.starts_with("RTMIN")
            && (name == "RTMIN" || name.starts_with("RTMIN+"))
            && real_time("RTMIN", 15))
        || (name.starts_with("RTMAX")
            && (name == "RTMAX" || name.starts_with("RTMAX-"))
            && real_time("RTMAX", 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_names_or_numbers() {
        for good in ["SIGTERM", "term", "9", "-1", "RTMIN", "SIGRTMIN+3", "RTMAX-14", "SIGUSR1"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["", "0", "SIGNOPE", "RTMIN+16", "RTMIN3", "SIG"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
