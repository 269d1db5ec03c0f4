//! `RUN`.

use solver::Op;
use solver::definition::Metadata;
use solver::op::{Exec, Network, Security, Unkeyed};
use std::collections::BTreeMap;

use crate::ast::{Command, Instruction, Run, Span};
use crate::diagnostic::Diagnostic;
use crate::suggest;

use super::history;
use super::inputs::Inputs;
use super::plan::Origin;
use super::stage::StageBuilder;

/// Where heredoc scripts with a `#!` line are put for the time of the run.
const SCRIPT_DIR: &str = "/dev/pipes";

impl StageBuilder<'_, '_> {
    /// `RUN`: one Exec.
    pub(super) fn run(
        &mut self,
        run: &Run,
        instruction: &Instruction,
        origins: &[Option<Origin>],
        span: Span,
    ) -> Result<(), Diagnostic> {
        let mut shown = instruction.original.trim().to_owned();
        let mut scripts = BTreeMap::new();
        let args = match &run.command {
            Command::Exec(args) => args.clone(),
            Command::Shell(line) => {
                let command = self.shell_line(run, &line.value, &mut shown, &mut scripts);
                self.with_shell(command)
            }
        };

        let root = match self.state.vertex {
            Some(vertex) => vertex,
            None => self.shared.empty(),
        };
        let mut inputs = Inputs::with_base(root);
        let mounts = self.mounts(&run.mounts, origins, &mut inputs)?;
        self.shared.asked.mounts(&mounts, span);
        let network = self.run_network(run)?;
        let security = self.run_security(run)?;
        let devices = self.devices(run)?;

        let mut env = self.state.variables.to_env();
        let socket = mounts.iter().find(|mount| matches!(mount.kind, solver::op::MountKind::Ssh { .. }));
        if let (Some(socket), None) = (socket, self.state.variables.get("SSH_AUTH_SOCK")) {
            env.push(format!("SSH_AUTH_SOCK={}", socket.target));
        }
        let request = self.shared.request;
        let exec = Exec {
            args: args.clone(),
            env,
            cwd: self.state.workdir.clone(),
            user: self.state.config.config.user.clone(),
            mounts,
            network,
            security,
            devices,
            hostname: self.shared.args.given("BUILDKIT_SANDBOX_HOSTNAME").map(str::to_owned),
            extra_hosts: request.extra_hosts.iter().map(|(name, _)| name.clone()).collect(),
            shm_size: request.shm_size,
            ulimits: request.ulimits.clone(),
            cgroup_parent: request.cgroup_parent.clone(),
            scripts,
            platform: self.state.platform.clone(),
            unkeyed: Unkeyed { proxy_env: self.shared.proxy_env.clone(), hosts: request.extra_hosts.clone() },
        };
        let shown = self.shown(&shown, true);
        let name = self.progress_name(&shown);
        let (inputs, names) = inputs.finish();
        let metadata = Metadata { arg_names: self.arg_names(), ..self.metadata(name, span, names) };
        self.state.vertex = Some(self.add_vertex(Op::Exec(exec), inputs, metadata));
        let text = self.history_text(&args);
        self.state.config.history.push(history::step_entry(text));
        Ok(())
    }

    /// The command line for the shell. Scripts that must be files are put into `scripts`.
    fn shell_line(
        &self,
        run: &Run,
        line: &str,
        shown: &mut String,
        scripts: &mut BTreeMap<String, String>,
    ) -> String {
        match &run.heredocs[..] {
            [] => line.to_owned(),
            [only] if line.trim() == only.word.value.trim() => {
                let script = only.text();
                shown.push_str(&format!(" ({})", summary(&script)));
                if !script.starts_with("#!") || self.state.config.os == "windows" {
                    return script.into_owned();
                }
                let path = format!("{SCRIPT_DIR}/{}", only.name);
                scripts.insert(path.clone(), script.into_owned());
                path
            }
            // The shell understands heredocs itself: put it back together.
            heredocs => {
                let mut text = line.to_owned();
                for heredoc in heredocs {
                    text.push('\n');
                    text.push_str(&heredoc.content);
                    text.push_str(&heredoc.name);
                }
                text
            }
        }
    }

    /// A command line as arguments of the shell in force.
    pub(super) fn with_shell(&self, line: String) -> Vec<String> {
        let config = &self.state.config;
        let mut args = match &config.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ if config.os == "windows" => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
            _ => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        };
        args.push(line);
        args
    }

    /// The variables whose values a RUN has from ARG.
    fn arg_names(&self) -> Vec<String> {
        let state = &self.state;
        let from_arg = |name: &&str| {
            let value = state.variables.get(name);
            value.is_some() && state.image_env.get(name) != value
        };
        state.args.names().filter(from_arg).map(str::to_owned).collect()
    }

    /// `RUN |1 A=b /bin/sh -c make`: ARGs in scope, with the values that this RUN sees.
    fn history_text(&self, args: &[String]) -> String {
        let declared: Vec<&str> = self.state.args.names().collect();
        let mut text = "RUN".to_owned();
        if !declared.is_empty() {
            text.push_str(&format!(" |{}", declared.len()));
        }
        for name in declared {
            let value = self.state.variables.get(name).or_else(|| self.state.args.get(name)).unwrap_or("");
            text.push_str(&format!(" {name}={value}"));
        }
        for arg in args {
            text.push(' ');
            text.push_str(arg);
        }
        text
    }

    fn run_network(&self, run: &Run) -> Result<Network, Diagnostic> {
        let Some(word) = &run.network else { return Ok(self.shared.request.network) };
        match word.value.as_str() {
            "default" => Ok(self.shared.request.network),
            "none" => Ok(Network::None),
            "host" => {
                if self.shared.request.network != Network::Host {
                    self.allowed("network.host", word.span)?;
                }
                Ok(Network::Host)
            }
            other => {
                let message = format!("unsupported network mode {other:?}");
                let error = Diagnostic::error("network", word.span, message);
                Err(suggest::help(error, other, ["default", "none", "host"]))
            }
        }
    }

    fn run_security(&self, run: &Run) -> Result<Security, Diagnostic> {
        let Some(word) = &run.security else { return Ok(Security::Sandbox) };
        match word.value.as_str() {
            "sandbox" => Ok(Security::Sandbox),
            "insecure" => {
                self.allowed("security.insecure", word.span)?;
                Ok(Security::Insecure)
            }
            other => {
                let message = format!("unsupported security mode {other:?}");
                let error = Diagnostic::error("security", word.span, message);
                Err(suggest::help(error, other, ["sandbox", "insecure"]))
            }
        }
    }

    fn allowed(&self, entitlement: &'static str, span: Span) -> Result<(), Diagnostic> {
        if self.shared.request.allow.iter().any(|allow| allow == entitlement) {
            return Ok(());
        }
        Err(Diagnostic::error("not-allowed", span, format!("{entitlement} is not allowed"))
            .with_help(format!("allow it with --allow {entitlement}")))
    }
}

/// The first line of a script, and whether there is more.
fn summary(script: &str) -> String {
    let script = script.trim();
    match script.split_once('\n') {
        Some((first, _)) => format!("{}...", first.trim_end_matches('\r')),
        None => script.to_owned(),
    }
}
