//! `rbuild shell`: a shell in the sandbox of a step that failed, or of any step as it was before or after it ran.

use std::io::{IsTerminal as _, stdin, stdout};
use std::rc::Rc;
use std::time::Duration;

use store::directory::{DirectoryId, DirectoryKind, DirectoryRow};
use store::root::{Root, now};
use worker::Worker;
use worker::cdi::Registry;
use worker::container::Prepared;
use worker::exec::Container;
use worker::sandbox::SandboxError;
use worker::source::resolve::{Images, Policy};

use super::{Session, build, print, run};
use crate::agent::Agents;
use crate::cli::ShellArgs;
use crate::failure::{Class, Failure};
use crate::request::{self, Look, Output, OutputKind, When};
use crate::show;

/// `rbuild shell`
pub(crate) fn shell(session: &Session, args: ShellArgs) -> Result<(), Failure> {
    let ShellArgs { before, after, build: mut args, command } = args;
    let look = before.map(|step| (When::Before, step)).or_else(|| after.map(|step| (When::After, step)));
    let Some((when, step)) = look else {
        let id = std::mem::replace(&mut args.context, ".".to_owned());
        if id.is_empty() {
            return list(&session.open()?);
        }
        return kept(session, &id, &build::request(session, args)?, &command);
    };
    if args.context.is_empty() {
        return Err(Failure::usage("give the context of the build whose step is meant"));
    }
    let mut request = build::request(session, args)?;
    request.outputs = vec![Output { kind: OutputKind::CacheOnly, dest: None, options: Default::default() }];
    request.cache_to.clear();
    request.look = Some(Look { when, step, command });
    build::perform(session, &request).map(drop)
}

/// The ID of a kept sandbox, as people see it.
pub(crate) fn name(id: &DirectoryId) -> String {
    id.hex()[..12].to_owned()
}

/// Whether there is a terminal to work at.
pub(crate) fn at_terminal() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

fn list(root: &Root) -> Result<(), Failure> {
    let kept = root.directories().of_kind(DirectoryKind::Sandbox)?;
    let now = now();
    let mut table = vec![["ID", "CREATED", "COMMAND"].map(str::to_owned).to_vec()];
    table.extend(kept.iter().map(|row| {
        let command = show::shorten(&row.description.replace(['\n', '\t'], " "), 60);
        vec![name(&row.id), show::ago(now - row.created), command]
    }));
    print(|out| show::table(out, &table))
}

fn find(root: &Root, id: &str) -> Result<DirectoryRow, Failure> {
    let mut found = root.directories().of_kind(DirectoryKind::Sandbox)?;
    found.retain(|row| row.id.hex().starts_with(id));
    match found.len() {
        0 => Err(Failure::usage(format!("there is no kept sandbox {id:?}")).hint(
            "`rbuild shell` lists them; `rbuild build --on-error=keep` keeps those of steps that fail",
        )),
        1 => Ok(found.remove(0)),
        _ => Err(Failure::usage(format!("more than one sandbox begins with {id:?}"))),
    }
}

fn kept(
    session: &Session,
    id: &str,
    request: &request::BuildRequest,
    command: &[String],
) -> Result<(), Failure> {
    let root = session.open()?;
    let row = find(&root, id)?;
    let gone = || Failure::usage(format!("the sandbox {id} is gone"));
    let directory = root.directories().reopen(row.id)?.ok_or_else(gone)?;
    let client = Rc::new(crate::registry::client(&session.places)?);
    let images = Rc::new(Images::new(root.clone(), client.clone(), Policy::Missing));
    let agents = Agents::new(&root, &request.ssh)?;
    let options = worker::Options {
        secrets: request::secrets(&request.secrets)?,
        agents: agents.sockets.clone(),
        devices: Rc::new(Registry::load(&session.config.device_specs())),
        ..run::options(session, &root, client)
    };
    let worker = Worker::new(root, options, images, Rc::new(|_| {}));
    let code = session.runtime()?.block_on(async {
        let prepared = worker.open_sandbox(directory, command).await.map_err(|error| refused(&error))?;
        enter(prepared).await
    })?;
    ended(code)
}

/// Why a sandbox cannot be opened, for people.
pub(crate) fn refused(error: &SandboxError) -> Failure {
    match error {
        SandboxError::Taken => Failure::usage(error.to_string()),
        SandboxError::Worker(error) => Failure::from_worker(error),
        SandboxError::Pruned(_) => {
            Failure::of(Class::Host, error).hint("build again with --on-error=keep to get another one")
        }
        SandboxError::Unreadable { .. } => Failure::of(Class::Host, error),
    }
}

/// Runs what was prepared with the caller's terminal, or with its streams.
pub(crate) async fn enter(mut prepared: Prepared) -> Result<u8, Failure> {
    let tty = at_terminal();
    if tty && prepared.plan.variable("TERM").is_none() {
        prepared.plan.env.push("TERM=xterm".to_owned());
    }
    let container = Container {
        plan: prepared.plan.clone(),
        io: run::io(tty, true)?,
        publish: Vec::new(),
        stop_signal: 15,
        stop_timeout: Duration::from_secs(10),
    };
    run::to_its_end(container).await
}

/// A shell's own exit code becomes rbuild's.
pub(crate) fn ended(code: u8) -> Result<(), Failure> {
    match code {
        0 => Ok(()),
        code => Err(Failure::new(Class::Exit(code), "")),
    }
}
